// The functions that the object of each instruction set exports to dispatch.cpp.
#pragma once

#include "weightcast.h"

namespace weightcast {

// A name of one instruction set, which WC_ISA names: kernels_avx2 for `kernels`.
#define WC_JOIN_ISA(name, isa) name##_##isa
#define WC_JOINED_ISA(name, isa) WC_JOIN_ISA(name, isa)
#define WC_OF_ISA(name) WC_JOINED_ISA(name, WC_ISA)

struct Kernels {
  const char* isa;
  int32_t (*quantize)(const weightcast_source&, const float* importance, int32_t type, void* dst,
                      int64_t dst_stride, weightcast_result&);
  int32_t (*quantize_least_error)(const weightcast_source&, const float* importance, int32_t type,
                                  int32_t effort, void* dst, int64_t dst_stride, weightcast_result&);
  int32_t (*dequantize)(int32_t type, const void* src, int64_t n_elements, float* dst);
  int32_t (*measure)(const weightcast_source&, const float* importance, int32_t baseline, int32_t type,
                     const void* blocks, int64_t stride, weightcast_moments*);
  int32_t (*measure_groups)(const weightcast_source&, const float* importance, int32_t baseline,
                            const weightcast_group_type&, const weightcast_groups&, weightcast_moments*);
  int32_t (*quantize_groups)(const weightcast_source&, const float* importance,
                             const weightcast_group_type&, const weightcast_groups&,
                             weightcast_result&);
  int32_t (*quantize_and_measure_groups)(const weightcast_source&, const float* importance,
                                         int32_t baseline, const weightcast_group_type&,
                                         const weightcast_groups&, weightcast_moments*,
                                         weightcast_result&);
  int32_t (*carry_groups)(const weightcast_source&, const weightcast_group_type&,
                          const weightcast_groups&, weightcast_result&);
  int32_t (*check_carried)(const weightcast_source&, const weightcast_group_type&,
                           const weightcast_groups&, weightcast_result&);
  void (*dequantize_groups)(const weightcast_group_type&, const weightcast_groups&, int64_t n_out,
                            float* dst);
  const void* (*grid_tables)(int32_t type, int64_t& nbytes);
  int32_t (*factor)(double* hessian, int64_t n);
  int32_t (*round_with_feedback)(const float* weights, int64_t n_out, const weightcast_factor&,
                                 const weightcast_grid&, bool choose, uint8_t* codes, double* errors,
                                 double* costs);
};

#ifdef WC_ISA
int32_t WC_OF_ISA(quantize_least_error)(const weightcast_source&, const float* importance, int32_t type,
                                        int32_t effort, void* dst, int64_t dst_stride, weightcast_result&);
#endif

extern const Kernels kernels_scalar;
#if defined(WEIGHTCAST_X86)
extern const Kernels kernels_sse2;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#elif defined(WEIGHTCAST_NEON)
extern const Kernels kernels_neon;
#endif

}  // namespace weightcast
