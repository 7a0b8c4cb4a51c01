/* The state of training as a file, which is written and read in pieces. */
#ifndef POCK_STATE_H
#define POCK_STATE_H

#include <stddef.h>
#include <stdint.h>

#define POCK_PIECE_BYTES 256 /* of a state that is written or read in pieces */
#define POCK_MOST_AXES 16
enum { POCK_STEPS, POCK_UPDATES, POCK_PENDING, POCK_SEED, POCK_COUNTS };

/* A tensor of a state: where its record is in the header's template, and where its values are in memory. */
typedef struct {
  size_t name, name_bytes; /* its name in the header */
  size_t form_bytes;       /* of its record, up to its offsets */
  size_t sum;              /* its CRC-32 in the header */
  size_t place, items, item_bytes;
  size_t run;              /* items that lie side by side in memory as in the file */
  uint32_t rank;           /* axes of runs, at most POCK_MOST_AXES */
  const uint32_t *shape;   /* in the file; behind it, for each axis, the distance of neighbours in memory, in items */
} pock_tensor;

/* A member of the metadata: where its key is in the header's template. */
typedef struct {
  size_t key, key_bytes;
  size_t value_bytes; /* 0 if states differ in it */
} pock_field;

/* The form of this network's states: a safetensors header, and the tensors in the order of the file. */
typedef struct {
  const unsigned char *header; /* with its length in front, and zeros for all that differs between states */
  size_t header_bytes;
  const pock_field *fields; /* without checksums; the counts come last */
  size_t field_count;
  size_t counts[POCK_COUNTS], sum; /* where the numbers are, and the header's own CRC-32 */
  size_t count_count;              /* all, or without the seed where steps draw no numbers */
  const pock_tensor *tensors;
  size_t tensor_count;
  uint32_t accumulate; /* steps that share an update */
} pock_state;

enum {
  POCK_STATE_OK,
  POCK_STATE_DAMAGED,
  POCK_STATE_OTHER,
  POCK_STATE_UNREAD, /* `read` failed: nothing has changed */
  POCK_STATE_LOST    /* `read` failed or gave something else when it was asked again: a part has changed */
};

/* Write a state in pieces: all of POCK_PIECE_BYTES but the last. Returns what `write` returns where that is not 0. */
int pock_put_state(
    const pock_state *form, const unsigned char *memory, const uint64_t *counts,
    int (*write)(void *to, const void *data, size_t bytes), void *to);

/* Check a whole state of some bytes against its form, then read it again to fill memory and counts. */
int pock_take_state(
    const pock_state *form, unsigned char *memory, uint64_t *counts,
    int (*read)(void *from, size_t offset, void *data, size_t bytes), void *from, size_t bytes);

#endif
