/* Start of a program, and its files, by Linux's system calls: without a C library, as qemu-hexagon runs it. */
#include "board.h"

#include <stdint.h>
#include <string.h>

#define STACK_BYTES 65536
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define UNUSED_STACK 0xA5A5A5A5u

enum { RENAME = 276, OPEN = 56, CLOSE = 57, SEEK = 62, READ = 63, WRITE = 64, EXIT = 94 };
enum { READ_ONLY = 0, NEW = 01 | 0100 | 01000, ALL_MAY_READ = 0644, FROM_START = 0, FROM_END = 2 };
enum { THIS_FOLDER = -100, NO_SUCH_FILE = -2 };

int main(void);
void board_start(void);

_Alignas(128) uint32_t board_stack[STACK_BYTES / sizeof(uint32_t)];
__asm__(".globl _start\n_start:\n\t{ r29 = ##(board_stack + " TEXT(STACK_BYTES) ") }\n\t{ r30 = #0 }\n\t{ call board_start }\n");

static int ask(int what, int a, int b, int c, int d, int e) {
  register int r6 __asm__("r6") = what;
  register int r0 __asm__("r0") = a;
  register int r1 __asm__("r1") = b;
  register int r2 __asm__("r2") = c;
  register int r3 __asm__("r3") = d;
  register int r4 __asm__("r4") = e;
  __asm__ volatile("trap0(#1)" : "+r"(r0) : "r"(r6), "r"(r1), "r"(r2), "r"(r3), "r"(r4) : "memory");
  return r0;
}

void board_print(const char *text) { ask(WRITE, 1, (int)text, (int)strlen(text), 0, 0); }

int board_open(board_file *file, const char *name, int is_new) {
  int found = ask(OPEN, THIS_FOLDER, (int)name, is_new ? NEW : READ_ONLY, ALL_MAY_READ, 0);
  file->handle = (uintptr_t)found;
  if (found >= 0) return BOARD_OPEN;
  return found == NO_SUCH_FILE ? BOARD_MISSING : BOARD_FAILED;
}

static int64_t seek(const board_file *file, size_t offset, int from) {
  int64_t place = -1;
  return ask(SEEK, (int)file->handle, 0, (int)offset, (int)&place, from) ? -1 : place;
}

size_t board_bytes(const board_file *file) {
  int64_t bytes = seek(file, 0, FROM_END);
  return bytes < 0 ? 0 : (size_t)bytes;
}

/* Move all bytes, in as many pieces as the system likes. */
static int move(int what, const board_file *file, uintptr_t data, size_t bytes) {
  while (bytes) {
    int moved = ask(what, (int)file->handle, (int)data, (int)bytes, 0, 0);
    if (moved <= 0) return 1;
    data += (size_t)moved, bytes -= (size_t)moved;
  }
  return 0;
}

int board_read(void *file, size_t offset, void *data, size_t bytes) {
  return seek(file, offset, FROM_START) < 0 || move(READ, file, (uintptr_t)data, bytes);
}

int board_write(void *file, const void *data, size_t bytes) { return move(WRITE, file, (uintptr_t)data, bytes); }

int board_close(board_file *file) { return ask(CLOSE, (int)file->handle, 0, 0, 0, 0) != 0; }

int board_rename(const char *name, const char *other) {
  return ask(RENAME, THIS_FOLDER, (int)name, THIS_FOLDER, (int)other, 0) != 0;
}

size_t board_stack_bytes(void) {
  size_t unused = 0;
  while (unused < sizeof board_stack && board_stack[unused / sizeof *board_stack] == UNUSED_STACK) unused += sizeof *board_stack;
  return sizeof board_stack - unused;
}

void board_start(void) {
  uint32_t *here = (uint32_t *)__builtin_frame_address(0) - 64;
  for (volatile uint32_t *at = board_stack; at < here; at++) *at = UNUSED_STACK;
  ask(EXIT, main(), 0, 0, 0, 0);
  for (;;) {
  }
}
