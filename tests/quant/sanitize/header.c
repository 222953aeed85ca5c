/* Plain C that uses weightcast.h, and prints what a binding must agree with. */
#include "weightcast.h"

#include <stddef.h>
#include <stdio.h>

#define FIELD(type, name) \
  printf(#type " " #name " %d %d\n", (int)offsetof(type, name), (int)sizeof(((type*)0)->name))

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
  printf("weightcast_source size 0 %d\n", (int)sizeof(weightcast_source));
  printf("weightcast_result size 0 %d\n", (int)sizeof(weightcast_result));
  printf("types %d %d %d %d %d\n", WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_Q8_0, WEIGHTCAST_I8,
         WEIGHTCAST_BF16);
  printf("statuses %d %d %d %d %d\n", WEIGHTCAST_OK, WEIGHTCAST_BAD_TYPE, WEIGHTCAST_BAD_SHAPE,
         WEIGHTCAST_NOT_FINITE, WEIGHTCAST_OVERFLOW);
  printf("abi %d\n", WEIGHTCAST_ABI_VERSION);
  return 0;
}
