// Transposes small squares: values go from tiles along `out` to rows along `in`, and back.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace weightcast {
namespace {

template <class T>
constexpr int kSquare = 16 / static_cast<int>(sizeof(T));  // elements in a 16-byte vector

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

// Elements `first` to `first` + n / 2 of two vectors of n, in turn: punpckl and punpckh, or zip1 and zip2.
template <int first, class Vector, int... i>
inline Vector interleaved(const Vector& a, const Vector& b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (first + i / 2 + i % 2 * static_cast<int>(sizeof...(i)))...);
}

// Interleaving rows i and i + N/2 rotates the index (row, column) of an element by one bit; log2 N rounds
// of it exchange row and column.
template <class T>
inline void transpose_square(const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
  constexpr int n = kSquare<T>;
  typedef typename UnsignedOf<sizeof(T)>::type Vector __attribute__((vector_size(16)));
  constexpr std::make_integer_sequence<int, n> places{};
  Vector a[n], b[n];
  for (int i = 0; i < n; ++i) std::memcpy(&a[i], src + i * src_stride, 16);
  for (int half = n; half > 1; half /= 2) {
    for (int i = 0; i < n / 2; ++i) {
      b[2 * i] = interleaved<0>(a[i], a[i + n / 2], places);
      b[2 * i + 1] = interleaved<n / 2>(a[i], a[i + n / 2], places);
    }
    for (int i = 0; i < n; ++i) a[i] = b[i];
  }
  for (int c = 0; c < n; ++c) std::memcpy(dst + c * dst_stride, &a[c], 16);
}

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
