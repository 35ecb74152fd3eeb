// SPDX-License-Identifier: Apache-2.0
// Names and addresses that come from Python.
#ifndef DISTORCH_BINDINGS_NAMES_H_
#define DISTORCH_BINDINGS_NAMES_H_

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "allocation/device_id.h"

namespace distorch::bindings {

// The device of that name; std::invalid_argument (ValueError) for what is none.
inline DeviceId DeviceFrom(const std::string& text) {
  if (std::optional<DeviceId> device = DeviceId::FromString(text)) {
    return *std::move(device);
  }
  throw std::invalid_argument("not the name of a device: '" + text +
                              "'; expected one as cuda:0 or cpu");
}

// The address of memory that the caller keeps alive.
inline void* Pointer(std::uintptr_t address) {
  return reinterpret_cast<void*>(address);
}

}  // namespace distorch::bindings

#endif  // DISTORCH_BINDINGS_NAMES_H_
