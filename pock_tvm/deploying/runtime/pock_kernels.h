/* The kernels of this network. Each returns 0, or -1 if it got no threads. */
#ifndef POCK_KERNELS_H
#define POCK_KERNELS_H

#include <stdint.h>

/* A task of a parallel loop. What it gets as `group` begins with a pock_group, as in TVM's runtime. */
typedef int pock_task(int task, void *group, void *data);

typedef struct {
    void *sync_handle;
    int32_t num_task; /* how many tasks the loop has */
} pock_group;

/* Run a loop as tasks 0, 1, ... num_task - 1, on as many threads as there are: 0 if all returned 0. `tasks` is how many
 * there are to be; 0 leaves the choice. */
int pock_launch(pock_task *task, void *data, int tasks);

/* The iterations of a loop that one task runs. */
static inline void pock_share(int task, const void *group, int32_t iterations, int32_t *first, int32_t *end)
{
    const int32_t tasks = ((const pock_group *)group)->num_task;
    const int32_t most = (iterations + tasks - 1) / tasks;
    const int32_t before = (int32_t)task * most;
    *first = before < iterations ? before : iterations;
    *end = iterations - *first < most ? iterations : *first + most;
}

/* @prototypes@ */

#endif
