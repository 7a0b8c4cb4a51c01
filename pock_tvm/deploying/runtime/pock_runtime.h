/* What every network's bundle shares: checks, checksums, optimizers' arithmetic, threads. */
#ifndef POCK_RUNTIME_H
#define POCK_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifndef POCK_THREADS
#define POCK_THREADS 1 /* threads of each instance; more than one needs pock_threads.c and POSIX threads */
#endif

/* Whether all numbers are finite. */
int pock_all_finite_float16(const void *numbers, size_t count);
int pock_all_finite_bfloat16(const void *numbers, size_t count);
int pock_all_finite_float32(const void *numbers, size_t count);
int pock_all_finite_float64(const void *numbers, size_t count);
/* Whether no sum of products of numbers of two float32 arrays can overflow. */
int pock_all_factors(const void *numbers, size_t count, const void *others, size_t other_count);

/* The CRC-32 (ISO 3309, as zlib) of some bytes that follow others, whose CRC-32 is `before`; 0 at the beginning. */
uint32_t pock_crc32(uint32_t before, const void *data, size_t bytes);

double pock_power(double base, uint64_t exponent);
double pock_square_root(double number); /* of a normal positive number */

/* Append text to a string in a buffer; what does not fit is left out. */
void pock_append(char *buffer, size_t bytes, const char *text);
void pock_append_number(char *buffer, size_t bytes, int64_t number);

void pock_connect_kernels(void); /* before the first kernel is called */

#if POCK_THREADS > 1
#include <pthread.h>
#include <stdatomic.h>

/* Threads of an instance. The calling thread is the first of them. */
typedef struct {
  pthread_mutex_t lock; /* for those that sleep */
  pthread_cond_t wake, done;
  int (*work)(int, void *, void *);
  void *data;
  atomic_uint round; /* of work; odd ones end the threads */
  atomic_uint busy, asleep, is_awaited;
  int started;
  struct pock_worker {
    void *pool;
    int number;
    pthread_t thread;
  } workers[POCK_THREADS - 1];
} pock_pool;

int pock_start_threads(pock_pool *pool); /* 0, or an error, after which no thread is left */
void pock_stop_threads(pock_pool *pool);
void pock_use_threads(pock_pool *pool); /* for the kernels that the calling thread calls from now on */
#endif

#endif
