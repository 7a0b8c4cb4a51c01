/* Functions of the C library's <math.h> for devices that have none: computed in double, rounded once. */
#include <stdint.h>

#include "pock_math.h"

#define NAN_OF(x) ((x) - (x)) /* of an infinity or NaN */

static const double LOG2 = 0.69314718055994530942, HALF_PI = 1.57079632679489661923;

typedef union {
  double number;
  uint64_t bits;
} wide;

typedef union {
  float number;
  uint32_t bits;
} narrow;

static double from_bits(uint64_t bits) { return (wide){.bits = bits}.number; }

static uint32_t bits_of(float x) { return (narrow){.number = x}.bits; }

static int is_finite(float x) { return (bits_of(x) & 0x7f800000) != 0x7f800000; }

/* e ^ x, for a result that a float can hold, or nearly. */
static double exp_of(double x) {
  int n = (int)(x / LOG2 + (x < 0 ? -0.5 : 0.5));
  double r = x - n * LOG2, sum = 1;
  for (int i = 11; i; i--) sum = 1 + sum * r / i;
  return sum * from_bits((uint64_t)(n + 1023) << 52);
}

/* The logarithm of a positive number, from those of 2 and of 1 <= m < 2, through artanh. */
static double log_of(double x) {
  uint64_t bits = (wide){.number = x}.bits;
  int n = (int)(bits >> 52) - 1023;
  double m = from_bits((bits & 0xfffffffffffff) | (uint64_t)1023 << 52);
  if (m > 1.41421356) m /= 2, n++;
  double t = (m - 1) / (m + 1), sum = 0;
  for (int i = 17; i > 0; i -= 2) sum = sum * t * t + 1.0 / i;
  return n * LOG2 + 2 * t * sum;
}

/* A finite number's distance to the nearest multiple of pi / 2, and that multiple modulo 4. */
static double reduced(float x, int *quadrant) {
  static const uint32_t digits[] = {0,          0xa2f9836e, 0x4e441529, 0xfc2757d1,  /* of 2 / pi, after a word of zeros */
                                    0xf534ddc0, 0xdb629599, 0x3c439041, 0xfe5163ab};
  uint32_t bits = bits_of(x) & 0x7fffffff, word[3];
  *quadrant = 0;
  if (bits < 0x3f000000) return x; /* below 1 / 2 */
  uint64_t mantissa = (bits & 0x7fffff) | 0x800000;
  int at = (int)(bits >> 23) - 150 + 30; /* the digits before are multiples of 4 quadrants */
  for (int i = 0; i < 3; i++, at += 32)
    word[i] = digits[at >> 5] << (at & 31) | (uint32_t)((uint64_t)digits[(at >> 5) + 1] >> (32 - (at & 31)));
  uint64_t turn = (mantissa * word[0] << 32) + mantissa * word[1] + (mantissa * word[2] >> 32); /* 2^64: 4 quadrants */
  uint64_t nearest = (turn + ((uint64_t)1 << 61)) >> 62;
  uint64_t rest = turn - (nearest << 62);
  double r = rest >> 63 ? -(double)(0 - rest) : (double)rest;
  *quadrant = (int)(x < 0 ? (4 - nearest) & 3 : nearest & 3);
  r *= 0x1p-62 * HALF_PI;
  return x < 0 ? -r : r;
}

/* The sine of a quadrant and a rest. */
static double sine_of(double r, int quadrant) {
  int odd = quadrant & 1;
  double sum = 1;
  for (int i = odd ? 14 : 15; i > 1; i -= 2) sum = 1 - sum * r * r / (i * (i - 1));
  sum = odd ? sum : sum * r;
  return quadrant & 2 ? -sum : sum;
}

/* e ^ x as a float: at the limits infinity and 0. */
static float rounded(double x) { return (float)(x > 89 ? 1e300 : x < -104 ? 0 : exp_of(x)); }

float expf(float x) {
  return x == x ? rounded(x) : x;
}

float logf(float x) {
  if (x > 0) return is_finite(x) ? (float)log_of(x) : x;
  return x == 0 ? -1 / (x * x) : (x - x) / (x - x); /* -infinity; NaN */
}

float powf(float x, float y) {
  if (y == 0 || x == 1) return 1;
  if (x != x || y != y) return x + y;
  int is_whole = !is_finite(y) || truncf(y) == y, is_odd = is_finite(y) && is_whole && truncf(y / 2) != y / 2;
  float magnitude = x < 0 ? -x : x, sign = is_odd && bits_of(x) >> 31 ? -1 : 1;
  if (x < 0 && is_finite(x) && !is_whole) return (x - x) / (x - x);
  if (magnitude == 1) return sign;
  double logarithm = magnitude == 0 ? -1e300 : is_finite(x) ? log_of(magnitude) : 1e300;
  return sign * rounded(y * logarithm);
}

float tanhf(float x) {
  double magnitude = x < 0 ? -x : x;
  if (!(magnitude > 1e-3)) return (float)(x - (double)x * x * x / 3); /* NaN, too */
  double result = magnitude > 10 ? 1 : 1 - 2 / (exp_of(2 * magnitude) + 1);
  return (float)(x < 0 ? -result : result);
}

float sinf(float x) {
  int quadrant;
  if (!is_finite(x)) return NAN_OF(x);
  double r = reduced(x, &quadrant);
  return (float)sine_of(r, quadrant);
}

float cosf(float x) {
  int quadrant;
  if (!is_finite(x)) return NAN_OF(x);
  double r = reduced(x, &quadrant);
  return (float)sine_of(r, quadrant + 1);
}

float tanf(float x) {
  int quadrant;
  if (!is_finite(x)) return NAN_OF(x);
  double r = reduced(x, &quadrant);
  return (float)(sine_of(r, quadrant) / sine_of(r, quadrant + 1));
}

float truncf(float x) {
  uint32_t bits = bits_of(x), power = bits >> 23 & 255;
  if (power >= 150) return x; /* whole, infinite or NaN */
  bits &= power < 127 ? 0x80000000 : ~(0x7fffffu >> (power - 127));
  return (narrow){.bits = bits}.number;
}

float floorf(float x) {
  float whole = truncf(x);
  return whole > x ? whole - 1 : whole;
}

float ceilf(float x) {
  float whole = truncf(x);
  if (!(whole < x)) return whole;
  return whole == 0 && x < 0 ? whole : whole + 1;
}

/* Halves go away from zero. */
float roundf(float x) {
  float whole = truncf(x), rest = x - whole;
  if (!is_finite(x)) return x;
  return rest >= 0.5f ? whole + 1 : rest <= -0.5f ? whole - 1 : whole;
}

/* Halves go to the even number. */
float roundevenf(float x) {
  float whole = roundf(x), rest = x - truncf(x);
  return (rest == 0.5f || rest == -0.5f) && truncf(whole / 2) * 2 != whole ? truncf(x) : whole;
}

float rintf(float x) { return roundevenf(x); }

float nearbyintf(float x) { return roundevenf(x); }
