// SPDX-License-Identifier: Apache-2.0
// The memory that CUDA knows: of devices, pinned, and registered host memory.
// A device's memory is host memory here. What was given back stays known, and
// readable, so that its use is told and not a crash of the test.
//
// Not safe from several threads.
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_MEMORY_RANGES_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_MEMORY_RANGES_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

namespace distorch {

enum class MemoryKind {
  kDevice,      // cudaMalloc
  kPool,        // a device's, mapped by itself: cudaMallocAsync, expandable
                // segments; peers are opened for each pool
  kPinned,      // cudaHostAlloc
  kRegistered,  // cudaHostRegister: the caller's own memory
};

struct MemoryRange {
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
  MemoryKind kind = MemoryKind::kDevice;
  int device = -1;  // -1: the host's
  std::unique_ptr<std::byte[]> owned;

  std::byte* end() const { return begin + bytes; }
};

class MemoryRanges {
 public:
  // What memory holds that nobody has written, and what was given back.
  static constexpr std::byte kUnwritten{0xa5};
  static constexpr std::byte kFreed{0xdf};

  // New memory, poisoned.
  void* Add(MemoryKind kind, int device, std::size_t bytes);
  // The caller's memory, as such; false where it overlaps what is known.
  bool Adopt(MemoryKind kind, int device, void* data, std::size_t bytes);
  // Forgets adopted memory of devices that has one of these bytes.
  void Disown(const void* data, std::size_t bytes);
  // Gives back the memory that begins at `data`; its own is poisoned. False
  // where none begins there.
  bool Remove(void* data);

  // The range that holds `data`, or null.
  const MemoryRange* Find(const void* data) const;
  // The range that begins at `data`, or null.
  const MemoryRange* At(const void* data) const;
  // Whether a range holds one of these bytes.
  bool Overlaps(const void* data, std::size_t bytes) const;
  // Whether `data` lies in memory that was given back, and is nobody's now.
  bool WasFreed(const void* data) const;

  std::size_t size() const { return live_.size(); }
  std::size_t Count(MemoryKind kind) const;

 private:
  std::map<std::uintptr_t, MemoryRange> live_;
  std::map<std::uintptr_t, MemoryRange> freed_;  // own memory only
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_MEMORY_RANGES_H_
