/* What main.c asks of a board: text, a file, an end. Here by semihosting: a debugger or an emulator does them. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>

void board_print(const char *text);

/* Write a file on the host. Returns whether that succeeded. */
int board_write_file(const char *name, const void *data, size_t bytes);

/* The most bytes of stack that were in use since the start. */
size_t board_stack_bytes(void);

#endif
