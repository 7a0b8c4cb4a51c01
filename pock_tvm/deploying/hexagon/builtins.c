/* Functions that compilers for Hexagon call where it has no instruction, and that only come with a C library there:
   divisions, roots, products of doubles, copies. Compiled with -fno-builtin, or they would call themselves. */
#include <stddef.h>
#include <stdint.h>

/* ---- float32: Newton's method from the processor's estimates, correctly rounded --------------------------------- */

#define MULTIPLY_ADD __builtin_HEXAGON_F2_sffma_lib      /* a + b * c */
#define MULTIPLY_SUBTRACT __builtin_HEXAGON_F2_sffms_lib /* a - b * c */

float __hexagon_divsf3(float a, float b) {
  float inverse;
  int scale; /* what the fix-ups took from the exponents */
  __asm__("{ %0, p0 = sfrecipa(%2, %3) }\n\t{ %1 = p0 }" : "=&r"(inverse), "=r"(scale) : "r"(a), "r"(b) : "p0");
  float n = __builtin_HEXAGON_F2_sffixupn(a, b), d = __builtin_HEXAGON_F2_sffixupd(a, b);
  inverse = MULTIPLY_ADD(inverse, MULTIPLY_SUBTRACT(1, d, inverse), inverse);
  inverse = MULTIPLY_ADD(inverse, MULTIPLY_SUBTRACT(1, d, inverse), inverse);
  float quotient = MULTIPLY_ADD(__builtin_copysignf(0, n), n, inverse);
  quotient = MULTIPLY_ADD(quotient, MULTIPLY_SUBTRACT(n, quotient, d), inverse);
  return __builtin_HEXAGON_F2_sffma_sc(quotient, MULTIPLY_SUBTRACT(n, quotient, d), inverse, scale);
}

float __hexagon_sqrtf(float x) {
  float inverse;
  int scale;
  __asm__("{ %0, p0 = sfinvsqrta(%2) }\n\t{ %1 = p0 }" : "=&r"(inverse), "=r"(scale) : "r"(x) : "p0");
  float n = __builtin_HEXAGON_F2_sffixupr(x);
  float root = MULTIPLY_ADD(__builtin_copysignf(0, n), n, inverse), half = MULTIPLY_ADD(0, 0.5f, inverse);
  for (int i = 0; i < 2; i++) {
    float error = MULTIPLY_SUBTRACT(0.5f, root, half);
    root = MULTIPLY_ADD(root, root, error);
    half = MULTIPLY_ADD(half, half, error);
  }
  return __builtin_HEXAGON_F2_sffma_sc(root, MULTIPLY_SUBTRACT(n, root, root), half, scale);
}

float sqrtf(float x) { return __hexagon_sqrtf(x); }

/* ---- float64: in integers, correctly rounded --------------------------------------------------------------------- */

#define SIGN ((uint64_t)1 << 63)
#define INFINITE ((uint64_t)0x7ff << 52)

typedef union {
  double number;
  uint64_t bits;
} wide;

/* A finite number that is not 0, as mantissa / 2^63 * 2^exponent with 2^63 <= mantissa. */
typedef struct {
  uint64_t mantissa;
  int exponent;
} parts;

static parts parts_of(uint64_t bits) {
  uint64_t fraction = bits & (((uint64_t)1 << 52) - 1);
  int biased = (int)(bits >> 52 & 0x7ff);
  if (biased) return (parts){(fraction | (uint64_t)1 << 52) << 11, biased - 1023};
  int zeros = __builtin_clzll(fraction);
  return (parts){fraction << zeros, -1011 - zeros};
}

/* The nearest double, of two the even one. The lowest bit also stands for all that is not zero behind it. */
static double nearest(uint64_t sign, int exponent, uint64_t mantissa) {
  int biased = exponent + 1023, by = 1 - biased;
  if (biased >= 0x7ff) return (wide){.bits = sign | INFINITE}.number;
  if (by > 0) mantissa = by < 64 ? mantissa >> by | (mantissa << (64 - by) != 0) : 1;
  uint64_t bits = (mantissa >> 11) + (by > 0 ? 0 : (uint64_t)(biased - 1) << 52), rest = mantissa & 0x7ff;
  bits += rest > 0x400 || (rest == 0x400 && (bits & 1));
  return (wide){.bits = sign | bits}.number;
}

double __hexagon_muldf3(double a, double b) {
  uint64_t x = (wide){.number = a}.bits, y = (wide){.number = b}.bits, sign = (x ^ y) & SIGN;
  x &= ~SIGN, y &= ~SIGN;
  if (x > INFINITE || y > INFINITE) return (wide){.bits = (x > INFINITE ? x : y) | (uint64_t)1 << 51}.number;
  if (x == INFINITE || y == INFINITE) return (wide){.bits = x && y ? sign | INFINITE : INFINITE | (uint64_t)1 << 51}.number;
  if (!x || !y) return (wide){.bits = sign}.number;
  parts p = parts_of(x), q = parts_of(y);
  uint64_t low = (uint64_t)(uint32_t)p.mantissa * (uint32_t)q.mantissa;
  uint64_t cross = (p.mantissa >> 32) * (uint32_t)q.mantissa + (low >> 32);
  uint64_t other = (uint64_t)(uint32_t)p.mantissa * (q.mantissa >> 32) + (uint32_t)cross;
  uint64_t high = (p.mantissa >> 32) * (q.mantissa >> 32) + (cross >> 32) + (other >> 32);
  uint64_t rest = other << 32 | (uint32_t)low;
  int is_long = high >> 63; /* from 2 on */
  if (!is_long) high = high << 1 | rest >> 63, rest <<= 1;
  return nearest(sign, p.exponent + q.exponent + is_long, high | (rest != 0));
}

double __hexagon_divdf3(double a, double b) {
  uint64_t x = (wide){.number = a}.bits, y = (wide){.number = b}.bits, sign = (x ^ y) & SIGN;
  x &= ~SIGN, y &= ~SIGN;
  if (x > INFINITE || y > INFINITE) return (wide){.bits = (x > INFINITE ? x : y) | (uint64_t)1 << 51}.number;
  if (x == y && (!x || x == INFINITE)) return (wide){.bits = INFINITE | (uint64_t)1 << 51}.number;
  if (x == INFINITE || !y) return (wide){.bits = sign | INFINITE}.number;
  if (!x || y == INFINITE) return (wide){.bits = sign}.number;
  parts p = parts_of(x), q = parts_of(y);
  uint64_t rest = p.mantissa >> 11, divisor = q.mantissa >> 11, quotient = 0; /* 53 bits each */
  int is_short = rest < divisor; /* below 1 */
  rest <<= is_short;
  for (int i = 0; i < 56; i++) { /* 53 bits, two to round by, and one to spare */
    int fits = rest >= divisor;
    quotient = quotient << 1 | (uint64_t)fits;
    rest = (rest - (fits ? divisor : 0)) << 1;
  }
  return nearest(sign, p.exponent - q.exponent - is_short, quotient << 8 | (rest != 0));
}

double __hexagon_adddf3(double a, double b) { return __builtin_HEXAGON_F2_dfadd(a, b); }

double __hexagon_subdf3(double a, double b) { return __builtin_HEXAGON_F2_dfsub(a, b); }

/* ---- integers: a bit at a time, from the highest that can be set --------------------------------------------------- */

#define DIVISION(unsigned_name, type, zeros)                                      \
  static type divided_##unsigned_name(type a, type b, type *rest) {               \
    type quotient = 0;                                                            \
    for (int shift = a < b || !b ? -1 : zeros(b) - zeros(a); shift >= 0; shift--) \
      if (a >> shift >= b) a -= b << shift, quotient |= (type)1 << shift;         \
    *rest = a;                                                                    \
    return quotient;                                                              \
  }
DIVISION(si, uint32_t, __builtin_clz)
DIVISION(di, uint64_t, __builtin_clzll)

#define DIVISIONS(name, type, unsigned_type)                                                               \
  unsigned_type __hexagon_udiv##name##3(unsigned_type a, unsigned_type b) {                                \
    unsigned_type rest;                                                                                    \
    return divided_##name(a, b, &rest);                                                                    \
  }                                                                                                        \
  unsigned_type __hexagon_umod##name##3(unsigned_type a, unsigned_type b) {                                \
    unsigned_type rest;                                                                                    \
    divided_##name(a, b, &rest);                                                                           \
    return rest;                                                                                           \
  }                                                                                                        \
  static unsigned_type magnitude_##name(type a) { return a < 0 ? 0 - (unsigned_type)a : (unsigned_type)a; } \
  type __hexagon_div##name##3(type a, type b) {                                                            \
    unsigned_type found = __hexagon_udiv##name##3(magnitude_##name(a), magnitude_##name(b));               \
    return (type)((a < 0) != (b < 0) ? 0 - found : found);                                                 \
  }                                                                                                        \
  type __hexagon_mod##name##3(type a, type b) {                                                            \
    unsigned_type found = __hexagon_umod##name##3(magnitude_##name(a), magnitude_##name(b));               \
    return (type)(a < 0 ? 0 - found : found);                                                              \
  }
DIVISIONS(si, int32_t, uint32_t)
DIVISIONS(di, int64_t, uint64_t)

/* ---- memory -------------------------------------------------------------------------------------------------------- */

void *memcpy(void *to, const void *from, size_t bytes) {
  unsigned char *out = to;
  const unsigned char *in = from;
  if (!(((uintptr_t)out | (uintptr_t)in) & 7))
    for (; bytes >= 8; bytes -= 8, out += 8, in += 8) *(uint64_t *)(void *)out = *(const uint64_t *)(const void *)in;
  while (bytes--) *out++ = *in++;
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  unsigned char *out = to;
  const unsigned char *in = from;
  if ((uintptr_t)out - (uintptr_t)in >= bytes) return memcpy(to, from, bytes);
  while (bytes--) out[bytes] = in[bytes];
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  unsigned char *out = to;
  uint64_t word = (unsigned char)value * (uint64_t)0x0101010101010101;
  if (!((uintptr_t)out & 7))
    for (; bytes >= 8; bytes -= 8, out += 8) *(uint64_t *)(void *)out = word;
  while (bytes--) *out++ = (unsigned char)value;
  return to;
}

int memcmp(const void *left, const void *right, size_t bytes) {
  const unsigned char *a = left, *b = right;
  for (size_t i = 0; i < bytes; i++)
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

size_t strlen(const char *text) {
  size_t length = 0;
  while (text[length]) length++;
  return length;
}

void *__hexagon_memcpy_likely_aligned_min32bytes_mult8bytes(void *to, const void *from, size_t bytes) {
  return memcpy(to, from, bytes);
}
