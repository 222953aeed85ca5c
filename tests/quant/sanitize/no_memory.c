/* Calls every function that allocates while malloc fails (linked with --wrap=malloc), and prints how often a
 * status was not WEIGHTCAST_NO_MEMORY. */
#include <stddef.h>
#include <stdio.h>

#include "weightcast.h"

enum { OUT = 64, IN = 512 };

void* __wrap_malloc(size_t size);
void* __wrap_malloc(size_t size) {
  (void)size;
  return NULL;
}

static float values[OUT * IN], scales[OUT * IN];
static uint8_t rows[4 * OUT * IN], codes[OUT * IN], zeros[OUT * IN];
static weightcast_moments moments[OUT];
static double hessian[1], work[8];
static int64_t order[1];
static int wrong;

static void expect(int32_t status) { wrong += status != WEIGHTCAST_NO_MEMORY; }

int main(void) {
  weightcast_result result;
  weightcast_source s = {values, WEIGHTCAST_F32, 0, OUT, IN, IN, 1, NULL, 0, 0};
  weightcast_source carried = {codes, WEIGHTCAST_I8, 0, OUT, IN, 1, OUT, scales, 1, OUT};
  for (int32_t type = 0; type < 100; ++type) {
    if (weightcast_type_name(type) == NULL || type == WEIGHTCAST_I8) continue;
    expect(weightcast_quantize(&s, values, type, rows, 4 * IN, &result));
    expect(weightcast_quantize(&carried, values, type, rows, 4 * IN, &result));
    for (int effort = 1; effort <= 3; ++effort) {
      expect(weightcast_quantize_least_error(&s, values, type, effort, rows, 4 * IN, &result));
    }
    expect(weightcast_measure(&s, NULL, 0, type, rows, 4 * IN, moments));
    expect(weightcast_self_test(type));
  }
  for (int64_t size = 32; size <= IN; size *= 2) {
    const weightcast_group_type type = {8, 1, WEIGHTCAST_F32, 0, size};
    const weightcast_groups groups = {codes, scales, zeros, IN / size};
    expect(weightcast_quantize_groups(&s, NULL, &type, &groups, &result));
    expect(weightcast_quantize_and_measure_groups(&s, NULL, 0, &type, &groups, moments, &result));
    expect(weightcast_measure_groups(&s, NULL, 0, &type, &groups, moments));
    expect(weightcast_carry_groups(&carried, &type, &groups, &result));
    expect(weightcast_check_carried(&carried, &type, &groups, &result));
  }
  hessian[0] = 1.0;
  const weightcast_factor factor = {hessian, order, 1};
  const weightcast_grid grid = {values, NULL, NULL, 1, 16, 0};
  expect(weightcast_factor_hessian(hessian, 1));
  expect(weightcast_round_with_feedback(values, 1, &factor, &grid, 1, codes, work, work));
  printf("%d wrong\n", wrong);
  return 0;
}
