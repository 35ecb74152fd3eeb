// SPDX-License-Identifier: Apache-2.0
// Simulated memory as tensors of bytes, by DLPack: it needs no C++ interface of
// torch (Windows' is MSVC's).
#ifndef DISTORCH_TESTS_SUPPORT_SIM_FLAT_MEMORY_H_
#define DISTORCH_TESTS_SUPPORT_SIM_FLAT_MEMORY_H_

#include <pybind11/pybind11.h>

#include <cstdint>

namespace distorch_sim {

// For torch.from_dlpack: `bytes` of new memory on `device`, freed with the last
// tensor over it. Throws OutOfMemory as Allocate does.
pybind11::capsule NewMemory(int device, std::int64_t bytes);

// For torch.from_dlpack: the `bytes` from address `data` on as memory of the
// host, which keep `owner`.
pybind11::capsule OnHost(std::uintptr_t data, std::int64_t bytes,
                         pybind11::object owner);

}  // namespace distorch_sim

#endif  // DISTORCH_TESTS_SUPPORT_SIM_FLAT_MEMORY_H_
