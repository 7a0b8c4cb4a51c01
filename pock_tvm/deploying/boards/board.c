/* Start of a Cortex-M with a floating-point unit, and semihosting. */
#include "board.h"

#include <stdint.h>
#include <string.h>

extern uint32_t board_data_load[], board_data[], board_data_end[], board_bss[], board_bss_end[];
extern uint32_t board_stack[], board_stack_top[];
int main(void);
void board_reset(void);

#define CPACR (*(volatile uint32_t *)0xE000ED88) /* access to coprocessors: 10 and 11 are floating point */
#define UNUSED_STACK 0xA5A5A5A5u

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_SEEK = 0x0A };
enum { SYS_FLEN = 0x0C, SYS_RENAME = 0x0F, SYS_ERRNO = 0x13, SYS_EXIT = 0x18 };
enum { READ_BINARY = 1, WRITE_BINARY = 5, NO_SUCH_FILE = 2, EXITED = 0x20026, FAILED = 0x20023 };

static uintptr_t ask_host(uintptr_t what, uintptr_t argument) {
  register uintptr_t r0 __asm__("r0") = what;
  register uintptr_t r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void board_print(const char *text) { ask_host(SYS_WRITE0, (uintptr_t)text); }

int board_open(board_file *file, const char *name, int is_new) {
  uintptr_t open[] = {(uintptr_t)name, is_new ? WRITE_BINARY : READ_BINARY, strlen(name)};
  file->handle = ask_host(SYS_OPEN, (uintptr_t)open);
  if (file->handle != (uintptr_t)-1) return BOARD_OPEN;
  return ask_host(SYS_ERRNO, 0) == NO_SUCH_FILE ? BOARD_MISSING : BOARD_FAILED;
}

size_t board_bytes(const board_file *file) { return ask_host(SYS_FLEN, (uintptr_t)file); }

int board_read(void *file, size_t offset, void *data, size_t bytes) {
  uintptr_t handle = ((board_file *)file)->handle;
  uintptr_t seek[] = {handle, offset}, read[] = {handle, (uintptr_t)data, bytes};
  return ask_host(SYS_SEEK, (uintptr_t)seek) || ask_host(SYS_READ, (uintptr_t)read); /* the bytes that are missing */
}

int board_write(void *file, const void *data, size_t bytes) {
  uintptr_t write[] = {((board_file *)file)->handle, (uintptr_t)data, bytes};
  return ask_host(SYS_WRITE, (uintptr_t)write) != 0;
}

int board_close(board_file *file) { return ask_host(SYS_CLOSE, (uintptr_t)file) != 0; }

int board_rename(const char *name, const char *other) {
  uintptr_t rename[] = {(uintptr_t)name, strlen(name), (uintptr_t)other, strlen(other)};
  return ask_host(SYS_RENAME, (uintptr_t)rename) != 0;
}

size_t board_stack_bytes(void) {
  const uint32_t *at = board_stack;
  while (at < board_stack_top && *at == UNUSED_STACK) at++;
  return (size_t)((const char *)board_stack_top - (const char *)at);
}

static void fault(void) {
  board_print("fault: the stack is too small, or an address is wrong\n");
  ask_host(SYS_EXIT, FAILED);
  for (;;) {
  }
}

/* Volatile: what runs before .data and .bss exist must not become a call of memcpy or memset. */
__attribute__((noreturn)) void board_reset(void) {
  CPACR |= 0xFu << 20;
  __asm__ volatile("dsb\n\tisb");
  for (volatile uint32_t *at = board_stack; at < (uint32_t *)__builtin_frame_address(0) - 16; at++) *at = UNUSED_STACK;
  const uint32_t *from = board_data_load;
  for (volatile uint32_t *at = board_data; at < board_data_end;) *at++ = *from++;
  for (volatile uint32_t *at = board_bss; at < board_bss_end;) *at++ = 0;
  ask_host(SYS_EXIT, main() ? FAILED : EXITED);
  for (;;) {
  }
}

/* In this order: stack, reset, NMI, hard fault, memory, bus, usage, secure fault; calls of a system, which none makes. */
__attribute__((section(".vectors"), used)) static const uintptr_t vectors[16] = {
    (uintptr_t)board_stack_top, (uintptr_t)board_reset, (uintptr_t)fault, (uintptr_t)fault, (uintptr_t)fault,
    (uintptr_t)fault, (uintptr_t)fault, (uintptr_t)fault, 0, 0, 0, (uintptr_t)fault, (uintptr_t)fault, 0,
    (uintptr_t)fault, (uintptr_t)fault};
