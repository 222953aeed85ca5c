/* Calls the library with a floating-point control register of the caller's choice. */
#include <xmmintrin.h>

#include "weightcast.h"

typedef int32_t quantize_function(const weightcast_source*, const float*, int32_t, void*, int64_t,
                                  weightcast_result*);
typedef int32_t least_error_function(const weightcast_source*, const float*, int32_t, int32_t, void*, int64_t,
                                     weightcast_result*);
typedef int32_t dequantize_function(int32_t, const void*, int64_t, float*);

WEIGHTCAST_API int32_t quantize_under(uint32_t wanted, uint32_t* after, quantize_function* function,
                                      const weightcast_source* source, const float* importance,
                                      int32_t type, void* dst, int64_t dst_stride,
                                      weightcast_result* result) {
  const uint32_t saved = _mm_getcsr();
  int32_t status;
  _mm_setcsr(wanted);
  status = function(source, importance, type, dst, dst_stride, result);
  *after = _mm_getcsr();
  _mm_setcsr(saved);
  return status;
}

WEIGHTCAST_API int32_t least_error_under(uint32_t wanted, uint32_t* after, least_error_function* function,
                                         const weightcast_source* source, const float* importance,
                                         int32_t type, int32_t effort, void* dst, int64_t dst_stride,
                                         weightcast_result* result) {
  const uint32_t saved = _mm_getcsr();
  int32_t status;
  _mm_setcsr(wanted);
  status = function(source, importance, type, effort, dst, dst_stride, result);
  *after = _mm_getcsr();
  _mm_setcsr(saved);
  return status;
}

WEIGHTCAST_API int32_t dequantize_under(uint32_t wanted, uint32_t* after,
                                        dequantize_function* function, int32_t type,
                                        const void* src, int64_t n_elements, float* dst) {
  const uint32_t saved = _mm_getcsr();
  int32_t status;
  _mm_setcsr(wanted);
  status = function(type, src, n_elements, dst);
  *after = _mm_getcsr();
  _mm_setcsr(saved);
  return status;
}
