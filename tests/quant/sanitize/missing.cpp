// Stands for the kernels of an instruction set that a program is built without.
#include "abi/cpu.h"

namespace weightcast {
extern const Kernels MISSING;
const Kernels MISSING = {};
}  // namespace weightcast
