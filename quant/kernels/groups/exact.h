// Exact operations on groups: carries int8 codes over unchanged, checks that, and dequantizes.
#pragma once

#include "quantize/driver.h"

namespace weightcast {
namespace {

// Store a scale. Returns false if that changes its value.
inline bool store_exact_scale(int32_t scale_type, float scale, void* scales, int64_t at) {
  switch (scale_type) {
    case WEIGHTCAST_F32: static_cast<float*>(scales)[at] = scale; return true;
    case WEIGHTCAST_F16: {
      const uint16_t half = f32_to_f16(scale);
      static_cast<uint16_t*>(scales)[at] = half;
      return f16_to_f32(half) == scale;
    }
    default: {
      const uint16_t half = f32_to_bf16(scale);
      static_cast<uint16_t*>(scales)[at] = half;
      return bf16_to_f32(half) == scale;
    }
  }
}

inline float stored_scale_at(int32_t scale_type, const void* scales, int64_t at) {
  switch (scale_type) {
    case WEIGHTCAST_F32: return static_cast<const float*>(scales)[at];
    case WEIGHTCAST_F16: return f16_to_f32(static_cast<const uint16_t*>(scales)[at]);
    default: return bf16_to_f32(static_cast<const uint16_t*>(scales)[at]);
  }
}

// Store the scales of a source, each once per group. Returns false if one is not exact, with the first
// value of its group in `result`.
inline bool carry_scales(const weightcast_source& s, const weightcast_group_type& type,
                         const weightcast_groups& dst, weightcast_result& result) {
  for (int64_t out = 0; out < s.n_out; ++out) {
    for (int64_t group = 0; group < dst.groups; ++group) {
      const int64_t in0 = group * type.group_size;
      const float scale = s.scales[in0 / group_rows(s) * s.scale_stride + out];
      if (!store_exact_scale(type.scale_type, scale, dst.scales, out * dst.groups + group)) {
        result.bad_out = out;
        result.bad_in = in0;
        return false;
      }
    }
  }
  return true;
}

// Store codes of -128..127 as 0..255.
inline void store_offset_codes(const int8_t* codes, int64_t n, uint8_t* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<uint8_t>(codes[i]) ^ 0x80u;
}

struct alignas(64) StagedCodes {
  int8_t rows[kWidth][kMaxDepth];
};

// Transpose columns from `skip` on of a view; width and depth fill whole squares.
inline void stage_columns(const MemoryView& view, int skip, int width, int depth, StagedCodes& staged) {
  constexpr int n = kSquare<int8_t>;
  const auto* codes = static_cast<const int8_t*>(view.first) + skip;
  for (int c = 0; c < width; c += n) {
    for (int i = 0; i < depth; i += n) {
      transpose_square(codes + i * view.stride_in + c, view.stride_in, &staged.rows[c][i], kMaxDepth);
    }
  }
}

// Buffers of carried codes: part of the source, columns of it as rows.
struct CarryWorkspace {
  Stage stage;
  StagedCodes staged;
};

inline int32_t carry_codes_along_out(const weightcast_source& s, uint8_t* dst) {
  constexpr int n = kSquare<int8_t>;
  const OnHeap<CarryWorkspace> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  auto& [stage, staged] = *buffers;
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int count = at_most(s.n_out - out0, run);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kMaxDepth) {
      const int depth = at_most(s.n_in - in0, kMaxDepth);
      const MemoryView view = view_at(s, out0, count, in0, depth, stage);
      for (int skip = 0; skip < count; skip += kWidth) {
        const int width = at_most(count - skip, kWidth);
        const int squares = width / n * n;
        stage_columns(view, skip, squares, depth, staged);
        for (int c = squares; c < width; ++c) {
          const auto* column = static_cast<const int8_t*>(view.first) + skip + c;
          for (int i = 0; i < depth; ++i) staged.rows[c][i] = column[i * view.stride_in];
        }
        uint8_t* row = dst + (out0 + skip) * s.n_in + in0;
        for (int c = 0; c < width; ++c, row += s.n_in) store_offset_codes(staged.rows[c], depth, row);
      }
    }
  }
  return WEIGHTCAST_OK;
}

// Store int8 codes plus 128 and their scales, if that changes no value.
inline int32_t carry_groups(const weightcast_source& s, const weightcast_group_type& type,
                            const weightcast_groups& dst, weightcast_result& result) {
  if (group_rows(s) % type.group_size != 0) return WEIGHTCAST_BAD_SHAPE;
  if (!carry_scales(s, type, dst, result)) return WEIGHTCAST_INEXACT_SCALE;
  if (s.stride_out == 1) return carry_codes_along_out(s, dst.codes);
  for (int64_t out = 0; out < s.n_out; ++out) {
    const auto* row = static_cast<const int8_t*>(s.data) + out * s.stride_out;
    uint8_t* to = dst.codes + out * s.n_in;
    if (s.stride_in == 1) {
      store_offset_codes(row, s.n_in, to);
    } else {
      for (int64_t i = 0; i < s.n_in; ++i) to[i] = static_cast<uint8_t>(row[i * s.stride_in]) ^ 0x80u;
    }
  }
  return WEIGHTCAST_OK;
}

// The side of a square of codes that is transposed at once: a cache line both ways.
constexpr int kCheckSide = 64;

struct alignas(64) TurnedCodes {
  uint8_t rows[kCheckSide][kCheckSide];  // [in][out]
};

inline bool code_differs(const weightcast_source& s, const uint8_t* codes, int64_t out, int64_t in) {
  const auto* stored = static_cast<const uint8_t*>(s.data);
  return (stored[out * s.stride_out + in * s.stride_in] ^ codes[out * s.n_in + in]) != 0x80u;
}

// True if a square of codes differs from the stored ones, whose rows are `stride` apart.
inline bool square_differs(const uint8_t* codes, int64_t n_in, const uint8_t* stored, int64_t stride,
                           TurnedCodes& turned) {
  constexpr int n = kSquare<uint8_t>;
  for (int c = 0; c < kCheckSide; c += n) {
    for (int i = 0; i < kCheckSide; i += n) {
      transpose_square(codes + c * n_in + i, n_in, &turned.rows[i][c], kCheckSide);
    }
  }
  uint8_t different = 0;
  for (int i = 0; i < kCheckSide; ++i) {
    for (int c = 0; c < kCheckSide; ++c) {
      different |= static_cast<uint8_t>(stored[i * stride + c] ^ turned.rows[i][c] ^ 0x80u);
    }
  }
  return different != 0;
}

// Find the first code that differs in a part of a source, row by row.
inline bool find_different_code(const weightcast_source& s, const uint8_t* codes, int64_t out0, int width,
                                int64_t in0, int depth, weightcast_result& result) {
  for (int64_t out = out0; out < out0 + width; ++out) {
    for (int64_t in = in0; in < in0 + depth; ++in) {
      if (!code_differs(s, codes, out, in)) continue;
      result.bad_out = out;
      result.bad_in = in;
      return true;
    }
  }
  return false;
}

// Buffers of a check: part of the source, a square of codes turned back.
struct CheckWorkspace {
  Stage stage;
  TurnedCodes turned;
};

// Transposes the codes back. Transposing the source again would hide a mistake in transposing.
inline bool codes_differ(const weightcast_source& s, const uint8_t* codes, CheckWorkspace& work,
                         weightcast_result& result) {
  auto& [stage, turned] = work;
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int count = at_most(s.n_out - out0, run);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kMaxDepth) {
      const MemoryView view = view_at(s, out0, count, in0, at_most(s.n_in - in0, kMaxDepth), stage);
      for (int skip = 0; skip < count; skip += kCheckSide) {
        const int width = at_most(count - skip, kCheckSide);
        for (int i = 0; i < kMaxDepth && in0 + i < s.n_in; i += kCheckSide) {
          const int depth = at_most(s.n_in - in0 - i, kCheckSide);
          const uint8_t* square = codes + (out0 + skip) * s.n_in + in0 + i;
          const auto* stored = static_cast<const uint8_t*>(view.first) + skip + i * view.stride_in;
          const bool is_square = width == kCheckSide && depth == kCheckSide && s.stride_out == 1;
          if (is_square && !square_differs(square, s.n_in, stored, view.stride_in, turned)) continue;
          if (find_different_code(s, codes, out0 + skip, width, in0 + i, depth, result)) return true;
        }
      }
    }
  }
  return false;
}

// Check that groups stand for exactly the codes and scales of a source.
inline int32_t check_carried(const weightcast_source& s, const weightcast_group_type& type,
                             const weightcast_groups& made, weightcast_result& result) {
  if (group_rows(s) % type.group_size != 0) return WEIGHTCAST_BAD_SHAPE;
  const OnHeap<CheckWorkspace> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  for (int64_t out = 0; out < s.n_out; ++out) {
    for (int64_t group = 0; group < made.groups; ++group) {
      const int64_t in0 = group * type.group_size;
      const float scale = stored_scale_at(type.scale_type, made.scales, out * made.groups + group);
      const float wanted = s.scales[in0 / group_rows(s) * s.scale_stride + out];
      if (float_bits(scale) == float_bits(wanted)) continue;
      result.bad_out = out;
      result.bad_in = in0;
      return WEIGHTCAST_NOT_CARRIED;
    }
  }
  return codes_differ(s, made.codes, *buffers, result) ? WEIGHTCAST_NOT_CARRIED : WEIGHTCAST_OK;
}

inline int zero_point_at(const weightcast_group_type& type, const weightcast_groups& groups, int64_t at) {
  return type.symmetric ? 1 << (type.bits - 1) : groups.zero_points[at];
}

// Dequantize n values of a group: (q - zero_point) * scale, rounded once.
inline void dequantize_run(const weightcast_group_type& type, const weightcast_groups& src, int64_t group,
                           const uint8_t* codes, int64_t n, float* x) {
  const int zero = zero_point_at(type, src, group);
  const float scale = stored_scale_at(type.scale_type, src.scales, group);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(codes[i] - zero) * scale;
}

inline void dequantize_groups(const weightcast_group_type& type, const weightcast_groups& src, int64_t n_out,
                              float* dst) {
  const int64_t size = type.group_size;
  for (int64_t group = 0; group < n_out * src.groups; ++group) {
    dequantize_run(type, src, group, src.codes + group * size, size, dst + group * size);
  }
}

}  // namespace
}  // namespace weightcast
