// Checks before a source is quantized on a device, of scales and importance, and means over rows.
#pragma once

#include "device/tile.h"

namespace weightcast {
namespace {

struct CheckArguments {
  const float* values;  // [rows, columns], rows `stride` apart
  int64_t rows, columns, stride;
  int64_t n_in;  // of the source, for scales
  Found* found;
};

constexpr int kCheckThreads = 256;

// Counts of one thread block, of the blocks and scales of its threads: each fits 32 bits.
struct ScaleCounts {
  uint32_t exact_blocks, inexact_scales;
};

// Check one of the scales [groups, n_out]: every code * scale is finite if |scale| < 2^121, as no code
// exceeds 2^7. Counts the blocks that Q8_0 will carry: those within one group whose scale is exact.
inline void check_scale(const CheckArguments& a, int64_t index, ScaleCounts& counts) {
  if (index >= a.rows * a.columns) return;
  const int64_t group = index / a.columns;
  const float scale = a.values[group * a.stride + index % a.columns];
  if ((float_bits(scale) & 0x7fffffffu) >= 0x7c000000u) note(a.found->bad_scale, index);
  if (f16_to_f32(f32_to_f16(scale)) == scale) {
    const int64_t group_rows = a.n_in / a.rows;
    const int64_t first = (group * group_rows + Q80::elements - 1) / Q80::elements;
    const int64_t end = (group + 1) * group_rows / Q80::elements;
    if (end > first) count(counts.exact_blocks, static_cast<uint32_t>(end - first));
  } else {
    count(counts.inexact_scales, 1);
  }
}

// Add the counts of a thread block: one of its threads, as additions to one address queue up.
inline void add_counts(const CheckArguments& a, const ScaleCounts& counts) {
  if (counts.exact_blocks != 0) count(a.found->exact_blocks, counts.exact_blocks);
  if (counts.inexact_scales != 0) count(a.found->inexact_scales, counts.inexact_scales);
}

// Check that importance is finite and not negative, as weights of errors must be.
inline void check_importance(const CheckArguments& a, int64_t index) {
  if (index >= a.columns) return;
  const float factor = a.values[index];
  if (!(factor >= 0.0f) || !is_finite(factor)) note(a.found->bad_importance, index);
}

// Compute the mean of x * x over one row of the output, summed in order as ggml does.
inline void row_mean(const QuantizeArguments& a, float* means, int64_t out) {
  if (out >= a.n_out) return;
  float sum = 0.0f;
  constexpr int depth = 256;
  for (int64_t in0 = 0; in0 < a.n_in; in0 += depth) {
    const int rows = a.n_in - in0 < depth ? static_cast<int>(a.n_in - in0) : depth;
    const Column x = column_at(a, out, in0, rows);
#pragma unroll 8
    for (int i = 0; i < rows; ++i) sum += x[i] * x[i];
  }
  means[out] = sum / static_cast<float>(a.n_in);
}

}  // namespace
}  // namespace weightcast
