// Measures errors on a device: one thread sums one chunk of one row, then one adds the chunks of a row.
#pragma once

#include "dequantize/blocks.h"
#include "device/tile.h"
#include "metrics/errors.h"

namespace weightcast {
namespace {

// Weights of a row that are unpacked together: whole runs of one block, or of plain floats.
template <class Block>
constexpr int kUnpacked = Block::elements > kErrorRun ? Block::elements : kErrorRun;

// The comparison of one thread: weights of one row from `in` on with their values y.
struct Compared {
  const QuantizeArguments& a;
  const Column& x;
  const float* y;
  int64_t in;
  bool rounded;  // x is the source rounded to bfloat16

  float source(int i) const { return rounded ? bf16_to_f32(f32_to_bf16(x[i])) : x[i]; }

  // Add rows [first, first + n), a run, to the sums and to the histogram of a chunk.
  void add(int first, int n, Sums& sums, weightcast_moments& part) const {
    RunSums run;
    for (int i = first; i < first + n; ++i) {
      const float value = source(i);
      if (a.importance != nullptr) {
        run.add<true, true>(&value, y + i, static_cast<double>(a.importance[in + i]));
      } else {
        run.add<false, true>(&value, y + i, 0.0);
      }
    }
    sums.add<true>(run, in + first);
    ++part.histogram[error_bin(run.error_squares[0], run.source_squares[0])];
  }

  // Find the first row from `first` on with a square of the error no smaller than the given one.
  int64_t place_of(double square, int first, int n) const {
    int i = first;
    for (; i < first + n - 1; ++i) {
      const double error = static_cast<double>(y[i]) - static_cast<double>(source(i));
      if (!(error * error < square)) break;  // NaN counts as infinite
    }
    return in + i;
  }
};

// Measure chunk `index` / n_out of row `index` % n_out into parts [chunks, n_out]. The blocks are those
// at `dst` of the arguments.
template <class Block>
void measure_chunk(const QuantizeArguments& a, bool rounded, weightcast_moments* parts, int64_t index) {
  constexpr int unpacked = kUnpacked<Block>;
  static_assert(unpacked % kErrorRun == 0, "blocks are whole runs");
  const int64_t out = index % a.n_out, begin = index / a.n_out * kErrorChunk;
  if (begin >= a.n_in) return;
  const int64_t end = begin + kErrorChunk < a.n_in ? begin + kErrorChunk : a.n_in;
  Sums sums;
  weightcast_moments part{};
  for (int64_t in = begin; in < end; in += unpacked) {
    const int rows = end - in < unpacked ? static_cast<int>(end - in) : unpacked;
    float y[unpacked];
    const uint8_t* blocks =
        a.dst + out * a.dst_stride + in / Block::elements * int64_t{sizeof(Block)};
    dequantize_blocks<Block>(blocks, rows / Block::elements, y);
    const Column x = column_at(a, out, in, rows);
    const Compared compared{a, x, y, in, rounded};
    for (int first = 0; first < rows; first += kErrorRun) {
      const int n = rows - first < kErrorRun ? rows - first : kErrorRun;
      const double before = sums.largest[0];
      compared.add(first, n, sums, part);
      if (sums.largest[0] > before) sums.largest_in[0] = compared.place_of(sums.largest[0], first, n);
    }
  }
  add_chunk(part, sums.of(0));
  parts[index] = part;
}

// Add the chunks of row `out`, in order. The sum replaces the first chunk.
inline void add_chunks(weightcast_moments* parts, int64_t n_out, int64_t chunks, int64_t out) {
  if (out >= n_out) return;
  weightcast_moments row = parts[out];
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    const weightcast_moments& part = parts[chunk * n_out + out];
    add_chunk(row, part);
    for (int bin = 0; bin < kErrorBins; ++bin) row.histogram[bin] += part.histogram[bin];
  }
  parts[out] = row;
}

}  // namespace
}  // namespace weightcast
