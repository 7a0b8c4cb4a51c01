/* Threads for kernels: a pool for each instance, with POSIX threads. */
#include "pock_runtime.h"

#if POCK_THREADS > 1
typedef struct {
  void *sync_handle;
  int32_t num_task;
} environment;

static _Thread_local pock_pool *current;

static void *run(void *argument) {
  struct pock_worker *worker = argument;
  pock_pool *pool = worker->pool;
  unsigned seen = 0;
  pthread_mutex_lock(&pool->lock);
  for (;;) {
    while (pool->round == seen && !pool->stop) pthread_cond_wait(&pool->begin, &pool->lock);
    if (pool->stop) break;
    seen = pool->round;
    environment all = {NULL, pool->tasks};
    pthread_mutex_unlock(&pool->lock);
    pool->work(worker->number, &all, pool->data);
    pthread_mutex_lock(&pool->lock);
    if (!--pool->busy) pthread_cond_signal(&pool->end);
  }
  pthread_mutex_unlock(&pool->lock);
  return NULL;
}

/* Run a kernel's body on all threads; `tasks` is how many it wants at most, 0 for all. */
static int launch(int (*work)(int, void *, void *), void *data, int tasks) {
  pock_pool *pool = current;
  environment one = {NULL, 1}, all = {NULL, POCK_THREADS};
  if (!pool || tasks == 1) return work(0, &one, data);
  pthread_mutex_lock(&pool->lock);
  pool->work = work;
  pool->data = data;
  pool->tasks = POCK_THREADS;
  pool->busy = POCK_THREADS - 1;
  pool->round++;
  pthread_cond_broadcast(&pool->begin);
  pthread_mutex_unlock(&pool->lock);
  work(0, &all, data);
  pthread_mutex_lock(&pool->lock);
  while (pool->busy) pthread_cond_wait(&pool->end, &pool->lock);
  pthread_mutex_unlock(&pool->lock);
  return 0;
}

extern int (*const __TVMBackendParallelLaunch)(int (*)(int, void *, void *), void *, int);
int (*const __TVMBackendParallelLaunch)(int (*)(int, void *, void *), void *, int) = launch;

int pock_start_threads(pock_pool *pool) {
  if (pthread_mutex_init(&pool->lock, NULL) || pthread_cond_init(&pool->begin, NULL) ||
      pthread_cond_init(&pool->end, NULL))
    return 1;
  for (int i = 0; i < POCK_THREADS - 1; i++) {
    struct pock_worker *worker = pool->workers + i;
    worker->pool = pool;
    worker->number = i + 1;
    if (pthread_create(&worker->thread, NULL, run, worker)) {
      pock_stop_threads(pool);
      return 1;
    }
    pool->started++;
  }
  return 0;
}

void pock_stop_threads(pock_pool *pool) {
  pthread_mutex_lock(&pool->lock);
  pool->stop = 1;
  pthread_cond_broadcast(&pool->begin);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
  pthread_mutex_destroy(&pool->lock);
  pthread_cond_destroy(&pool->begin);
  pthread_cond_destroy(&pool->end);
}

void pock_use_threads(pock_pool *pool) { current = pool; }
#endif
