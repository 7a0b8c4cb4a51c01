#include "pock_runtime.h"

#include <string.h>

#include "pock_kernels.h"

/* A number is finite if its exponent is below the largest. Integers are compared: compilers fold x == x. */
#define ALL_FINITE(name, type, magnitude, infinity)                  \
  static type largest_##name(const type *bits, size_t count) {       \
    type largest = 0;                                                \
    for (size_t i = 0; i < count; i++) {                             \
      type found = bits[i] & (type)(magnitude);                      \
      largest = found > largest ? found : largest;                   \
    }                                                                \
    return largest;                                                  \
  }                                                                  \
  int pock_all_finite_##name(const void *numbers, size_t count) {    \
    return largest_##name(numbers, count) < (type)(infinity);        \
  }
ALL_FINITE(float16, uint16_t, 0x7fff, 0x7c00)
ALL_FINITE(bfloat16, uint16_t, 0x7fff, 0x7f80)
ALL_FINITE(float32, uint32_t, 0x7fffffff, 0x7f800000)
ALL_FINITE(float64, uint64_t, 0x7fffffffffffffff, 0x7ff0000000000000)

int pock_all_factors(const void *numbers, size_t count, const void *others, size_t other_count) {
  uint32_t bits[2] = {largest_float32(numbers, count), largest_float32(others, other_count)};
  float largest[2];
  if (bits[0] >= 0x7f800000 || bits[1] >= 0x7f800000) return 0;
  memcpy(largest, bits, sizeof largest);
  return (double)largest[0] * largest[1] * (count < other_count ? count : other_count) < 1.7014118346046923e38; /* 2^127 */
}

uint32_t pock_crc32(uint32_t before, const void *data, size_t bytes) {
  static const uint32_t table[16] = {
      0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
      0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
  const unsigned char *at = data;
  uint32_t crc = ~before;
  for (size_t i = 0; i < bytes; i++) {
    crc ^= at[i];
    crc = (crc >> 4) ^ table[crc & 15];
    crc = (crc >> 4) ^ table[crc & 15];
  }
  return ~crc;
}

double pock_power(double base, uint64_t exponent) {
  double result = 1;
  for (; exponent; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

double pock_square_root(double number) {
  uint64_t bits;
  double root;
  memcpy(&bits, &number, sizeof bits);
  bits = (bits >> 1) + ((uint64_t)0x1ff8 << 48); /* halves the exponent: within 7 % */
  memcpy(&root, &bits, sizeof root);
  for (int i = 0; i < 5; i++) root = 0.5 * (root + number / root); /* Newton: each doubles the digits */
  return root;
}

void pock_append(char *buffer, size_t bytes, const char *text) {
  size_t at = strlen(buffer);
  while (*text && at + 1 < bytes) buffer[at++] = *text++;
  buffer[at] = 0;
}

void pock_append_number(char *buffer, size_t bytes, int64_t number) {
  char digits[24], *at = digits + sizeof digits;
  uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
  *--at = 0;
  do *--at = (char)('0' + rest % 10);
  while (rest /= 10);
  if (number < 0) *--at = '-';
  pock_append(buffer, bytes, at);
}

/* ---- kernels that run on several threads ------------------------------------------------------------------------ */

#if POCK_THREADS == 1
int pock_launch(pock_task *task, void *data, int tasks) {
  pock_group one = {NULL, 1};
  (void)tasks; /* kernels share their work among as many as they are told */
  return task(0, &one, data);
}
#endif

/* The pointer through which kernels that are objects launch their parallel loops. They define it, too, weakly. Windows
   keeps any one of the definitions: there it is set at run time, always to the same. */
typedef int pock_launcher(pock_task *task, void *data, int tasks);
#ifdef _WIN32
__declspec(selectany) pock_launcher *__TVMBackendParallelLaunch = pock_launch;
void pock_connect_kernels(void) { __TVMBackendParallelLaunch = pock_launch; }
#else
extern pock_launcher *const __TVMBackendParallelLaunch;
pock_launcher *const __TVMBackendParallelLaunch = pock_launch;
void pock_connect_kernels(void) {}
#endif
