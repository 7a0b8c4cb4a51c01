/* What pock_math.c has of the C library's <math.h>. */
#ifndef POCK_MATH_H
#define POCK_MATH_H

float expf(float x);
float logf(float x);
float powf(float x, float y);
float tanhf(float x);
float sinf(float x);
float cosf(float x);
float tanf(float x);
float truncf(float x);
float floorf(float x);
float ceilf(float x);
float roundf(float x);
float roundevenf(float x);
float rintf(float x);
float nearbyintf(float x);

#endif
