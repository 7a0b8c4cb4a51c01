/* The kernels of this network. Each returns 0, or -1 if it got no threads. */
#ifndef POCK_KERNELS_H
#define POCK_KERNELS_H

#include <stdint.h>

/* What a task of a parallel loop is told: how many tasks there are. TVM's runtime has the same. */
typedef struct {
    void *sync_handle;
    int32_t num_task;
} pock_group;

typedef int pock_task(int task, pock_group *group, void *data);

/* Run `task` for 0, 1, ... group->num_task - 1, in any order, on as many threads as there are; 0 if all returned 0.
 * `tasks` is how many there are to be: 0 leaves the choice. */
int pock_launch(pock_task *task, void *data, int tasks);

/* The iterations of a loop that one task runs. */
static inline void pock_share(int task, const pock_group *group, int32_t iterations, int32_t *first, int32_t *end)
{
    const int32_t most = (iterations + group->num_task - 1) / group->num_task;
    *first = task * most < iterations ? task * most : iterations;
    *end = iterations - *first < most ? iterations : *first + most;
}

/* @prototypes@ */

#endif
