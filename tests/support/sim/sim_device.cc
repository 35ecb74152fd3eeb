// SPDX-License-Identifier: Apache-2.0
// What torch asks of a PrivateUse1 backend besides operators: an allocator, a
// device guard with streams and events, and the hooks for pinned memory,
// generators and resizing.
//
// Copies and kernels finish before the call returns, so streams and events
// only keep identities: they let code that orders its work with them run.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "tests/support/sim/sim_backend.h"
#include "tests/support/sim/sim_memory.h"

namespace distorch_sim {
namespace {

thread_local std::array<c10::StreamId, kMaxDevices> current_stream{};
std::atomic<c10::StreamId> next_stream{1};
constexpr auto kType = c10::DeviceType::PrivateUse1;

class SimAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    return AllocateOn(CurrentDevice(), bytes);
  }
  static c10::DataPtr AllocateOn(int device, std::size_t bytes) {
    void* data = nullptr;
    try {
      data = Allocate(device, bytes);
    } catch (const OutOfMemory& error) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, error.what());
    }
    return {data, data, &Free,
            c10::Device(kType, static_cast<c10::DeviceIndex>(device))};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Free; }
  void copy_data(void* target, const void* source,
                 std::size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }
};

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* data = AllocatePinned(bytes);
    return {data, data, &FreePinned, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &FreePinned; }
  void copy_data(void* target, const void* source,
                 std::size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }
};

SimAllocator sim_allocator;
PinnedAllocator pinned_allocator;

class SimGuard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device old = getDevice();
    setDevice(device);
    return old;
  }
  c10::Device getDevice() const override {
    return {kType, static_cast<c10::DeviceIndex>(CurrentDevice())};
  }
  void setDevice(c10::Device device) const override {
    if (device.has_index()) SetCurrentDevice(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index() && device.index() < DeviceCount()) {
      SetCurrentDevice(device.index());
    }
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, device,
                       current_stream[Index(device)]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device,
                                      bool /*high*/) const override {
    return getNewStream(device);
  }
  c10::Stream getNewStream(c10::Device device,
                           int /*priority*/ = 0) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, next_stream++);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    c10::StreamId& slot = current_stream[Index(stream.device())];
    const c10::Stream old{c10::Stream::UNSAFE, stream.device(), slot};
    slot = stream.id();
    return old;
  }
  void record(void** event, const c10::Stream& /*stream*/,
              const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    static int recorded = 0;
    *event = &recorded;
  }
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  bool queryEvent(void* /*event*/) const override { return true; }
  void destroyEvent(void* /*event*/,
                    const c10::DeviceIndex /*device*/) const noexcept override {
  }
  void synchronizeEvent(void* /*event*/) const override {}
  bool queryStream(const c10::Stream& /*stream*/) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream& /*stream*/) const override {}
  void synchronizeDevice(const c10::DeviceIndex /*device*/) const override {}
  double elapsedTime(void* /*event1*/, void* /*event2*/,
                     const c10::DeviceIndex /*device*/) const override {
    return 0.0;
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(DeviceCount());
  }

 private:
  static std::size_t Index(c10::Device device) {
    return static_cast<std::size_t>(device.has_index() ? int{device.index()}
                                                       : CurrentDevice());
  }
};

class SimHooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*device*/) const override {
    return true;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_allocator;
  }
  bool isPinnedPtr(const void* data) const override { return IsPinned(data); }
  const at::Generator& getDefaultGenerator(
      c10::DeviceIndex /*device*/) const override {
    static const at::Generator generator = at::detail::getDefaultCPUGenerator();
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex /*device*/) const override {
    return at::detail::createCPUGenerator();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage,
                              std::size_t bytes) const override {
    c10::DataPtr data =
        SimAllocator::AllocateOn(storage.device().index(), bytes);
    if (storage.nbytes() > 0 && bytes > 0) {
      std::memcpy(data.get(), storage.data(),
                  std::min(storage.nbytes(), bytes));
    }
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, SimGuard);

c10::Allocator* TheAllocator() { return &sim_allocator; }

void RegisterDevice() {
  static const bool once = [] {
    at::RegisterPrivateUse1HooksInterface(new SimHooks);
    c10::SetAllocator(kType, &sim_allocator);
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace distorch_sim
