// Quantizers on a device: one thread makes one block of one output column.
//
// A thread block makes a tile: `columns` neighbouring columns, some blocks deep. Threads side by side
// make columns side by side, so that a source that is contiguous along `out` is read in whole
// sectors. Blocks are made in shared memory, where the rows of a column lie in order, and then
// copied by words, neighbouring threads neighbouring words.
#pragma once

#include "device/found.h"
#include "quantize/overflow.h"
#include "quantize/q8_0.h"
#include "source/strip.h"

namespace weightcast {
namespace {

struct QuantizeArguments {
  const void* data;         // of the source, as in weightcast_source
  const float* scales;      // [groups, n_out], I8 only
  const float* importance;  // [n_in]
  const float* means;       // [n_out], means of x * x over rows, or null; for types that use them
  uint8_t* dst;             // n_out rows, dst_stride bytes apart
  Found* found;
  int64_t n_out, n_in;
  int64_t stride_out, stride_in;  // elements
  int64_t group_rows, scale_stride;
  int64_t dst_stride, row_bytes;
  int32_t source_type;
  // Divisions are slow here: columns of a tile are a power of two, tiles along `out` are counted.
  int32_t column_bits;
  int32_t out_tiles;
  int32_t word_bytes;  // 1, 2 or 4; divides dst, dst_stride, row_bytes and the bytes of a tile's row
  int32_t effort;      // of the search for the least error
  int32_t reserved;
};

inline bool has_codes(const QuantizeArguments& a) { return source_type(a.source_type) == WEIGHTCAST_I8; }

// The part of a column that begins at (out, in0).
inline Column column_at(const QuantizeArguments& a, int64_t out, int64_t in0, int rows) {
  Column column{};
  const int64_t at = out * a.stride_out + in0 * a.stride_in;
  column.first = static_cast<const uint8_t*>(a.data) + at * element_bytes(source_type(a.source_type));
  column.stride = a.stride_in;
  column.type = a.source_type;
  if (has_codes(a)) {
    const int64_t group = in0 / a.group_rows;
    const int64_t left = (group + 1) * a.group_rows - in0;
    column.left = left < rows ? static_cast<int32_t>(left) : rows;
    column.scales = a.scales + group * a.scale_stride + out;
    column.scale = *column.scales;
    column.scale_stride = a.scale_stride;
    column.group_rows = a.group_rows < rows ? static_cast<int32_t>(a.group_rows) : rows;
  }
  return column;
}

// Columns in shared memory lie an odd number of words apart, so that each begins in another bank.
constexpr int staged_pitch(int bytes) { return 4 * ((bytes + 3) / 4 | 1); }

// Plain floats are made in runs of rows; the last of a column may be shorter.
template <class Emit>
struct FloatRows {
  using stored = typename Emit::stored;
  static constexpr int elements = 32;
  static constexpr int bytes = elements * static_cast<int>(sizeof(stored));

  static void quantize(Strip x, const float*, F, Bytes out) {
    auto* made = reinterpret_cast<stored*>(out[0]);
WC_UNROLL
    for (int i = 0; i < elements; ++i) made[i] = Emit::convert(x[i]);
  }
};

// True for types whose rows can end within a run: plain floats.
template <class Type>
constexpr bool kEndsWithin = false;
template <class Emit>
constexpr bool kEndsWithin<FloatRows<Emit>> = true;

// Finds the first row whose output overflows, or -1: in a block with an infinite scale, its first row.
template <class Type>
struct Overflow {
  static int first(Bytes block, int) {
    return column_overflows(block, 0, typename Type::halves{}) ? 0 : -1;
  }
};
template <class Emit>
struct Overflow<FloatRows<Emit>> {
  static int first(Bytes block, int rows) {
    const auto* made = reinterpret_cast<const typename Emit::stored*>(block[0]);
    for (int i = 0; i < rows; ++i) {
      if (Emit::overflows(made[i])) return i;
    }
    return -1;
  }
};

// The first of n rows that is NaN or infinite, or -1. Loops have constant bounds and no exits; rows in
// registers stay there if they are unrolled as well.
template <int n>
WC_INLINE int first_not_finite(Registers x) {
  int32_t worst = 0;
WC_UNROLL
  for (int i = 0; i < n; ++i) worst = greater(worst, bits(magnitude(x[i])));
  if (worst < 0x7f800000) return -1;
  int first = 0;
WC_UNROLL
  for (int i = n - 1; i >= 0; --i) first = is_finite(x[i]) ? first : i;
  return first;
}
template <int n>
WC_INLINE int first_not_finite(Column x) {
  constexpr int run = 32;
  static_assert(n % run == 0, "blocks are whole runs");
  int32_t worst = 0;
  for (int i = 0; i < n; i += run) {
    const auto rows = read<run>(x + i);
WC_UNROLL
    for (int j = 0; j < run; ++j) worst = greater(worst, bits(magnitude(rows[j])));
  }
  if (worst < 0x7f800000) return -1;
  int first = 0;
  for (int i = n - 1; i >= 0; --i) first = is_finite(x[i]) ? first : i;
  return first;
}

// True for types whose blocks can hold the codes and scale of a source: Q8_0.
template <class Type>
constexpr bool kCarriesCodes = false;
template <>
constexpr bool kCarriesCodes<Q80> = true;

// Carry over a block of codes with one scale, which float16 holds exactly. Returns false for others.
template <int rows>
WC_INLINE bool carry_codes(const Column& column, Bytes out) {
  const uint16_t d = f32_to_f16(column.scale);
  if (column.left < rows || f16_to_f32(d) != column.scale) return false;
  auto* made = reinterpret_cast<uint16_t*>(out[0]);
  *made = d;
WC_UNROLL
  for (int i = 0; i < rows; i += 2) {
    const uint32_t low = column.first[i * column.stride];
    const uint32_t high = column.first[(i + 1) * column.stride];
    made[1 + i / 2] = static_cast<uint16_t>(low | high << 8);
  }
  return true;
}

// Thread blocks that must fit a multiprocessor, 0 for what the compiler finds best. Held to 512 threads
// are types that would be left with fewer, and spill little.
template <class Type>
constexpr int kResidentBlocks = Type::elements == 64 ? 2 : 0;

// Measurements leave out the checks of values, to know what these take.
#ifdef WC_UNCHECKED
constexpr bool kChecked = false;
#else
constexpr bool kChecked = true;
#endif

// Makes a block by ggml's rule. `weighed`: there is an importance. Kernels without it need fewer registers.
template <class Type, bool weighed>
struct ByRule {
  static WC_INLINE void quantize(const QuantizeArguments& a, Strip x, int64_t out, int64_t in0, Bytes made) {
    if constexpr (weighed) {
      WC_ASSUME(a.importance + in0 != nullptr);
      Type::quantize(x, a.importance + in0, a.means == nullptr ? 0.0f : a.means[out], made);
    } else {
      Type::quantize(x, nullptr, 0.0f, made);
    }
  }
};

template <class Type, class Maker>
struct QuantizeTile {
  // Small blocks need fewer registers.
  static constexpr int threads = Type::elements <= 128 ? 256 : 128;
  static constexpr int elements = Type::elements;

  const QuantizeArguments& a;
  int deep;   // blocks of a column
  int pitch;  // bytes of a column in shared memory
  int64_t out0, block0;

  QuantizeTile(const QuantizeArguments& arguments, uint32_t tile) : a(arguments) {
    deep = threads >> a.column_bits;
    pitch = staged_pitch(deep * Type::bytes);
    const uint32_t along_in = tile / static_cast<uint32_t>(a.out_tiles);
    out0 = static_cast<int64_t>(tile - along_in * static_cast<uint32_t>(a.out_tiles)) << a.column_bits;
    block0 = static_cast<int64_t>(along_in) * deep;
  }

  // Make the block of one thread.
  void make(int thread, uint8_t* staged) const {
    const int c = thread & ((1 << a.column_bits) - 1), b = thread >> a.column_bits;
    const int64_t out = out0 + c, in0 = (block0 + b) * elements;
    if (out >= a.n_out || in0 >= a.n_in) return;
    const bool ends = kEndsWithin<Type> && a.n_in - in0 < elements;
    const int rows = ends ? static_cast<int>(a.n_in - in0) : elements;
    const Column column = column_at(a, out, in0, rows);
    const Bytes made{staged + c * pitch + b * Type::bytes};
    if constexpr (kCarriesCodes<Type>) {
      if (has_codes(a) && carry_codes<elements>(column, made)) return;
    }
    const SourceRows<elements> block(column, rows);
    const Strip x = block.strip();
    if (kChecked && !has_codes(a)) {
      const int bad = first_not_finite<elements>(x);
      if (bad >= 0) return note(a.found->not_finite, out * a.n_in + in0 + bad);
    }
    Maker::quantize(a, x, out, in0, made);
    const int bad = kChecked ? Overflow<Type>::first(made, rows) : -1;
    if (bad >= 0) note(a.found->overflow, out * a.n_in + in0 + bad);
  }

  // Copy this thread's share of the tile to the output.
  void store(int thread, const uint8_t* staged) const {
    switch (a.word_bytes) {
      case 4: return copy<uint32_t>(thread, staged);
      case 2: return copy<uint16_t>(thread, staged);
      default: return copy<uint8_t>(thread, staged);
    }
  }

  template <class Word>
  void copy(int thread, const uint8_t* staged) const {
    constexpr int side = 32;  // threads that copy one column together
    const int64_t offset = block0 * Type::bytes;
    const int64_t left = a.row_bytes - offset, whole = deep * Type::bytes;
    const int words = static_cast<int>((left < whole ? left : whole) / int64_t{sizeof(Word)});
    const int64_t left_columns = a.n_out - out0;
    const int columns = left_columns < 1 << a.column_bits ? static_cast<int>(left_columns)
                                                          : 1 << a.column_bits;
    for (int c = thread / side; c < columns; c += threads / side) {
      const auto* from = reinterpret_cast<const Word*>(staged + c * pitch);
      auto* to = reinterpret_cast<Word*>(a.dst + (out0 + c) * a.dst_stride + offset);
      for (int w = thread % side; w < words; w += side) to[w] = from[w];
    }
  }
};

}  // namespace
}  // namespace weightcast
