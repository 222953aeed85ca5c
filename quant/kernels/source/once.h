// A computation that the first call makes while others wait. Local statics do the same, but with functions
// of the C++ library, which weightcast does without: it is linked into C, Rust and Go as it is.
#pragma once

#include <sched.h>

#include <atomic>

namespace weightcast {
namespace {

class Once {
 public:
  template <class Make>
  void run(Make make) {
    if (state_.load(std::memory_order_acquire) == kMade) return;
    int expected = kNew;
    if (state_.compare_exchange_strong(expected, kMaking, std::memory_order_acquire)) {
      make();
      state_.store(kMade, std::memory_order_release);
      return;
    }
    while (state_.load(std::memory_order_acquire) != kMade) sched_yield();
  }

 private:
  enum { kNew, kMaking, kMade };
  std::atomic<int> state_{kNew};
};

}  // namespace
}  // namespace weightcast
