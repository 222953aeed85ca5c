// What the two objects of an instruction set share: the tables of grids, and who needs an importance.
#pragma once

#include <cstdint>
#include <type_traits>

namespace weightcast {
namespace {

// Finds the tables of a type with a grid; other types have none.
template <class Type, class = void>
struct Tables {
  static const void* of(int64_t& nbytes) {
    nbytes = 0;
    return nullptr;
  }
};
template <class Type>
struct Tables<Type, std::void_t<typename Type::Grid>> {
  static const void* of(int64_t& nbytes) {
    nbytes = sizeof(typename Type::Grid);
    return &Type::tables();
  }
};

enum class Need { IGNORED, OPTIONAL, REQUIRED };

}  // namespace
}  // namespace weightcast
