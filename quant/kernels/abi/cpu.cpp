// The CPU driver: walks a source tile by tile. Compiled once per instruction set (WC_ISA names it);
// all arithmetic is in the block headers.
#include "abi/cpu.h"

#include "dequantize/rows.h"
#include "groups/driver.h"
#include "groups/exact.h"
#include "groups/measured.h"
#include "metrics/measure.h"
#include "quantize/driver.h"
#include "quantize/floats.h"
#include "quantize/fp4.h"
#include "quantize/iq.h"
#include "quantize/iq1.h"
#include "quantize/iq4.h"
#include "quantize/k_affine.h"
#include "quantize/k_symmetric.h"
#include "quantize/q8_0_codes.h"
#include "quantize/simple.h"
#include "quantize/ternary.h"

namespace weightcast {
namespace {

int32_t quantize(const weightcast_source& s, const float* importance, int32_t type, void* dst,
                 int64_t dst_stride, weightcast_result& result) {
  auto* bytes = static_cast<uint8_t*>(dst);
  switch (type) {
    case WEIGHTCAST_F32: return quantize_floats<EmitF32>(s, bytes, dst_stride, result);
    case WEIGHTCAST_F16: return quantize_floats<EmitF16>(s, bytes, dst_stride, result);
    case WEIGHTCAST_BF16: return quantize_floats<EmitBF16>(s, bytes, dst_stride, result);
    case WEIGHTCAST_Q8_0: return quantize_q8_0(s, bytes, dst_stride, result);
    case WEIGHTCAST_Q4_0: return quantize_blocks<Q40>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q4_1: return quantize_blocks<Q41>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q5_0: return quantize_blocks<Q50>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q5_1: return quantize_blocks<Q51>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q1_0: return quantize_blocks<Q10>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q2_0: return quantize_blocks<Q20>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_TQ1_0: return quantize_blocks<TQ10>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_TQ2_0: return quantize_blocks<TQ20>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_MXFP4: return quantize_blocks<MXFP4>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_NVFP4: return quantize_blocks<NVFP4>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ4_NL: return quantize_blocks<IQ4NL>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ4_XS: return quantize_blocks<IQ4XS>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q2_K: return quantize_blocks<Q2K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q3_K: return quantize_blocks<Q3K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q4_K: return quantize_blocks<Q4K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q5_K: return quantize_blocks<Q5K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q6_K: return quantize_blocks<Q6K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ2_XXS:
      if (importance == nullptr) return WEIGHTCAST_NEEDS_IMPORTANCE;
      return quantize_blocks<IQ2XXS>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ2_XS:
      if (importance == nullptr) return WEIGHTCAST_NEEDS_IMPORTANCE;
      return quantize_blocks<IQ2XS>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ2_S: return quantize_blocks<IQ2S>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ3_XXS: return quantize_blocks<IQ3XXS>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ3_S: return quantize_blocks<IQ3S>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ1_S:
      if (importance == nullptr) return WEIGHTCAST_NEEDS_IMPORTANCE;
      return quantize_blocks<IQ1S>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_IQ1_M: return quantize_blocks<IQ1M>(s, importance, bytes, dst_stride, result);
    default: return WEIGHTCAST_BAD_TYPE;
  }
}

int32_t measure(const weightcast_source& s, const float* importance, int32_t baseline, int32_t type,
                const void* blocks, int64_t stride, weightcast_moments* moments) {
  const MeasureJob job{s, importance, baseline == WEIGHTCAST_ROUNDED_BF16, moments};
  return measure(job, type, blocks, stride);
}

void measure_groups(const weightcast_source& s, const float* importance, int32_t baseline,
                    const weightcast_group_type& type, const weightcast_groups& groups,
                    weightcast_moments* moments) {
  const MeasureJob job{s, importance, baseline == WEIGHTCAST_ROUNDED_BF16, moments};
  measure_groups(job, type, groups);
}

int32_t quantize_and_measure_groups(const weightcast_source& s, const float* importance, int32_t baseline,
                                    const weightcast_group_type& type, const weightcast_groups& dst,
                                    weightcast_moments* moments, weightcast_result& result) {
  const MeasureJob job{s, importance, baseline == WEIGHTCAST_ROUNDED_BF16, moments};
  return quantize_and_measure_groups(job, type, dst, result);
}

template <class Grid, int entries>
const void* tables(const uint16_t (&grid)[entries], int64_t& nbytes) {
  nbytes = sizeof(Grid);
  return &tables_of<Grid>(grid);
}

const void* grid_tables(int32_t type, int64_t& nbytes) {
  switch (type) {
    case WEIGHTCAST_IQ2_XXS: return tables<GridIQ2XXS>(kGridIQ2XXS, nbytes);
    case WEIGHTCAST_IQ2_XS: return tables<GridIQ2XS>(kGridIQ2XS, nbytes);
    case WEIGHTCAST_IQ2_S: return tables<GridIQ2S>(kGridIQ2S, nbytes);
    case WEIGHTCAST_IQ3_XXS: return tables<GridIQ3XXS>(kGridIQ3XXS, nbytes);
    case WEIGHTCAST_IQ3_S: return tables<GridIQ3S>(kGridIQ3S, nbytes);
    case WEIGHTCAST_IQ1_S:
    case WEIGHTCAST_IQ1_M: return tables<GridIQ1>(kGridIQ1, nbytes);
    default: nbytes = 0; return nullptr;
  }
}

}  // namespace

#define WC_TABLE_OF(isa) kernels_##isa
#define WC_TABLE(isa) WC_TABLE_OF(isa)
#define WC_NAME_OF(isa) #isa
#define WC_NAME(isa) WC_NAME_OF(isa)
extern const Kernels WC_TABLE(WC_ISA) = {WC_NAME(WC_ISA), quantize, dequantize, measure,
                                         measure_groups, quantize_groups, quantize_and_measure_groups,
                                         carry_groups, check_carried, dequantize_groups, grid_tables};

}  // namespace weightcast
