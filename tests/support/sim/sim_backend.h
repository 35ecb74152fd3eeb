// SPDX-License-Identifier: Apache-2.0
// The parts of the backend that need each other.
#ifndef DISTORCH_TESTS_SUPPORT_SIM_SIM_BACKEND_H_
#define DISTORCH_TESTS_SUPPORT_SIM_SIM_BACKEND_H_

#include <c10/core/Allocator.h>

namespace distorch_sim {

// Allocates on the current device of the calling thread.
c10::Allocator* TheAllocator();

// Gives torch the hooks and the allocator. Idempotent.
void RegisterDevice();

}  // namespace distorch_sim

#endif  // DISTORCH_TESTS_SUPPORT_SIM_SIM_BACKEND_H_
