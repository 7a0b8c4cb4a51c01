// Metal's words for a program of the host, in which kernels run as those of CUDA do.

#pragma once

#include "cuda_on_host.hpp"

template <class T>
T select(T otherwise, T value, bool condition) {
  return condition ? value : otherwise;
}

enum class mem_flags { mem_threadgroup };
inline void threadgroup_barrier(mem_flags) { __syncthreads(); }

// A matrix of a SIMD group. Each thread has a copy of all of it, where a GPU's threads have parts.
template <class T, int rows, int columns>
struct simdgroup_matrix {
  T elements[rows][columns];
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;

template <class T, int rows, int columns>
simdgroup_matrix<T, rows, columns> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, rows, columns> filled;
  for (auto& row : filled.elements)
    for (T& element : row) element = value;
  return filled;
}

template <class T, int size>
void simdgroup_load(simdgroup_matrix<T, size, size>& to, const T* from, int pitch, int origin, bool transposed) {
  if (origin) fail("an origin that is not 0");
  agree("simdgroup_load", from);
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j) (transposed ? to.elements[j][i] : to.elements[i][j]) = from[i * pitch + j];
}

template <class T, int size>
void simdgroup_store(const simdgroup_matrix<T, size, size>& from, T* to, int pitch, int origin, bool transposed) {
  if (origin || transposed) fail("an origin that is not 0, or a transposed store");
  agree("simdgroup_store", to);
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j) to[i * pitch + j] = from.elements[i][j];
}

template <class T, int size>
void simdgroup_multiply_accumulate(simdgroup_matrix<T, size, size>& sums, const simdgroup_matrix<T, size, size>& left,
                                   const simdgroup_matrix<T, size, size>& right,
                                   const simdgroup_matrix<T, size, size>& before) {
  if (&sums != &before) fail("sums are added to other sums");
  agree("simdgroup_multiply_accumulate", nullptr);
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j)
      for (int k = 0; k < size; ++k) sums.elements[i][j] += left.elements[i][k] * right.elements[k][j];
}
