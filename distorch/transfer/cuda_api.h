// SPDX-License-Identifier: Apache-2.0
// CUDA's entry points for copies, streams and events, looked up at run time, so
// that one build also serves a machine without CUDA. Tests give their own.
//
// The runtime (libcudart) of the process is used: the one that torch has loaded
// where torch is there. The driver (libcuda) is asked for contexts only, so
// that a device can be made current for one call and the caller's state comes
// back exactly, without making a context on a device nobody has used.
//
// No wait of the host lasts for ever: see host_waits.h.
#ifndef DISTORCH_TRANSFER_CUDA_API_H_
#define DISTORCH_TRANSFER_CUDA_API_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distorch {

// As in NVIDIA's "CUDA Runtime API" and "CUDA Driver API"; each returns 0 or
// CUDA's error number.
struct CudaFunctions {
  using Stream = void*;
  using Event = void*;
  using Context = void*;
  struct PointerAttributes {
    int type = 0;  // kUnregistered, kPinned, kDevice, kManaged
    int device = 0;
    void* device_pointer = nullptr;
    void* host_pointer = nullptr;
    std::int64_t reserved[8] = {};  // what later versions add
  };
  static constexpr int kUnregistered = 0;
  static constexpr int kPinned = 1;
  static constexpr int kDevice = 2;
  static constexpr int kManaged = 3;
  static constexpr int kMemcpyDefault = 4;
  // What a wait answers that has lasted `patience` seconds, and never else.
  static constexpr int kNotReady = 600;
  static constexpr unsigned kPortable = 1;       // pinned for every device
  static constexpr unsigned kNonBlocking = 1;    // of a stream
  static constexpr unsigned kDisableTiming = 2;  // of an event

  std::function<int(int*)> device_count;
  std::function<int(int*, int, int)> can_access_peer;  // device, peer
  std::function<int(int, unsigned)> enable_peer;       // of the current device
  std::function<int(void**, std::size_t)> malloc;      // on the current device
  std::function<int(void*)> free;                      // likewise
  // Bytes free, and in all, on the current device.
  std::function<int(std::size_t*, std::size_t*)> memory_info;
  std::function<int(void**, std::size_t, unsigned)> host_alloc;
  std::function<int(void*)> host_free;
  std::function<int(void*, std::size_t, unsigned)> host_register;
  std::function<int(void*)> host_unregister;
  std::function<int(void*, const void*, std::size_t, int, Stream)> copy;
  std::function<int(void*, int, const void*, int, std::size_t, Stream)>
      copy_peer;
  std::function<int()> device_synchronize;  // of the current device
  std::function<int(Stream*, unsigned)> stream_create;
  std::function<int(Stream)> stream_destroy;
  std::function<int(Stream)> stream_synchronize;
  std::function<int(Stream, Event, unsigned)> stream_wait;
  std::function<int(Event*, unsigned)> event_create;
  std::function<int(Event)> event_destroy;
  std::function<int(Event, Stream)> event_record;
  std::function<int(Event)> event_synchronize;
  std::function<int(float*, Event, Event)> event_elapsed;  // milliseconds
  std::function<int(PointerAttributes*, const void*)> pointer_attributes;
  std::function<int()> take_last_error;
  std::function<const char*(int)> error_name;
  std::function<const char*(int)> error_text;
  // Driver.
  std::function<int(unsigned)> init;
  std::function<int(int*, int)> driver_device;  // device of an ordinal
  std::function<int(Context*, int)> context_retain;
  std::function<int(Context)> context_push;
  std::function<int(Context*)> context_pop;

  // Seconds. What the host waits for may stand behind all that a model has
  // queued: a step of a video model takes minutes on a slow device that is
  // well.
  double patience = 600;
};

// Looks both libraries up. An empty path means the usual names
// (libcudart.so.13, .12; libcuda.so.1; on Windows cudart64_13.dll,
// cudart64_12.dll; nvcuda.dll). Unavailable, with what is missing and what to
// do, when there is none. The libraries stay loaded. No wait lasts longer than
// `patience` seconds.
absl::StatusOr<CudaFunctions> LoadCuda(
    const std::string& runtime_path = "", const std::string& driver_path = "",
    double patience = CudaFunctions().patience);

// The same of AMD's HIP, whose one library (libamdhip64.so.7, .6;
// amdhip64_7.dll, …) has the same functions by other names. Not run on an AMD
// GPU so far.
absl::StatusOr<CudaFunctions> LoadHip(
    const std::string& path = "", double patience = CudaFunctions().patience);

// What failed: call, device (-1: the host), bytes (0: none), CUDA's error, and
// what is free there where memory was wanting. Takes the error off CUDA's
// state, and never fails itself.
//   "cudaMemcpyAsync of 4096 bytes on cuda:1 failed: cudaErrorInvalidValue
//    (invalid argument). <one remedy>"
// ResourceExhausted for want of memory, DeadlineExceeded for kNotReady, else
// Internal.
absl::Status CudaFailure(const CudaFunctions& cuda, std::string_view call,
                         int device, std::int64_t bytes, int code);
// The same of a call that has two places: `where`, "from cpu to cuda:1".
absl::Status CudaFailure(const CudaFunctions& cuda, std::string_view call,
                         std::string_view where, int device, std::int64_t bytes,
                         int code);

// "cuda:1", or "cpu" for -1.
std::string PlaceName(int device);

// The primary context of `device`. Internal when it cannot be had.
absl::StatusOr<CudaFunctions::Context> ContextOf(const CudaFunctions& cuda,
                                                 int device);

// Makes the primary context of `device` current for the calling thread, and
// puts back what was there. The host (-1) changes nothing.
class DeviceGuard {
 public:
  DeviceGuard(const CudaFunctions& cuda, int device);
  // Of a context that ContextOf gave: for what is done often.
  DeviceGuard(const CudaFunctions& cuda, CudaFunctions::Context context);
  DeviceGuard(const DeviceGuard&) = delete;  // one restoration
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard();

  // Internal when the device's context cannot be had.
  const absl::Status& status() const { return status_; }

 private:
  void Push(CudaFunctions::Context context);

  const CudaFunctions& cuda_;
  bool pushed_ = false;
  absl::Status status_;
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_CUDA_API_H_
