// Calls the C ABI over many shapes, to be built with the address and undefined-behaviour sanitizers.
//
// Every buffer is a heap block of exactly the bytes that a call may touch, so a read or write
// beyond it stops the program. What lies between the elements of a source is NaN, what lies
// between the rows of a result must stay as it was. Prints the instruction set, then a checksum of
// the results of each part, which must not depend on it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "weightcast.h"

namespace {

#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) {                                                  \
      std::fprintf(stderr, "line %d: %s is false\n", __LINE__, #condition); \
      std::exit(1);                                                      \
    }                                                                    \
  } while (0)

constexpr uint64_t kNoBytes = 0xcbf29ce484222325u;
uint64_t checksum = kNoBytes;  // FNV-1a
int64_t calls = 0;

void add_to_checksum(const uint8_t* bytes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) checksum = (checksum ^ bytes[i]) * 0x100000001b3u;
}

uint32_t random_bits() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 32);
}

// malloc, unlike a vector, leaves no spare capacity that would hide an overrun.
struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<uint8_t, Free>;

Bytes allocate(int64_t n, int fill) {
  Bytes bytes(static_cast<uint8_t*>(std::malloc(static_cast<size_t>(n))));
  CHECK(bytes != nullptr || n == 0);
  if (n > 0) std::memset(bytes.get(), fill, static_cast<size_t>(n));
  return bytes;
}

int64_t element_bytes(int32_t type) {
  return type == WEIGHTCAST_F32 ? 4 : type == WEIGHTCAST_I8 ? 1 : 2;
}

// A finite value of magnitude 2^-16 to 2^9, as the bits of its type.
uint32_t random_value(int32_t type) {
  const uint32_t sign = random_bits() & 1, fraction = random_bits();
  const int exponent = static_cast<int>(random_bits() % 25) - 16;
  switch (type) {
    case WEIGHTCAST_F32:
      return sign << 31 | static_cast<uint32_t>(exponent + 127) << 23 | (fraction & 0x7fffffu);
    case WEIGHTCAST_F16: {  // below 2^-14, subnormals
      const uint32_t biased = exponent < -14 ? 0 : static_cast<uint32_t>(exponent + 15);
      return sign << 15 | biased << 10 | (fraction & 0x3ffu);
    }
    case WEIGHTCAST_BF16:
      return sign << 15 | static_cast<uint32_t>(exponent + 127) << 7 | (fraction & 0x7fu);
    default: return fraction & 0xffu;
  }
}

// Values that take the rare paths of a quantizer: sums that overflow or vanish, scales of zero.
enum Values { kModerate, kZero, kConstant, kSubnormal, kHuge, kAnyFinite, kValues, kLarge };

uint32_t hard_value(int values) {  // the bits of a float32
  const uint32_t sign = random_bits() & 0x80000000u;
  switch (values) {
    case kZero: return sign;
    case kConstant: return 0xbf000000u;
    case kSubnormal: return sign | (random_bits() & 0x7fffffu) >> random_bits() % 24;
    case kLarge: return sign | (0x48000000u + random_bits() % 0x10000000u);  // 2^17 to 2^49
    case kHuge: return sign | (0x7e000000u + (random_bits() & 0x17fffffu));  // to 2^128
    case kAnyFinite: {
      const uint32_t bits = random_bits();
      return (bits & 0x7f800000u) == 0x7f800000u ? bits & 0x807fffffu : bits;
    }
    default: return random_value(WEIGHTCAST_F32);
  }
}

// A source and the exact buffers behind it.
struct Source {
  weightcast_source view{};
  Bytes data, scales;

  uint8_t* element(int64_t out, int64_t in) {
    return data.get() +
           (out * view.stride_out + in * view.stride_in) * element_bytes(view.type);
  }
};

enum Layout { kOutIn, kInOut, kPadded, kSteps, kLayouts };

// `values` matter to float32 only.
Source make_source(int32_t type, int64_t n_out, int64_t n_in, int layout, int64_t groups,
                   int values = kModerate) {
  Source s;
  s.view.type = type;
  s.view.n_out = n_out;
  s.view.n_in = n_in;
  const int64_t strides[kLayouts][2] = {{n_in, 1}, {1, n_out}, {1, n_out + 7}, {3 * n_in, 2}};
  s.view.stride_out = strides[layout][0];
  s.view.stride_in = strides[layout][1];
  const int64_t span =
      1 + (n_out - 1) * s.view.stride_out + (n_in - 1) * s.view.stride_in;
  s.data = allocate(span * element_bytes(type), 0xff);
  for (int64_t out = 0; out < n_out; ++out) {
    for (int64_t in = 0; in < n_in; ++in) {
      const uint32_t value = type == WEIGHTCAST_F32 ? hard_value(values) : random_value(type);
      std::memcpy(s.element(out, in), &value, static_cast<size_t>(element_bytes(type)));
    }
  }
  s.view.data = s.data.get();
  if (type == WEIGHTCAST_I8) {
    s.view.groups = groups;
    s.view.scale_stride = n_out + (layout == kPadded ? 5 : 0);
    s.scales = allocate(((groups - 1) * s.view.scale_stride + n_out) * 4, 0xff);
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t out = 0; out < n_out; ++out) {
        // Every fourth fits float16, so tiles of codes take both paths.
        uint32_t scale = random_value(WEIGHTCAST_F32);
        if (random_bits() % 4 == 0) scale &= 0xfff00000u;
        std::memcpy(s.scales.get() + (g * s.view.scale_stride + out) * 4, &scale, 4);
      }
    }
    s.view.scales = reinterpret_cast<const float*>(s.scales.get());
  }
  return s;
}

// By ggml's rule, or with an effort for the least error.
int32_t quantize_by(int32_t effort, const weightcast_source& source, int32_t type, int64_t gap,
                    weightcast_result& result, const float* importance) {
  const int64_t elements = weightcast_block_elements(type);
  const int64_t row = elements > 0 ? source.n_in / elements * weightcast_block_bytes(type) : 0;
  const int64_t stride = row + gap;
  const int64_t size = (source.n_out - 1) * stride + row;
  Bytes dst = allocate(size, 0xa5);
  std::memset(&result, 0xff, sizeof result);
  const int32_t status =
      effort == 0
          ? weightcast_quantize(&source, importance, type, dst.get(), stride, &result)
          : weightcast_quantize_least_error(&source, importance, type, effort, dst.get(), stride, &result);
  for (int64_t out = 0; out + 1 < source.n_out; ++out) {
    for (int64_t i = row; i < stride; ++i) CHECK(dst.get()[out * stride + i] == 0xa5);
  }
  // Blocks whose scale overflowed, to infinity or to NaN, are complete too.
  if (status == WEIGHTCAST_OK || status == WEIGHTCAST_OVERFLOW) add_to_checksum(dst.get(), size);
  if (status == WEIGHTCAST_OVERFLOW) {
    CHECK(result.bad_out >= 0 && result.bad_out < source.n_out);
    CHECK(result.bad_in >= 0 && result.bad_in < source.n_in && result.bad_in % elements == 0);
  }
  ++calls;
  return status;
}

int32_t quantize(const weightcast_source& source, int32_t type, int64_t gap,
                 weightcast_result& result, const float* importance = nullptr) {
  // Of any calls, but the same on every instruction set.
  if (random_bits() % 4 == 0) {
    weightcast_result searched;
    const int32_t effort = 1 + static_cast<int32_t>(random_bits() % 3);
    const int32_t status = quantize_by(effort, source, type, gap, searched, importance);
    CHECK(status == WEIGHTCAST_OK || searched.bad_out >= -1);
  }
  return quantize_by(0, source, type, gap, result, importance);
}

void check_shape(int64_t n_out, int64_t n_in) {
  for (int32_t type : {WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_BF16, WEIGHTCAST_I8}) {
    for (int layout = 0; layout < kLayouts; ++layout) {
      for (int64_t groups : {1, 2, 5}) {
        if (groups > 1 && (type != WEIGHTCAST_I8 || n_in % groups != 0)) continue;
        Source source = make_source(type, n_out, n_in, layout, groups);
        for (int32_t to : {WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_BF16, WEIGHTCAST_Q8_0}) {
          weightcast_result result;
          const bool fits = to != WEIGHTCAST_Q8_0 || n_in % 32 == 0;
          const int32_t status = quantize(source.view, to, layout == kSteps ? 3 : 0, result);
          if (!fits) {
            CHECK(status == WEIGHTCAST_BAD_SHAPE);
            continue;
          }
          // 128 * 2^10 is beyond float16, so int8 may overflow it, at a place inside the matrix.
          CHECK(status == WEIGHTCAST_OK ||
                (status == WEIGHTCAST_OVERFLOW && type == WEIGHTCAST_I8 && to == WEIGHTCAST_F16));
          const int64_t blocks = to == WEIGHTCAST_Q8_0 ? n_out * (n_in / 32) : 0;
          CHECK(result.exact_blocks + result.requantized_blocks == blocks);
        }
      }
    }
  }
}

// The last element is the offender, in every kind of tail.
void check_offenders(int64_t n_out, int64_t n_in) {
  for (int32_t type : {WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_BF16}) {
    for (int layout = 0; layout < kLayouts; ++layout) {
      Source source = make_source(type, n_out, n_in, layout, 1);
      std::memset(source.element(n_out - 1, n_in - 1), 0xff,
                  static_cast<size_t>(element_bytes(type)));
      for (int32_t to : {WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_BF16, WEIGHTCAST_Q8_0}) {
        if (to == WEIGHTCAST_Q8_0 && n_in % 32 != 0) continue;
        weightcast_result result;
        CHECK(quantize(source.view, to, 0, result) == WEIGHTCAST_NOT_FINITE);
        CHECK(result.bad_out == n_out - 1 && result.bad_in == n_in - 1);
      }
    }
  }
}

// Factors from 2^-16 to 2^9; in one case of four also zeros and 1e30.
Bytes make_importance(int64_t n_in) {
  Bytes bytes = allocate(n_in * 4, 0);
  const bool extreme = random_bits() % 4 == 0;
  for (int64_t i = 0; i < n_in; ++i) {
    uint32_t factor = random_value(WEIGHTCAST_F32) & 0x7fffffffu;
    if (extreme && random_bits() % 2 == 0) factor = random_bits() % 2 == 0 ? 0 : 0x7149f2cau;
    std::memcpy(bytes.get() + i * 4, &factor, 4);
  }
  return bytes;
}

bool needs_importance(int32_t type) {
  return type == WEIGHTCAST_IQ2_XXS || type == WEIGHTCAST_IQ2_XS || type == WEIGHTCAST_IQ1_S;
}

// Blocks of one type from any source, with and without importance, in every kind of tail.
void check_type(int32_t type, int rounds) {
  const int64_t elements = weightcast_block_elements(type);
  const int64_t widths[] = {1, 7, 16, 17, 31, 33, 64, 70};
  const int32_t sources[] = {WEIGHTCAST_F32, WEIGHTCAST_I8, WEIGHTCAST_F32, WEIGHTCAST_F16,
                             WEIGHTCAST_F32, WEIGHTCAST_BF16};
  for (int round = 0; round < rounds; ++round) {
    const int64_t n_out = widths[round % 8], n_in = elements * (1 + round % 3);
    const int64_t groups = round % 4 == 0 ? n_in / 8 : 1 + round % 2;
    Source source = make_source(sources[round % 6], n_out, n_in,
                                static_cast<int>(random_bits() % kLayouts), groups,
                                round / 2 % kValues);
    const Bytes importance = make_importance(n_in);
    const auto* factors = reinterpret_cast<const float*>(importance.get());
    if (round % 2 == 0 && !needs_importance(type)) factors = nullptr;
    weightcast_result result;
    const int32_t status = quantize(source.view, type, round % 5, result, factors);
    CHECK(status == WEIGHTCAST_OK || status == WEIGHTCAST_OVERFLOW);
  }
}

// Factors from 2^-126 to 2^127, whose sums overflow.
Bytes make_wild_importance(int64_t n_in) {
  Bytes bytes = allocate(n_in * 4, 0);
  for (int64_t i = 0; i < n_in; ++i) {
    const uint32_t factor = 0x00800000u + random_bits() % 0x7e800000u;
    std::memcpy(bytes.get() + i * 4, &factor, 4);
  }
  return bytes;
}

// Blocks whose scale is infinite or NaN, which processors make with different signs.
void check_type_overflows(int32_t type) {
  const int64_t n_in = 3 * weightcast_block_elements(type);
  for (int values : {kLarge, kHuge, kAnyFinite}) {
    for (int factors = 0; factors < 3; ++factors) {
      if (factors == 0 && needs_importance(type)) continue;
      Source source = make_source(WEIGHTCAST_F32, 33, n_in, kOutIn, 1, values);
      const Bytes importance = factors == 1 ? make_importance(n_in) : make_wild_importance(n_in);
      weightcast_result result;
      const int32_t status =
          quantize(source.view, type, 0, result,
                   factors == 0 ? nullptr : reinterpret_cast<const float*>(importance.get()));
      CHECK(status == WEIGHTCAST_OK || status == WEIGHTCAST_OVERFLOW);
    }
  }
}

// What a type refuses: NaN in the last element, a missing or bad importance.
void check_type_refusals(int32_t type) {
  const int64_t n_in = 2 * weightcast_block_elements(type), n_out = 19;
  const Bytes importance = make_importance(n_in);
  auto* factors = reinterpret_cast<float*>(importance.get());
  weightcast_result result;
  for (int32_t from : {WEIGHTCAST_F32, WEIGHTCAST_F16, WEIGHTCAST_BF16}) {
    Source source = make_source(from, n_out, n_in, kInOut, 1);
    if (needs_importance(type)) {
      CHECK(quantize(source.view, type, 0, result) == WEIGHTCAST_NEEDS_IMPORTANCE);
    }
    std::memset(source.element(n_out - 1, n_in - 1), 0xff,
                static_cast<size_t>(element_bytes(from)));
    CHECK(quantize(source.view, type, 0, result, factors) == WEIGHTCAST_NOT_FINITE);
    CHECK(result.bad_out == n_out - 1 && result.bad_in == n_in - 1);
    source.view.n_in -= 1;
    CHECK(quantize(source.view, type, 0, result, factors) == WEIGHTCAST_BAD_SHAPE);
  }
  Source source = make_source(WEIGHTCAST_F32, n_out, n_in, kInOut, 1);
  factors[n_in - 1] = -1.0f;
  CHECK(quantize(source.view, type, 0, result, factors) == WEIGHTCAST_BAD_IMPORTANCE);
  CHECK(result.bad_in == n_in - 1);
}

void check_dequantize() {
  for (int32_t type = 0; type < 100; ++type) {
    const int64_t elements = weightcast_block_elements(type);
    if (elements == 0 || type == WEIGHTCAST_I8) continue;
    for (int64_t n = 0; n <= 10 * elements; n += elements) {
      const int64_t bytes = weightcast_row_bytes(type, n);
      for (int64_t shift : {0, 1}) {  // malloc aligns, so 1 is no alignment at all
        Bytes src = allocate(shift + bytes, 0);
        for (int64_t i = 0; i < bytes; ++i) {
          src.get()[shift + i] = static_cast<uint8_t>(random_bits() & 0x37);  // finite as any type
        }
        Bytes dst = allocate(n * 4, 0xa5);
        CHECK(weightcast_dequantize(type, src.get() + shift, n,
                                    reinterpret_cast<float*>(dst.get())) == WEIGHTCAST_OK);
        add_to_checksum(dst.get(), n * 4);
        ++calls;
      }
    }
  }
  float unused = 0;
  CHECK(weightcast_dequantize(WEIGHTCAST_Q8_0, &unused, 31, &unused) == WEIGHTCAST_BAD_SHAPE);
  CHECK(weightcast_dequantize(WEIGHTCAST_F32, &unused, -1, &unused) == WEIGHTCAST_BAD_SHAPE);
  CHECK(weightcast_dequantize(WEIGHTCAST_I8, &unused, 1, &unused) == WEIGHTCAST_BAD_TYPE);
  CHECK(weightcast_dequantize(99, &unused, 1, &unused) == WEIGHTCAST_BAD_TYPE);
}

// Print the checksum of a part, and begin the next.
void report(const char* part) {
  std::printf("%s: %lld calls %016llx\n", part, static_cast<long long>(calls),
              static_cast<unsigned long long>(checksum));
  checksum = kNoBytes;
  calls = 0;
}

// Groups in exact buffers.
struct Groups {
  weightcast_group_type type{};
  weightcast_groups view{};
  int64_t n_out, n_in;
  Bytes codes, scales, zero_points;

  Groups(int64_t rows, int64_t columns, const weightcast_group_type& made)
      : type(made), n_out(rows), n_in(columns) {
    view.groups = n_in / type.group_size;
    codes = allocate(n_out * n_in, 0xa5);
    scales = allocate(scale_bytes(), 0xa5);
    if (!type.symmetric) zero_points = allocate(n_out * view.groups, 0xa5);
    view.codes = codes.get();
    view.scales = scales.get();
    view.zero_points = zero_points.get();
  }

  int64_t scale_bytes() const { return n_out * view.groups * element_bytes(type.scale_type); }

  // Count what was made, and the floats it stands for.
  void add() {
    Bytes floats = allocate(n_out * n_in * 4, 0xa5);
    CHECK(weightcast_dequantize_groups(&type, &view, n_out, n_in,
                                       reinterpret_cast<float*>(floats.get())) == WEIGHTCAST_OK);
    add_to_checksum(codes.get(), n_out * n_in);
    add_to_checksum(scales.get(), scale_bytes());
    if (!type.symmetric) add_to_checksum(zero_points.get(), n_out * view.groups);
    add_to_checksum(floats.get(), n_out * n_in * 4);
  }
};

// Groups of every kind, within tiles and longer, from any source, in every kind of tail.
void check_groups() {
  const int64_t widths[] = {1, 7, 17, 33, 64, 70, 130, 261};
  const int64_t sizes[] = {32, 96, 128, 256, 288, 544};
  const int32_t scale_types[] = {WEIGHTCAST_BF16, WEIGHTCAST_F32, WEIGHTCAST_F16};
  const int32_t sources[] = {WEIGHTCAST_F32, WEIGHTCAST_I8, WEIGHTCAST_F32, WEIGHTCAST_F16,
                             WEIGHTCAST_F32, WEIGHTCAST_BF16, WEIGHTCAST_I8};
  for (int round = 0; round < 96; ++round) {
    const int64_t size = sizes[round % 6], n_in = size * (1 + round % 3), n_out = widths[round % 8];
    const weightcast_group_type type{round % 2 == 0 ? 4 : 8, round / 2 % 2, scale_types[round % 3],
                                     round / 4 % WEIGHTCAST_GROUP_EFFORTS, size};
    Source source = make_source(sources[round % 7], n_out, n_in,
                                static_cast<int>(random_bits() % kLayouts),
                                1 + round % 2 * (n_in / 16 - 1), round % kValues);
    const Bytes importance = make_importance(n_in);
    const auto* factors = round % 3 == 0 ? nullptr : reinterpret_cast<const float*>(importance.get());
    Groups groups(n_out, n_in, type);
    weightcast_result result;
    const int32_t status =
        weightcast_quantize_groups(&source.view, factors, &type, &groups.view, &result);
    CHECK(status == WEIGHTCAST_OK || (status == WEIGHTCAST_OVERFLOW && type.scale_type == WEIGHTCAST_F16));
    if (status == WEIGHTCAST_OK) groups.add();
    ++calls;
    if (source.view.type == WEIGHTCAST_I8) continue;
    std::memset(source.element(n_out - 1, n_in - 1), 0xff,
                static_cast<size_t>(element_bytes(source.view.type)));
    CHECK(weightcast_quantize_groups(&source.view, factors, &type, &groups.view, &result) ==
          WEIGHTCAST_NOT_FINITE);
    CHECK(result.bad_out == n_out - 1 && result.bad_in == n_in - 1);
  }
  report("groups");
}

void check_carried_groups() {
  for (int64_t n_out : {1, 15, 16, 33, 64, 70, 257}) {
    for (int layout = 0; layout < kLayouts; ++layout) {
      for (int64_t size : {32, 96, 192, 576}) {
        const int64_t n_in = 1152;
        const weightcast_group_type type{8, 1, size == 32 ? WEIGHTCAST_BF16 : WEIGHTCAST_F32, 0, size};
        Source source = make_source(WEIGHTCAST_I8, n_out, n_in, layout, 2);
        Groups groups(n_out, n_in, type);
        weightcast_result result;
        const int32_t status =
            weightcast_carry_groups(&source.view, &type, &groups.view, &result);
        if (status == WEIGHTCAST_OK) {
          groups.add();
          CHECK(weightcast_check_carried(&source.view, &type, &groups.view, &result) ==
                WEIGHTCAST_OK);
          groups.view.codes[n_out * n_in - 1] ^= 1;
          CHECK(weightcast_check_carried(&source.view, &type, &groups.view, &result) ==
                WEIGHTCAST_NOT_CARRIED);
          CHECK(result.bad_out == n_out - 1 && result.bad_in == n_in - 1);
        }
        CHECK(status == WEIGHTCAST_OK ||
              (status == WEIGHTCAST_INEXACT_SCALE && type.scale_type == WEIGHTCAST_BF16));
        source.view.groups = 8;  // of 144 rows each
        source.view.scale_stride = 0;
        CHECK(weightcast_carry_groups(&source.view, &type, &groups.view, &result) ==
              WEIGHTCAST_BAD_SHAPE);
        ++calls;
      }
    }
  }
  report("carried groups");
}

// Nothing is read or written: the pointers are null.
void check_group_refusals() {
  weightcast_source s{};
  weightcast_groups groups{};
  weightcast_result result;
  weightcast_group_type type{4, 1, WEIGHTCAST_BF16, 1, 32};
  const auto status = [&] {
    return weightcast_quantize_groups(&s, nullptr, &type, &groups, &result);
  };
  CHECK(status() == WEIGHTCAST_OK);  // [0, 0]
  s.n_out = 5;
  s.n_in = 64;
  CHECK(status() == WEIGHTCAST_BAD_SHAPE);  // 64 values in no group
  groups.groups = 1;
  CHECK(status() == WEIGHTCAST_BAD_SHAPE);
  groups.groups = 2;
  for (int64_t size : {-32, 0, 16, 33, 64}) {
    type.group_size = size;
    CHECK(status() == WEIGHTCAST_BAD_SHAPE);
  }
  type.group_size = 32;
  for (int32_t bits : {-1, 0, 3, 16}) {
    type.bits = bits;
    CHECK(status() == WEIGHTCAST_BAD_TYPE);
  }
  type.bits = 8;
  for (int32_t scale_type : {WEIGHTCAST_I8 + 0, WEIGHTCAST_Q8_0 + 0, 99}) {
    type.scale_type = scale_type;
    CHECK(status() == WEIGHTCAST_BAD_TYPE);
  }
  type.scale_type = WEIGHTCAST_F32;
  for (int32_t effort : {-1, WEIGHTCAST_GROUP_EFFORTS}) {
    type.search = effort;
    CHECK(status() == WEIGHTCAST_BAD_ARGUMENT);
  }
  type.search = 0;
  // Floats have no codes to carry.
  CHECK(weightcast_carry_groups(&s, &type, &groups, &result) == WEIGHTCAST_BAD_TYPE);
  CHECK(weightcast_check_carried(&s, &type, &groups, &result) == WEIGHTCAST_BAD_TYPE);
  CHECK(weightcast_dequantize_groups(&type, &groups, -1, 64, nullptr) == WEIGHTCAST_BAD_SHAPE);
  CHECK(weightcast_dequantize_groups(&type, &groups, 5, 65, nullptr) == WEIGHTCAST_BAD_SHAPE);
  CHECK(weightcast_dequantize_groups(&type, &groups, 0, 64, nullptr) == WEIGHTCAST_OK);
}

// A number as part of the checksum; processors differ in the bits of NaN.
void add_number(double x) {
  if (x != x) x = 0.5;
  uint8_t bytes[8];
  std::memcpy(bytes, &x, 8);
  add_to_checksum(bytes, 8);
}

// Check what was measured of rows, and make it part of the checksum.
void add_moments(const weightcast_moments* rows, int64_t n_out, int64_t n_in) {
  for (int64_t out = 0; out < n_out; ++out) {
    const weightcast_moments& row = rows[out];
    CHECK(row.largest_square >= 0 && row.error_squares >= 0);
    CHECK(row.largest_in >= 0 && row.largest_in < n_in);
    CHECK(row.exact >= 0 && row.exact <= n_in);
    int64_t runs = 0;
    for (int32_t n : row.histogram) {
      runs += n;
      add_number(n);
    }
    CHECK(runs == (n_in + 31) / 32);
    CHECK(row.zeroed_runs >= 0 && row.clipped_runs >= 0);
    CHECK(row.zeroed_runs + row.clipped_runs <= runs);
    for (double x : {row.error_squares, row.source_squares, row.cross, row.errors,
                     row.weighted_error_squares, row.weighted_source_squares, row.largest_square}) {
      add_number(x);
    }
    for (int64_t n : {row.largest_in, row.exact, row.zeroed_runs, row.clipped_runs}) {
      add_number(static_cast<double>(n));
    }
  }
}

// Groups of exactly the size that is needed.
void check_measured_groups() {
  for (int64_t n_out : {1, 15, 16, 33, 70}) {
    for (int64_t size : {32, 96, 1152}) {
      const int64_t n_in = 1152;
      const weightcast_group_type type{4, size == 96, WEIGHTCAST_F16, 0, size};
      Source source = make_source(WEIGHTCAST_I8, n_out, n_in, static_cast<int>(n_out % kLayouts), 2);
      Groups groups(n_out, n_in, type);
      weightcast_result result;
      CHECK(weightcast_quantize_groups(&source.view, nullptr, &type, &groups.view, &result) ==
            WEIGHTCAST_OK);
      std::vector<weightcast_moments> rows(static_cast<size_t>(n_out));
      CHECK(weightcast_measure_groups(&source.view, nullptr, 0, &type, &groups.view, rows.data()) ==
            WEIGHTCAST_OK);
      add_moments(rows.data(), n_out, n_in);
      ++calls;
    }
  }
}

bool same_bytes(const Bytes& a, const Bytes& b, int64_t n) {
  return std::memcmp(a.get(), b.get(), static_cast<size_t>(n)) == 0;
}

// In one call as in two, over more than a chunk of a row, with depths that are cut alike and not.
void check_groups_measured_at_once() {
  const int64_t widths[] = {1, 33, 70, 16, 37, 7}, sizes[] = {32, 64, 96, 128, 256, 2304};
  const int32_t sources[] = {WEIGHTCAST_F32, WEIGHTCAST_I8, WEIGHTCAST_F16, WEIGHTCAST_BF16};
  for (int round = 0; round < 24; ++round) {
    const int64_t n_out = widths[round * 5 % 6], n_in = 2304;
    const weightcast_group_type type{round % 4 == 0 ? 8 : 4, round / 2 % 2, WEIGHTCAST_F32, round % 3,
                                     sizes[round % 6]};
    Source source = make_source(sources[round / 6], n_out, n_in, round % kLayouts, 2);
    const Bytes importance = make_importance(n_in);
    const auto* factors = round % 2 == 0 ? nullptr : reinterpret_cast<const float*>(importance.get());
    const int64_t bytes = n_out * static_cast<int64_t>(sizeof(weightcast_moments));
    const Bytes wanted = allocate(bytes, 0xff), found = allocate(bytes, 0xff);
    auto* rows = reinterpret_cast<weightcast_moments*>(found.get());
    Groups apart(n_out, n_in, type), at_once(n_out, n_in, type);
    weightcast_result result;
    CHECK(weightcast_quantize_groups(&source.view, factors, &type, &apart.view, &result) ==
          WEIGHTCAST_OK);
    CHECK(weightcast_measure_groups(&source.view, factors, round / 3 % 2, &type, &apart.view,
                                    reinterpret_cast<weightcast_moments*>(wanted.get())) ==
          WEIGHTCAST_OK);
    CHECK(weightcast_quantize_and_measure_groups(&source.view, factors, round / 3 % 2, &type,
                                                 &at_once.view, rows, &result) == WEIGHTCAST_OK);
    CHECK(same_bytes(wanted, found, bytes));
    CHECK(same_bytes(apart.codes, at_once.codes, n_out * n_in));
    CHECK(same_bytes(apart.scales, at_once.scales, apart.scale_bytes()));
    CHECK(type.symmetric || same_bytes(apart.zero_points, at_once.zero_points, n_out * apart.view.groups));
    add_moments(rows, n_out, n_in);
    ++calls;
  }
  weightcast_source s{};
  weightcast_group_type type{4, 1, WEIGHTCAST_BF16, 1, 32};
  weightcast_groups groups{};
  weightcast_result result;
  weightcast_moments row;
  std::memset(&row, 0xff, sizeof row);
  s.n_out = 1;
  const auto status = [&](weightcast_moments* moments) {
    return weightcast_quantize_and_measure_groups(&s, nullptr, 0, &type, &groups, moments, &result);
  };
  CHECK(status(&row) == WEIGHTCAST_OK);  // [1, 0]
  CHECK(row.source_squares == 0 && row.exact == 0 && row.largest_in == 0);
  s.n_in = 33;
  CHECK(status(nullptr) == WEIGHTCAST_BAD_SHAPE);
}

// Blocks of exactly the size that is needed, of any bits, so also with infinite scales.
void check_measure() {
  check_measured_groups();
  check_groups_measured_at_once();
  const int64_t widths[] = {1, 7, 16, 33, 64, 70, 257, 300};
  const int32_t sources[] = {WEIGHTCAST_F32, WEIGHTCAST_I8, WEIGHTCAST_F16, WEIGHTCAST_BF16};
  for (int32_t type = 0; type < 100; ++type) {
    const int64_t elements = weightcast_block_elements(type);
    if (elements == 0 || type == WEIGHTCAST_I8) continue;
    for (int round = 0; round < 16; ++round) {
      const int64_t n_out = widths[round % 8];
      const int64_t n_in = elements > 1 ? elements * (1 + round % 3) : 1 + round * 171;
      const int64_t groups = round % 5 == 0 && n_in % 2 == 0 ? 2 : 1;
      const int layout = static_cast<int>(random_bits() % kLayouts);
      Source source = make_source(sources[round % 4], n_out, n_in, layout, groups, round % kValues);
      const int64_t row = weightcast_row_bytes(type, n_in), stride = row + round % 3;
      const int64_t shift = round % 2, size = (n_out - 1) * stride + row;
      Bytes blocks = allocate(shift + size, 0);
      for (int64_t i = 0; i < size; ++i) {
        blocks.get()[shift + i] = static_cast<uint8_t>(random_bits());
      }
      const int64_t bytes = n_out * static_cast<int64_t>(sizeof(weightcast_moments));
      Bytes moments = allocate(bytes, 0xff);
      auto* rows = reinterpret_cast<weightcast_moments*>(moments.get());
      const std::vector<float> importance(static_cast<size_t>(n_in), 0.5f);
      const float* factors = round % 3 == 0 ? importance.data() : nullptr;
      CHECK(weightcast_measure(&source.view, factors, round % 2, type, blocks.get() + shift, stride,
                               rows) == WEIGHTCAST_OK);
      add_moments(rows, n_out, n_in);
      ++calls;
    }
  }
  weightcast_source s{};
  weightcast_moments row;
  CHECK(weightcast_measure(&s, nullptr, 0, WEIGHTCAST_Q8_0, nullptr, 0, nullptr) == WEIGHTCAST_OK);  // [0, 0]
  s.n_out = 1;
  std::memset(&row, 0xff, sizeof row);
  CHECK(weightcast_measure(&s, nullptr, 0, WEIGHTCAST_Q8_0, nullptr, 0, &row) == WEIGHTCAST_OK);  // [1, 0]
  CHECK(row.source_squares == 0 && row.exact == 0 && row.largest_in == 0);
  s.n_in = 33;
  CHECK(weightcast_measure(&s, nullptr, 0, WEIGHTCAST_Q8_0, nullptr, 0, nullptr) == WEIGHTCAST_BAD_SHAPE);
  CHECK(weightcast_measure(&s, nullptr, 0, WEIGHTCAST_I8, nullptr, 0, nullptr) == WEIGHTCAST_BAD_TYPE);
  CHECK(weightcast_measure(&s, nullptr, 0, 99, nullptr, 0, nullptr) == WEIGHTCAST_BAD_TYPE);
  s.n_in = -1;
  CHECK(weightcast_measure(&s, nullptr, 0, WEIGHTCAST_F32, nullptr, 0, nullptr) == WEIGHTCAST_BAD_SHAPE);
  s.n_in = 32;
  s.type = WEIGHTCAST_I8;  // no scales
  CHECK(weightcast_measure(&s, nullptr, 0, WEIGHTCAST_F32, nullptr, 0, nullptr) == WEIGHTCAST_BAD_SHAPE);
  s.type = WEIGHTCAST_Q8_0;
  CHECK(weightcast_measure(&s, nullptr, 0, WEIGHTCAST_F32, nullptr, 0, nullptr) == WEIGHTCAST_BAD_TYPE);
}

// Buffers of exactly the size that is needed; columns of all kinds of blocks and tiles.
void check_feedback() {
  const float table[] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
  for (int64_t n_in : {32, 64, 96, 160, 416}) {
    for (int64_t n_out : {1, 7, 8, 17}) {
      std::vector<double> hessian(static_cast<size_t>(n_in * n_in));
      std::vector<int64_t> order(static_cast<size_t>(n_in));
      for (int64_t i = 0; i < n_in; ++i) {
        order[static_cast<size_t>(i)] = n_in - 1 - i;
        for (int64_t j = 0; j <= i; ++j) {
          const double noise = static_cast<double>(random_bits() % 1024) / 1024;
          hessian[static_cast<size_t>(i * n_in + j)] = i == j ? static_cast<double>(n_in) : noise;
        }
      }
      CHECK(weightcast_factor_hessian(hessian.data(), n_in) == WEIGHTCAST_OK);
      const bool has_table = n_out % 2 == 1;
      std::vector<float> weights(static_cast<size_t>(n_out * n_in)), steps(weights.size() / 32);
      for (float& x : weights) x = static_cast<float>(random_bits() % 4096) / 256 - 8;
      for (float& x : steps) x = static_cast<float>(random_bits() % 5) - 1;
      std::vector<float> lows(steps.size(), -3.0f);
      const weightcast_grid grid{steps.data(), has_table ? nullptr : lows.data(), has_table ? table : nullptr,
                                 32, has_table ? 15 : 8, 0};
      const weightcast_factor factor{hessian.data(), order.data(), n_in};
      std::vector<uint8_t> codes(weights.size(), 255);  // beyond all levels, where a step is 0
      std::vector<double> work(static_cast<size_t>(WEIGHTCAST_FEEDBACK_DOUBLES(n_out, n_in)));
      std::vector<double> costs(static_cast<size_t>(n_out));
      for (int choose : {0, 1, 0}) {
        CHECK(weightcast_round_with_feedback(weights.data(), n_out, &factor, &grid, choose, codes.data(),
                                             work.data(), costs.data()) == WEIGHTCAST_OK);
        for (double cost : costs) add_number(cost);
        for (uint8_t code : codes) add_number(code);
        ++calls;
      }
    }
  }
}

// Refusals read and write nothing: the pointers are null.
void check_refusals() {
  weightcast_result result;
  weightcast_source s{};
  const auto status = [&](int32_t type) {
    return weightcast_quantize(&s, nullptr, type, nullptr, 0, &result);
  };
  s.type = WEIGHTCAST_F32;
  for (const int32_t effort : {INT32_MIN, -1, 0, 4, INT32_MAX}) {
    CHECK(weightcast_quantize_least_error(&s, nullptr, WEIGHTCAST_Q8_0, effort, nullptr, 0, &result) ==
          WEIGHTCAST_BAD_ARGUMENT);
  }
  CHECK(status(WEIGHTCAST_F32) == WEIGHTCAST_OK);  // [0, 0]
  s.n_out = 5;
  CHECK(status(WEIGHTCAST_Q8_0) == WEIGHTCAST_OK);  // [5, 0]
  s.n_in = -1;
  CHECK(status(WEIGHTCAST_F32) == WEIGHTCAST_BAD_SHAPE);
  s.n_in = 33;
  CHECK(status(WEIGHTCAST_Q8_0) == WEIGHTCAST_BAD_SHAPE);
  CHECK(status(WEIGHTCAST_I8) == WEIGHTCAST_BAD_TYPE);
  CHECK(status(99) == WEIGHTCAST_BAD_TYPE);
  s.n_out = -1;
  CHECK(status(WEIGHTCAST_F32) == WEIGHTCAST_BAD_SHAPE);
  s.n_out = 5;
  s.type = WEIGHTCAST_I8;
  CHECK(status(WEIGHTCAST_F32) == WEIGHTCAST_BAD_SHAPE);  // no scales
  std::vector<float> scales(5, 1.0f);
  s.scales = scales.data();
  for (int64_t groups : {-1, 0, 2, 34}) {
    s.groups = groups;
    CHECK(status(WEIGHTCAST_F32) == WEIGHTCAST_BAD_SHAPE);
  }
  s.type = WEIGHTCAST_Q8_0;
  CHECK(status(WEIGHTCAST_F32) == WEIGHTCAST_BAD_TYPE);
}

void check_shapes() {
  const int64_t edges[] = {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 130};
  for (int64_t n_out : edges) {
    for (int64_t n_in : edges) check_offenders(n_out, n_in);
  }
  for (int64_t n = 1; n <= 130; ++n) {
    check_shape(n, n % 8 == 0 ? 160 : n % 2 == 0 ? 96 : 1 + n % 40);
    check_shape(1 + n % 70, n);
    if (n % 5 == 0) check_shape(n, 131 - n);
  }
  report("shapes");
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = argc > 1 && std::strcmp(argv[1], "brief") == 0;  // for an emulator
  std::printf("%s\n", weightcast_isa());
  if (!brief) check_shapes();
  for (int32_t type = 0; type < 100; ++type) {
    if (weightcast_block_elements(type) < 2) continue;
    CHECK(weightcast_self_test(type) == WEIGHTCAST_OK);
    check_type(type, brief ? 12 : 24);
    check_type_overflows(type);
    check_type_refusals(type);
    report(weightcast_type_name(type));
  }
  check_dequantize();
  report("dequantize");
  check_groups();
  check_carried_groups();
  check_group_refusals();
  check_measure();
  report("measure");
  check_feedback();
  report("feedback");
  check_refusals();
  return 0;
}
