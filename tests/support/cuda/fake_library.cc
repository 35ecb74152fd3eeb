// SPDX-License-Identifier: Apache-2.0
// FakeCuda as a shared library with CUDA's own names, three devices, for tests
// that load it in place of libcudart and libcuda. Its streams run when
// somebody waits; fake_run_all runs the rest, fake_violations counts what real
// CUDA would have refused.
#include <memory>

#include "tests/support/cuda/fake_cuda.h"

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))

namespace distorch {
namespace {

constexpr int kDevices = 3;

struct Library {
  explicit Library(std::uint32_t seed) : fake(kDevices, seed) {
    fake.records_calls = false;
  }
  FakeCuda fake;
  CudaFunctions cuda = fake.Functions();
};

std::unique_ptr<Library>& Holder() {
  static auto* const holder =
      new std::unique_ptr<Library>(std::make_unique<Library>(1));
  return *holder;  // outlives every user
}
Library& TheLibrary() { return *Holder(); }

// Whether the calls of a step do nothing: what is left is the caller's time.
bool idle = false;

CudaFunctions& Cuda() { return TheLibrary().cuda; }

}  // namespace

FAKE_EXPORT int cudaGetDeviceCount(int* n) { return Cuda().device_count(n); }
FAKE_EXPORT int cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return Cuda().can_access_peer(can, device, peer);
}
FAKE_EXPORT int cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  return Cuda().enable_peer(peer, flags);
}
FAKE_EXPORT int cudaMalloc(void** data, std::size_t bytes) {
  return Cuda().malloc(data, bytes);
}
FAKE_EXPORT int cudaFree(void* data) { return Cuda().free(data); }
FAKE_EXPORT int cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return Cuda().memory_info(free, total);
}
FAKE_EXPORT int cudaHostAlloc(void** data, std::size_t bytes, unsigned flags) {
  return Cuda().host_alloc(data, bytes, flags);
}
FAKE_EXPORT int cudaFreeHost(void* data) { return Cuda().host_free(data); }
FAKE_EXPORT int cudaHostRegister(void* data, std::size_t bytes,
                                 unsigned flags) {
  return Cuda().host_register(data, bytes, flags);
}
FAKE_EXPORT int cudaHostUnregister(void* data) {
  return Cuda().host_unregister(data);
}
FAKE_EXPORT int cudaMemcpyAsync(void* to, const void* from, std::size_t bytes,
                                int kind, void* stream) {
  if (idle) return 0;
  return Cuda().copy(to, from, bytes, kind, stream);
}
FAKE_EXPORT int cudaMemcpyPeerAsync(void* to, int to_device, const void* from,
                                    int from_device, std::size_t bytes,
                                    void* stream) {
  return Cuda().copy_peer(to, to_device, from, from_device, bytes, stream);
}
FAKE_EXPORT int cudaDeviceSynchronize() { return Cuda().device_synchronize(); }
FAKE_EXPORT int cudaStreamCreateWithFlags(void** stream, unsigned flags) {
  return Cuda().stream_create(stream, flags);
}
FAKE_EXPORT int cudaStreamDestroy(void* stream) {
  return Cuda().stream_destroy(stream);
}
FAKE_EXPORT int cudaStreamQuery(void* stream) {
  return Cuda().stream_synchronize(stream);
}
FAKE_EXPORT int cudaStreamWaitEvent(void* stream, void* event, unsigned flags) {
  if (idle) return 0;
  return Cuda().stream_wait(stream, event, flags);
}
FAKE_EXPORT int cudaEventCreateWithFlags(void** event, unsigned flags) {
  return Cuda().event_create(event, flags);
}
FAKE_EXPORT int cudaEventDestroy(void* event) {
  return Cuda().event_destroy(event);
}
FAKE_EXPORT int cudaEventRecord(void* event, void* stream) {
  if (idle) return 0;
  return Cuda().event_record(event, stream);
}
FAKE_EXPORT int cudaEventQuery(void* event) {
  return Cuda().event_synchronize(event);
}
FAKE_EXPORT int cudaEventElapsedTime(float* milliseconds, void* begin,
                                     void* end) {
  return Cuda().event_elapsed(milliseconds, begin, end);
}
FAKE_EXPORT int cudaPointerGetAttributes(void* out, const void* data) {
  return Cuda().pointer_attributes(
      static_cast<CudaFunctions::PointerAttributes*>(out), data);
}
FAKE_EXPORT int cudaGetLastError() { return Cuda().take_last_error(); }
FAKE_EXPORT const char* cudaGetErrorName(int code) {
  return Cuda().error_name(code);
}
FAKE_EXPORT const char* cudaGetErrorString(int code) {
  return Cuda().error_text(code);
}
FAKE_EXPORT int cuInit(unsigned flags) { return Cuda().init(flags); }
FAKE_EXPORT int cuDeviceGet(int* handle, int ordinal) {
  return Cuda().driver_device(handle, ordinal);
}
FAKE_EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
  return Cuda().context_retain(context, device);
}
FAKE_EXPORT int cuCtxPushCurrent_v2(void* context) {
  if (idle) return 0;
  return Cuda().context_push(context);
}
FAKE_EXPORT int cuCtxPopCurrent_v2(void** context) {
  if (idle) return 0;
  return Cuda().context_pop(context);
}

// HIP's names of the same functions.
#define FAKE_HIP(hip, cuda) \
  extern "C"                \
      __attribute__((visibility("default"), alias(#cuda))) decltype(cuda) hip
FAKE_HIP(hipGetDeviceCount, cudaGetDeviceCount);
FAKE_HIP(hipDeviceCanAccessPeer, cudaDeviceCanAccessPeer);
FAKE_HIP(hipDeviceEnablePeerAccess, cudaDeviceEnablePeerAccess);
FAKE_HIP(hipMalloc, cudaMalloc);
FAKE_HIP(hipFree, cudaFree);
FAKE_HIP(hipMemGetInfo, cudaMemGetInfo);
FAKE_HIP(hipHostRegister, cudaHostRegister);
FAKE_HIP(hipHostUnregister, cudaHostUnregister);
FAKE_HIP(hipMemcpyAsync, cudaMemcpyAsync);
FAKE_HIP(hipMemcpyPeerAsync, cudaMemcpyPeerAsync);
FAKE_HIP(hipDeviceSynchronize, cudaDeviceSynchronize);
FAKE_HIP(hipStreamCreateWithFlags, cudaStreamCreateWithFlags);
FAKE_HIP(hipStreamDestroy, cudaStreamDestroy);
FAKE_HIP(hipStreamQuery, cudaStreamQuery);
FAKE_HIP(hipStreamWaitEvent, cudaStreamWaitEvent);
FAKE_HIP(hipEventCreateWithFlags, cudaEventCreateWithFlags);
FAKE_HIP(hipEventDestroy, cudaEventDestroy);
FAKE_HIP(hipEventRecord, cudaEventRecord);
FAKE_HIP(hipEventQuery, cudaEventQuery);
FAKE_HIP(hipEventElapsedTime, cudaEventElapsedTime);
FAKE_HIP(hipPointerGetAttributes, cudaPointerGetAttributes);
FAKE_HIP(hipGetLastError, cudaGetLastError);
FAKE_HIP(hipGetErrorName, cudaGetErrorName);
FAKE_HIP(hipGetErrorString, cudaGetErrorString);
FAKE_HIP(hipHostMalloc, cudaHostAlloc);
FAKE_HIP(hipHostFree, cudaFreeHost);
FAKE_HIP(hipInit, cuInit);
FAKE_HIP(hipDeviceGet, cuDeviceGet);
FAKE_HIP(hipDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain);
FAKE_HIP(hipCtxPushCurrent, cuCtxPushCurrent_v2);
FAKE_HIP(hipCtxPopCurrent, cuCtxPopCurrent_v2);

// A machine that nothing was done on so far. Nobody may hold anything of the
// one before.
FAKE_EXPORT void fake_reset(std::uint32_t seed) {
  Holder() = std::make_unique<Library>(seed);
}
FAKE_EXPORT void fake_be_idle(bool be) { idle = be; }
FAKE_EXPORT void fake_run_all() { TheLibrary().fake.RunAll(); }
FAKE_EXPORT int fake_violations() {
  return static_cast<int>(TheLibrary().fake.violations.size());
}
FAKE_EXPORT const char* fake_violation(int i) {
  return TheLibrary().fake.violations.at(static_cast<std::size_t>(i)).c_str();
}
FAKE_EXPORT void* fake_memory(int device, std::size_t bytes) {
  return TheLibrary().fake.NewMemory(device, bytes);
}
FAKE_EXPORT void fake_adopt(int device, void* data, std::size_t bytes) {
  TheLibrary().fake.Adopt(device, data, bytes);
}
FAKE_EXPORT void fake_disown(void* data, std::size_t bytes) {
  TheLibrary().fake.Disown(data, bytes);
}
FAKE_EXPORT std::size_t fake_copied(int from, int to) {
  return TheLibrary().fake.copied(from, to);
}
FAKE_EXPORT int fake_registrations() {
  return static_cast<int>(TheLibrary().fake.registrations());
}
FAKE_EXPORT int fake_handles() {
  return static_cast<int>(TheLibrary().fake.handles());
}
FAKE_EXPORT void fake_fail(const char* call, int nth, int code) {
  TheLibrary().fake.FailCall(call, nth, code);
}
// The same of all later calls too; an empty name: of any call.
FAKE_EXPORT void fake_fail_on(const char* call, int nth, int code) {
  TheLibrary().fake.FailCall(call, nth, code, /*sticky=*/true);
}
FAKE_EXPORT void fake_hang(int from, int to) {
  TheLibrary().fake.Hang(from, to);
}
FAKE_EXPORT int fake_entered() { return TheLibrary().fake.entered(); }
FAKE_EXPORT int fake_failed() { return TheLibrary().fake.failed(); }
FAKE_EXPORT void fake_fail_no_more() { TheLibrary().fake.FailNoMore(); }
FAKE_EXPORT void* fake_stream(int device) {
  return TheLibrary().fake.NewStream(device);
}
// A kernel that reads some bytes.
FAKE_EXPORT void fake_kernel(void* stream, double seconds, const void* data,
                             std::size_t bytes, const char* label) {
  TheLibrary().fake.Launch(stream, seconds, {{data, bytes, false}}, {}, label);
}
FAKE_EXPORT void fake_finish(void* stream) { TheLibrary().fake.Finish(stream); }
FAKE_EXPORT double fake_done_at(void* stream) {
  return TheLibrary().fake.DoneAt(stream);
}
FAKE_EXPORT void fake_set_link(int from, int to, double gbps) {
  TheLibrary().fake.clock().SetLink({from, to}, gbps);
}
// Begins to keep what is done, anew.
FAKE_EXPORT void fake_keep_timeline() {
  TheLibrary().fake.clock().timeline.clear();
  TheLibrary().fake.clock().keeps_timeline = true;
}
FAKE_EXPORT int fake_intervals() {
  return static_cast<int>(TheLibrary().fake.clock().timeline.size());
}
// "copy" or "kernel" into `kind`; the label.
FAKE_EXPORT const char* fake_interval(int i, const char** kind, int* stream,
                                      double* begin, double* end) {
  const Interval& each =
      TheLibrary().fake.clock().timeline.at(static_cast<std::size_t>(i));
  *kind = each.kind;
  *stream = each.stream;
  *begin = each.begin;
  *end = each.end;
  return each.label.c_str();
}

}  // namespace distorch
