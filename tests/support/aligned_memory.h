// SPDX-License-Identifier: Apache-2.0
// Memory that begins at a multiple of something, on every system: MinGW has no
// std::aligned_alloc.
#ifndef DISTORCH_TESTS_SUPPORT_ALIGNED_MEMORY_H_
#define DISTORCH_TESTS_SUPPORT_ALIGNED_MEMORY_H_

#include <cstddef>
#include <memory>
#include <new>

namespace distorch {

inline std::shared_ptr<void> AlignedMemory(std::size_t alignment,
                                           std::size_t bytes) {
  const std::align_val_t aligned{alignment};
  return {::operator new(bytes, aligned),
          [aligned](void* memory) { ::operator delete(memory, aligned); }};
}

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_ALIGNED_MEMORY_H_
