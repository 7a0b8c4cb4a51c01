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

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_EXIT = 0x18 };
enum { WRITE_BINARY = 5, EXITED = 0x20026, FAILED = 0x20023 };

static uintptr_t ask_host(uintptr_t what, uintptr_t argument) {
  register uintptr_t r0 __asm__("r0") = what;
  register uintptr_t r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void board_print(const char *text) { ask_host(SYS_WRITE0, (uintptr_t)text); }

int board_write_file(const char *name, const void *data, size_t bytes) {
  uintptr_t open[] = {(uintptr_t)name, WRITE_BINARY, strlen(name)};
  uintptr_t file = ask_host(SYS_OPEN, (uintptr_t)open);
  if (file == (uintptr_t)-1) return 0;
  uintptr_t write[] = {file, (uintptr_t)data, bytes}, close[] = {file};
  uintptr_t left = ask_host(SYS_WRITE, (uintptr_t)write);
  return !ask_host(SYS_CLOSE, (uintptr_t)close) && !left;
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
