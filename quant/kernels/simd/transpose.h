// Transposes small squares: values go from tiles along `out` to rows along `in`, and back.
#pragma once

#include <cstdint>
#include <cstring>

namespace weightcast {
namespace {

template <class T>
constexpr int kSquare = 16 / static_cast<int>(sizeof(T));  // elements in a 16-byte vector

#if defined(__clang__) || !defined(__GNUC__)
template <class T>
inline void transpose_square(const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
  for (int c = 0; c < kSquare<T>; ++c) {
    for (int i = 0; i < kSquare<T>; ++i) dst[c * dst_stride + i] = src[i * src_stride + c];
  }
}
#else
template <int size>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using type = uint8_t;
};
template <>
struct UnsignedOf<2> {
  using type = uint16_t;
};
template <>
struct UnsignedOf<4> {
  using type = uint32_t;
};

// Interleaving rows i and i + N/2 (punpckl and punpckh, or zip1 and zip2) rotates the index
// (row, column) of an element by one bit; log2 N rounds of it exchange row and column.
template <class T>
inline void transpose_square(const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
  constexpr int n = kSquare<T>;
  using U = typename UnsignedOf<sizeof(T)>::type;
  typedef U Vector __attribute__((vector_size(16)));
  Vector low, high;
  for (int i = 0; i < n; ++i) {
    low[i] = static_cast<U>(i / 2 + i % 2 * n);
    high[i] = static_cast<U>(low[i] + n / 2);
  }
  Vector a[n], b[n];
  for (int i = 0; i < n; ++i) std::memcpy(&a[i], src + i * src_stride, 16);
  for (int half = n; half > 1; half /= 2) {
    for (int i = 0; i < n / 2; ++i) {
      b[2 * i] = __builtin_shuffle(a[i], a[i + n / 2], low);
      b[2 * i + 1] = __builtin_shuffle(a[i], a[i + n / 2], high);
    }
    for (int i = 0; i < n; ++i) a[i] = b[i];
  }
  for (int c = 0; c < n; ++c) std::memcpy(dst + c * dst_stride, &a[c], 16);
}
#endif

// Transpose [rows, columns] to [columns, rows], both densely packed multiples of kSquare<T>.
template <class T, int rows, int columns>
inline void transpose_tile(const T (&src)[rows][columns], T (&dst)[columns][rows]) {
  static_assert(rows % kSquare<T> == 0 && columns % kSquare<T> == 0, "whole squares only");
  for (int i = 0; i < rows; i += kSquare<T>) {
    for (int c = 0; c < columns; c += kSquare<T>) {
      transpose_square(&src[i][c], columns, &dst[c][i], rows);
    }
  }
}

}  // namespace
}  // namespace weightcast
