/* What main.c asks of a board: text, a file, an end. Here by semihosting: a debugger or an emulator does them. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>

void board_print(const char *text);

/* Read a file of the host of at most so many bytes. Returns how many there were, 0 if there is none, -1 on failure. */
long board_read_file(const char *name, void *to, size_t most);

/* Write a file on the host under another name first: a crash leaves the old one. Returns whether that succeeded. */
int board_write_file(const char *name, const char *other, const void *data, size_t bytes);

/* The most bytes of stack that were in use since the start. */
size_t board_stack_bytes(void);

#endif
