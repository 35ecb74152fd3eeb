// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/cuda_api.h"

#include <dlfcn.h>

#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "distorch/device/symbols.h"

namespace distorch {
namespace {

constexpr int kOutOfMemory = 2;

void* OpenFirst(const std::string& path,
                std::initializer_list<const char*> usual) {
  if (!path.empty()) return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  // What is loaded already comes first: torch's, in a process with torch.
  for (const int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL}) {
    for (const char* name : usual) {
      if (void* library = dlopen(name, flags)) return library;
    }
  }
  return nullptr;
}

void BindRuntime(void* library, CudaFunctions& f,
                 std::vector<std::string>* missing) {
  BindSymbol(library, "cudaGetDeviceCount", f.device_count, missing);
  BindSymbol(library, "cudaDeviceCanAccessPeer", f.can_access_peer, missing);
  BindSymbol(library, "cudaDeviceEnablePeerAccess", f.enable_peer, missing);
  BindSymbol(library, "cudaMalloc", f.malloc, missing);
  BindSymbol(library, "cudaFree", f.free, missing);
  BindSymbol(library, "cudaHostAlloc", f.host_alloc, missing);
  BindSymbol(library, "cudaFreeHost", f.host_free, missing);
  BindSymbol(library, "cudaHostRegister", f.host_register, missing);
  BindSymbol(library, "cudaHostUnregister", f.host_unregister, missing);
  BindSymbol(library, "cudaMemcpyAsync", f.copy, missing);
  BindSymbol(library, "cudaMemcpyPeerAsync", f.copy_peer, missing);
  BindSymbol(library, "cudaStreamCreateWithFlags", f.stream_create, missing);
  BindSymbol(library, "cudaStreamDestroy", f.stream_destroy, missing);
  BindSymbol(library, "cudaStreamSynchronize", f.stream_synchronize, missing);
  BindSymbol(library, "cudaStreamWaitEvent", f.stream_wait, missing);
  BindSymbol(library, "cudaEventCreateWithFlags", f.event_create, missing);
  BindSymbol(library, "cudaEventDestroy", f.event_destroy, missing);
  BindSymbol(library, "cudaEventRecord", f.event_record, missing);
  BindSymbol(library, "cudaEventSynchronize", f.event_synchronize, missing);
  BindSymbol(library, "cudaEventElapsedTime", f.event_elapsed, missing);
  BindSymbol(library, "cudaPointerGetAttributes", f.pointer_attributes,
             missing);
  BindSymbol(library, "cudaGetLastError", f.take_last_error, missing);
  BindSymbol(library, "cudaGetErrorName", f.error_name, missing);
  BindSymbol(library, "cudaGetErrorString", f.error_text, missing);
}

void BindDriver(void* library, CudaFunctions& f,
                std::vector<std::string>* missing) {
  BindSymbol(library, "cuInit", f.init, missing);
  BindSymbol(library, "cuDeviceGet", f.driver_device, missing);
  BindSymbol(library, "cuDevicePrimaryCtxRetain", f.context_retain, missing);
  BindSymbol(library, "cuCtxPushCurrent_v2", f.context_push, missing);
  BindSymbol(library, "cuCtxPopCurrent_v2", f.context_pop, missing);
}

// One remedy for each kind of failure.
const char* Remedy(std::string_view name, int code) {
  if (code == kOutOfMemory) {
    return "Free memory there: unload a model, or give the device a smaller "
           "share";
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

// Retains each device's primary context once, for the life of the process.
void RetainOnce(CudaFunctions& f) {
  struct Retained {
    std::mutex mutex;  // guards contexts
    std::map<int, CudaFunctions::Context> contexts;
  };
  f.context_retain = [retain = f.context_retain,
                      kept = std::make_shared<Retained>()](
                         CudaFunctions::Context* context, int device) {
    const std::lock_guard<std::mutex> lock(kept->mutex);
    CudaFunctions::Context& known = kept->contexts[device];
    const int code = known == nullptr ? retain(&known, device) : 0;
    *context = known;
    return code;
  };
}

}  // namespace

absl::StatusOr<CudaFunctions> LoadCuda(const std::string& runtime_path,
                                       const std::string& driver_path) {
  void* driver = OpenFirst(driver_path, {"libcuda.so.1"});
  if (driver == nullptr) {
    return absl::UnavailableError(
        "libcuda.so.1 was not found: no NVIDIA driver on this machine");
  }
  void* runtime = OpenFirst(
      runtime_path, {"libcudart.so.13", "libcudart.so.12", "libcudart.so"});
  if (runtime == nullptr) {
    return absl::UnavailableError(
        "libcudart was not found: import a torch that is built for CUDA first, "
        "or put CUDA's lib64 on LD_LIBRARY_PATH");
  }
  CudaFunctions functions;
  std::vector<std::string> missing;
  BindRuntime(runtime, functions, &missing);
  BindDriver(driver, functions, &missing);
  if (!missing.empty()) {
    return absl::UnavailableError(
        absl::StrCat("CUDA lacks ", absl::StrJoin(missing, ", "),
                     ": update the driver and CUDA to version 12 or later"));
  }
  if (const int code = functions.init(0); code != 0) {
    return absl::UnavailableError(absl::StrCat(
        "cuInit failed with CUDA error ", code,
        ": run nvidia-smi to see whether the driver works at all"));
  }
  RetainOnce(functions);
  return functions;
}

std::string PlaceName(int device) {
  return device < 0 ? "cpu" : absl::StrCat("cuda:", device);
}

absl::Status CudaFailure(const CudaFunctions& cuda, std::string_view call,
                         std::string_view where, std::int64_t bytes, int code) {
  cuda.take_last_error();
  const char* name = cuda.error_name(code);
  const char* text = cuda.error_text(code);
  const std::string_view known = name == nullptr ? "" : name;
  std::string message(call);
  if (bytes > 0) absl::StrAppend(&message, " of ", bytes, " bytes");
  absl::StrAppend(
      &message, " ", std::string(where), " failed: ",
      known.empty() ? absl::StrCat("CUDA error ", code) : std::string(known),
      " (", text == nullptr ? "" : text, "). ", Remedy(known, code), ".");
  return code == kOutOfMemory ? absl::ResourceExhaustedError(message)
                              : absl::InternalError(message);
}

DeviceGuard::DeviceGuard(const CudaFunctions& cuda, int device) : cuda_(cuda) {
  if (device < 0) return;
  int handle = 0;
  CudaFunctions::Context context = nullptr;
  int code = cuda.driver_device(&handle, device);
  if (code == 0) code = cuda.context_retain(&context, handle);
  if (code == 0) code = cuda.context_push(context);
  if (code != 0) {
    status_ = absl::InternalError(absl::StrCat(
        PlaceName(device), " cannot be used: the driver answers error ", code,
        ". Compare the device's number with `distorch devices`."));
    return;
  }
  pushed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (!pushed_) return;
  CudaFunctions::Context popped = nullptr;
  cuda_.context_pop(&popped);
}

}  // namespace distorch
