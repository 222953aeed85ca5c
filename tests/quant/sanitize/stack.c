/* Calls every function in threads with a painted stack of the size that weightcast.h states, and prints how
 * many bytes of it each call wrote; then in a thread with a stack of 64 KB, as a program asks for one. What a
 * thread itself needs of its stack is not counted. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "weightcast.h"

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      fprintf(stderr, "line %d: %s is false\n", __LINE__, #condition);      \
      exit(1);                                                              \
    }                                                                       \
  } while (0)

enum { OUT = 70, IN = 512, BLOCKS_IN = 256, GUARD = 1 << 16, PAINT = 0xa5, OWN = 1 << 14, SMALL = 1 << 16 };

static float importance[IN], values[OUT * IN];
static uint8_t source_bytes[4 * OUT * IN], rows[4 * OUT * IN], codes[OUT * IN], zeros[OUT * IN / 32];
static float scales[OUT * IN / 32], source_scales[2 * OUT];
static weightcast_moments moments[OUT];

struct call {
  const char* name;
  int32_t type; /* of the source in calls with groups, else of the blocks */
  int stored;   /* 0: [out, in], 1: [in, out] */
  void (*function)(const struct call*);
  char* low; /* of the stack */
};

static weightcast_source make_source(int32_t type, int stored) {
  weightcast_source s = {0};
  s.data = source_bytes;
  s.type = type;
  s.n_out = OUT;
  s.n_in = IN;
  s.stride_out = stored ? 1 : IN;
  s.stride_in = stored ? OUT : 1;
  if (type == WEIGHTCAST_I8) {
    s.scales = source_scales;
    s.groups = 2;
    s.scale_stride = OUT;
  }
  return s;
}

/* Bytes that are small values in every type. */
static void fill(int32_t type) {
  for (int i = 0; i < OUT * IN; ++i) {
    const float x = (float)((i * 7919) % 255 - 127) / 64.0f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (type == WEIGHTCAST_F32) memcpy(source_bytes + 4 * i, &x, 4);
    if (type == WEIGHTCAST_BF16) memcpy(source_bytes + 2 * i, (uint8_t*)&bits + 2, 2);
    if (type == WEIGHTCAST_F16) source_bytes[2 * i] = (uint8_t)i, source_bytes[2 * i + 1] = 0x30;
    if (type == WEIGHTCAST_I8) source_bytes[i] = (uint8_t)(i * 7919);
  }
}

static void quantize(const struct call* call) {
  const int32_t sources[] = {WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_BF16, WEIGHTCAST_I8};
  const int64_t bytes = weightcast_row_bytes(call->type, BLOCKS_IN);
  for (int k = 0; k < 4; ++k) {
    weightcast_result result;
    weightcast_source s = make_source(sources[k], call->stored);
    s.n_in = BLOCKS_IN;
    fill(sources[k]);
    CHECK(weightcast_quantize(&s, importance, call->type, rows, bytes, &result) == WEIGHTCAST_OK);
    for (int effort = 1; effort <= 3; ++effort) {
      CHECK(weightcast_quantize_least_error(&s, importance, call->type, effort, rows, bytes, &result) == 0);
    }
    if (call->type != WEIGHTCAST_IQ2_XXS && call->type != WEIGHTCAST_IQ2_XS && call->type != WEIGHTCAST_IQ1_S) {
      CHECK(weightcast_quantize(&s, NULL, call->type, rows, bytes, &result) == WEIGHTCAST_OK);
    }
    CHECK(weightcast_measure(&s, importance, 1, call->type, rows, bytes, moments) == WEIGHTCAST_OK);
  }
  CHECK(weightcast_dequantize(call->type, rows, OUT * BLOCKS_IN, values) == WEIGHTCAST_OK);
  CHECK(weightcast_self_test(call->type) == WEIGHTCAST_OK);
}

static void group(const struct call* call) {
  const int64_t sizes[] = {32, 128, 256, 512};
  const weightcast_source s = make_source(call->type, call->stored);
  fill(call->type);
  for (int k = 0; k < 4 * 8; ++k) {
    const weightcast_group_type type = {k / 4 % 2 ? 4 : 8, k / 8 % 2, WEIGHTCAST_F32, k / 16 % 2, sizes[k % 4]};
    const weightcast_groups groups = {codes, scales, zeros, IN / type.group_size};
    weightcast_result result;
    CHECK(weightcast_quantize_groups(&s, importance, &type, &groups, &result) == WEIGHTCAST_OK);
    CHECK(weightcast_quantize_and_measure_groups(&s, importance, 1, &type, &groups, moments, &result) == 0);
    CHECK(weightcast_quantize_and_measure_groups(&s, NULL, 1, &type, &groups, moments, &result) == 0);
    CHECK(weightcast_measure_groups(&s, importance, 1, &type, &groups, moments) == WEIGHTCAST_OK);
    CHECK(weightcast_dequantize_groups(&type, &groups, OUT, IN, values) == WEIGHTCAST_OK);
    if (call->type != WEIGHTCAST_I8 || type.bits != 8 || !type.symmetric || type.group_size > IN / 2) continue;
    CHECK(weightcast_carry_groups(&s, &type, &groups, &result) == WEIGHTCAST_OK);
    CHECK(weightcast_check_carried(&s, &type, &groups, &result) == WEIGHTCAST_OK);
  }
}

static void transpose(const struct call* call) {
  for (int bytes = 1; bytes <= 4; bytes *= 2) {
    CHECK(weightcast_transpose(source_bytes, IN, OUT, IN, bytes, rows, OUT) == WEIGHTCAST_OK);
  }
  (void)call;
}

/* Paint from the end of the stack to a little below this frame. */
static void* paint_and_call(void* argument) {
  struct call* call = argument;
  volatile char here = 0;
  char* top = (char*)&here - 512;
  for (char* byte = call->low; byte < top; ++byte) *byte = (char)PAINT;
  call->function(call);
  const char* used = call->low;
  while (used < top && *used == (char)PAINT) ++used;
  return (void*)(top + 512 - used);
}

static size_t bytes_used(struct call* call) {
  const size_t size = WEIGHTCAST_STACK_BYTES + OWN;
  char* memory = mmap(NULL, GUARD + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  CHECK(mprotect(memory, GUARD, PROT_NONE) == 0);
  call->low = memory + GUARD;
  pthread_attr_t attributes;
  pthread_t thread;
  void* used;
  CHECK(pthread_attr_init(&attributes) == 0);
  CHECK(pthread_attr_setstack(&attributes, call->low, size) == 0);
  CHECK(pthread_create(&thread, &attributes, paint_and_call, call) == 0);
  CHECK(pthread_join(thread, &used) == 0);
  munmap(memory, GUARD + size);
  return (size_t)used;
}

static void* only_call(void* argument) {
  ((struct call*)argument)->function(argument);
  return NULL;
}

/* Print how much of its stack a call uses, and do it on a small one. */
static void report(const char* kind, struct call call) {
  pthread_attr_t attributes;
  pthread_t thread;
  printf("%s%s %zu\n", kind, call.name, bytes_used(&call));
  CHECK(pthread_attr_init(&attributes) == 0);
  CHECK(pthread_attr_setstacksize(&attributes, SMALL) == 0);
  CHECK(pthread_create(&thread, &attributes, only_call, &call) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
}

int main(void) {
  const int32_t sources[] = {WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_BF16, WEIGHTCAST_I8};
  for (int i = 0; i < IN; ++i) importance[i] = 1.0f + (float)(i % 5);
  for (int i = 0; i < 2 * OUT; ++i) source_scales[i] = 0.0101f * (float)(1 + i % 3);
  printf("%s states %d\n", weightcast_isa(), (int)WEIGHTCAST_STACK_BYTES);
  for (int stored = 0; stored < 2; ++stored) {
    for (int32_t type = 0; type < 100; ++type) {
      const struct call call = {weightcast_type_name(type), type, stored, quantize, NULL};
      if (call.name != NULL && type != WEIGHTCAST_I8) report("", call);
    }
    for (int k = 0; k < 4; ++k) {
      const struct call call = {weightcast_type_name(sources[k]), sources[k], stored, group, NULL};
      report("groups of ", call);
    }
  }
  const struct call call = {"transpose", 0, 0, transpose, NULL};
  report("", call);
  return 0;
}
