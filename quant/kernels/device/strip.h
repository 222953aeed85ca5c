// Strip on a device: what a block quantizer reads. A thread makes one block of one output column.
//
// The weights of small blocks are read once, into registers. Those of larger blocks stay in memory:
// they are read in several passes, and the caches serve the later ones. WC_IN_REGISTERS says which it
// is for all types of a unit (the last column of types.inc).
#pragma once

#include "simd/lanes.h"
#include "source/elements.h"

#ifndef WC_IN_REGISTERS
#define WC_IN_REGISTERS false
#endif

namespace weightcast {
namespace {

// The element type of a source. A unit that reads one is compiled for its type, WC_SOURCE_NUMBER, so
// that no load has to ask. What is compiled for all of them goes by the argument of the launch.
#ifdef WC_SOURCE_NUMBER
constexpr int32_t source_type(int32_t) { return WC_SOURCE_NUMBER; }
#else
constexpr int32_t source_type(int32_t launched) { return launched; }
#endif

// In-rows of one output column of a source in device memory, from some row on.
struct Column {
  const uint8_t* first;  // row 0
  int64_t stride;        // elements between rows
  int32_t type;
  // I8 only: rows from `left` on lie in other groups of scales than the one that `scales` begins with.
  int32_t left;
  float scale;           // of that group
  const float* scales;   // of groups scale_stride apart
  int64_t scale_stride;
  int32_t group_rows;    // or the rows of the block, if those are fewer

  template <int element>
  WC_INLINE float stored(int i) const {
    const auto* data = reinterpret_cast<const typename Element<element>::stored*>(first);
    return Element<element>::value(data[i * stride]);
  }

  // Steps through the groups: rows beyond the first are rare, and a division makes more code.
  WC_INLINE float scale_of(int i) const {
    if (i < left) return scale;
    const float* found = scales + scale_stride;
#pragma unroll 1
    for (int32_t beyond = i - left; beyond >= group_rows; beyond -= group_rows) found += scale_stride;
    return *found;
  }

  WC_INLINE float operator[](int i) const {
    switch (source_type(type)) {
      case WEIGHTCAST_F32: return stored<WEIGHTCAST_F32>(i);
      case WEIGHTCAST_F16: return stored<WEIGHTCAST_F16>(i);
      case WEIGHTCAST_BF16: return stored<WEIGHTCAST_BF16>(i);
      default: return stored<WEIGHTCAST_I8>(i) * scale_of(i);
    }
  }

  WC_INLINE Column operator+(int rows) const {
    Column moved = *this;
    moved.first += rows * stride * element_bytes(source_type(type));
    moved.left -= rows;
    return moved;
  }
};

// Sixteen bytes, read at once.
struct alignas(16) Sixteen {
  uint32_t words[4];
};

// Read n adjacent rows from an address that is a multiple of 16.
template <int element, int n>
WC_INLINE void read_run(const uint8_t* first, float (&x)[n]) {
  using stored = typename Element<element>::stored;
  constexpr int each = 16 / sizeof(stored);
  static_assert(n % each == 0, "runs are whole words of 16 bytes");
  const auto* runs = reinterpret_cast<const Sixteen*>(first);
WC_UNROLL
  for (int k = 0; k < n / each; ++k) {
    const Sixteen run = runs[k];
WC_UNROLL
    for (int j = 0; j < each; ++j) {
      const uint32_t word = run.words[j * static_cast<int>(sizeof(stored)) / 4];
      constexpr int per_word = 4 / sizeof(stored);
      const uint32_t bits = word >> j % per_word * (32 / per_word);
      if constexpr (sizeof(stored) == 4) {
        x[k * each + j] = bits_float(bits);
      } else {
        x[k * each + j] = Element<element>::value(static_cast<stored>(bits));
      }
    }
  }
}

// Read the first `rows` of n rows as they are stored; the others become zeros.
template <int element, int n>
WC_INLINE void read_rows(const Column& column, int rows, float (&x)[n]) {
  const bool is_run = column.stride == 1 && reinterpret_cast<uintptr_t>(column.first) % 16 == 0;
  if (is_run && rows == n) {
    read_run<element>(column.first, x);
  } else if (rows == n) {
WC_UNROLL
    for (int i = 0; i < n; ++i) x[i] = column.stored<element>(i);
  } else {
WC_UNROLL
    for (int i = 0; i < n; ++i) x[i] = i < rows ? column.stored<element>(i) : 0.0f;
  }
}

// Load the first `rows` of n rows as floats into registers; the others become zeros.
template <int n>
WC_INLINE void load_rows(const Column& column, int rows, float (&x)[n]) {
  switch (source_type(column.type)) {
    case WEIGHTCAST_F32: return read_rows<WEIGHTCAST_F32>(column, rows, x);
    case WEIGHTCAST_F16: return read_rows<WEIGHTCAST_F16>(column, rows, x);
    case WEIGHTCAST_BF16: return read_rows<WEIGHTCAST_BF16>(column, rows, x);
    default: break;
  }
  read_rows<WEIGHTCAST_I8>(column, rows, x);
  if (rows <= column.left) {
WC_UNROLL
    for (int i = 0; i < n; ++i) x[i] *= column.scale;
    return;
  }
  const float* scale = column.scales;
  int32_t next = column.left;  // the first row of the next group
#pragma unroll 1
  for (; next <= 0; next += column.group_rows) scale += column.scale_stride;
  float factor = *scale;
WC_UNROLL
  for (int i = 0; i < n; ++i) {
    if (i == next && i < rows) {
      factor = *(scale += column.scale_stride);
      next += column.group_rows;
    }
    x[i] *= factor;
  }
}

// The in-rows of a block that were read into registers.
struct Registers {
  const float* first;

  WC_INLINE float operator[](int i) const { return first[i]; }
  WC_INLINE Registers operator+(int rows) const { return {first + rows}; }
};

// Read the first n rows of a strip as often as they are used at once: in wide loads where they lie side
// by side in memory.
template <int n>
struct Rows {
  float x[n];

  WC_INLINE float operator[](int i) const { return x[i]; }
};
template <int n>
WC_INLINE Rows<n> read(const Column& column) {
  Rows<n> rows;
  load_rows(column, n, rows.x);
  return rows;
}
template <int n>
WC_INLINE Registers read(Registers strip) {
  return strip;
}

// Reads the n rows of a block once.
template <int n>
struct RowsInRegisters {
  float x[n];

  WC_INLINE RowsInRegisters(const Column& column, int rows) { load_rows(column, rows, x); }
  WC_INLINE Registers strip() const { return {x}; }
};

// Leaves them where they are.
template <int n>
struct RowsInMemory {
  const Column& column;

  WC_INLINE RowsInMemory(const Column& from, int) : column(from) {}
  WC_INLINE Column strip() const { return column; }
};

template <bool in_registers>
struct Access {
  using Strip = Registers;
  template <int n>
  using Rows = RowsInRegisters<n>;
};
template <>
struct Access<false> {
  using Strip = Column;
  template <int n>
  using Rows = RowsInMemory<n>;
};

// The strip that this unit's quantizers read, and the rows of a block behind it.
using Strip = Access<WC_IN_REGISTERS>::Strip;
template <int n>
using SourceRows = Access<WC_IN_REGISTERS>::Rows<n>;

}  // namespace
}  // namespace weightcast
