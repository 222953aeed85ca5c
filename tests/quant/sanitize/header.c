/* Plain C that uses weightcast.h and prints the layouts and numbers that a binding must share. */
#include "weightcast.h"

#include <stddef.h>
#include <stdio.h>

#define FIELD(type, name) \
  printf(#type " " #name " %d %d\n", (int)offsetof(type, name), (int)sizeof(((type*)0)->name))

#define NUMBER(kind, name) printf(#kind " " #name " %d\n", (int)WEIGHTCAST_##name)

int main(void) {
  FIELD(weightcast_source, data);
  FIELD(weightcast_source, type);
  FIELD(weightcast_source, reserved);
  FIELD(weightcast_source, n_out);
  FIELD(weightcast_source, n_in);
  FIELD(weightcast_source, stride_out);
  FIELD(weightcast_source, stride_in);
  FIELD(weightcast_source, scales);
  FIELD(weightcast_source, groups);
  FIELD(weightcast_source, scale_stride);
  FIELD(weightcast_result, bad_out);
  FIELD(weightcast_result, bad_in);
  FIELD(weightcast_result, exact_blocks);
  FIELD(weightcast_result, requantized_blocks);
  FIELD(weightcast_result, inexact_scales);
  FIELD(weightcast_group_type, bits);
  FIELD(weightcast_group_type, symmetric);
  FIELD(weightcast_group_type, scale_type);
  FIELD(weightcast_group_type, search);
  FIELD(weightcast_group_type, group_size);
  FIELD(weightcast_groups, codes);
  FIELD(weightcast_groups, scales);
  FIELD(weightcast_groups, zero_points);
  FIELD(weightcast_groups, groups);
  FIELD(weightcast_moments, error_squares);
  FIELD(weightcast_moments, source_squares);
  FIELD(weightcast_moments, cross);
  FIELD(weightcast_moments, errors);
  FIELD(weightcast_moments, weighted_error_squares);
  FIELD(weightcast_moments, weighted_source_squares);
  FIELD(weightcast_moments, largest_square);
  FIELD(weightcast_moments, largest_in);
  FIELD(weightcast_moments, exact);
  FIELD(weightcast_moments, zeroed_runs);
  FIELD(weightcast_moments, clipped_runs);
  FIELD(weightcast_moments, histogram);
  printf("weightcast_source size 0 %d\n", (int)sizeof(weightcast_source));
  printf("weightcast_result size 0 %d\n", (int)sizeof(weightcast_result));
  printf("weightcast_group_type size 0 %d\n", (int)sizeof(weightcast_group_type));
  printf("weightcast_groups size 0 %d\n", (int)sizeof(weightcast_groups));
  printf("weightcast_moments size 0 %d\n", (int)sizeof(weightcast_moments));
#define WC_TYPE(name, ...) NUMBER(type, name);
#define WC_SOURCE_TYPE(name, ...) NUMBER(type, name);
#include "types.inc"
  NUMBER(status, OK);
  NUMBER(status, BAD_TYPE);
  NUMBER(status, BAD_SHAPE);
  NUMBER(status, NOT_FINITE);
  NUMBER(status, OVERFLOW);
  NUMBER(status, NEEDS_IMPORTANCE);
  NUMBER(status, BAD_IMPORTANCE);
  NUMBER(status, MISCOMPILED);
  NUMBER(status, INEXACT_SCALE);
  NUMBER(status, NOT_CARRIED);
  NUMBER(status, NULL_ARGUMENT);
  NUMBER(status, NO_MEMORY);
  NUMBER(status, BAD_ARGUMENT);
  NUMBER(status, NOT_DEFINITE);
  printf("abi %d\n", WEIGHTCAST_ABI_VERSION);
  return 0;
}
