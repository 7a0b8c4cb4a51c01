// CUDA's words for a program of the host. `cuda_on_host.py` writes kernels behind this, and `cuda_on_host.cpp` runs them.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define CUDART_INF_F INFINITY
using uint = unsigned;
using ushort = unsigned short;

[[noreturn]] void fail(const char* what);

// ---- numbers and vectors -------------------------------------------------------------------------------------------

struct half {
  uint16_t bits;
  half() = default;
  half(float value) {
    _Float16 rounded = static_cast<_Float16>(value);
    std::memcpy(&bits, &rounded, 2);
  }
  operator float() const {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
  }
};

struct nv_bfloat16 {
  uint16_t bits;
  nv_bfloat16() = default;
  nv_bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = value != value ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;  // to nearest, ties to even
  }
  operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

template <class T>
struct alignas(2 * sizeof(T)) Vector2 {
  T x, y;
};
template <class T>
struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) Vector4 {
  T x, y, z, w;
  T& operator[](int lane) { return (&x)[lane]; }
  template <class U>
  operator Vector4<U>() const {
    return {U(x), U(y), U(z), U(w)};
  }
};
#define VECTORS(T, name)                                                          \
  using name##2 = Vector2<T>;                                                     \
  using name##4 = Vector4<T>;                                                     \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(ushort, ushort)
VECTORS(half, half)
VECTORS(nv_bfloat16, nv_bfloat16)

template <class T>
unsigned packed(T low, T high) {
  return low.bits | unsigned(high.bits) << 16;
}
inline unsigned __pack_half2(half x, half y) { return packed(x, y); }
inline unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return packed(x, y); }
inline half __float2half_rn(float value) { return value; }
inline nv_bfloat16 __float2bfloat16_rn(float value) { return value; }

template <class T>
T max(T a, T b) {
  return a > b ? a : b;
}
template <class T>
T min(T a, T b) {
  return a < b ? a : b;
}

// ---- threads and instructions --------------------------------------------------------------------------------------

struct Place {
  int x, y, z;
};
extern Place blockIdx, threadIdx;

// Runs all blocks of a kernel, the threads of each in ascending or descending order.
void launch(Place grid, Place size, bool descending, void (*body)());

void __syncthreads();

// Waits for a warp whose threads are all at one instruction with one address.
void agree(const char* what, const void* address);

// Marks memory that a block shares, at its beginning: it holds no numbers yet, so that what nobody wrote is seen.
void begin_shared(int& last_block, void* memory, size_t bytes);

unsigned __cvta_generic_to_shared(const void* pointer);
void cp_async_cg_shared_global(unsigned to, const void* from, int size, int bytes);
void cp_async_commit_group();
void cp_async_wait_group(int running);
void ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned at);
void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned at);

#define MULTIPLY(name)                                                                                    \
  void name(float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, \
            unsigned b0, unsigned b1, float& c0, float& c1, float& c2, float& c3)
MULTIPLY(mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32);
MULTIPLY(mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32);
MULTIPLY(mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32);
void cvt_rna_tf32_f32(unsigned& to, float from);
inline void cvt_rn_bf16x2_f32(unsigned& to, float high, float low) { to = packed<nv_bfloat16>(low, high); }
inline void cvt_rn_f16x2_f32(unsigned& to, float high, float low) { to = packed<half>(low, high); }
void shfl_sync_bfly_b32(float& to, float from, int distance, int last, int members);
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
