// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/fake_cuda.h"

#include <algorithm>
#include <cstring>

#include "distorch/transfer/transfer.h"

namespace distorch {
namespace {

constexpr int kInvalidValue = 1;
constexpr int kOutOfMemory = 2;
constexpr int kInvalidHandle = 400;
constexpr int kNotPermitted = 800;

const char* NameOf(int code) {
  switch (code) {
    case kInvalidValue:
      return "cudaErrorInvalidValue";
    case kOutOfMemory:
      return "cudaErrorMemoryAllocation";
    case 700:
      return "cudaErrorIllegalAddress";
    default:
      return "cudaErrorUnknown";
  }
}

// Makes every call of `function` hold `mutex`.
template <typename Result, typename... Args>
void Lock(std::function<Result(Args...)>& function,
          std::recursive_mutex& mutex) {
  function = [inner = std::move(function), &mutex](Args... args) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    return inner(args...);
  };
}

}  // namespace

FakeCuda::FakeCuda(int devices, std::uint32_t seed)
    : devices_(devices), random_(seed) {
  for (int device = 0; device < devices; ++device) {
    default_streams_[device] = std::make_unique<Stream>();
    default_streams_[device]->device = device;
  }
}

FakeCuda::~FakeCuda() = default;

void FakeCuda::FailCall(const std::string& name, int nth, int code) {
  failures_[name].emplace_back(counts_[name] + nth, code);
}

std::vector<int>& FakeCuda::Contexts() const {
  thread_local std::map<const FakeCuda*, std::vector<int>> stacks;
  return stacks[this];
}

int FakeCuda::Enter(const std::string& name) {
  calls.push_back(current() < 0 ? name : name + " " + PlaceName(current()));
  const int count = ++counts_[name];
  for (const auto& [nth, code] : failures_[name]) {
    if (nth == count) return code;
  }
  return 0;
}

FakeCuda::Stream& FakeCuda::StreamFor(void* handle) {
  if (handle == nullptr) return *default_streams_.at(std::max(current(), 0));
  const auto found = streams_.find(handle);
  if (found != streams_.end()) return *found->second;
  violations.emplace_back("an unknown stream");
  return *default_streams_.at(0);
}

void FakeCuda::CheckDevice(const char* what, int device) {
  if (current() == device) return;
  violations.push_back(std::string(what) + " of " + PlaceName(device) +
                       " under " + PlaceName(current()));
}

bool FakeCuda::RunOne() {
  std::vector<Stream*> waiting;
  for (auto& [_, stream] : streams_) {
    if (!stream->queue.empty()) waiting.push_back(stream.get());
  }
  for (auto& [_, stream] : default_streams_) {
    if (!stream->queue.empty()) waiting.push_back(stream.get());
  }
  std::shuffle(waiting.begin(), waiting.end(), random_);
  for (Stream* stream : waiting) {
    if (!stream->queue.front()()) continue;
    stream->queue.pop_front();
    return true;
  }
  return false;
}

int FakeCuda::Drain(const std::function<bool()>& done) {
  while (!done()) {
    if (RunOne()) continue;
    violations.emplace_back("waiting for what never comes");
    return kNotPermitted;
  }
  return 0;
}

void FakeCuda::RunAll() {
  while (RunOne()) {
  }
}

int FakeCuda::MemoryDevice(const void* data) const {
  for (const auto& [begin, memory] : memory_) {
    const auto* first = static_cast<const std::byte*>(begin);
    const auto* at = static_cast<const std::byte*>(data);
    if (at >= first && at < first + memory.bytes.size()) return memory.device;
  }
  return -2;  // not CUDA's
}

void* FakeCuda::NewStream(int device) {
  auto stream = std::make_unique<Stream>();
  stream->device = device;
  void* handle = stream.get();
  streams_[handle] = std::move(stream);
  return handle;
}

void* FakeCuda::NewMemory(int device, std::size_t bytes) {
  std::vector<std::byte> memory(bytes);
  void* data = memory.data();
  memory_[data] = {device, std::move(memory)};
  return data;
}

void FakeCuda::Move(void* to, int to_device, const void* from, int from_device,
                    std::size_t bytes, double gbps) {
  std::memcpy(to, from, bytes);
  if (corrupt_ == std::pair(from_device, to_device)) {
    *static_cast<std::byte*>(to) ^= std::byte{1};
  }
  seconds_ += static_cast<double>(bytes) / gbps / (1 << 30);
}

int FakeCuda::Copy(void* to, int to_device, const void* from, int from_device,
                   std::size_t bytes, double gbps, void* handle) {
  Stream& stream = StreamFor(handle);
  CheckDevice("a stream", stream.device);
  const bool pageable =
      MemoryDevice(to) == -2 || MemoryDevice(from) == -2;  // the host waits
  stream.queue.emplace_back([=, this] {
    Move(to, to_device, from, from_device, bytes, gbps);
    return true;
  });
  if (!pageable) return 0;
  return Drain([&] { return stream.queue.empty(); });
}

void FakeCuda::BindMemory(CudaFunctions& f) {
  f.device_count = [this](int* n) { return *n = devices_, 0; };
  f.can_access_peer = [this](int* can, int device, int peer) {
    const auto known = peers_.find({device, peer});
    *can = known == peers_.end() || known->second ? 1 : 0;
    return 0;
  };
  f.enable_peer = [this](int peer, unsigned) {
    if (const int code = Enter("cudaDeviceEnablePeerAccess")) return code;
    bool& enabled = enabled_[{current(), peer}];
    if (enabled) return 704;
    enabled = true;
    return 0;
  };
  f.malloc = [this](void** out, std::size_t bytes) {
    if (const int code = Enter("cudaMalloc")) return code;
    *out = NewMemory(current(), bytes);
    return 0;
  };
  f.host_alloc = [this](void** out, std::size_t bytes, unsigned) {
    if (const int code = Enter("cudaHostAlloc")) return code;
    *out = NewMemory(kHost, bytes);
    return 0;
  };
  f.free = [this](void* data) {
    return memory_.erase(data) == 1 ? 0 : kInvalidValue;
  };
  f.host_free = f.free;
  f.copy = [this](void* to, const void* from, std::size_t bytes, int,
                  void* stream) {
    if (const int code = Enter("cudaMemcpyAsync")) return code;
    return Copy(to, std::max(MemoryDevice(to), -1), from,
                std::max(MemoryDevice(from), -1), bytes, host_gbps, stream);
  };
  f.copy_peer = [this](void* to, int to_device, const void* from,
                       int from_device, std::size_t bytes, void* stream) {
    if (const int code = Enter("cudaMemcpyPeerAsync")) return code;
    if (to_device >= devices_ || from_device >= devices_) return 101;
    const bool direct = enabled_[{from_device, to_device}];
    return Copy(to, to_device, from, from_device, bytes,
                direct ? peer_gbps : driver_gbps, stream);
  };
  f.pointer_attributes = [this](CudaFunctions::PointerAttributes* out,
                                const void* data) {
    const int device = MemoryDevice(data);
    out->type = device == -2      ? CudaFunctions::kUnregistered
                : device == kHost ? CudaFunctions::kPinned
                                  : CudaFunctions::kDevice;
    out->device = std::max(device, 0);
    return 0;
  };
}

void FakeCuda::BindStreams(CudaFunctions& f) {
  f.stream_create = [this](void** out, unsigned) {
    if (const int code = Enter("cudaStreamCreateWithFlags")) return code;
    *out = NewStream(current());
    return 0;
  };
  f.stream_destroy = [this](void* handle) {
    return streams_.erase(handle) == 1 ? 0 : kInvalidHandle;
  };
  f.stream_synchronize = [this](void* handle) {
    if (const int code = Enter("cudaStreamSynchronize")) return code;
    Stream& stream = StreamFor(handle);
    return Drain([&] { return stream.queue.empty(); });
  };
  f.event_create = [this](void** out, unsigned) {
    if (const int code = Enter("cudaEventCreate")) return code;
    auto event = std::make_unique<Event>();
    event->device = current();
    *out = event.get();
    events_[*out] = std::move(event);
    return 0;
  };
  f.event_destroy = [this](void* handle) {
    return events_.erase(handle) == 1 ? 0 : kInvalidHandle;
  };
  f.event_record = [this](void* handle, void* on) {
    if (const int code = Enter("cudaEventRecord")) return code;
    Event& event = *events_.at(handle);
    Stream& stream = StreamFor(on);
    CheckDevice("an event", event.device);
    CheckDevice("a stream", stream.device);
    event.done = std::make_shared<bool>(false);
    stream.queue.emplace_back([done = event.done] { return *done = true; });
    return 0;
  };
  f.stream_wait = [this](void* on, void* handle, unsigned) {
    if (const int code = Enter("cudaStreamWaitEvent")) return code;
    Stream& stream = StreamFor(on);
    CheckDevice("a stream", stream.device);
    const Event& event = *events_.at(handle);
    if (event.done == nullptr) return 0;  // as in CUDA: nothing to wait for
    stream.queue.emplace_back([done = event.done] { return *done; });
    return 0;
  };
  f.event_synchronize = [this](void* handle) {
    if (const int code = Enter("cudaEventSynchronize")) return code;
    const auto done = events_.at(handle)->done;
    return done == nullptr ? 0 : Drain([&] { return *done; });
  };
}

void FakeCuda::BindContexts(CudaFunctions& f) {
  f.take_last_error = [] { return 0; };
  f.error_name = &NameOf;
  f.error_text = [](int) { return "as told by the test"; };
  f.init = [](unsigned) { return 0; };
  f.driver_device = [this](int* handle, int ordinal) {
    *handle = ordinal;
    return ordinal < devices_ ? 0 : 101;
  };
  f.context_retain = [](void** context, int device) {
    *context = reinterpret_cast<void*>(static_cast<std::intptr_t>(device + 1));
    return 0;
  };
  f.context_push = [this](void* context) {
    Contexts().push_back(
        static_cast<int>(reinterpret_cast<std::intptr_t>(context)) - 1);
    return 0;
  };
  f.context_pop = [this](void**) {
    Contexts().pop_back();
    return 0;
  };
}

CudaFunctions FakeCuda::Functions() {
  CudaFunctions f;
  BindMemory(f);
  BindStreams(f);
  BindContexts(f);
  const auto lock = [this](auto&... functions) {
    (Lock(functions, mutex_), ...);
  };
  lock(f.can_access_peer, f.enable_peer, f.malloc, f.free, f.host_alloc,
       f.host_free, f.copy, f.copy_peer, f.stream_create, f.stream_destroy,
       f.stream_synchronize, f.stream_wait, f.event_create, f.event_destroy,
       f.event_record, f.event_synchronize, f.pointer_attributes);
  return f;
}

}  // namespace distorch
