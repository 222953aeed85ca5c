// Small kernels for the tests of the driver layer. NVRTC compiles them for devices; toys.cpp turns
// the same text into functions for the stand-in.
#ifndef KERNEL
#define KERNEL extern "C" __global__ void
#define BOUND(threads) __launch_bounds__(threads)
#endif

KERNEL toy_scale(float* values, int count, float factor, long long offset, unsigned char step) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) values[offset + i * step] *= factor;
}

// One value for each place of the grid: y and z too.
KERNEL toy_place(unsigned* places) {
  const unsigned row = blockIdx.z * gridDim.y + blockIdx.y;
  const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
  places[row * gridDim.x * blockDim.x + column] = row * 1000 + column;
}

KERNEL toy_write(unsigned char* bytes, unsigned long long at) { bytes[at] = 7; }

KERNEL BOUND(128) toy_bounded(float* values) { values[threadIdx.x] = 1; }
