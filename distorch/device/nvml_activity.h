// SPDX-License-Identifier: Apache-2.0
// The entry points of NVML by which Nvml::ActivityOf asks.
#ifndef DISTORCH_DEVICE_NVML_ACTIVITY_H_
#define DISTORCH_DEVICE_NVML_ACTIVITY_H_

#include "distorch/device/nvml.h"
#include "distorch/device/shared_library.h"

namespace distorch {

inline constexpr int kNvmlSuccess = 0;  // NVML_SUCCESS

// Looks them up in NVML's library; what it lacks stays null.
void BindActivity(const SharedLibrary& library, NvmlFunctions* functions);

}  // namespace distorch

#endif  // DISTORCH_DEVICE_NVML_ACTIVITY_H_
