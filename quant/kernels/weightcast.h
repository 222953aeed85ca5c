/* weightcast: quantizes matrices straight from the layout they are stored in. Plain C ABI, no state.
 *
 * A source is one matrix [n_out, n_in] at any strides: a JAX checkpoint stores [in, out]
 * (stride_out 1), a GGUF or safetensors file stores [out, in] (stride_in 1). Blocks run along `in`.
 * Output rows are contiguous along `in`, one row per `out`, dst_stride bytes apart. Rows that would lie
 * over one another, or before the first, are BAD_SHAPE; the stride of a single row does not matter.
 *
 * Every function is thread-safe and keeps nothing. A call needs at most WEIGHTCAST_STACK_BYTES of stack,
 * and allocates WEIGHTCAST_HEAP_BYTES at most, which it frees before it returns (weightcast_self_test: twice
 * as much). The caller's floating-point control register is saved, set to round-to-nearest without
 * flush-to-zero, and restored.
 * The first use of a type with a grid (IQ1 to IQ3) fills tables of 0.3 to 0.8 MB in static memory, which
 * takes 3 to 50 ms.
 *
 * A pointer is NULL only where its function says so: else the status is WEIGHTCAST_NULL_ARGUMENT, and
 * nothing is read or written. A matrix without elements needs no memory behind it.
 */
#ifndef WEIGHTCAST_H
#define WEIGHTCAST_H

#include <stdint.h>

#if defined(__GNUC__)
#define WEIGHTCAST_API __attribute__((visibility("default")))
#else
#define WEIGHTCAST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The stack and the heap that a call needs at most, in bytes, with every instruction set. */
#define WEIGHTCAST_STACK_BYTES 49152
#define WEIGHTCAST_HEAP_BYTES 327680

/* The version of this interface, which the library's name ends in: libweightcast.so.6. */
#define WEIGHTCAST_ABI_VERSION 6

/* Types, numbered as ggml numbers them. WEIGHTCAST_I8 is a source type only and needs scales. */
enum {
  WEIGHTCAST_F32 = 0,
  WEIGHTCAST_F16 = 1,
  WEIGHTCAST_Q4_0 = 2,
  WEIGHTCAST_Q4_1 = 3,
  WEIGHTCAST_Q5_0 = 6,
  WEIGHTCAST_Q5_1 = 7,
  WEIGHTCAST_Q8_0 = 8,
  WEIGHTCAST_Q2_K = 10,
  WEIGHTCAST_Q3_K = 11,
  WEIGHTCAST_Q4_K = 12,
  WEIGHTCAST_Q5_K = 13,
  WEIGHTCAST_Q6_K = 14,
  WEIGHTCAST_IQ2_XXS = 16,
  WEIGHTCAST_IQ2_XS = 17,
  WEIGHTCAST_IQ3_XXS = 18,
  WEIGHTCAST_IQ1_S = 19,
  WEIGHTCAST_IQ4_NL = 20,
  WEIGHTCAST_IQ3_S = 21,
  WEIGHTCAST_IQ2_S = 22,
  WEIGHTCAST_IQ4_XS = 23,
  WEIGHTCAST_I8 = 24,
  WEIGHTCAST_IQ1_M = 29,
  WEIGHTCAST_BF16 = 30,
  WEIGHTCAST_TQ1_0 = 34,
  WEIGHTCAST_TQ2_0 = 35,
  WEIGHTCAST_MXFP4 = 39,
  WEIGHTCAST_NVFP4 = 40,
  WEIGHTCAST_Q1_0 = 41,
  WEIGHTCAST_Q2_0 = 42
};

/* Status of a call, in words: weightcast_strerror. The result says where the first offending element is. */
enum {
  WEIGHTCAST_OK = 0,
  WEIGHTCAST_BAD_TYPE = 1,    /* the type or the size of items is not known, or not possible here, such
                                 as blocks as a source */
  WEIGHTCAST_BAD_SHAPE = 2,   /* n_in does not fill blocks or groups, a size is negative or beyond what
                                 int64_t counts in bytes, or rows overlap: the stride of dst or of
                                 blocks is less than a row */
  WEIGHTCAST_NOT_FINITE = 3,  /* NaN or infinity in the source, or a scale of 2^121 or more */
  WEIGHTCAST_OVERFLOW = 4,    /* a finite value does not fit the 16-bit output type; or the scale of
                                 a block does not fit float16: the blocks are complete, as ggml makes
                                 them, with an infinite scale */
  WEIGHTCAST_NEEDS_IMPORTANCE = 5, /* the type cannot be made without an importance matrix */
  WEIGHTCAST_BAD_IMPORTANCE = 6,   /* an importance that is negative, infinite or NaN, at bad_in */
  WEIGHTCAST_MISCOMPILED = 7,      /* weightcast_self_test: this build makes wrong bytes */
  WEIGHTCAST_INEXACT_SCALE = 8,    /* a scale that the requested type cannot hold exactly */
  WEIGHTCAST_NOT_CARRIED = 9,      /* weightcast_check_carried: a code or scale differs from the source's */
  WEIGHTCAST_NULL_ARGUMENT = 10,   /* a pointer that would be read or written is NULL */
  WEIGHTCAST_NO_MEMORY = 11,       /* the buffers of a call (see above) could not be allocated */
  WEIGHTCAST_BAD_ARGUMENT = 12,    /* the baseline or the effort is not known, or a reserved
                                      field is not 0 */
  WEIGHTCAST_NOT_DEFINITE = 13     /* weightcast_factor_hessian: not positive definite */
};

typedef struct {
  const void* data;     /* aligned to its elements */
  int32_t type;         /* WEIGHTCAST_F32, F16, BF16 or I8 */
  int32_t reserved;     /* 0 */
  int64_t n_out, n_in;
  int64_t stride_out, stride_in; /* elements */
  /* I8 only: value = code * scale. Float32 [groups, n_out], groups scale_stride elements apart;
   * group g covers in-rows [g * n_in / groups, (g + 1) * n_in / groups). */
  const float* scales;
  int64_t groups, scale_stride;
} weightcast_source;

typedef struct {
  int64_t bad_out, bad_in;     /* place of the element that the status is about */
  int64_t exact_blocks;        /* Q8_0 blocks that carry the source's own codes and scale */
  int64_t requantized_blocks;  /* Q8_0 blocks made by ggml's rule */
  int64_t inexact_scales;      /* I8 scales that float16 cannot represent exactly */
} weightcast_result;

/* Groups: integers of 4 or 8 bits with a scale, and maybe a zero point, for each group of a row:
 * x = (q - zero_point) * scale. Scales are not zero; they are negative where that serves symmetric groups
 * better. A group of zeros, or of values so small that its scale would be stored as zero, has scale 1
 * and the codes 2^(bits - 1), its zero point. */
/* Efforts of a search for the scales of least weighted squared error: 0 takes them from the extremes alone,
 * 1, 2 and 3 try about 12, 32 and 110 of them. Codes that are only carried, measured or dequantized need no
 * search. Another number is BAD_ARGUMENT. */
#define WEIGHTCAST_GROUP_EFFORTS 4

typedef struct {
  int32_t bits;        /* 4 or 8 */
  int32_t symmetric;   /* not 0: the zero point is 2^(bits - 1) everywhere */
  int32_t scale_type;  /* WEIGHTCAST_F32, F16 or BF16: scales are rounded before codes are chosen */
  int32_t search;      /* the effort, see WEIGHTCAST_GROUP_EFFORTS */
  int64_t group_size;  /* along `in`: a multiple of 32 that divides n_in */
} weightcast_group_type;

typedef struct {
  uint8_t* codes;        /* [n_out, n_in], one a byte, 0 to 2^bits - 1 */
  void* scales;          /* [n_out, groups] of scale_type */
  uint8_t* zero_points;  /* [n_out, groups], 0 to 2^bits - 1; NULL if symmetric */
  int64_t groups;        /* of a row: n_in / group_size */
} weightcast_groups;

/* Moments of a row's weights x and of the values y that stand for them. Sums are made in double, in a
 * fixed order: they have the same bits on every processor, however rows are divided among threads. An
 * error y - x that is NaN or infinite (as in a block with an infinite scale) makes error_squares and
 * largest_square infinite; the other sums then follow IEEE 754, NaN included. A run is 32 weights from
 * a multiple of 32 on, or the rest of the row. */
#define WEIGHTCAST_ERROR_BINS 32

typedef struct {
  double error_squares;  /* sum of (y - x)^2 */
  double source_squares; /* sum of x^2 */
  double cross;          /* sum of x * (y - x) */
  double errors;         /* sum of y - x */
  double weighted_error_squares;  /* the first two, weighted by the importance of each column: */
  double weighted_source_squares; /* 0 without importance */
  double largest_square; /* largest (y - x)^2, whose root is the largest |y - x| exactly */
  int64_t largest_in;    /* the first place in the row that has it, 0 if there is no error */
  int64_t exact;         /* weights with y == x */
  int64_t zeroed_runs;   /* runs with all y 0 and some x not 0 */
  int64_t clipped_runs;  /* runs with some y not 0, whose largest |y| is below 7/8 of the largest |x| */
  /* Runs by the ratio r of their error_squares to their source_squares: bin 0 counts those with r >= 1,
   * or not finite, bin k those with 2^-k <= r < 2^(1 - k), bin 30 all smaller ones and bin 31 those
   * without any error. */
  int32_t histogram[WEIGHTCAST_ERROR_BINS];
} weightcast_moments;

/* The baseline: what y is compared with. BAD_ARGUMENT: another number. */
enum {
  WEIGHTCAST_STORED = 0,       /* the source's value as the quantizers see it, float32 */
  WEIGHTCAST_ROUNDED_BF16 = 1  /* that rounded to bfloat16, which a model may multiply with */
};

/* Give the WEIGHTCAST_ABI_VERSION that the library was built with. */
WEIGHTCAST_API int32_t weightcast_abi_version(void);

/* Name the instruction set in use: "avx512", "avx2", "sse2", "neon" or "scalar". The environment variable
 * WEIGHTCAST_ISA, read at the first call, can ask for a lower one than the processor has; any other value
 * is ignored. */
WEIGHTCAST_API const char* weightcast_isa(void);

/* Say a status in words: lower case, without a full stop, in static memory. Any number is allowed. */
WEIGHTCAST_API const char* weightcast_strerror(int32_t status);

/* Name a type as GGUF does ("Q4_K"), in static memory. NULL for an unknown number. */
WEIGHTCAST_API const char* weightcast_type_name(int32_t type);

/* Find a type by its name, in upper or lower case. -1 for an unknown name or NULL. */
WEIGHTCAST_API int32_t weightcast_type_from_name(const char* name);

/* Give the values in a block of a type, the smallest run along `in` that can be stored: 1 for plain floats
 * and I8. 0 for an unknown number. */
WEIGHTCAST_API int64_t weightcast_block_elements(int32_t type);

/* Give the bytes of a block. 0 for an unknown number. */
WEIGHTCAST_API int64_t weightcast_block_bytes(int32_t type);

/* Give the bytes of a row of n_in values. 0 for an unknown number, and for an n_in that is negative, not a
 * whole number of blocks, or whose bytes int64_t cannot count. */
WEIGHTCAST_API int64_t weightcast_row_bytes(int32_t type, int64_t n_in);

/* Quantize a source into n_out rows at dst, weightcast_row_bytes each and dst_stride bytes apart.
 * `importance` [n_in] weighs the errors of the columns (an importance matrix), or is NULL; types that do
 * not use one ignore it. */
WEIGHTCAST_API int32_t weightcast_quantize(const weightcast_source* source, const float* importance,
                                           int32_t type, void* dst, int64_t dst_stride,
                                           weightcast_result* result);

/* Quantize as weightcast_quantize does, but for the least error: blocks of the same types, whose scales and
 * codes are searched to minimize the sum of importance * (y - x)^2 over each block, with 1 for each
 * importance if that is NULL. y is what weightcast_dequantize gives. No block's sum exceeds that of the block
 * that weightcast_quantize makes. `effort` is 1, 2 or 3: each tries more candidates than the one before, for
 * a smaller gain. All types but plain floats use the importance, which is normalized for each block. Q8_0
 * blocks that carry a source's own codes are as in weightcast_quantize. BAD_ARGUMENT: another effort. */
WEIGHTCAST_API int32_t weightcast_quantize_least_error(const weightcast_source* source,
                                                       const float* importance, int32_t type,
                                                       int32_t effort, void* dst, int64_t dst_stride,
                                                       weightcast_result* result);

/* Dequantize n_elements, in whole blocks at any alignment, to float32 dst [n_elements], as ggml's
 * dequantize_row_* do. */
WEIGHTCAST_API int32_t weightcast_dequantize(int32_t type, const void* src, int64_t n_elements,
                                             float* dst);

/* Quantize a source [n_out, n_in] to groups. `importance` [n_in] weighs the squared errors, or is NULL. The
 * plain choice of scales is the largest magnitude over 2^(bits - 1) - 1/2, or the span from the least value
 * (or 0) to the largest (or 0) over 2^bits - 1. At every effort the sum of a group is at most that of the
 * plain choice, as float32 computes both: below 1e-38 these are too coarse to tell. OVERFLOW: scale_type
 * cannot hold a scale; the result points to the first value of its group. */
WEIGHTCAST_API int32_t weightcast_quantize_groups(const weightcast_source* source, const float* importance,
                                                  const weightcast_group_type* type,
                                                  const weightcast_groups* dst, weightcast_result* result);

/* Carry an I8 source into symmetric groups of 8 bits: codes plus 128, and each scale once per group.
 * BAD_SHAPE if a group straddles two scales; INEXACT_SCALE, at the first value of a group, if its scale
 * would change. */
WEIGHTCAST_API int32_t weightcast_carry_groups(const weightcast_source* source,
                                               const weightcast_group_type* type,
                                               const weightcast_groups* dst, weightcast_result* result);

/* Check that groups hold exactly the codes and scales of an I8 source. If not, returns
 * WEIGHTCAST_NOT_CARRIED and the place of the first value that differs. */
WEIGHTCAST_API int32_t weightcast_check_carried(const weightcast_source* source,
                                                const weightcast_group_type* type,
                                                const weightcast_groups* groups,
                                                weightcast_result* result);

/* Dequantize groups to float32 [n_out, n_in]; each product is rounded once. */
WEIGHTCAST_API int32_t weightcast_dequantize_groups(const weightcast_group_type* type,
                                                    const weightcast_groups* src, int64_t n_out,
                                                    int64_t n_in, float* dst);

/* Compare a source with n_out rows of blocks, `stride` bytes apart, at any alignment, and write
 * moments [n_out]. `importance` [n_in] weighs the weighted sums, or is NULL. NaN and infinity in the
 * source are not errors here. */
WEIGHTCAST_API int32_t weightcast_measure(const weightcast_source* source, const float* importance,
                                          int32_t baseline, int32_t type, const void* blocks,
                                          int64_t stride, weightcast_moments* moments);

/* Compare a source with groups in the same way. */
WEIGHTCAST_API int32_t weightcast_measure_groups(const weightcast_source* source, const float* importance,
                                                 int32_t baseline, const weightcast_group_type* type,
                                                 const weightcast_groups* groups,
                                                 weightcast_moments* moments);

/* Do what weightcast_quantize_groups and then weightcast_measure_groups do, to the same bits, in less
 * time: the source is read once. `moments` [n_out] are valid if the call returns OK. */
WEIGHTCAST_API int32_t weightcast_quantize_and_measure_groups(
    const weightcast_source* source, const float* importance, int32_t baseline,
    const weightcast_group_type* type, const weightcast_groups* dst, weightcast_moments* moments,
    weightcast_result* result);

/* Error feedback (GPTQ, https://arxiv.org/abs/2210.17323; as here in https://arxiv.org/abs/2307.13304): the
 * codes of blocks or groups are chosen again, column after column, so that errors make up for each other in
 * the products with a model's inputs. Scales and zero points stay. */

/* Factor second moments H [n, n] of a matrix's inputs in place: the lower triangle holds M below the diagonal
 * and T on it, with H = M T M', M unit lower triangular. Only the lower triangle is read. NOT_DEFINITE:
 * a pivot is not positive and finite; add to the diagonal. */
WEIGHTCAST_API int32_t weightcast_factor_hessian(double* hessian, int64_t n);

typedef struct {
  const double* values;  /* [n, n], of weightcast_factor_hessian */
  const int64_t* order;  /* [n]: row k of the factor is input column order[k]. They are rounded from the last
                            to the first: put those whose moments are largest at the end. */
  int64_t n;             /* n_in */
} weightcast_factor;

/* What codes stand for: steps * level + lows, for each group of columns of a row. */
typedef struct {
  const float* steps;   /* [n_out, n_in / group_size] */
  const float* lows;    /* the same, or NULL: 0 */
  const float* levels;  /* [n_levels], ascending; NULL: 0, 1, 2, ... */
  int64_t group_size;   /* divides n_in */
  int32_t n_levels;     /* 2 to 256 */
  int32_t reserved;     /* 0 */
} weightcast_grid;

/* Choose codes [n_out, n_in], numbers of levels, of row-major weights [n_out, n_in] with error feedback; where a
 * step is 0 they stay as they are, and everywhere if `choose` is 0. Writes to costs [n_out] what the errors E of
 * each row cost: E H E'. `work` has room for WEIGHTCAST_FEEDBACK_DOUBLES(n_out, n_in). Rows do not depend
 * on each other. */
#define WEIGHTCAST_FEEDBACK_DOUBLES(n_out, n_in) (((n_out) + 7) / 8 * 8 * (n_in))
WEIGHTCAST_API int32_t weightcast_round_with_feedback(const float* weights, int64_t n_out,
                                                      const weightcast_factor* factor,
                                                      const weightcast_grid* grid, int32_t choose,
                                                      uint8_t* codes, double* work, double* costs);

/* Transpose a matrix [rows, columns] of items of 1, 2 or 4 bytes to dst [columns, rows]. Strides between
 * rows are in items; both matrices are aligned to items and do not overlap. BAD_TYPE: another item
 * size. BAD_SHAPE: rows of dst overlap; those of src may. */
WEIGHTCAST_API int32_t weightcast_transpose(const void* src, int64_t src_stride, int64_t rows,
                                            int64_t columns, int32_t item_bytes, void* dst,
                                            int64_t dst_stride);

/* Give the tables that the kernels of a type with a grid (IQ1, IQ2, IQ3) search, made at the first call, and
 * their size at nbytes, unless that is NULL. NULL and 0 bytes for other types. Device kernels need a copy of
 * them. */
WEIGHTCAST_API const void* weightcast_grid_tables(int32_t type, int64_t* nbytes);

/* Check that this build makes the right blocks of a type (not I8) on this processor, with status
 * WEIGHTCAST_MISCOMPILED if not. Takes well below a millisecond, except for the types with grids (IQ1, IQ2
 * and IQ3), whose tables are made at their first use. */
WEIGHTCAST_API int32_t weightcast_self_test(int32_t type);

#ifdef __cplusplus
}
#endif
#endif
