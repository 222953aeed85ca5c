// Chooses codes of a weight matrix one input column after another, so that the error of a column makes up for
// the errors of those before it: x' = x + sum of earlier errors times M (factor.h) is rounded in place of x.
// What all errors cost is the sum of T (x' - q)^2.
//
// The columns are rounded from the last of the factor to the first, in blocks. Errors of finished columns are
// added up in the factor's order, and rows do not touch each other: however they are divided among threads,
// and whatever the vectors are, codes and costs have the same bits.
#pragma once

#include "feedback/doubles.h"
#include "source/buffers.h"

namespace weightcast {
namespace {

constexpr int kFeedbackBlock = 64;   // columns that are rounded together
constexpr int kFeedbackDepth = 256;  // finished columns whose errors are added at a time
constexpr int kFeedbackTile = 8;     // columns whose sums stay in registers
constexpr int kMaxLevels = 256;

struct FeedbackWorkspace {
  alignas(64) double panel[kFeedbackDepth * kFeedbackBlock];  // M [tiles][depth][kFeedbackTile]
  double block[kFeedbackBlock * kFeedbackBlock];              // M of a block on the diagonal
  double middles[kMaxLevels];                                 // between levels
};

struct FeedbackJob {
  const float* weights;  // [n_out, n_in]
  int64_t n_out;
  const weightcast_factor& factor;
  const weightcast_grid& grid;
  bool choose;      // or take the codes as they are
  uint8_t* codes;   // [n_out, n_in]
  double* errors;   // [strips][n_in][kDoubles], by the factor's order; sums of them before
  double* costs;    // [n_out]
};

// The codes of one column: values are step * level + low.
struct CodeLevels {
  const double* middles;
  const float* values;  // nullptr: 0, 1, 2, ...
  int last;

  int nearest(double x) const {
    if (values != nullptr) {
      int code = 0;
      for (int i = 0; i < last; ++i) code += x > middles[i];
      return code;
    }
    if (!(x > 0.0)) return 0;
    return x < last ? static_cast<int>(x + 0.5) : last;
  }
  // Codes that are given can be anything.
  double operator[](int code) const {
    const int known = code < last ? code : last;
    return values != nullptr ? values[known] : known;
  }
};

// Round one column of a strip of rows. `sums` are the errors carried to it, and become its own errors.
inline void round_column(const FeedbackJob& job, const CodeLevels& levels, int64_t out0, int rows, int64_t column,
                         double pivot, double* sums) {
  const int64_t n_in = job.factor.n, groups = n_in / job.grid.group_size;
  const int64_t group = column / job.grid.group_size;
  for (int r = 0; r < kDoubles; ++r) {
    if (r >= rows) {
      sums[r] = 0.0;
      continue;
    }
    const int64_t out = out0 + r;
    const double step = job.grid.steps[out * groups + group];
    const double low = job.grid.lows != nullptr ? job.grid.lows[out * groups + group] : 0.0;
    const double weight = job.weights[out * n_in + column];
    const double wanted = weight + sums[r];
    uint8_t& code = job.codes[out * n_in + column];
    // With a step of zero all codes are the same value.
    if (job.choose && step != 0.0) code = static_cast<uint8_t>(levels.nearest((wanted - low) / step));
    const double made = step * levels[code] + low;
    sums[r] = weight - made;
    job.costs[out] += pivot * (wanted - made) * (wanted - made);
  }
}

// Copy M [rows k0 to k1, columns b0 to b1) to where tiles read it from front to back.
inline void pack_panel(const weightcast_factor& factor, int64_t k0, int64_t k1, int64_t b0, int64_t b1,
                       double* panel) {
  const int64_t depth = k1 - k0;
  for (int64_t k = 0; k < depth; ++k) {
    const double* row = factor.values + (k0 + k) * factor.n + b0;
    for (int64_t c = 0; c < kFeedbackBlock; ++c) {
      const int64_t tile = c / kFeedbackTile;
      panel[(tile * depth + k) * kFeedbackTile + c % kFeedbackTile] = c < b1 - b0 ? row[c] : 0.0;
    }
  }
}

// Add the errors [depth] of a strip to the sums of one tile of columns.
inline void carry_errors(const double* errors, int64_t depth, const double* panel, int columns, double* sums) {
  D tile[kFeedbackTile];
  for (int c = 0; c < kFeedbackTile; ++c) tile[c] = c < columns ? load_doubles(sums + c * kDoubles) : D{};
  for (int64_t k = 0; k < depth; ++k) {
    const D error = load_doubles(errors + k * kDoubles);
    for (int c = 0; c < kFeedbackTile; ++c) tile[c] += error * panel[k * kFeedbackTile + c];
  }
  for (int c = 0; c < columns; ++c) store_doubles(sums + c * kDoubles, tile[c]);
}

// Carry the errors of all finished columns, [b1, n_in), to those of a block.
inline void carry_to_block(const FeedbackJob& job, int64_t b0, int64_t b1, FeedbackWorkspace& work) {
  const int64_t n_in = job.factor.n;
  for (int64_t k0 = b1; k0 < n_in; k0 += kFeedbackDepth) {
    const int64_t k1 = k0 + kFeedbackDepth < n_in ? k0 + kFeedbackDepth : n_in;
    pack_panel(job.factor, k0, k1, b0, b1, work.panel);
    for (int64_t out0 = 0; out0 < job.n_out; out0 += kDoubles) {
      double* strip = job.errors + out0 * n_in;
      for (int64_t c = b0; c < b1; c += kFeedbackTile) {
        const double* panel = work.panel + (c - b0) * (k1 - k0);
        const int columns = static_cast<int>(b1 - c < kFeedbackTile ? b1 - c : kFeedbackTile);
        carry_errors(strip + k0 * kDoubles, k1 - k0, panel, columns, strip + c * kDoubles);
      }
    }
  }
}

// Round the columns of a block, whose sums hold the errors of all columns after it.
inline void round_block(const FeedbackJob& job, const CodeLevels& levels, int64_t b0, int64_t b1,
                        FeedbackWorkspace& work) {
  const int64_t n_in = job.factor.n;
  for (int64_t k = b0; k < b1; ++k) {
    std::memcpy(work.block + (k - b0) * kFeedbackBlock, job.factor.values + k * n_in + b0,
                static_cast<size_t>(k - b0 + 1) * sizeof(double));
  }
  for (int64_t out0 = 0; out0 < job.n_out; out0 += kDoubles) {
    const int rows = static_cast<int>(job.n_out - out0 < kDoubles ? job.n_out - out0 : kDoubles);
    double* sums = job.errors + out0 * n_in + b0 * kDoubles;
    for (int k = static_cast<int>(b1 - b0) - 1; k >= 0; --k) {
      const double* shares = work.block + k * kFeedbackBlock;
      round_column(job, levels, out0, rows, job.factor.order[b0 + k], shares[k], sums + k * kDoubles);
      const D error = load_doubles(sums + k * kDoubles);
      for (int c = 0; c < k; ++c) {
        store_doubles(sums + c * kDoubles, load_doubles(sums + c * kDoubles) + error * shares[c]);
      }
    }
  }
}

inline int32_t round_with_feedback(const FeedbackJob& job) {
  const OnHeap<FeedbackWorkspace> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  const weightcast_grid& grid = job.grid;
  const CodeLevels levels{buffers->middles, grid.levels, grid.n_levels - 1};
  for (int i = 0; grid.levels != nullptr && i < levels.last; ++i) {
    buffers->middles[i] = (static_cast<double>(grid.levels[i]) + grid.levels[i + 1]) / 2;
  }
  const int64_t n_in = job.factor.n, strips = (job.n_out + kDoubles - 1) / kDoubles;
  for (int64_t i = 0; i < strips * n_in * kDoubles; ++i) job.errors[i] = 0.0;
  for (int64_t out = 0; out < job.n_out; ++out) job.costs[out] = 0.0;
  for (int64_t b1 = n_in; b1 > 0; b1 -= b1 < kFeedbackBlock ? b1 : kFeedbackBlock) {
    const int64_t b0 = b1 > kFeedbackBlock ? b1 - kFeedbackBlock : 0;
    carry_to_block(job, b0, b1, *buffers);
    round_block(job, levels, b0, b1, *buffers);
  }
  return WEIGHTCAST_OK;
}

}  // namespace
}  // namespace weightcast
