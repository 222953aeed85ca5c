// Makes groups and measures their errors in one walk, if both can use the same tiles.
#pragma once

#include "groups/driver.h"
#include "metrics/measure.h"

namespace weightcast {
namespace {

static_assert(kLanes % kErrorRows == 0, "strips are whole parts");

// Measures groups while their strip of the source and their codes are in the cache.
class GroupErrors {
 public:
  GroupErrors(const MeasureJob& job, const weightcast_group_type& type, const weightcast_groups& groups)
      : job_(job), type_(type), groups_(groups), sums_(job) {}

  void begin(int64_t out0, int columns) {
    out0_ = out0;
    sums_.begin(out0, columns);
  }

  void add(Strip strip, Bytes codes, int c, int columns, int64_t in0, int depth) {
    const float* x = strip.first;
    if (job_.rounded) {  // a copy: the search sees what is stored
      for (int i = 0; i < depth; ++i) {
        for (int n = 0; n < kLanes; ++n) rounded_.x[i][n] = bf16_to_f32(f32_to_bf16(x[i * kWidth + n]));
      }
      x = rounded_.x[0];
    }
    for (int n = 0; n < columns; n += kErrorRows) {
      unpack(codes, n, out0_ + c, columns, in0, depth);
      sums_.add(c + n, x + n, y_[0], in0, depth);
    }
  }

  void end(int64_t in) { sums_.end(in); }

 private:
  // Fill y with columns from n on of a strip that begins at row `out`.
  void unpack(Bytes codes, int n, int64_t out, int columns, int64_t in0, int depth) {
    const int size = static_cast<int>(type_.group_size);
    const int count = at_most(columns - n, kErrorRows);
    for (int first = 0; first < depth; first += size) {
      const StoredScales<kErrorRows> stored(type_, groups_, out + n, count, (in0 + first) / size);
      for (int i = first; i < first + size; ++i) stored.dequantize(codes[i] + n, y_[i]);
    }
  }

  const MeasureJob& job_;
  const weightcast_group_type& type_;
  const weightcast_groups& groups_;
  int64_t out0_ = 0;
  RowSums sums_;
  Tile rounded_;
  alignas(64) float y_[kMaxDepth][kMeasured];
};

// What making and measuring groups at once works in.
struct MeasuredWorkspace {
  GroupWorkspace groups;
  GroupErrors errors;

  MeasuredWorkspace(const MeasureJob& job, const weightcast_group_type& type, const weightcast_groups& dst)
      : errors(job, type, dst) {}
};

// True if tiles of small groups are whole runs, and chunks whole tiles, so that sums keep their order.
inline bool are_measured_at_once(const weightcast_group_type& type) {
  if (!are_small(type)) return false;
  const int depth = small_groups_depth(type);
  return depth % kErrorRun == 0 && kErrorChunk % depth == 0;
}

inline int32_t quantize_and_measure_groups(const MeasureJob& measuring, const weightcast_group_type& type,
                                           const weightcast_groups& dst, weightcast_result& result) {
  if (are_measured_at_once(type)) {
    GroupJob job = group_job(measuring.s, measuring.importance, type, dst, result);
    const OnHeap<MeasuredWorkspace> buffers(measuring, type, dst);
    return buffers ? quantize_small_groups(job, buffers->groups, buffers->errors) : WEIGHTCAST_NO_MEMORY;
  }
  const int32_t status = quantize_groups(measuring.s, measuring.importance, type, dst, result);
  return status == WEIGHTCAST_OK ? measure_groups(measuring, type, dst) : status;
}

}  // namespace
}  // namespace weightcast
