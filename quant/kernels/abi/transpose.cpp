// Transposes matrices of small items: packed words and scales that a file stores along `out`.
#include "simd/transpose.h"

#include "weightcast.h"

namespace weightcast {
namespace {

constexpr int kLine = 64;       // bytes of a cache line
constexpr int kTurnedRows = 64; // source rows that are transposed together

// Collects transposed squares, so that whole cache lines are read and written: rows on both sides are
// often a power of two apart, and single lines would evict each other.
template <class T>
struct alignas(kLine) Turned {
  static constexpr int columns = kLine / static_cast<int>(sizeof(T));
  T rows[columns][kTurnedRows];
};

// Transpose a whole block: one cache line from each of kTurnedRows source rows.
template <class T>
void transpose_block(const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
  constexpr int n = kSquare<T>;
  Turned<T> turned;
  for (int r = 0; r < kTurnedRows; r += n) {
    for (int c = 0; c < Turned<T>::columns; c += n) {
      transpose_square(src + r * src_stride + c, src_stride, &turned.rows[c][r], kTurnedRows);
    }
  }
  for (int c = 0; c < Turned<T>::columns; ++c) {
    std::memcpy(dst + c * dst_stride, turned.rows[c], sizeof turned.rows[c]);
  }
}

template <class T>
void transpose(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride) {
  constexpr int width = Turned<T>::columns;
  for (int64_t r0 = 0; r0 < rows; r0 += kTurnedRows) {
    const int64_t r1 = rows - r0 < kTurnedRows ? rows : r0 + kTurnedRows;
    for (int64_t c0 = 0; c0 < columns; c0 += width) {
      const int64_t c1 = columns - c0 < width ? columns : c0 + width;
      if (r1 - r0 == kTurnedRows && c1 - c0 == width) {
        transpose_block(src + r0 * src_stride + c0, src_stride, dst + c0 * dst_stride + r0, dst_stride);
        continue;
      }
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) dst[c * dst_stride + r] = src[r * src_stride + c];
      }
    }
  }
}

}  // namespace
}  // namespace weightcast

extern "C" int32_t weightcast_transpose(const void* src, int64_t src_stride, int64_t rows, int64_t columns,
                                        int32_t item_bytes, void* dst, int64_t dst_stride) {
  using weightcast::transpose;
  if (item_bytes != 1 && item_bytes != 2 && item_bytes != 4) return WEIGHTCAST_BAD_TYPE;
  if (rows < 0 || columns < 0) return WEIGHTCAST_BAD_SHAPE;
  if (rows == 0 || columns == 0) return WEIGHTCAST_OK;
  if (columns > 1 && dst_stride < rows) return WEIGHTCAST_BAD_SHAPE;
  if (src == nullptr || dst == nullptr) return WEIGHTCAST_NULL_ARGUMENT;
  switch (item_bytes) {
    case 1:
      transpose(static_cast<const uint8_t*>(src), src_stride, rows, columns, static_cast<uint8_t*>(dst),
                dst_stride);
      break;
    case 2:
      transpose(static_cast<const uint16_t*>(src), src_stride, rows, columns, static_cast<uint16_t*>(dst),
                dst_stride);
      break;
    default:
      transpose(static_cast<const uint32_t*>(src), src_stride, rows, columns, static_cast<uint32_t*>(dst),
                dst_stride);
  }
  return WEIGHTCAST_OK;
}
