// The search for the least error of one instruction set, beside cpu.cpp: the two compile at the same time.
#include "abi/cpu.h"
#include "abi/rows.h"
#include "quantize/driver.h"
#include "quantize/floats.h"
#include "quantize/least_all.h"
#include "quantize/q8_0_codes.h"

namespace weightcast {
namespace {

// Makes rows of one type. Plain floats have nothing to search.
template <class Type>
struct LeastErrorRows {
  static int32_t quantize(const weightcast_source& s, const float* importance, int32_t effort, uint8_t* dst,
                          int64_t dst_stride, weightcast_result& result) {
    int64_t nbytes;
    Tables<Type>::of(nbytes);  // made here, where little of the stack is used
    return quantize_blocks<Type>(LeastErrorRule<Type>{effort}, s, importance, dst, dst_stride, result);
  }
};
template <class Emit>
struct LeastErrorRows<FloatRows<Emit>> {
  static int32_t quantize(const weightcast_source& s, const float*, int32_t, uint8_t* dst, int64_t dst_stride,
                          weightcast_result& result) {
    return quantize_floats<Emit>(s, dst, dst_stride, result);
  }
};
template <>
struct LeastErrorRows<Q80> {
  static int32_t quantize(const weightcast_source& s, const float* importance, int32_t effort, uint8_t* dst,
                          int64_t dst_stride, weightcast_result& result) {
    return quantize_q8_0(LeastErrorRule<Q80>{effort}, s, importance, dst, dst_stride, result);
  }
};

}  // namespace

int32_t WC_OF_ISA(quantize_least_error)(const weightcast_source& s, const float* importance, int32_t type,
                                        int32_t effort, void* dst, int64_t dst_stride,
                                        weightcast_result& result) {
  auto* first = static_cast<uint8_t*>(dst);
  switch (type) {
#define WC_TYPE(name, number, elements, bytes, quantizer, need, rows) \
  case WEIGHTCAST_##name:                                             \
    if (Need::need == Need::REQUIRED && importance == nullptr) {      \
      return WEIGHTCAST_NEEDS_IMPORTANCE;                             \
    }                                                                 \
    return LeastErrorRows<quantizer>::quantize(s, importance, effort, first, dst_stride, result);
#include "types.inc"
    default: return WEIGHTCAST_BAD_TYPE;
  }
}

}  // namespace weightcast
