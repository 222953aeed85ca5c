// Memory for what a call works in, which is too large for the stack of a small thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>

#include "weightcast.h"

namespace weightcast {
namespace {

// Holds a T on the heap, aligned to cache lines, for as long as it lives. False if there is no memory.
//
// Each call holds one, and all are allocated with the same size, whatever the T needs: that keeps them below
// the sizes at which glibc gives memory back to the system, to fault in again in the next call.
template <class T>
class OnHeap {
 public:
  // Without arguments the T is as uninitialized as a local variable would be.
  template <class... Arguments>
  explicit OnHeap(const Arguments&... arguments) : memory_(std::malloc(WEIGHTCAST_HEAP_BYTES)) {
    static_assert(alignof(T) <= kAlignment && std::is_trivially_destructible<T>::value, "is freed as it is");
    static_assert(sizeof(T) + kAlignment <= WEIGHTCAST_HEAP_BYTES, "weightcast.h states too little");
    if (memory_ == nullptr) return;
    void* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_) + kAlignment) &
                                            ~static_cast<uintptr_t>(kAlignment - 1));
    if constexpr (sizeof...(Arguments) == 0) {
      object_ = new (aligned) T;
    } else {
      object_ = new (aligned) T(arguments...);
    }
  }
  OnHeap(const OnHeap&) = delete;
  OnHeap& operator=(const OnHeap&) = delete;
  ~OnHeap() { std::free(memory_); }

  explicit operator bool() const { return object_ != nullptr; }
  T& operator*() const { return *object_; }
  T* operator->() const { return object_; }

 private:
  static constexpr std::size_t kAlignment = 64;
  void* memory_;
  T* object_ = nullptr;
};

}  // namespace
}  // namespace weightcast
