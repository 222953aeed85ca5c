// The host forms of toys.cu for the stand-in: threads one after the other.
#include <cstddef>
#include <cstdint>
#include <utility>

namespace {

struct Place {
  uint32_t x, y, z;
};
Place blockIdx, threadIdx, blockDim, gridDim;

namespace bodies {
#define KERNEL [[maybe_unused]] static void
#define BOUND(threads)
#include "toys.cu"
}  // namespace bodies

template <class Visit>
void each(const Place& size, Place& at, Visit visit) {
  for (at.z = 0; at.z < size.z; ++at.z)
    for (at.y = 0; at.y < size.y; ++at.y)
      for (at.x = 0; at.x < size.x; ++at.x) visit();
}

template <class... Params, size_t... I>
void run(void (*body)(Params...), const uint32_t* grid, const uint32_t* block, void** params,
         std::index_sequence<I...>) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  each(gridDim, blockIdx,
       [&] { each(blockDim, threadIdx, [&] { body(*static_cast<Params*>(params[I])...); }); });
}

template <class... Params>
void run(void (*body)(Params...), const uint32_t* grid, const uint32_t* block, void** params) {
  run(body, grid, block, params, std::index_sequence_for<Params...>{});
}

}  // namespace

#define HOST_FORM(name)                                                                       \
  extern "C" void name(const uint32_t grid[3], const uint32_t block[3], uint32_t, void** params) { \
    run(bodies::name, grid, block, params);                                                   \
  }

HOST_FORM(toy_scale)
HOST_FORM(toy_place)
HOST_FORM(toy_write)
HOST_FORM(toy_bounded)
