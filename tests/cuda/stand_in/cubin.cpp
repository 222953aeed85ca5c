// Reads what a launch needs from a cubin, which is an ELF file with NVIDIA's own sections.
#include <elf.h>

#include <algorithm>
#include <cstring>

#include "stand_in.h"

namespace stand_in {
namespace {

constexpr uint8_t kNewAbi = 0x41;            // EI_OSABI; moves the architecture in e_flags
constexpr uint32_t kReservedShared = 1024;  // the system's share, from sm_90 on

// Attributes of the .nv.info sections: format, kind, then either a value or a size and bytes.
constexpr uint8_t kFormatBytes = 4;
constexpr uint8_t kMaxThreads = 0x05;
constexpr uint8_t kParameter = 0x17;
constexpr uint8_t kRegisters = 0x2f;

template <class T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Visit>
void each_attribute(const uint8_t* bytes, size_t size, Visit visit) {
  for (size_t at = 0; at + 4 <= size;) {
    const uint8_t format = bytes[at], kind = bytes[at + 1];
    const uint16_t length = load<uint16_t>(bytes + at + 2);
    at += 4;
    if (format != kFormatBytes) continue;
    if (at + length > size) return;
    visit(kind, bytes + at, length);
    at += length;
  }
}

void read_kernel_attribute(KernelInfo& info, uint8_t kind, const uint8_t* bytes, size_t length) {
  if (kind == kParameter && length >= 12) {
    const size_t ordinal = load<uint16_t>(bytes + 4);
    const uint32_t size = load<uint32_t>(bytes + 8) >> 18;
    if (info.param_bytes.size() <= ordinal) info.param_bytes.resize(ordinal + 1);
    info.param_bytes[ordinal] = size;
  } else if (kind == kMaxThreads && length >= 12) {
    info.max_threads =
        load<uint32_t>(bytes) * load<uint32_t>(bytes + 4) * load<uint32_t>(bytes + 8);
  }
}

}  // namespace

bool read_cubin(const void* image, Cubin& cubin) {
  const auto* base = static_cast<const uint8_t*>(image);
  if (std::memcmp(base, ELFMAG, SELFMAG) != 0) return false;
  const auto header = load<Elf64_Ehdr>(base);
  if (header.e_machine != EM_CUDA || header.e_shentsize != sizeof(Elf64_Shdr)) return false;
  cubin.architecture = header.e_ident[EI_OSABI] == kNewAbi ? (header.e_flags >> 8) & 0xffff
                                                           : header.e_flags & 0xff;
  std::vector<Elf64_Shdr> sections(header.e_shnum);
  std::memcpy(sections.data(), base + header.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  const char* names =
      reinterpret_cast<const char*>(base + sections[header.e_shstrndx].sh_offset);

  const auto kernel_of = [&](const std::string& section, const char* prefix) -> std::string {
    const size_t length = std::strlen(prefix);
    return section.compare(0, length, prefix) == 0 ? section.substr(length) : "";
  };
  for (const auto& section : sections) {
    const std::string name = kernel_of(names + section.sh_name, ".text.");
    if (!name.empty()) cubin.kernels[name];
  }
  for (const auto& section : sections) {
    const std::string full = names + section.sh_name;
    const uint8_t* bytes = base + section.sh_offset;
    auto found = cubin.kernels.find(kernel_of(full, ".nv.info."));
    if (found != cubin.kernels.end()) {
      each_attribute(bytes, section.sh_size, [&](uint8_t kind, const uint8_t* value, size_t n) {
        read_kernel_attribute(found->second, kind, value, n);
      });
    }
    found = cubin.kernels.find(kernel_of(full, ".nv.shared."));
    if (found != cubin.kernels.end()) {
      const uint32_t own = cubin.architecture >= 90 ? kReservedShared : 0;
      const uint32_t size = static_cast<uint32_t>(section.sh_size);
      found->second.static_shared_bytes = size - std::min(size, own);
    }
  }
  // Registers stand in the section of the whole file, by index in the symbol table.
  for (const auto& section : sections) {
    if (std::string(names + section.sh_name) != ".nv.info") continue;
    const auto& symbols = sections[section.sh_link];
    const uint8_t* strings = base + sections[symbols.sh_link].sh_offset;
    each_attribute(base + section.sh_offset, section.sh_size,
                   [&](uint8_t kind, const uint8_t* value, size_t n) {
                     if (kind != kRegisters || n < 8) return;
                     const auto symbol = load<Elf64_Sym>(
                         base + symbols.sh_offset + load<uint32_t>(value) * sizeof(Elf64_Sym));
                     const auto* name = reinterpret_cast<const char*>(strings + symbol.st_name);
                     auto found = cubin.kernels.find(name);
                     if (found != cubin.kernels.end())
                       found->second.registers = load<uint32_t>(value + 4);
                   });
  }
  return true;
}

}  // namespace stand_in
