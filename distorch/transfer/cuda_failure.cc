// SPDX-License-Identifier: Apache-2.0
// What CUDA's errors say to whoever reads them.
#include <string>

#include "absl/strings/str_cat.h"
#include "distorch/device/host_memory.h"
#include "distorch/transfer/cuda_api.h"

namespace distorch {
namespace {

constexpr int kOutOfMemory = 2;

// One remedy for each kind of failure.
const char* Remedy(std::string_view name, int code) {
  if (code == kOutOfMemory) {
    return "Free memory there: unload a model, or give the device a smaller "
           "share";
  }
  if (code == CudaFunctions::kNotReady) {
    return "The device does not answer any more: restart this process, and "
           "look into the system's log (dmesg) for the driver's reason. What "
           "the device may still write is kept until then";
  }
  for (const char* lost :
       {"cudaErrorIllegalAddress", "cudaErrorLaunchFailure",
        "cudaErrorDevicesUnavailable", "cudaErrorECCUncorrectable",
        "cudaErrorHardwareStackError", "cudaErrorMisalignedAddress"}) {
    if (name == lost) {
      return "The device is lost to this process: restart it, and look into "
             "the system's log (dmesg) for the driver's reason";
    }
  }
  return "Run with CUDA_LAUNCH_BLOCKING=1: an earlier call on this device may "
         "be the one that failed";
}

// What is free on a device or the host, -1 where nobody tells.
std::int64_t FreeBytes(const CudaFunctions& cuda, int device) {
  if (device < 0) {
    const HostMemory host = ReadHostMemory();
    return host.total > 0 ? host.available : -1;
  }
  const DeviceGuard guard(cuda, device);
  std::size_t free = 0;
  std::size_t total = 0;
  if (guard.status().ok() && cuda.memory_info(&free, &total) == 0) {
    return static_cast<std::int64_t>(free);
  }
  cuda.take_last_error();
  return -1;
}

}  // namespace

std::string PlaceName(int device) {
  return device < 0 ? "cpu" : absl::StrCat("cuda:", device);
}

absl::Status CudaFailure(const CudaFunctions& cuda, std::string_view call,
                         int device, std::int64_t bytes, int code) {
  return CudaFailure(cuda, call, absl::StrCat("on ", PlaceName(device)), device,
                     bytes, code);
}

absl::Status CudaFailure(const CudaFunctions& cuda, std::string_view call,
                         std::string_view where, int device, std::int64_t bytes,
                         int code) {
  cuda.take_last_error();
  const char* name = cuda.error_name(code);
  const char* text = cuda.error_text(code);
  const std::string_view known = name == nullptr ? "" : name;
  std::string message(call);
  if (bytes > 0) absl::StrAppend(&message, " of ", bytes, " bytes");
  absl::StrAppend(&message, " ", std::string(where));
  if (code == CudaFunctions::kNotReady) {
    absl::StrAppend(&message, " did not end in ", cuda.patience, " s");
  } else {
    absl::StrAppend(
        &message, " failed: ",
        known.empty() ? absl::StrCat("CUDA error ", code) : std::string(known),
        " (", text == nullptr ? "" : text, ")");
  }
  if (code == kOutOfMemory) {
    if (const std::int64_t free = FreeBytes(cuda, device); free >= 0) {
      absl::StrAppend(&message, ", ", free, " bytes are free there");
    }
  }
  absl::StrAppend(&message, ". ", Remedy(known, code), ".");
  if (code == kOutOfMemory) return absl::ResourceExhaustedError(message);
  if (code == CudaFunctions::kNotReady) {
    return absl::DeadlineExceededError(message);
  }
  return absl::InternalError(message);
}

}  // namespace distorch
