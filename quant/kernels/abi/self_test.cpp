// Self test: compares the blocks that this build makes on this processor with golden hashes.
//
// A compiler that contracts to FMA, flushes subnormals or reorders sums changes bytes without any
// error. The source is small, and exact operations make it; the hashes of its blocks come from ggml:
// tests/quant/golden.py makes and checks them.
#include <cmath>
#include <cstring>

#include "source/buffers.h"
#include "weightcast.h"

namespace {

constexpr int kIn = 256;      // a super-block
constexpr int kDistinct = 3;  // columns, repeated so that every lane has one
constexpr int kOut = 67;      // more than a tile, and no multiple of any lane count
constexpr int kRowBytes = 4 * kIn;  // F32, the widest

struct Golden {
  int32_t type;
  bool plain, weighed;  // made without importance, with it
  uint64_t hash;
};

constexpr Golden kGolden[] = {
#include "abi/self_test_golden.inc"
};

constexpr int kTypes = 0
#define WC_TYPE(...) +1
#include "types.inc"
    ;
static_assert(sizeof kGolden / sizeof *kGolden == kTypes, "run tests/quant/golden.py: a type has no hash");

uint64_t add_to_hash(uint64_t hash, const uint8_t* bytes, int64_t n) {  // FNV-1a
  for (int64_t i = 0; i < n; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

// Fill with products of two uniform values in steps of 2^-11; factors and products are exact.
void make_values(float* values, int n) {
  uint32_t state = 1;
  for (int i = 0; i < n; ++i) {
    state = state * 1664525u + 1013904223u;
    const auto a = static_cast<float>(static_cast<int>(state >> 20) - 2048);
    const auto b = static_cast<float>(static_cast<int>((state >> 8) & 0xfff) + 1);
    values[i] = a * b * 0x1p-24f;
  }
}

// What is quantized, and what it becomes.
struct Test {
  float columns[kOut * kIn], importance[kIn], values[kIn];
  uint8_t rows[kOut * kRowBytes];
};

// Hash the blocks of the distinct columns. MISCOMPILED if lanes disagree.
int32_t hash_blocks(const weightcast_source& source, const float* importance, int32_t type, Test& test,
                    uint64_t& hash) {
  uint8_t* rows = test.rows;
  const int64_t bytes = weightcast_row_bytes(type, kIn);
  weightcast_result result;
  int32_t status = weightcast_quantize(&source, importance, type, rows, bytes, &result);
  if (status != WEIGHTCAST_OK) return status;
  for (int out = kDistinct; out < source.n_out; ++out) {
    const uint8_t* same = rows + out % kDistinct * bytes;
    if (std::memcmp(rows + out * bytes, same, static_cast<size_t>(bytes)) != 0) return WEIGHTCAST_MISCOMPILED;
  }
  hash = add_to_hash(hash, rows, kDistinct * bytes);
  status = weightcast_dequantize(type, rows, kIn, test.values);
  hash = add_to_hash(hash, reinterpret_cast<const uint8_t*>(test.values), sizeof test.values);
  return status;
}

int32_t run(const Golden& golden, Test& test) {
  float* columns = test.columns;
  float* importance = test.importance;
  make_values(columns, kDistinct * kIn);
  for (int out = kDistinct; out < kOut; ++out) {
    std::memcpy(columns + out * kIn, columns + out % kDistinct * kIn, kIn * sizeof(float));
  }
  for (int i = 0; i < kIn; ++i) importance[i] = std::fabs(columns[kIn - 1 - i]);
  weightcast_source source{};
  source.data = columns;
  source.type = WEIGHTCAST_F32;
  // One lane at a time is slow, and all of them are the same code.
  source.n_out = std::strcmp(weightcast_isa(), "scalar") == 0 ? kDistinct : kOut;
  source.n_in = kIn;
  source.stride_out = kIn;
  source.stride_in = 1;
  uint64_t hash = 0xcbf29ce484222325u;
  int32_t status = WEIGHTCAST_OK;
  if (golden.plain) status = hash_blocks(source, nullptr, golden.type, test, hash);
  if (golden.weighed && status == WEIGHTCAST_OK) {
    status = hash_blocks(source, importance, golden.type, test, hash);
  }
  if (status == WEIGHTCAST_NO_MEMORY) return status;
  return status == WEIGHTCAST_OK && hash == golden.hash ? WEIGHTCAST_OK : WEIGHTCAST_MISCOMPILED;
}

}  // namespace

extern "C" int32_t weightcast_self_test(int32_t type) {
  for (const Golden& golden : kGolden) {
    if (golden.type != type) continue;
    const weightcast::OnHeap<Test> test;
    return test ? run(golden, *test) : WEIGHTCAST_NO_MEMORY;
  }
  return WEIGHTCAST_BAD_TYPE;
}
