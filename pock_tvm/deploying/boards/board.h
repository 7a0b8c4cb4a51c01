/* What main.c asks of a board: text, a file, an end. Here by semihosting: a debugger or an emulator does them. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  uintptr_t handle;
} board_file;

void board_print(const char *text);

/* Open a file of the host's to read it, or a new one to write it. Returns whether it is open: BOARD_MISSING if there is
   none to read. */
enum { BOARD_OPEN, BOARD_MISSING, BOARD_FAILED };
int board_open(board_file *file, const char *name, int is_new);
size_t board_bytes(const board_file *file);

/* Read at an offset, or write at the end; as pock_read_state and pock_write_state call them. 0, or not if it failed. */
int board_read(void *file, size_t offset, void *data, size_t bytes);
int board_write(void *file, const void *data, size_t bytes);

int board_close(board_file *file);
int board_rename(const char *name, const char *other); /* replaces that one */

/* The most bytes of stack that were in use since the start. */
size_t board_stack_bytes(void);

#endif
