// The C ABI: checks arguments, sets the floating-point environment and calls the best kernels.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "abi/cpu.h"
#include "simd/halves.h"
#ifdef WEIGHTCAST_X86
#include <immintrin.h>
#endif

namespace weightcast {
namespace {

// Sets IEEE defaults for as long as it lives: a caller's flush-to-zero or rounding mode would change bytes.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;
#if defined(WEIGHTCAST_X86)
  DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  DefaultFloatEnvironment() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~DefaultFloatEnvironment() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  DefaultFloatEnvironment() {}
#endif
};

// Choose the best instruction set of this processor, or a lower one that WEIGHTCAST_ISA asks for.
const Kernels& choose_kernels() {
  const char* wanted = std::getenv("WEIGHTCAST_ISA");
  if (wanted == nullptr) wanted = "";
  if (std::strcmp(wanted, "scalar") == 0) return kernels_scalar;
#if defined(WEIGHTCAST_X86)
  __builtin_cpu_init();
  if (std::strcmp(wanted, "sse2") == 0 || !__builtin_cpu_supports("avx2")) return kernels_sse2;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (std::strcmp(wanted, "avx2") == 0 || !has_avx512) return kernels_avx2;
  return kernels_avx512;
#elif defined(WEIGHTCAST_NEON)
  return kernels_neon;
#else
  return kernels_scalar;
#endif
}

const Kernels& kernels() {
  static std::atomic<const Kernels*> chosen{nullptr};
  const Kernels* found = chosen.load(std::memory_order_acquire);
  if (found == nullptr) {
    found = &choose_kernels();
    chosen.store(found, std::memory_order_release);
  }
  return *found;
}

// Check that a source can be read; return a status.
int32_t check_shape(const weightcast_source& s) {
  if (s.type != WEIGHTCAST_F32 && s.type != WEIGHTCAST_F16 && s.type != WEIGHTCAST_BF16 &&
      s.type != WEIGHTCAST_I8) {
    return WEIGHTCAST_BAD_TYPE;
  }
  if (s.reserved != 0) return WEIGHTCAST_BAD_ARGUMENT;
  if (s.n_out < 0 || s.n_in < 0) return WEIGHTCAST_BAD_SHAPE;
  if (s.type != WEIGHTCAST_I8 || s.n_out == 0 || s.n_in == 0) return WEIGHTCAST_OK;
  const bool has_scales = s.scales != nullptr && s.groups >= 1 && s.n_in % s.groups == 0;
  return has_scales ? WEIGHTCAST_OK : WEIGHTCAST_BAD_SHAPE;
}

// Check that every code * scale is finite: it is if |scale| < 2^121, as no code exceeds 2^7.
bool scales_are_safe(const weightcast_source& s, weightcast_result& result) {
  for (int64_t g = 0; g < s.groups; ++g) {
    const float* scales = s.scales + g * s.scale_stride;
    for (int64_t out = 0; out < s.n_out; ++out) {
      if ((float_bits(scales[out]) & 0x7fffffffu) >= 0x7c000000u) {
        result.bad_out = out;
        result.bad_in = g * (s.n_in / s.groups);
        return false;
      }
    }
  }
  return true;
}

// Check that importance is finite and not negative, as weights of errors must be.
bool importance_is_valid(const float* importance, int64_t n_in, weightcast_result& result) {
  for (int64_t in = 0; in < n_in; ++in) {
    if (!(importance[in] >= 0.0f) || !is_finite(importance[in])) {
      result.bad_in = in;
      return false;
    }
  }
  return true;
}

// Check what all calls require of a source. Sets `empty` if there is nothing to do.
int32_t check_source(const weightcast_source* source, const float* importance, weightcast_result* found,
                     bool& empty) {
  empty = false;
  if (source == nullptr || found == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  const weightcast_source& s = *source;
  weightcast_result& result = *found;
  result = weightcast_result{};
  const int32_t status = check_shape(s);
  if (status != WEIGHTCAST_OK) return status;
  empty = s.n_out == 0 || s.n_in == 0;
  if (empty) return WEIGHTCAST_OK;
  if (s.type == WEIGHTCAST_I8 && !scales_are_safe(s, result)) return WEIGHTCAST_NOT_FINITE;
  if (importance != nullptr && !importance_is_valid(importance, s.n_in, result)) {
    return WEIGHTCAST_BAD_IMPORTANCE;
  }
  return WEIGHTCAST_OK;
}

int32_t check_baseline(int32_t baseline) {
  const bool is_known = baseline == WEIGHTCAST_STORED || baseline == WEIGHTCAST_ROUNDED_BF16;
  return is_known ? WEIGHTCAST_OK : WEIGHTCAST_BAD_ARGUMENT;
}

// Check that n values of a type that can be made are whole blocks, which int64_t can count in bytes.
int32_t check_blocks(int32_t type, int64_t n) {
  if (weightcast_type_name(type) == nullptr || type == WEIGHTCAST_I8) return WEIGHTCAST_BAD_TYPE;
  return n == 0 || weightcast_row_bytes(type, n) > 0 ? WEIGHTCAST_OK : WEIGHTCAST_BAD_SHAPE;
}

// Check that n_out rows of n_in values can lie `stride` bytes apart: none over another, none before the first.
int32_t check_rows(int32_t type, int64_t n_out, int64_t n_in, int64_t stride) {
  const int32_t status = check_blocks(type, n_in);
  if (status != WEIGHTCAST_OK || n_out <= 1) return status;
  return stride >= weightcast_row_bytes(type, n_in) ? WEIGHTCAST_OK : WEIGHTCAST_BAD_SHAPE;
}

// Check what quantizing to blocks requires. Sets `empty` if there is nothing to do.
int32_t check_quantizing(const weightcast_source* source, const float* importance, int32_t type,
                         const void* dst, int64_t dst_stride, weightcast_result* result, bool& empty) {
  int32_t status = check_source(source, importance, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  status = check_rows(type, source->n_out, source->n_in, dst_stride);
  if (status != WEIGHTCAST_OK) return status;
  return source->data != nullptr && dst != nullptr ? WEIGHTCAST_OK : WEIGHTCAST_NULL_ARGUMENT;
}

bool is_float_type(int32_t type) {
  return type == WEIGHTCAST_F32 || type == WEIGHTCAST_F16 || type == WEIGHTCAST_BF16;
}

constexpr int64_t kGroupMultiple = 32;  // group sizes are multiples of it

// Check that the groups are of a known kind and that rows of n_in values fill them.
int32_t check_groups(const weightcast_group_type* type, const weightcast_groups* groups, int64_t n_in) {
  if (type == nullptr || groups == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  if (type->bits != 4 && type->bits != 8) return WEIGHTCAST_BAD_TYPE;
  if (!is_float_type(type->scale_type)) return WEIGHTCAST_BAD_TYPE;
  if (type->search < 0 || type->search >= WEIGHTCAST_GROUP_EFFORTS) return WEIGHTCAST_BAD_ARGUMENT;
  if (type->group_size < kGroupMultiple || type->group_size % kGroupMultiple != 0) return WEIGHTCAST_BAD_SHAPE;
  const bool fits = n_in % type->group_size == 0 && n_in / type->group_size == groups->groups;
  return fits ? WEIGHTCAST_OK : WEIGHTCAST_BAD_SHAPE;
}

bool are_there(const weightcast_group_type& type, const weightcast_groups& groups) {
  const bool have_zeros = type.symmetric != 0 || groups.zero_points != nullptr;
  return groups.codes != nullptr && groups.scales != nullptr && have_zeros;
}

// Check what quantizing to groups requires. Sets `empty` if there is nothing to do.
int32_t check_grouping(const weightcast_source* source, const float* importance,
                       const weightcast_group_type* type, const weightcast_groups* groups,
                       weightcast_result* result, bool& empty) {
  int32_t status = check_source(source, importance, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  status = check_groups(type, groups, source->n_in);
  if (status != WEIGHTCAST_OK) return status;
  return source->data != nullptr && are_there(*type, *groups) ? WEIGHTCAST_OK : WEIGHTCAST_NULL_ARGUMENT;
}

// Check that groups can hold a source's codes unchanged. Sets `empty` if there is nothing to do.
int32_t check_carriage(const weightcast_source* source, const weightcast_group_type* type,
                       const weightcast_groups* groups, weightcast_result* result, bool& empty) {
  int32_t status = check_source(source, nullptr, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  status = check_groups(type, groups, source->n_in);
  if (status != WEIGHTCAST_OK) return status;
  const bool fits = source->type == WEIGHTCAST_I8 && type->bits == 8 && type->symmetric != 0;
  if (!fits) return WEIGHTCAST_BAD_TYPE;
  return source->data != nullptr && are_there(*type, *groups) ? WEIGHTCAST_OK : WEIGHTCAST_NULL_ARGUMENT;
}

// Check that codes of a grid can be chosen in the order of a factor: they are looked up by what is read.
int32_t check_feedback(const weightcast_factor& factor, const weightcast_grid& grid, int64_t n_out) {
  if (grid.reserved != 0 || grid.n_levels < 2 || grid.n_levels > 256) return WEIGHTCAST_BAD_ARGUMENT;
  if (n_out < 0 || factor.n < 0) return WEIGHTCAST_BAD_SHAPE;
  if (grid.group_size <= 0 || factor.n % grid.group_size != 0) return WEIGHTCAST_BAD_SHAPE;
  for (int64_t k = 0; factor.order != nullptr && k < factor.n; ++k) {
    if (factor.order[k] < 0 || factor.order[k] >= factor.n) return WEIGHTCAST_BAD_ARGUMENT;
  }
  return WEIGHTCAST_OK;
}

}  // namespace
}  // namespace weightcast

extern "C" {

int32_t weightcast_abi_version(void) { return WEIGHTCAST_ABI_VERSION; }

const char* weightcast_isa(void) { return weightcast::kernels().isa; }

int32_t weightcast_quantize(const weightcast_source* source, const float* importance, int32_t type,
                            void* dst, int64_t dst_stride, weightcast_result* result) {
  const weightcast::DefaultFloatEnvironment environment;
  bool empty;
  const int32_t status =
      weightcast::check_quantizing(source, importance, type, dst, dst_stride, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  return weightcast::kernels().quantize(*source, importance, type, dst, dst_stride, *result);
}

int32_t weightcast_quantize_least_error(const weightcast_source* source, const float* importance,
                                        int32_t type, int32_t effort, void* dst, int64_t dst_stride,
                                        weightcast_result* result) {
  const weightcast::DefaultFloatEnvironment environment;
  if (effort < 1 || effort > 3) return WEIGHTCAST_BAD_ARGUMENT;
  bool empty;
  const int32_t status =
      weightcast::check_quantizing(source, importance, type, dst, dst_stride, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  return weightcast::kernels().quantize_least_error(*source, importance, type, effort, dst, dst_stride,
                                                    *result);
}

int32_t weightcast_dequantize(int32_t type, const void* src, int64_t n_elements, float* dst) {
  const weightcast::DefaultFloatEnvironment environment;
  const int32_t status = weightcast::check_blocks(type, n_elements);
  if (status != WEIGHTCAST_OK || n_elements == 0) return status;
  if (src == nullptr || dst == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  return weightcast::kernels().dequantize(type, src, n_elements, dst);
}

int32_t weightcast_quantize_groups(const weightcast_source* source, const float* importance,
                                   const weightcast_group_type* type, const weightcast_groups* dst,
                                   weightcast_result* result) {
  const weightcast::DefaultFloatEnvironment environment;
  bool empty;
  const int32_t status = weightcast::check_grouping(source, importance, type, dst, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  return weightcast::kernels().quantize_groups(*source, importance, *type, *dst, *result);
}

int32_t weightcast_quantize_and_measure_groups(const weightcast_source* source, const float* importance,
                                               int32_t baseline, const weightcast_group_type* type,
                                               const weightcast_groups* dst, weightcast_moments* moments,
                                               weightcast_result* result) {
  const weightcast::DefaultFloatEnvironment environment;
  bool empty;
  int32_t status = weightcast::check_baseline(baseline);
  if (status != WEIGHTCAST_OK) return status;
  status = weightcast::check_grouping(source, importance, type, dst, result, empty);
  if (status != WEIGHTCAST_OK) return status;
  if (moments == nullptr && source->n_out > 0) return WEIGHTCAST_NULL_ARGUMENT;
  if (empty) {
    for (int64_t out = 0; out < source->n_out; ++out) moments[out] = weightcast_moments{};
    return WEIGHTCAST_OK;
  }
  return weightcast::kernels().quantize_and_measure_groups(*source, importance, baseline, *type, *dst, moments,
                                                           *result);
}

int32_t weightcast_carry_groups(const weightcast_source* source, const weightcast_group_type* type,
                                const weightcast_groups* dst, weightcast_result* result) {
  const weightcast::DefaultFloatEnvironment environment;
  bool empty;
  const int32_t status = weightcast::check_carriage(source, type, dst, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  return weightcast::kernels().carry_groups(*source, *type, *dst, *result);
}

int32_t weightcast_check_carried(const weightcast_source* source, const weightcast_group_type* type,
                                 const weightcast_groups* groups, weightcast_result* result) {
  bool empty;
  const int32_t status = weightcast::check_carriage(source, type, groups, result, empty);
  if (status != WEIGHTCAST_OK || empty) return status;
  return weightcast::kernels().check_carried(*source, *type, *groups, *result);
}

int32_t weightcast_dequantize_groups(const weightcast_group_type* type, const weightcast_groups* src,
                                     int64_t n_out, int64_t n_in, float* dst) {
  const weightcast::DefaultFloatEnvironment environment;
  if (n_out < 0 || n_in < 0) return WEIGHTCAST_BAD_SHAPE;
  if (n_out == 0 || n_in == 0) return WEIGHTCAST_OK;
  const int32_t status = weightcast::check_groups(type, src, n_in);
  if (status != WEIGHTCAST_OK) return status;
  if (dst == nullptr || !weightcast::are_there(*type, *src)) return WEIGHTCAST_NULL_ARGUMENT;
  weightcast::kernels().dequantize_groups(*type, *src, n_out, dst);
  return WEIGHTCAST_OK;
}

int32_t weightcast_measure(const weightcast_source* source, const float* importance, int32_t baseline,
                           int32_t type, const void* blocks, int64_t stride,
                           weightcast_moments* moments) {
  const weightcast::DefaultFloatEnvironment environment;
  if (source == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  const weightcast_source& s = *source;
  int32_t status = weightcast::check_baseline(baseline);
  if (status != WEIGHTCAST_OK) return status;
  status = weightcast::check_shape(s);
  if (status != WEIGHTCAST_OK || s.n_out == 0) return status;
  status = weightcast::check_rows(type, s.n_out, s.n_in, stride);
  if (status != WEIGHTCAST_OK) return status;
  const bool is_there = s.n_in == 0 || (s.data != nullptr && blocks != nullptr);
  if (!is_there || moments == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  return weightcast::kernels().measure(s, importance, baseline, type, blocks, stride, moments);
}

int32_t weightcast_measure_groups(const weightcast_source* source, const float* importance,
                                  int32_t baseline, const weightcast_group_type* type,
                                  const weightcast_groups* groups, weightcast_moments* moments) {
  const weightcast::DefaultFloatEnvironment environment;
  if (source == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  const weightcast_source& s = *source;
  int32_t status = weightcast::check_baseline(baseline);
  if (status != WEIGHTCAST_OK) return status;
  status = weightcast::check_shape(s);
  if (status != WEIGHTCAST_OK || s.n_out == 0) return status;
  status = weightcast::check_groups(type, groups, s.n_in);
  if (status != WEIGHTCAST_OK) return status;
  const bool is_there = s.n_in == 0 || (s.data != nullptr && weightcast::are_there(*type, *groups));
  if (!is_there || moments == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  return weightcast::kernels().measure_groups(s, importance, baseline, *type, *groups, moments);
}

int32_t weightcast_factor_hessian(double* hessian, int64_t n) {
  const weightcast::DefaultFloatEnvironment environment;
  if (n < 0) return WEIGHTCAST_BAD_SHAPE;
  if (n == 0) return WEIGHTCAST_OK;
  if (hessian == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  return weightcast::kernels().factor(hessian, n);
}

int32_t weightcast_round_with_feedback(const float* weights, int64_t n_out, const weightcast_factor* factor,
                                       const weightcast_grid* grid, int32_t choose, uint8_t* codes,
                                       double* work, double* costs) {
  const weightcast::DefaultFloatEnvironment environment;
  if (factor == nullptr || grid == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  const int32_t status = weightcast::check_feedback(*factor, *grid, n_out);
  if (status != WEIGHTCAST_OK || n_out == 0 || factor->n == 0) return status;
  const bool is_there = weights != nullptr && codes != nullptr && work != nullptr && costs != nullptr;
  if (!is_there || factor->values == nullptr || factor->order == nullptr || grid->steps == nullptr) {
    return WEIGHTCAST_NULL_ARGUMENT;
  }
  return weightcast::kernels().round_with_feedback(weights, n_out, *factor, *grid, choose != 0, codes, work,
                                                   costs);
}

const void* weightcast_grid_tables(int32_t type, int64_t* nbytes) {
  int64_t unwanted;
  return weightcast::kernels().grid_tables(type, nbytes != nullptr ? *nbytes : unwanted);
}

}  // extern "C"
