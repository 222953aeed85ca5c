/* The C library: quantize a matrix with an importance matrix, dequantize it, measure the error.
 *
 * The header and the library are in the installed package (see python -m weightcast.quant.config):
 *
 *   cc $(python -m weightcast.quant.config --cflags) quantize.c -o quantize \
 *      $(python -m weightcast.quant.config --libs) -lm
 *   ./quantize Q4_K
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <weightcast.h>

enum { ROWS = 64, COLUMNS = 1024 };

/* Quantize [ROWS, COLUMNS] into new rows of `row_bytes`; NULL, with the reason on stderr, if not. */
static uint8_t* quantize(const float* x, const float* importance, int32_t type, int64_t row_bytes) {
  weightcast_source source = {0};
  source.data = x;
  source.type = WEIGHTCAST_F32;
  source.n_out = ROWS;
  source.n_in = COLUMNS;
  source.stride_out = COLUMNS; /* [out, in]; a matrix stored [in, out] has 1 here ... */
  source.stride_in = 1;        /* ... and its row length here */
  uint8_t* rows = malloc((size_t)(ROWS * row_bytes));
  if (rows == NULL) {
    fprintf(stderr, "out of memory\n");
    return NULL;
  }
  weightcast_result result;
  const int32_t status = weightcast_quantize(&source, importance, type, rows, row_bytes, &result);
  if (status != WEIGHTCAST_OK) {
    fprintf(stderr, "cannot quantize: %s (row %lld, column %lld)\n", weightcast_strerror(status),
            (long long)result.bad_out, (long long)result.bad_in);
    free(rows);
    return NULL;
  }
  return rows;
}

static double rms_of_difference(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
  return sqrt(sum / (double)n);
}

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "Q4_K";
  const int32_t type = weightcast_type_from_name(name);
  const int64_t row_bytes = weightcast_row_bytes(type, COLUMNS);
  if (row_bytes == 0) {
    fprintf(stderr, "no type %s for rows of %d values\n", name, COLUMNS);
    return 1;
  }
  static float x[ROWS * COLUMNS], back[ROWS * COLUMNS], importance[COLUMNS];
  uint32_t state = 1;
  for (int i = 0; i < ROWS * COLUMNS; ++i) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / (float)(1 << 23) - 1.0f; /* uniform from -1 to 1 */
  }
  for (int i = 0; i < COLUMNS; ++i) importance[i] = 1.0f + (float)(i % 7);

  uint8_t* rows = quantize(x, importance, type, row_bytes);
  if (rows == NULL) return 1;
  const int32_t status = weightcast_dequantize(type, rows, ROWS * COLUMNS, back);
  if (status != WEIGHTCAST_OK) {
    fprintf(stderr, "cannot dequantize: %s\n", weightcast_strerror(status));
    return 1;
  }
  printf("%s on %s: %d values in %lld bytes, rms error %.5f\n", name, weightcast_isa(),
         ROWS * COLUMNS, (long long)(ROWS * row_bytes),
         rms_of_difference(x, back, ROWS * COLUMNS));
  free(rows);

  x[3 * COLUMNS + 5] = NAN; /* what cannot be converted is refused, with its place */
  if (quantize(x, importance, type, row_bytes) != NULL) return 1;
  return 0;
}
