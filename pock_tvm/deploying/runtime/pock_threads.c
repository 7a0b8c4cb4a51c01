/* Threads for kernels: a pool for each instance, with POSIX threads. They spin for a while before they sleep, for the
   next kernel mostly comes within microseconds. They never yield: beside a busy process that costs a thread some
   milliseconds, and at each kernel of a step. */
#include "pock_runtime.h"

#if POCK_THREADS > 1
#include "pock_kernels.h"

#define SPINS 2000 /* looks before a thread sleeps: some ten microseconds, which waking one takes, too */

static _Thread_local pock_pool *current;

static void wait_a_little(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

/* Wait for a round of work after `seen`, and return it. */
static unsigned next_round(pock_pool *pool, unsigned seen) {
  for (int turn = 0; turn < SPINS; turn++, wait_a_little()) {
    unsigned round = atomic_load(&pool->round);
    if (round != seen) return round;
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->asleep, 1);
  while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
  atomic_fetch_sub(&pool->asleep, 1);
  pthread_mutex_unlock(&pool->lock);
  return atomic_load(&pool->round);
}

/* Wait until all workers are done. */
static void end_round(pock_pool *pool) {
  for (int turn = 0; turn < SPINS; turn++, wait_a_little()) {
    if (!atomic_load(&pool->busy)) return;
  }
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->is_awaited, 1);
  while (atomic_load(&pool->busy)) pthread_cond_wait(&pool->done, &pool->lock);
  atomic_store(&pool->is_awaited, 0);
  pthread_mutex_unlock(&pool->lock);
}

/* Count a worker that is done. The last one wakes whoever has fallen asleep over it. */
static void leave_round(pock_pool *pool) {
  if (atomic_fetch_sub(&pool->busy, 1) > 1 || !atomic_load(&pool->is_awaited)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_signal(&pool->done);
  pthread_mutex_unlock(&pool->lock);
}

/* Begin a round. Whoever falls asleep counts itself before it looks for the last time, so that none is forgotten. */
static void begin_round(pock_pool *pool, unsigned steps) {
  atomic_fetch_add(&pool->round, steps);
  if (!atomic_load(&pool->asleep)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

static void *run(void *argument) {
  struct pock_worker *worker = argument;
  pock_pool *pool = worker->pool;
  pock_group all = {NULL, POCK_THREADS};
  for (unsigned round = 0;;) {
    round = next_round(pool, round);
    if (round & 1) return NULL;
    pool->work(worker->number, &all, pool->data);
    leave_round(pool);
  }
}

/* Run a kernel's body on all threads; `tasks` is how many it wants at most, 0 for all. */
int pock_launch(pock_task *task, void *data, int tasks) {
  pock_pool *pool = current;
  pock_group one = {NULL, 1}, all = {NULL, POCK_THREADS};
  if (!pool || tasks == 1) return task(0, &one, data);
  pool->work = task;
  pool->data = data;
  atomic_store(&pool->busy, POCK_THREADS - 1);
  begin_round(pool, 2);
  task(0, &all, data);
  end_round(pool);
  return 0;
}

int pock_start_threads(pock_pool *pool) {
  if (pthread_mutex_init(&pool->lock, NULL)) return 1;
  if (pthread_cond_init(&pool->wake, NULL) || pthread_cond_init(&pool->done, NULL)) return 1;
  for (; pool->started < POCK_THREADS - 1; pool->started++) {
    struct pock_worker *worker = pool->workers + pool->started;
    worker->pool = pool;
    worker->number = pool->started + 1;
    if (pthread_create(&worker->thread, NULL, run, worker)) {
      pock_stop_threads(pool);
      return 1;
    }
  }
  return 0;
}

void pock_stop_threads(pock_pool *pool) {
  begin_round(pool, 1);
  for (int i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
  pthread_mutex_destroy(&pool->lock);
  pthread_cond_destroy(&pool->wake);
  pthread_cond_destroy(&pool->done);
}

void pock_use_threads(pock_pool *pool) { current = pool; }
#endif
