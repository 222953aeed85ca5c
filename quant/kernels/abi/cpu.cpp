// The functions of one instruction set: each finds the quantizer or the layout of a type and hands over
// to its driver. Compiled once per instruction set, which WC_ISA names. The arithmetic is in headers.
#include "abi/cpu.h"
#include "abi/rows.h"

#include "dequantize/rows.h"
#include "feedback/factor.h"
#include "feedback/rounding.h"
#include "groups/driver.h"
#include "groups/exact.h"
#include "groups/measured.h"
#include "metrics/measure.h"
#include "quantize/all.h"
#include "quantize/driver.h"
#include "quantize/floats.h"
#include "quantize/q8_0_codes.h"

namespace weightcast {
namespace {

// Makes rows of one type with its quantizer. Plain floats and Q8_0 have drivers of their own.
template <class Type>
struct Rows {
  static int32_t quantize(const weightcast_source& s, const float* importance, uint8_t* dst,
                          int64_t dst_stride, weightcast_result& result) {
    int64_t nbytes;
    Tables<Type>::of(nbytes);  // made here, where little of the stack is used
    return quantize_blocks<Type>(GgmlRule<Type>{}, s, importance, dst, dst_stride, result);
  }
};
template <class Emit>
struct Rows<FloatRows<Emit>> {
  static int32_t quantize(const weightcast_source& s, const float*, uint8_t* dst, int64_t dst_stride,
                          weightcast_result& result) {
    return quantize_floats<Emit>(s, dst, dst_stride, result);
  }
};
template <>
struct Rows<Q80> {
  static int32_t quantize(const weightcast_source& s, const float*, uint8_t* dst, int64_t dst_stride,
                          weightcast_result& result) {
    return quantize_q8_0(GgmlRule<Q80>{}, s, nullptr, dst, dst_stride, result);
  }
};

int32_t quantize(const weightcast_source& s, const float* importance, int32_t type, void* dst,
                 int64_t dst_stride, weightcast_result& result) {
  auto* first = static_cast<uint8_t*>(dst);
  switch (type) {
#define WC_TYPE(name, number, elements, bytes, quantizer, need, rows)            \
  case WEIGHTCAST_##name:                                                        \
    if (Need::need == Need::REQUIRED && importance == nullptr) {                 \
      return WEIGHTCAST_NEEDS_IMPORTANCE;                                        \
    }                                                                            \
    return Rows<quantizer>::quantize(s, importance, first, dst_stride, result);
#include "types.inc"
    default: return WEIGHTCAST_BAD_TYPE;
  }
}

int32_t measure(const weightcast_source& s, const float* importance, int32_t baseline, int32_t type,
                const void* blocks, int64_t stride, weightcast_moments* moments) {
  const MeasureJob job{s, importance, baseline == WEIGHTCAST_ROUNDED_BF16, moments};
  return measure(job, type, blocks, stride);
}

int32_t measure_groups(const weightcast_source& s, const float* importance, int32_t baseline,
                       const weightcast_group_type& type, const weightcast_groups& groups,
                       weightcast_moments* moments) {
  const MeasureJob job{s, importance, baseline == WEIGHTCAST_ROUNDED_BF16, moments};
  return measure_groups(job, type, groups);
}

int32_t quantize_and_measure_groups(const weightcast_source& s, const float* importance, int32_t baseline,
                                    const weightcast_group_type& type, const weightcast_groups& dst,
                                    weightcast_moments* moments, weightcast_result& result) {
  const MeasureJob job{s, importance, baseline == WEIGHTCAST_ROUNDED_BF16, moments};
  return quantize_and_measure_groups(job, type, dst, result);
}

const void* grid_tables(int32_t type, int64_t& nbytes) {
  switch (type) {
#define WC_TYPE(name, number, elements, bytes, quantizer, importance, rows) \
  case WEIGHTCAST_##name: return Tables<quantizer>::of(nbytes);
#include "types.inc"
    default: nbytes = 0; return nullptr;
  }
}

int32_t round_with_feedback(const float* weights, int64_t n_out, const weightcast_factor& factor,
                            const weightcast_grid& grid, bool choose, uint8_t* codes, double* errors,
                            double* costs) {
  return round_with_feedback({weights, n_out, factor, grid, choose, codes, errors, costs});
}

}  // namespace

#define WC_NAME_OF(isa) #isa
#define WC_NAME(isa) WC_NAME_OF(isa)
extern const Kernels WC_OF_ISA(kernels) = {WC_NAME(WC_ISA), quantize, WC_OF_ISA(quantize_least_error), dequantize, measure,
                                         measure_groups, quantize_groups, quantize_and_measure_groups,
                                         carry_groups, check_carried, dequantize_groups, grid_tables,
                                         factor, round_with_feedback};

}  // namespace weightcast
