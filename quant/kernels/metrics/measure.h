// Measures the errors of rows against their source on the CPU, tile by tile as the quantizers do.
#pragma once

#include "dequantize/rows.h"
#include "groups/exact.h"
#include "metrics/errors.h"
#include "quantize/driver.h"

namespace weightcast {
namespace {

static_assert(kErrorChunk % kMaxDepth == 0, "chunks are whole tiles");
static_assert(kMaxDepth % kErrorRun == 0, "tiles are whole runs");

constexpr int kMeasured = 16;  // columns that are compared together, so that bytes fill squares
static_assert(kMeasured % kTransposed == 0 && kMeasured % kErrorRows == 0 && kWidth % kMeasured == 0);

// Dequantized values of a few columns, as rows and transposed.
struct Unpacked {
  alignas(64) float rows[kMeasured][kMaxDepth];
  alignas(64) float columns[kMaxDepth][kMeasured];
};

// Rows of blocks, stride bytes apart.
struct BlockRows {
  const Dequantizer& layout;
  const uint8_t* first;
  int64_t stride;

  // Fill `columns` [depth] with rows [out, out + count), which have a multiple of kErrorRun values here.
  void unpack(int64_t out, int count, int64_t in, int depth, Unpacked& to) const {
    for (int c = 0; c < count; ++c) {
      const uint8_t* blocks = first + (out + c) * stride + in / layout.elements * layout.bytes;
      const int n_blocks = depth / layout.elements;
      prefetch(blocks, kMeasured * stride, n_blocks * layout.bytes);
      layout.blocks(blocks, n_blocks, to.rows[c]);
    }
    for (int i = 0; i < depth; i += kSquare<float>) {
      for (int c = 0; c < count; c += kTransposed) {
        transpose_rows(to.rows[c] + i, kMaxDepth, &to.columns[i][c], kMeasured);
      }
    }
  }
};

// The scale and zero point of a group in each of n neighbouring rows, as they are stored; zeros beyond
// `count` rows.
template <int n>
struct StoredScales {
  alignas(64) float scales[n] = {}, zeros[n] = {};

  StoredScales(const weightcast_group_type& type, const weightcast_groups& groups, int64_t out, int count,
               int64_t group) {
    for (int c = 0; c < count; ++c) {
      const int64_t at = (out + c) * groups.groups + group;
      scales[c] = stored_scale_at(type.scale_type, groups.scales, at);
      zeros[c] = static_cast<float>(zero_point_at(type, groups, at));
    }
  }

  // Dequantize codes [n]. Differences of small integers are exact, so this gives what dequantize_run does.
  WC_INLINE void dequantize(const uint8_t* codes, float* y) const {
    for (int c = 0; c < n; ++c) y[c] = (static_cast<float>(codes[c]) - zeros[c]) * scales[c];
  }
};

// Rows of groups; depths may end inside one.
struct GroupRows {
  const weightcast_group_type& type;
  const weightcast_groups& groups;

  void unpack(int64_t out, int count, int64_t in, int depth, Unpacked& to) const {
    static_assert(kMeasured == kSquare<uint8_t> && kErrorRun % kMeasured == 0, "bytes fill squares");
    alignas(64) uint8_t codes[kMeasured][kMaxDepth], turned[kMaxDepth][kMeasured];
    const int64_t n_in = groups.groups * type.group_size;
    for (int c = 0; c < kMeasured; ++c) {
      const uint8_t* row = groups.codes + (out + c) * n_in + in;
      if (c < count) {
        prefetch(row, kMeasured * n_in, depth);
        std::memcpy(codes[c], row, static_cast<size_t>(depth));
      } else {
        std::memset(codes[c], 0, static_cast<size_t>(depth));
      }
    }
    for (int i = 0; i < depth; i += kMeasured) transpose_square(&codes[0][i], kMaxDepth, turned[i], kMeasured);
    for (int i = 0; i < depth;) {
      const int64_t group = (in + i) / type.group_size;
      const int end = i + at_most((group + 1) * type.group_size - in - i, depth - i);
      const StoredScales<kMeasured> stored(type, groups, out, count, group);
      for (; i < end; ++i) stored.dequantize(turned[i], to.columns[i]);
    }
  }
};

struct MeasureJob {
  const weightcast_source& s;
  const float* importance;  // or null
  bool rounded;             // x is the source rounded to bfloat16
  weightcast_moments* moments;
};

// A part of some rows: x and y [n], the importance of its columns, and where it begins.
struct Part {
  const float* x;
  const float* y;
  const float* w;
  int n;
  int64_t in;

  Part run(int first) const {
    return {x + first * kWidth, y + first * kMeasured, w == nullptr ? nullptr : w + first,
            at_most(n - first, kErrorRun), in + first};
  }

  template <bool weighed, bool bounded>
  WC_INLINE RunSums sums() const {
    RunSums made;
    for (int i = 0; i < n; ++i) {
      const D weight = weighed ? D{} + static_cast<double>(w[i]) : D{};
      made.add<weighed, bounded>(x + i * kWidth, y + i * kMeasured, weight);
    }
    return made;
  }

  // True if every value equals its source.
  WC_INLINE bool is_exact() const {
    for (int c = 0; c < kErrorRows; ++c) {
      if (x[c] != y[c]) return false;  // nearly all inexact runs end here
    }
    XI equals{};
    for (int i = 0; i < n; ++i) count(equals, equal(load_values(x + i * kWidth), load_values(y + i * kMeasured)));
    bool exact = true;
    for (int c = 0; c < kErrorRows; ++c) exact &= lane(equals, c) == n;
    return exact;
  }

  // The sums of a run in which every value equals its source.
  template <bool weighed>
  WC_INLINE RunSums exact_sums() const {
    RunSums made;
    for (int i = 0; i < n; ++i) {
      made.add_exact<weighed>(x + i * kWidth, weighed ? D{} + static_cast<double>(w[i]) : D{});
    }
    made.exact = XI{} + n;
    return made;
  }

  // Find the first place in row c, from `run` on, with the given square of the error.
  int64_t place_of(double square, int64_t run, int c) const {
    int i = static_cast<int>(run - in);
    for (; i < n - 1; ++i) {
      const double error = static_cast<double>(y[i * kMeasured + c]) - static_cast<double>(x[i * kWidth + c]);
      const double found = error * error;
      if (!(found < square)) break;  // NaN counts as infinite
    }
    return in + i;
  }
};

// Add a run: to the sums of a chunk, and for `columns` of its rows to the histograms of whole rows.
template <bool weighed>
WC_INLINE void add_run(const Part& run, int columns, Sums& sums, weightcast_moments* moments) {
  // A carried matrix is exact throughout; in others hardly any run is.
  const bool is_exact = run.is_exact();
  RunSums made = is_exact ? run.exact_sums<weighed>() : run.sums<weighed, false>();
  if (is_exact ? !made.has_finite_sources() : !made.is_finite()) made = run.sums<weighed, true>();
  sums.add<weighed>(made, run.in);
  for (int h = 0; h < kHalves; ++h) {
    const D ratios = made.error_squares[h] / made.source_squares[h];
    for (int n = 0; n < kDoubles && h * kDoubles + n < columns; ++n) {
      ++moments[h * kDoubles + n].histogram[bin_of(lane(made.error_squares[h], n), lane(ratios, n))];
    }
  }
}

// Add a part of some rows, of which `columns` count.
template <bool weighed>
void add_part(const Part& part, int columns, Sums& sums, weightcast_moments* moments) {
  Sums sum = sums;
  for (int i = 0; i < part.n; i += kErrorRun) add_run<weighed>(part.run(i), columns, sum, moments);
  for (int c = 0; c < columns; ++c) {
    const int h = c / kDoubles, n = c % kDoubles;
    const double largest = lane(sum.largest[h], n);
    if (!(largest > lane(sums.largest[h], n))) continue;
    sum.largest_in[c] = part.place_of(largest, static_cast<int64_t>(lane(sum.largest_run[h], n)), c);
  }
  sums = sum;
}

// Sums up the rows of a run of columns, part by part from the first to the last.
class RowSums {
 public:
  explicit RowSums(const MeasureJob& job) : job_(job) {}

  void begin(int64_t out0, int columns) {
    out0_ = out0;
    columns_ = columns;
    for (Sums& sums : sums_) sums = Sums{};
    for (int c = 0; c < columns; ++c) job_.moments[out0 + c] = weightcast_moments{};
  }

  // Add the part [in0, in0 + depth) of kErrorRows rows, the first of which is column c of the run.
  void add(int c, const float* x, const float* y, int64_t in0, int depth) {
    const int count = at_most(columns_ - c, kErrorRows);
    Sums& sums = sums_[c / kErrorRows];
    weightcast_moments* moments = job_.moments + out0_ + c;
    if (job_.importance != nullptr) {
      add_part<true>({x, y, job_.importance + in0, depth, in0}, count, sums, moments);
    } else {
      add_part<false>({x, y, nullptr, depth, in0}, count, sums, moments);
    }
  }

  // Called after all parts that end at `in`. No part crosses the end of a chunk.
  void end(int64_t in) {
    if (in % kErrorChunk != 0 && in < job_.s.n_in) return;
    for (int c = 0; c < columns_; ++c) {
      add_chunk(job_.moments[out0_ + c], sums_[c / kErrorRows].of(c % kErrorRows));
    }
    for (Sums& sums : sums_) sums.restart();
  }

 private:
  const MeasureJob& job_;
  int64_t out0_ = 0;
  int columns_ = 0;
  Sums sums_[kMaxRun / kErrorRows];  // of the current chunk
};

// What a measurement works in: a tile of the source, the quantized values of a few columns, sums of rows.
struct MeasureWorkspace {
  Stage stage;
  Tile tile;
  Unpacked unpacked;
  RowSums sums;

  // Lanes beyond the last column are summed too.
  explicit MeasureWorkspace(const MeasureJob& job) : sums(job) {
    std::memset(&unpacked, 0, sizeof unpacked);
    std::memset(&tile, 0, sizeof tile);
  }
};

// Add the current tile, `width` columns from `skip` on of the run that begins at out0.
template <class Rows>
void measure_tile(const Rows& rows, int64_t out0, int skip, int width, int64_t in0, int depth,
                  MeasureWorkspace& work) {
  for (int c0 = 0; c0 < width; c0 += kMeasured) {
    const int columns = at_most(width - c0, kMeasured);
    rows.unpack(out0 + skip + c0, columns, in0, depth, work.unpacked);
    for (int c = 0; c < columns; c += kErrorRows) {
      work.sums.add(skip + c0 + c, &work.tile.x[0][c0 + c], &work.unpacked.columns[0][c], in0, depth);
    }
  }
}

inline void round_tile(Tile& tile, int depth) {
  for (int i = 0; i < depth; ++i) {
    for (int c = 0; c < kWidth; ++c) tile.x[i][c] = bf16_to_f32(f32_to_bf16(tile.x[i][c]));
  }
}

template <class Rows>
int32_t measure_rows(const MeasureJob& job, const Rows& rows) {
  const weightcast_source& s = job.s;
  const OnHeap<MeasureWorkspace> buffers(job);
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  MeasureWorkspace& work = *buffers;
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int columns = at_most(s.n_out - out0, run);
    work.sums.begin(out0, columns);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kMaxDepth) {
      const int depth = at_most(s.n_in - in0, kMaxDepth);
      const MemoryView view = view_at(s, out0, columns, in0, depth, work.stage);
      for (int skip = 0; skip < columns; skip += kWidth) {
        const int width = at_most(columns - skip, kWidth);
        load_tile(s, view, skip, out0 + skip, width, in0, depth, work.tile);
        if (job.rounded) round_tile(work.tile, depth);
        measure_tile(rows, out0, skip, width, in0, depth, work);
      }
      work.sums.end(in0 + depth);
    }
  }
  return WEIGHTCAST_OK;
}

inline int32_t measure(const MeasureJob& job, int32_t type, const void* blocks, int64_t stride) {
  for (const Dequantizer& layout : kDequantizers) {
    if (layout.type != type) continue;
    if (job.s.n_in % layout.elements != 0) return WEIGHTCAST_BAD_SHAPE;
    return measure_rows(job, BlockRows{layout, static_cast<const uint8_t*>(blocks), stride});
  }
  return WEIGHTCAST_BAD_TYPE;
}

inline int32_t measure_groups(const MeasureJob& job, const weightcast_group_type& type,
                              const weightcast_groups& groups) {
  return measure_rows(job, GroupRows{type, groups});
}

}  // namespace
}  // namespace weightcast
