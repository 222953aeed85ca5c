// Groups on a device: one thread makes one group of one output column, in passes over the source.
//
// Threads side by side make columns side by side, so that a source that is contiguous along `out` is
// read in whole sectors. A chunk is read into registers, once in each pass; the caches serve the later
// passes. A chunk's codes are stored sixteen at once.
#pragma once

#include "device/tile.h"
#include "groups/search.h"

namespace weightcast {
namespace {

struct GroupArguments {
  QuantizeArguments source;  // dst: codes, one a byte; rows are multiples of 16 bytes
  void* scales;              // [n_out, groups] of scale_type
  uint8_t* zero_points;      // [n_out, groups], null if symmetric
  int64_t group_size, groups;
  int32_t bits, symmetric, scale_type, search;  // as in weightcast_group_type
};

constexpr int kGroupThreads = 128;

// The codes of one chunk.
struct alignas(16) ChunkCodes {
  uint8_t rows[kGroupChunk];
};

// Group `index` / n_out of column `index` % n_out, in registers and in passes.
template <bool weighed>
struct DeviceGroup {
  const GroupArguments& a;
  const QuantizeArguments& s;
  int64_t out, group, begin, end;

  DeviceGroup(const GroupArguments& arguments, int64_t index) : a(arguments), s(arguments.source) {
    group = index / s.n_out;
    out = index - group * s.n_out;
    begin = group * a.group_size;
    end = begin + a.group_size;
  }

  WC_INLINE void read(int64_t in, float (&x)[kGroupChunk]) const {
    load_rows(column_at(s, out, in, kGroupChunk), kGroupChunk, x);
  }

  // Visit all chunks once; false, with the place noted, if a value is not finite.
  WC_INLINE bool visit(const GroupRule& rule, int pass, GroupFit& fit) const {
    for (int64_t in = begin; in < end; in += kGroupChunk) {
      float x[kGroupChunk];
      read(in, x);
      // Products of codes and scales are finite: the scales were checked before.
      if (pass == 0 && !has_codes(s)) {
        const int bad = first_not_finite<kGroupChunk>(Strip{x});
        if (bad >= 0) {
          note(s.found->not_finite, out * s.n_in + in + bad);
          return false;
        }
      }
      fit.template visit<weighed>(rule, pass, Strip{x}, weighed ? s.importance + in : nullptr);
    }
    return true;
  }

  WC_INLINE void store_codes(const GroupRule& rule, const GroupFit& fit) const {
    for (int64_t in = begin; in < end; in += kGroupChunk) {
      float x[kGroupChunk];
      read(in, x);
      ChunkCodes made;
      fit.store_codes(rule, Strip{x}, Bytes{made.rows});
      auto* to = reinterpret_cast<Sixteen*>(s.dst + out * s.dst_stride + in);
WC_UNROLL
      for (int k = 0; k < kGroupChunk / 16; ++k) {
        Sixteen run;
        std::memcpy(&run, made.rows + 16 * k, 16);
        to[k] = run;
      }
    }
  }

  WC_INLINE void make() const {
    if (group >= a.groups) return;
    const GroupRule rule = group_rule(a.bits, a.symmetric != 0, a.scale_type, a.search);
    GroupFit fit;
    fit.begin();
    for (int pass = 0; pass < rule.passes; ++pass) {
      if (!visit(rule, pass, fit)) return;
      fit.finish(rule, pass);
    }
    store_codes(rule, fit);
    const int64_t at = out * a.groups + group;
    store_scale(a.scale_type, fit.best.scale, a.scales, at);
    if (a.symmetric == 0) a.zero_points[at] = static_cast<uint8_t>(truncated(fit.zero_point()));
    if (!is_finite(fit.best.scale)) note(s.found->overflow, out * s.n_in + begin);
  }
};

}  // namespace
}  // namespace weightcast
