/* What the bundle takes of <math.h>, for a compiler without one. */
#ifndef MATH_H
#define MATH_H

#define NAN __builtin_nanf("")
#define INFINITY __builtin_inff()

#define FUNCTION(name)   \
  double name(double x); \
  float name##f(float x);
#define FUNCTION_2(name)           \
  double name(double x, double y); \
  float name##f(float x, float y);
FUNCTION(acos) FUNCTION(acosh) FUNCTION(asin) FUNCTION(asinh) FUNCTION(atan) FUNCTION(atanh) FUNCTION(cbrt)
FUNCTION(ceil) FUNCTION(cos) FUNCTION(cosh) FUNCTION(erf) FUNCTION(erfc) FUNCTION(exp) FUNCTION(exp2) FUNCTION(expm1)
FUNCTION(fabs) FUNCTION(floor) FUNCTION(log) FUNCTION(log10) FUNCTION(log1p) FUNCTION(log2) FUNCTION(nearbyint)
FUNCTION(rint) FUNCTION(round) FUNCTION(roundeven) FUNCTION(sin) FUNCTION(sinh) FUNCTION(sqrt) FUNCTION(tan)
FUNCTION(tanh) FUNCTION(trunc)
FUNCTION_2(atan2) FUNCTION_2(copysign) FUNCTION_2(fmax) FUNCTION_2(fmin) FUNCTION_2(fmod) FUNCTION_2(hypot)
FUNCTION_2(nextafter) FUNCTION_2(pow)
double fma(double x, double y, double z);
float fmaf(float x, float y, float z);
double ldexp(double x, int exponent);
float ldexpf(float x, int exponent);
#undef FUNCTION
#undef FUNCTION_2

#endif
