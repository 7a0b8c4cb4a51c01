/* Vectors of POCK_LANES lanes in plain C11, and the scalar operations that C leaves undefined.
 *
 * A file includes this header once for each number of lanes that it needs:
 *
 *     #define POCK_LANES 8
 *     #include "pock_vector.h"
 *
 * That declares the types f32x8, i32x8, b32x8, ... and functions such as f32x8_add(a, b). They are the vector
 * extensions of GCC and Clang where the compiler has them and the lanes are a power of two, else structs and loops;
 * -DPOCK_SCALAR chooses loops everywhere. The lanes of a b32x8 are 0 or -1. Integers wrap around.
 *
 * Compile with -fno-math-errno: where the C library's sqrt has to set errno, it is no vector instruction.
 */
#ifndef POCK_VECTOR_H
#define POCK_VECTOR_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__has_builtin) && !defined(POCK_SCALAR)
#if __has_builtin(__builtin_convertvector) && __has_builtin(__builtin_shufflevector)
#define POCK_EXTENSIONS 1
#endif
#endif

#ifdef __GNUC__
#define POCK_INLINE static inline __attribute__((always_inline, unused))
#define pock_prefetch(address, writes) __builtin_prefetch(address, writes, 3)
#else
#define POCK_INLINE static inline
#define pock_prefetch(address, writes) ((void)(address))
#endif

/* Copies an accumulated tile for what follows. Without, GCC keeps constants of that in the tile's registers. */
#if defined(__GNUC__) && !defined(__clang__)
#define pock_tile_done(done, tile) \
    do { \
        memcpy(done, tile, sizeof(tile)); \
        __asm__ volatile("" : "+m"(done)); \
    } while (0)
#pragma GCC diagnostic ignored "-Wpsabi" /* of vectors wider than the machine's: functions that take some are inlined */
/* -std=c11 would forbid fused multiply-adds. Vectorised loops over lanes may read more than what is there. */
#pragma GCC optimize("fp-contract=fast", "no-trapping-math", "no-tree-slp-vectorize")
#else
#define pock_tile_done(done, tile) memcpy(done, tile, sizeof(tile))
#endif

/* Scalars. */

/* a * b + c, rounded once where that is fast. */
POCK_INLINE float f32_fma(float a, float b, float c)
{
#ifdef __FP_FAST_FMAF
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

POCK_INLINE double f64_fma(double a, double b, double c)
{
#ifdef __FP_FAST_FMA
    return fma(a, b, c);
#else
    return a * b + c;
#endif
}

#define POCK_REINTERPRET(TO, TO_SCALAR, FROM, FROM_SCALAR) \
    POCK_INLINE TO_SCALAR TO##_bits_of_##FROM(FROM_SCALAR x) \
    { \
        TO_SCALAR bits; \
        memcpy(&bits, &x, sizeof bits); \
        return bits; \
    }
POCK_REINTERPRET(i32, int32_t, f32, float)
POCK_REINTERPRET(f32, float, i32, int32_t)
POCK_REINTERPRET(i64, int64_t, f64, double)
POCK_REINTERPRET(f64, double, i64, int64_t)

/* Integers that wrap around, where C's would overflow. */
#define POCK_WRAPPING(T, SIGNED, UNSIGNED) \
    POCK_INLINE SIGNED T##_add(SIGNED a, SIGNED b) { return (SIGNED)((UNSIGNED)a + (UNSIGNED)b); } \
    POCK_INLINE SIGNED T##_sub(SIGNED a, SIGNED b) { return (SIGNED)((UNSIGNED)a - (UNSIGNED)b); } \
    POCK_INLINE SIGNED T##_mul(SIGNED a, SIGNED b) { return (SIGNED)((UNSIGNED)a * (UNSIGNED)b); } \
    POCK_INLINE SIGNED T##_shl(SIGNED a, SIGNED b) { return (SIGNED)((UNSIGNED)a << b); }
POCK_WRAPPING(u16, uint16_t, uint32_t)
POCK_WRAPPING(i32, int32_t, uint32_t)
POCK_WRAPPING(i64, int64_t, uint64_t)

/* Comparisons with NaN are false: then the second number is the result. */
#define POCK_ORDER(T, SCALAR) \
    POCK_INLINE SCALAR T##_min(SCALAR a, SCALAR b) { return a < b ? a : b; } \
    POCK_INLINE SCALAR T##_max(SCALAR a, SCALAR b) { return a > b ? a : b; }
POCK_ORDER(f32, float)
POCK_ORDER(f64, double)
POCK_ORDER(i8, int8_t)
POCK_ORDER(u8, uint8_t)
POCK_ORDER(i16, int16_t)
POCK_ORDER(u16, uint16_t)
POCK_ORDER(i32, int32_t)
POCK_ORDER(u32, uint32_t)
POCK_ORDER(i64, int64_t)
POCK_ORDER(u64, uint64_t)

/* Integers from floating-point numbers, towards zero. NaN and what is out of range: the lowest integer, as on x86. */
#define POCK_TRUNCATION(TO, INTEGER, LOWEST, BELOW, ABOVE) \
    POCK_INLINE INTEGER TO##_from_f32(float x) { return x > BELOW##f && x < ABOVE##f ? (INTEGER)x : LOWEST; } \
    POCK_INLINE INTEGER TO##_from_f64(double x) { return x > BELOW && x < ABOVE ? (INTEGER)x : LOWEST; }
POCK_TRUNCATION(i8, int8_t, INT8_MIN, -129.0, 128.0)
POCK_TRUNCATION(u8, uint8_t, 0, -1.0, 256.0)
POCK_TRUNCATION(i16, int16_t, INT16_MIN, -32769.0, 32768.0)
POCK_TRUNCATION(u16, uint16_t, 0, -1.0, 65536.0)
POCK_TRUNCATION(i32, int32_t, INT32_MIN, -2147483649.0, 2147483648.0)
POCK_TRUNCATION(u32, uint32_t, 0, -1.0, 4294967296.0)
POCK_TRUNCATION(i64, int64_t, INT64_MIN, -0x1p63, 0x1p63)
POCK_TRUNCATION(u64, uint64_t, 0, -1.0, 0x1p64)

/* Lanes of two vectors, chosen by constants: those of the second follow those of the first. */
#ifdef POCK_EXTENSIONS
#define pock_shuffle(vector, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define pock_shuffle(vector, a, b, ...) vector##_shuffle(a, b, (const int8_t[]){__VA_ARGS__})
#endif

#define POCK_JOIN(T, LANES) T##x##LANES
#define POCK_JOIN_NAME(T, LANES, NAME) T##x##LANES##_##NAME
#define POCK_VECTOR(T, LANES) POCK_JOIN(T, LANES)
#define POCK_FUNCTION(T, LANES, NAME) POCK_JOIN_NAME(T, LANES, NAME)

#endif /* POCK_VECTOR_H */

#ifdef POCK_LANES

#define V(T) POCK_VECTOR(T, POCK_LANES) /* a type, and a function of it */
#define F(T, NAME) POCK_FUNCTION(T, POCK_LANES, NAME)
#define EACH_LANE for (int lane = 0; lane < POCK_LANES; ++lane)

/* What depends on the form. WIDE is the type to compute in; MASK, for a choice, has lanes as wide as T's. */
#if defined(POCK_EXTENSIONS) && (POCK_LANES & (POCK_LANES - 1)) == 0

#define AT(v) v[lane]
#define TYPE(T, SCALAR) typedef SCALAR V(T) __attribute__((vector_size(POCK_LANES * sizeof(SCALAR))));
#define BROADCAST(T, SCALAR) \
    POCK_INLINE V(T) F(T, of)(SCALAR x) { return x - (V(T)){0}; }
#define INFIX(T, SCALAR, NAME, OPERATOR, WIDE, WIDE_SCALAR) \
    POCK_INLINE V(T) F(T, NAME)(V(T) a, V(T) b) { return (V(T))((V(WIDE))a OPERATOR (V(WIDE))b); }
#define COMPARISON(T, NAME, OPERATOR) \
    POCK_INLINE V(b32) F(T, NAME)(V(T) a, V(T) b) { return __builtin_convertvector(a OPERATOR b, V(b32)); }
#define SELECT(T, MASK) \
    POCK_INLINE V(T) F(T, select)(V(b32) choice, V(T) a, V(T) b) \
    { \
        V(MASK) mask = __builtin_convertvector(choice, V(MASK)); \
        return (V(T))((mask & (V(MASK))a) | (~mask & (V(MASK))b)); \
    }
#define FMA(T) \
    POCK_INLINE V(T) F(T, fma)(V(T) a, V(T) b, V(T) c) { return a * b + c; }
#define CONVERSION(TO, FROM, CONVERT) \
    POCK_INLINE V(TO) F(TO, from_##FROM)(V(FROM) a) { return __builtin_convertvector(a, V(TO)); }

#else

#define AT(v) v.lane[lane]
#define TYPE(T, SCALAR) \
    typedef struct { \
        SCALAR lane[POCK_LANES]; \
    } V(T);
#define BROADCAST(T, SCALAR) \
    POCK_INLINE V(T) F(T, of)(SCALAR x) { V(T) r; EACH_LANE AT(r) = x; return r; }
#define INFIX(T, SCALAR, NAME, OPERATOR, WIDE, WIDE_SCALAR) \
    POCK_INLINE V(T) F(T, NAME)(V(T) a, V(T) b) \
    { \
        EACH_LANE AT(a) = (SCALAR)((WIDE_SCALAR)AT(a) OPERATOR (WIDE_SCALAR)AT(b)); \
        return a; \
    }
#define COMPARISON(T, NAME, OPERATOR) \
    POCK_INLINE V(b32) F(T, NAME)(V(T) a, V(T) b) { V(b32) r; EACH_LANE AT(r) = -(AT(a) OPERATOR AT(b)); return r; }
#define SELECT(T, MASK) \
    POCK_INLINE V(T) F(T, select)(V(b32) choice, V(T) a, V(T) b) \
    { \
        EACH_LANE AT(a) = AT(choice) ? AT(a) : AT(b); \
        return a; \
    }
#define FMA(T) \
    POCK_INLINE V(T) F(T, fma)(V(T) a, V(T) b, V(T) c) { EACH_LANE AT(a) = T##_fma(AT(a), AT(b), AT(c)); return a; }
#define CONVERSION(TO, FROM, CONVERT) \
    POCK_INLINE V(TO) F(TO, from_##FROM)(V(FROM) a) { V(TO) r; EACH_LANE AT(r) = CONVERT(AT(a)); return r; }
#define SHUFFLE(T) \
    POCK_INLINE V(T) F(T, shuffle)(V(T) a, V(T) b, const int8_t *lanes) \
    { \
        V(T) r; \
        EACH_LANE AT(r) = lanes[lane] < POCK_LANES ? a.lane[lanes[lane]] : b.lane[lanes[lane] - POCK_LANES]; \
        return r; \
    }

#endif

/* What does not. */
#define MAP(T, NAME, FUNCTION) \
    POCK_INLINE V(T) F(T, NAME)(V(T) a) { EACH_LANE AT(a) = FUNCTION(AT(a)); return a; }
#define MAP_2(T, NAME, FUNCTION) \
    POCK_INLINE V(T) F(T, NAME)(V(T) a, V(T) b) { EACH_LANE AT(a) = FUNCTION(AT(a), AT(b)); return a; }
#define BITS(TO, FROM) \
    POCK_INLINE V(TO) F(TO, bits_of_##FROM)(V(FROM) a) { V(TO) r; memcpy(&r, &a, sizeof r); return r; }
#define GATHER(T, SCALAR, INDEX) \
    POCK_INLINE V(T) F(T, gather_by_##INDEX)(const SCALAR *from, V(INDEX) places) \
    { \
        V(T) r; \
        EACH_LANE AT(r) = from[AT(places)]; \
        return r; \
    } \
    POCK_INLINE void F(T, scatter_by_##INDEX)(SCALAR *to, V(INDEX) places, V(T) a) \
    { \
        EACH_LANE to[AT(places)] = AT(a); \
    }
#define MEMORY(T, SCALAR) \
    POCK_INLINE V(T) F(T, load)(const SCALAR *from) { V(T) r; memcpy(&r, from, sizeof r); return r; } \
    POCK_INLINE void F(T, store)(SCALAR *to, V(T) a) { memcpy(to, &a, sizeof a); } \
    POCK_INLINE V(T) F(T, load_strided)(const SCALAR *from, int64_t stride) \
    { \
        V(T) r; \
        EACH_LANE AT(r) = from[lane * stride]; \
        return r; \
    } \
    POCK_INLINE void F(T, store_strided)(SCALAR *to, int64_t stride, V(T) a) { EACH_LANE to[lane * stride] = AT(a); } \
    GATHER(T, SCALAR, i32) \
    GATHER(T, SCALAR, i64)
#define ARITHMETIC(T, SCALAR, WIDE, WIDE_SCALAR) \
    INFIX(T, SCALAR, add, +, WIDE, WIDE_SCALAR) \
    INFIX(T, SCALAR, sub, -, WIDE, WIDE_SCALAR) \
    INFIX(T, SCALAR, mul, *, WIDE, WIDE_SCALAR) \
    INFIX(T, SCALAR, div, /, T, SCALAR)
#define ORDER(T, SCALAR, MASK) \
    COMPARISON(T, eq, ==) \
    COMPARISON(T, ne, !=) \
    COMPARISON(T, lt, <) \
    COMPARISON(T, le, <=) \
    COMPARISON(T, gt, >) \
    COMPARISON(T, ge, >=) \
    SELECT(T, MASK) \
    POCK_INLINE V(T) F(T, min)(V(T) a, V(T) b) { return F(T, select)(F(T, lt)(a, b), a, b); } \
    POCK_INLINE V(T) F(T, max)(V(T) a, V(T) b) { return F(T, select)(F(T, gt)(a, b), a, b); }
#define INTEGER(T, SCALAR, MASK, WIDE, WIDE_SCALAR) \
    MEMORY(T, SCALAR) \
    BROADCAST(T, SCALAR) \
    ARITHMETIC(T, SCALAR, WIDE, WIDE_SCALAR) \
    INFIX(T, SCALAR, mod, %, T, SCALAR) \
    INFIX(T, SCALAR, and, &, T, SCALAR) \
    INFIX(T, SCALAR, or, |, T, SCALAR) \
    INFIX(T, SCALAR, xor, ^, T, SCALAR) \
    INFIX(T, SCALAR, shl, <<, WIDE, WIDE_SCALAR) \
    INFIX(T, SCALAR, shr, >>, T, SCALAR) \
    ORDER(T, SCALAR, MASK) \
    POCK_INLINE V(T) F(T, ramp)(SCALAR first, SCALAR step) \
    { \
        V(T) r; \
        EACH_LANE AT(r) = (SCALAR)(first + (SCALAR)lane * step); \
        return r; \
    }
#define FLOAT(T, SCALAR, MASK, SUFFIX) \
    MEMORY(T, SCALAR) \
    BROADCAST(T, SCALAR) \
    ARITHMETIC(T, SCALAR, T, SCALAR) \
    ORDER(T, SCALAR, MASK) \
    BITS(T, MASK) \
    BITS(MASK, T) \
    FMA(T) \
    MAP(T, sqrt, sqrt##SUFFIX) \
    MAP(T, floor, floor##SUFFIX) \
    MAP(T, ceil, ceil##SUFFIX) \
    MAP(T, trunc, trunc##SUFFIX) \
    MAP(T, round, round##SUFFIX) \
    MAP(T, nearbyint, nearbyint##SUFFIX) \
    MAP(T, fabs, fabs##SUFFIX) \
    MAP(T, exp, exp##SUFFIX) \
    MAP(T, exp2, exp2##SUFFIX) \
    MAP(T, log, log##SUFFIX) \
    MAP(T, log2, log2##SUFFIX) \
    MAP(T, log10, log10##SUFFIX) \
    MAP(T, log1p, log1p##SUFFIX) \
    MAP(T, sin, sin##SUFFIX) \
    MAP(T, cos, cos##SUFFIX) \
    MAP(T, tanh, tanh##SUFFIX) \
    MAP(T, erf, erf##SUFFIX) \
    MAP_2(T, pow, pow##SUFFIX)

#define FROM_INTEGERS(TO, CAST) \
    CONVERSION(TO, i8, CAST) \
    CONVERSION(TO, u8, CAST) \
    CONVERSION(TO, i16, CAST) \
    CONVERSION(TO, u16, CAST) \
    CONVERSION(TO, i32, CAST) \
    CONVERSION(TO, u32, CAST) \
    CONVERSION(TO, i64, CAST) \
    CONVERSION(TO, u64, CAST)
#define INTEGERS_FROM(TO, CAST) \
    FROM_INTEGERS(TO, CAST) \
    CONVERSION(TO, f32, TO##_from_f32) \
    CONVERSION(TO, f64, TO##_from_f64)

TYPE(f32, float)
TYPE(f64, double)
TYPE(i8, int8_t)
TYPE(u8, uint8_t)
TYPE(i16, int16_t)
TYPE(u16, uint16_t)
TYPE(i32, int32_t)
TYPE(u32, uint32_t)
TYPE(i64, int64_t)
TYPE(u64, uint64_t)
typedef V(i32) V(b32);

INTEGER(i8, int8_t, i8, u8, uint8_t)
INTEGER(u8, uint8_t, i8, u8, uint8_t)
INTEGER(i16, int16_t, i16, u16, unsigned)
INTEGER(u16, uint16_t, i16, u16, unsigned)
INTEGER(i32, int32_t, i32, u32, uint32_t)
INTEGER(u32, uint32_t, i32, u32, uint32_t)
INTEGER(i64, int64_t, i64, u64, uint64_t)
INTEGER(u64, uint64_t, i64, u64, uint64_t)
FLOAT(f32, float, i32, f)
FLOAT(f64, double, i64, )
#ifdef SHUFFLE
SHUFFLE(f32)
#endif

FROM_INTEGERS(f32, (float))
FROM_INTEGERS(f64, (double))
CONVERSION(f32, f64, (float))
CONVERSION(f64, f32, (double))
INTEGERS_FROM(i8, (int8_t))
INTEGERS_FROM(u8, (uint8_t))
INTEGERS_FROM(i16, (int16_t))
INTEGERS_FROM(u16, (uint16_t))
INTEGERS_FROM(i32, (int32_t))
INTEGERS_FROM(u32, (uint32_t))
INTEGERS_FROM(i64, (int64_t))
INTEGERS_FROM(u64, (uint64_t))

/* Masks. In memory a lane is a byte: 0 or 1. */
POCK_INLINE V(b32) F(b32, of)(bool x) { return F(i32, of)(-x); }
POCK_INLINE V(b32) F(b32, and)(V(b32) a, V(b32) b) { return F(i32, and)(a, b); }
POCK_INLINE V(b32) F(b32, or)(V(b32) a, V(b32) b) { return F(i32, or)(a, b); }
POCK_INLINE V(b32) F(b32, not)(V(b32) a) { return F(i32, xor)(a, F(i32, of)(-1)); }
POCK_INLINE V(b32) F(b32, eq)(V(b32) a, V(b32) b) { return F(i32, eq)(a, b); }
POCK_INLINE V(b32) F(b32, ne)(V(b32) a, V(b32) b) { return F(i32, ne)(a, b); }
POCK_INLINE V(b32) F(b32, select)(V(b32) choice, V(b32) a, V(b32) b) { return F(i32, select)(choice, a, b); }
POCK_INLINE V(i32) F(i32, from_b32)(V(b32) a) { return F(i32, and)(a, F(i32, of)(1)); }
POCK_INLINE V(i8) F(i8, from_b32)(V(b32) a) { return F(i8, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(u8) F(u8, from_b32)(V(b32) a) { return F(u8, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(i16) F(i16, from_b32)(V(b32) a) { return F(i16, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(u16) F(u16, from_b32)(V(b32) a) { return F(u16, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(u32) F(u32, from_b32)(V(b32) a) { return F(u32, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(u64) F(u64, from_b32)(V(b32) a) { return F(u64, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(i64) F(i64, from_b32)(V(b32) a) { return F(i64, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(f32) F(f32, from_b32)(V(b32) a) { return F(f32, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(f64) F(f64, from_b32)(V(b32) a) { return F(f64, from_i32)(F(i32, from_b32)(a)); }
POCK_INLINE V(b32) F(b32, from_i8)(V(i8) a) { return F(i8, ne)(a, F(i8, of)(0)); }
POCK_INLINE V(b32) F(b32, from_u8)(V(u8) a) { return F(u8, ne)(a, F(u8, of)(0)); }
POCK_INLINE V(b32) F(b32, from_i16)(V(i16) a) { return F(i16, ne)(a, F(i16, of)(0)); }
POCK_INLINE V(b32) F(b32, from_i32)(V(i32) a) { return F(i32, ne)(a, F(i32, of)(0)); }
POCK_INLINE V(b32) F(b32, from_i64)(V(i64) a) { return F(i64, ne)(a, F(i64, of)(0)); }
POCK_INLINE V(b32) F(b32, from_u16)(V(u16) a) { return F(u16, ne)(a, F(u16, of)(0)); }
POCK_INLINE V(b32) F(b32, from_u32)(V(u32) a) { return F(u32, ne)(a, F(u32, of)(0)); }
POCK_INLINE V(b32) F(b32, from_u64)(V(u64) a) { return F(u64, ne)(a, F(u64, of)(0)); }
POCK_INLINE V(b32) F(b32, from_f32)(V(f32) a) { return F(f32, ne)(a, F(f32, of)(0)); }
POCK_INLINE V(b32) F(b32, load)(const uint8_t *from) { return F(b32, from_u8)(F(u8, load)(from)); }
POCK_INLINE void F(b32, store)(uint8_t *to, V(b32) a) { F(u8, store)(to, F(u8, from_b32)(a)); }

#undef V
#undef F
#undef EACH_LANE
#undef AT
#undef TYPE
#undef BROADCAST
#undef INFIX
#undef COMPARISON
#undef SELECT
#undef CONVERSION
#undef SHUFFLE
#undef MAP
#undef MAP_2
#undef FMA
#undef BITS
#undef GATHER
#undef MEMORY
#undef ARITHMETIC
#undef ORDER
#undef INTEGER
#undef FLOAT
#undef FROM_INTEGERS
#undef INTEGERS_FROM
#undef POCK_LANES
#endif /* POCK_LANES */
