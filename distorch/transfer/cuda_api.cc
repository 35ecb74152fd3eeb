// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/cuda_api.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "distorch/device/mutex.h"
#include "distorch/device/shared_library.h"
#include "distorch/transfer/host_waits.h"

namespace distorch {
namespace {

// The names that each system gives the libraries. macOS has neither CUDA nor
// HIP.
using Names = std::vector<std::string>;
#ifdef _WIN32
const Names& CudaDriver() {
  static const Names names = {"nvcuda.dll"};
  return names;
}
const Names& CudaRuntime() {
  static const Names names = {"cudart64_13.dll", "cudart64_12.dll"};
  return names;
}
const Names& Hip() {
  static const Names names = {"amdhip64_7.dll", "amdhip64_6.dll",
                              "amdhip64.dll"};
  return names;
}
#else
const Names& CudaDriver() {
  static const Names names = {"libcuda.so.1"};
  return names;
}
const Names& CudaRuntime() {
  static const Names names = {"libcudart.so.13", "libcudart.so.12",
                              "libcudart.so"};
  return names;
}
const Names& Hip() {
  static const Names names = {"libamdhip64.so.7", "libamdhip64.so.6",
                              "libamdhip64.so"};
  return names;
}
#endif

// What to look for: `path` where one is given.
Names Or(const std::string& path, const Names& usual) {
  return path.empty() ? usual : Names{path};
}

absl::Status NotFound(const Names& names, std::string_view remedy) {
  return absl::UnavailableError(absl::StrCat(
      absl::StrJoin(names, ", "), " was not found: ", std::string(remedy)));
}

// The name of a function of CUDA's in HIP's library.
std::string HipName(std::string_view cuda) {
  if (cuda == "cudaHostAlloc") return "hipHostMalloc";
  if (cuda == "cudaFreeHost") return "hipHostFree";
  cuda.remove_prefix(cuda.starts_with("cuda") ? 4 : 2);
  if (cuda.ends_with("_v2")) cuda.remove_suffix(3);
  return "hip" + std::string(cuda);
}

// Binds functions of one library; notes those that it lacks.
class Binder {
 public:
  Binder(SharedLibrary library, bool hip, std::vector<std::string>* missing)
      : library_(std::move(library)), hip_(hip), missing_(missing) {}

  template <typename Function>
  void operator()(const char* name, Function& out) const {
    const std::string symbol = hip_ ? HipName(name) : name;
    library_.Bind(symbol.c_str(), out, missing_);
  }

 private:
  SharedLibrary library_;
  bool hip_;
  std::vector<std::string>* missing_;
};

void BindRuntime(const Binder& bind, CudaFunctions& f, Queries& queries) {
  bind("cudaGetDeviceCount", f.device_count);
  bind("cudaDeviceCanAccessPeer", f.can_access_peer);
  bind("cudaDeviceEnablePeerAccess", f.enable_peer);
  bind("cudaMalloc", f.malloc);
  bind("cudaFree", f.free);
  bind("cudaMemGetInfo", f.memory_info);
  bind("cudaHostAlloc", f.host_alloc);
  bind("cudaFreeHost", f.host_free);
  bind("cudaHostRegister", f.host_register);
  bind("cudaHostUnregister", f.host_unregister);
  bind("cudaMemcpyAsync", f.copy);
  bind("cudaMemcpyPeerAsync", f.copy_peer);
  bind("cudaDeviceSynchronize", f.device_synchronize);
  bind("cudaStreamCreateWithFlags", f.stream_create);
  bind("cudaStreamDestroy", f.stream_destroy);
  bind("cudaStreamQuery", queries.stream);
  bind("cudaStreamWaitEvent", f.stream_wait);
  bind("cudaEventCreateWithFlags", f.event_create);
  bind("cudaEventDestroy", f.event_destroy);
  bind("cudaEventRecord", f.event_record);
  bind("cudaEventQuery", queries.event);
  bind("cudaEventElapsedTime", f.event_elapsed);
  bind("cudaPointerGetAttributes", f.pointer_attributes);
  bind("cudaGetLastError", f.take_last_error);
  bind("cudaGetErrorName", f.error_name);
  bind("cudaGetErrorString", f.error_text);
}

void BindDriver(const Binder& bind, CudaFunctions& f) {
  bind("cuInit", f.init);
  bind("cuDeviceGet", f.driver_device);
  bind("cuDevicePrimaryCtxRetain", f.context_retain);
  bind("cuCtxPushCurrent_v2", f.context_push);
  bind("cuCtxPopCurrent_v2", f.context_pop);
}

// Retains each device's primary context once, for the life of the process.
void RetainOnce(CudaFunctions& f) {
  struct Retained {
    Mutex mutex;
    std::map<int, CudaFunctions::Context> contexts ABSL_GUARDED_BY(mutex);
  };
  f.context_retain = [retain = f.context_retain,
                      kept = std::make_shared<Retained>()](
                         CudaFunctions::Context* context, int device) {
    const MutexLock lock(kept->mutex);
    CudaFunctions::Context& known = kept->contexts[device];
    const int code = known == nullptr ? retain(&known, device) : 0;
    *context = known;
    return code;
  };
}

absl::StatusOr<CudaFunctions> Bound(const SharedLibrary& runtime,
                                    const SharedLibrary& driver, bool hip,
                                    double patience) {
  CudaFunctions functions;
  functions.patience = patience;
  Queries queries;
  std::vector<std::string> missing;
  BindRuntime(Binder(runtime, hip, &missing), functions, queries);
  BindDriver(Binder(driver, hip, &missing), functions);
  if (!missing.empty()) {
    return absl::UnavailableError(absl::StrCat(
        hip ? "HIP" : "CUDA", " lacks ", absl::StrJoin(missing, ", "),
        hip ? ": update ROCm to version 6 or later"
            : ": update the driver and CUDA to version 12 or later"));
  }
  if (const int code = functions.init(0); code != 0) {
    return absl::UnavailableError(
        absl::StrCat(hip ? "hipInit failed with HIP error "
                         : "cuInit failed with CUDA error ",
                     code, ": run ", hip ? "rocm-smi" : "nvidia-smi",
                     " to see whether the driver works at all"));
  }
  RetainOnce(functions);
  BoundWaits(functions, std::move(queries));
  return functions;
}

}  // namespace

absl::StatusOr<CudaFunctions> LoadCuda(const std::string& runtime_path,
                                       const std::string& driver_path,
                                       double patience) {
  const Names driver_names = Or(driver_path, CudaDriver());
  const SharedLibrary driver = SharedLibrary::Open(driver_names);
  if (!driver.ok()) {
    return NotFound(driver_names, "no NVIDIA driver on this machine");
  }
  const Names runtime_names = Or(runtime_path, CudaRuntime());
  const SharedLibrary runtime = SharedLibrary::Open(runtime_names);
  if (!runtime.ok()) {
    return NotFound(runtime_names,
                    "import a torch that is built for CUDA first, or put "
                    "CUDA's libraries where the system looks for them");
  }
  return Bound(runtime, driver, /*hip=*/false, patience);
}

absl::StatusOr<CudaFunctions> LoadHip(const std::string& path,
                                      double patience) {
  const Names names = Or(path, Hip());
  const SharedLibrary library = SharedLibrary::Open(names);
  if (!library.ok()) {
    return NotFound(names,
                    "import a torch that is built for ROCm first, or put "
                    "ROCm's libraries where the system looks for them");
  }
  return Bound(library, library, /*hip=*/true, patience);
}

absl::StatusOr<CudaFunctions::Context> ContextOf(const CudaFunctions& cuda,
                                                 int device) {
  int handle = 0;
  CudaFunctions::Context context = nullptr;
  int code = cuda.driver_device(&handle, device);
  if (code == 0) code = cuda.context_retain(&context, handle);
  if (code == 0) return context;
  return absl::InternalError(absl::StrCat(
      PlaceName(device), " cannot be used: the driver answers error ", code,
      ". Compare the device's number with `distorch devices`."));
}

DeviceGuard::DeviceGuard(const CudaFunctions& cuda, int device) : cuda_(cuda) {
  if (device < 0) return;
  const absl::StatusOr<CudaFunctions::Context> context =
      ContextOf(cuda, device);
  if (!context.ok()) {
    status_ = context.status();
    return;
  }
  Push(*context);
}

DeviceGuard::DeviceGuard(const CudaFunctions& cuda,
                         CudaFunctions::Context context)
    : cuda_(cuda) {
  Push(context);
}

void DeviceGuard::Push(CudaFunctions::Context context) {
  const int code = cuda_.context_push(context);
  pushed_ = code == 0;
  if (pushed_) return;
  status_ = absl::InternalError(
      absl::StrCat("a device cannot be made current: the driver answers error ",
                   code, ". The device is lost to this process: restart it."));
}

DeviceGuard::~DeviceGuard() {
  if (!pushed_) return;
  CudaFunctions::Context popped = nullptr;
  cuda_.context_pop(&popped);
}

}  // namespace distorch
