// Driver of groups on the CPU: walks a source and stores codes of one byte, scales and zero points. All
// arithmetic is in groups/search.h. Groups that fit a tile are made in it; longer ones take several
// passes over the source.
#pragma once

#include "groups/search.h"
#include "quantize/driver.h"

namespace weightcast {
namespace {

constexpr int kGroupDepth = 128;  // in-rows of a tile of small groups: the first-level cache holds no more

// Store scales and zero points of kLanes columns; note the first whose scale is not finite.
inline void store_group(const GroupFit& fit, const weightcast_group_type& type, int64_t out0, int columns,
                        int64_t group, const weightcast_groups& dst, weightcast_result& result,
                        bool& overflow) {
  alignas(64) float scales[kLanes];
  alignas(64) uint8_t zeros[kLanes];
  std::memcpy(scales, &fit.best.scale, sizeof scales);
  store_bytes(zeros, truncated(fit.zero_point()));
  for (int c = 0; c < columns; ++c) {
    const int64_t at = (out0 + c) * dst.groups + group;
    store_scale(type.scale_type, scales[c], dst.scales, at);
    if (!type.symmetric) dst.zero_points[at] = zeros[c];
    if (!overflow && !is_finite(scales[c])) {
      overflow = true;
      result.bad_out = out0 + c;
      result.bad_in = group * type.group_size;
    }
  }
}

// Codes [depth][kLanes] of some columns of a tile.
struct alignas(64) MadeCodes {
  uint8_t rows[kMaxDepth * kLanes];
};

// Buffers of groups: part of the source, one tile of it, codes of a strip.
struct GroupWorkspace {
  Stage stage;
  Tile tile;
  MadeCodes made;
};

struct GroupJob {
  const weightcast_source& s;
  const float* importance;
  const weightcast_group_type& type;
  const weightcast_groups& dst;
  weightcast_result& result;
  GroupRule rule;
  bool overflow;
};

// Make all groups of some columns of a tile.
template <bool weighed>
void make_groups(GroupJob& job, Strip strip, int64_t out0, int columns, int64_t in0, int depth,
                 MadeCodes& made) {
  const int size = static_cast<int>(job.type.group_size);
  for (int first = 0; first < depth; first += size) {
    GroupFit fit;
    fit.begin();
    for (int pass = 0; pass < job.rule.passes; ++pass) {
      for (int i = first; i < first + size; i += kGroupChunk) {
        fit.visit<weighed>(job.rule, pass, strip + i, weighed ? job.importance + in0 + i : nullptr);
      }
      fit.finish(job.rule, pass);
    }
    const Bytes codes{made.rows};
    for (int i = first; i < first + size; i += kGroupChunk) fit.store_codes(job.rule, strip + i, codes + i);
    store_group(fit, job.type, out0, columns, (in0 + first) / size, job.dst, job.result, job.overflow);
  }
}

inline bool are_small(const weightcast_group_type& type) { return type.group_size <= kMaxDepth; }

// In-rows of a tile of small groups.
inline int small_groups_depth(const weightcast_group_type& type) {
  const int size = static_cast<int>(type.group_size);
  return size >= kGroupDepth ? size : kGroupDepth / size * size;
}

// Observes how small groups are made, part by part of a run of columns. This one does nothing.
struct NoWatch {
  void begin(int64_t /*out0*/, int /*columns*/) {}
  // Called when the codes of strip x are made, `columns` from column c of the run on. Scales are stored.
  void add(Strip /*x*/, Bytes /*codes*/, int /*c*/, int /*columns*/, int64_t /*in0*/, int /*depth*/) {}
  // Called after all parts that end at `in`.
  void end(int64_t /*in*/) {}
};

// Make groups that fit a tile.
template <bool weighed, class Watch>
int32_t quantize_small_groups(GroupJob& job, GroupWorkspace& work, Watch& watch) {
  const weightcast_source& s = job.s;
  const int tile_depth = small_groups_depth(job.type);
  auto& [stage, tile, made] = work;
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int count = at_most(s.n_out - out0, run);
    watch.begin(out0, count);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += tile_depth) {
      const int depth = at_most(s.n_in - in0, tile_depth);
      const MemoryView view = view_at(s, out0, count, in0, depth, stage);
      for (int skip = 0; skip < count; skip += kWidth) {
        const int width = at_most(count - skip, kWidth);
        load_tile(s, view, skip, out0 + skip, width, in0, depth, tile);
        if (!tile_is_finite(s, tile, out0 + skip, in0, depth, job.result)) return WEIGHTCAST_NOT_FINITE;
        for (int c0 = 0; c0 < width; c0 += kLanes) {
          const int64_t first = out0 + skip + c0;
          const int columns = at_most(width - c0, kLanes);
          const Strip x{&tile.x[0][c0]};
          make_groups<weighed>(job, x, first, columns, in0, depth, made);
          watch.add(x, Bytes{made.rows}, skip + c0, columns, in0, depth);
          store_columns(made.rows, depth, columns, job.dst.codes + first * s.n_in + in0, s.n_in);
        }
      }
      watch.end(in0 + depth);
    }
  }
  return job.overflow ? WEIGHTCAST_OVERFLOW : WEIGHTCAST_OK;
}

// Call `use` with each strip of the rows [in0, in0 + length) of a run of columns, a tile at a time.
template <class Use>
bool each_strip(GroupJob& job, GroupWorkspace& work, int64_t out0, int count, int64_t in0, int64_t length,
                bool check, Use use) {
  Tile& tile = work.tile;
  for (int64_t in = in0; in < in0 + length; in += kMaxDepth) {
    const int depth = at_most(in0 + length - in, kMaxDepth);
    const MemoryView view = view_at(job.s, out0, count, in, depth, work.stage);
    for (int skip = 0; skip < count; skip += kWidth) {
      const int width = at_most(count - skip, kWidth);
      load_tile(job.s, view, skip, out0 + skip, width, in, depth, tile);
      if (check && !tile_is_finite(job.s, tile, out0 + skip, in, depth, job.result)) return false;
      for (int c0 = 0; c0 < width; c0 += kLanes) {
        use(Strip{&tile.x[0][c0]}, skip + c0, at_most(width - c0, kLanes), in, depth);
      }
    }
  }
  return true;
}

// Buffers of groups longer than a tile, and the fits of a run of columns.
struct LongGroupWorkspace {
  GroupWorkspace strips;
  GroupFit fits[kMaxRun / kLanes];
};

// Make one group, longer than a tile, of a run of columns.
template <bool weighed>
bool make_long_group(GroupJob& job, LongGroupWorkspace& work, int64_t out0, int count, int64_t group) {
  const GroupRule& rule = job.rule;
  const int64_t in0 = group * job.type.group_size, length = job.type.group_size;
  GroupWorkspace& strips = work.strips;
  auto& fits = work.fits;
  for (GroupFit& fit : fits) fit.begin();
  for (int pass = 0; pass < rule.passes; ++pass) {
    const auto visit = [&](Strip x, int c, int, int64_t in, int depth) {
      for (int i = 0; i < depth; i += kGroupChunk) {
        fits[c / kLanes].visit<weighed>(rule, pass, x + i, weighed ? job.importance + in + i : nullptr);
      }
    };
    if (!each_strip(job, strips, out0, count, in0, length, pass == 0, visit)) return false;
    for (int c = 0; c < count; c += kLanes) fits[c / kLanes].finish(rule, pass);
  }
  const auto store = [&](Strip x, int c, int columns, int64_t in, int depth) {
    uint8_t* made = work.strips.made.rows;
    const Bytes codes{made};
    for (int i = 0; i < depth; i += kGroupChunk) fits[c / kLanes].store_codes(rule, x + i, codes + i);
    store_columns(made, depth, columns, job.dst.codes + (out0 + c) * job.s.n_in + in, job.s.n_in);
  };
  each_strip(job, strips, out0, count, in0, length, false, store);
  for (int c = 0; c < count; c += kLanes) {
    store_group(fits[c / kLanes], job.type, out0 + c, at_most(count - c, kLanes), group, job.dst, job.result,
                job.overflow);
  }
  return true;
}

template <bool weighed>
int32_t quantize_long_groups(GroupJob& job) {
  const OnHeap<LongGroupWorkspace> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  const int run = run_columns(job.s);
  for (int64_t out0 = 0; out0 < job.s.n_out; out0 += run) {
    const int count = at_most(job.s.n_out - out0, run);
    for (int64_t group = 0; group < job.dst.groups; ++group) {
      if (!make_long_group<weighed>(job, *buffers, out0, count, group)) return WEIGHTCAST_NOT_FINITE;
    }
  }
  return job.overflow ? WEIGHTCAST_OVERFLOW : WEIGHTCAST_OK;
}

template <class Watch>
int32_t quantize_small_groups(GroupJob& job, GroupWorkspace& work, Watch& watch) {
  return job.importance != nullptr ? quantize_small_groups<true>(job, work, watch)
                                   : quantize_small_groups<false>(job, work, watch);
}

inline GroupJob group_job(const weightcast_source& s, const float* importance,
                          const weightcast_group_type& type, const weightcast_groups& dst,
                          weightcast_result& result) {
  const GroupRule rule = group_rule(type.bits, type.symmetric != 0, type.scale_type, type.search);
  return {s, importance, type, dst, result, rule, false};
}

inline int32_t quantize_groups(const weightcast_source& s, const float* importance,
                               const weightcast_group_type& type, const weightcast_groups& dst,
                               weightcast_result& result) {
  GroupJob job = group_job(s, importance, type, dst, result);
  if (are_small(type)) {
    const OnHeap<GroupWorkspace> buffers;
    NoWatch watch;
    return buffers ? quantize_small_groups(job, *buffers, watch) : WEIGHTCAST_NO_MEMORY;
  }
  return importance != nullptr ? quantize_long_groups<true>(job) : quantize_long_groups<false>(job);
}

}  // namespace
}  // namespace weightcast
