// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/fake_cuda.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/support/cuda/cuda_codes.h"

namespace distorch {
namespace {

const char* NameOf(int code) {
  switch (code) {
    case 1:
      return "cudaErrorInvalidValue";
    case 2:
      return "cudaErrorMemoryAllocation";
    case kInvalidHandle:
      return "cudaErrorInvalidResourceHandle";
    case 700:
      return "cudaErrorIllegalAddress";
    case 705:
      return "cudaErrorPeerAccessNotEnabled";
    case 712:
      return "cudaErrorHostMemoryAlreadyRegistered";
    case 713:
      return "cudaErrorHostMemoryNotRegistered";
    default:
      return "cudaErrorUnknown";
  }
}

// Makes every call of `function` hold `mutex`, and remembers its error.
template <typename... Args>
void Guard(std::function<int(Args...)>& function, std::recursive_mutex& mutex,
           int& last_error) {
  function = [inner = std::move(function), &mutex, &last_error](Args... args) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    const int code = inner(args...);
    if (code != 0) last_error = code;
    return code;
  };
}

}  // namespace

FakeCuda::FakeCuda(int devices, std::uint32_t seed)
    : devices_(devices), streams_(seed, &violations) {}

FakeCuda::~FakeCuda() = default;

void FakeCuda::FailCall(const std::string& name, int nth, int code,
                        bool sticky) {
  failures_[name].push_back({nth, code, sticky});
}

std::vector<int>& FakeCuda::Contexts() const {
  thread_local std::map<const FakeCuda*, std::vector<int>> stacks;
  return stacks[this];
}

int FakeCuda::Enter(const char* name) {
  const int device = current();
  if (records_calls) {
    calls.push_back(device < 0 ? name : absl::StrCat(name, " cuda:", device));
  }
  contexts_.insert(std::max(device, 0));  // as the runtime does by itself
  if (call_seconds > 0) streams_.clock().HostSpends(call_seconds);
  ++entered_;
  int code = 0;
  for (auto& [called, failures] : failures_) {
    if (!called.empty() && called != name) continue;
    for (Failure& each : failures) {
      --each.nth;
      if (each.nth == 0 || (each.sticky && each.nth < 0)) code = each.code;
      // A device that is lost writes nothing any more: not even later.
      if (each.nth == 0 && each.sticky && called.empty()) streams_.RunAll();
    }
  }
  failed_ += code != 0 ? 1 : 0;
  return code;
}

int FakeCuda::Refuse(int code, std::string what) {
  violations.push_back(std::move(what));
  return code;
}

FakeCuda::Stream* FakeCuda::StreamFor(void* handle) {
  if (handle == nullptr) return streams_.Default(std::max(current(), 0));
  auto* stream = static_cast<Stream*>(handle);
  if (handles_.count(handle) == 0) {
    violations.emplace_back("a stream that does not exist (any more)");
    return nullptr;
  }
  CheckDevice("a stream", stream->device);
  return stream;
}

FakeCuda::Event* FakeCuda::EventFor(void* handle) {
  const auto found = events_.find(handle);
  if (found != events_.end()) return found->second.get();
  violations.emplace_back("an event that does not exist (any more)");
  return nullptr;
}

void FakeCuda::CheckDevice(const char* what, int device) {
  if (current() == device) return;
  violations.push_back(std::string(what) + " of " + PlaceName(device) +
                       " under " + PlaceName(current()));
}

int FakeCuda::HostWaits(const StreamSimulation::MarkPtr& mark) {
  if (mark == nullptr || streams_.HostWaits(mark)) return 0;
  if (!hung_.empty()) {
    streams_.clock().HostSpends(CudaFunctions().patience);
    return kNotReady;
  }
  return Refuse(kNotPermitted, "waiting for what never comes");
}

void FakeCuda::RunAll() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  streams_.RunAll();
}

void FakeCuda::Finish(void* stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const auto& mark = static_cast<Stream*>(stream)->tail;
  if (mark != nullptr && !streams_.Finish(mark)) {
    violations.emplace_back("waiting for what never comes");
  }
}

double FakeCuda::DoneAt(void* stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return static_cast<Stream*>(stream)->free;
}

void* FakeCuda::NewStream(int device) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return *handles_.insert(streams_.NewStream(device, false)).first;
}

void FakeCuda::Launch(void* stream, double seconds,
                      std::vector<Access> accesses, std::function<void()> run,
                      std::string label) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  StreamSimulation::Work work;
  work.kind = "kernel";
  work.label = std::move(label);
  work.accesses = accesses;
  work.run = std::move(run);
  work.seconds = seconds;
  auto* on = static_cast<Stream*>(stream);
  streams_.Queue(on == nullptr ? streams_.Default(0) : on, std::move(work));
}

void FakeCuda::BindStreams(CudaFunctions& f) {
  f.stream_create = [this](void** out, unsigned flags) {
    if (const int code = Enter("cudaStreamCreateWithFlags")) return code;
    const bool blocking = (flags & CudaFunctions::kNonBlocking) == 0;
    *out = streams_.NewStream(current(), blocking);
    handles_.insert(*out);
    return 0;
  };
  f.stream_destroy = [this](void* handle) {
    Stream* stream = StreamFor(handle);
    if (handle == nullptr || stream == nullptr) return kInvalidHandle;
    handles_.erase(handle);
    streams_.Destroy(stream);
    return 0;
  };
  f.stream_synchronize = [this](void* handle) {
    if (const int code = Enter("cudaStreamSynchronize")) return code;
    const Stream* stream = StreamFor(handle);
    if (stream == nullptr) return kInvalidHandle;
    return HostWaits(stream->tail);
  };
  f.device_synchronize = [this] {
    if (const int code = Enter("cudaDeviceSynchronize")) return code;
    for (const auto& mark : streams_.Tails(std::max(current(), 0))) {
      if (const int code = HostWaits(mark)) return code;
    }
    return 0;
  };
  f.stream_wait = [this](void* on, void* handle, unsigned) {
    if (const int code = Enter("cudaStreamWaitEvent")) return code;
    Stream* stream = StreamFor(on);
    const Event* event = EventFor(handle);
    if (stream == nullptr || event == nullptr) return kInvalidHandle;
    if (event->mark == nullptr) return 0;  // as in CUDA: nothing to wait for
    StreamSimulation::Work work;
    work.behind.push_back(event->mark);
    streams_.Queue(stream, std::move(work));
    return 0;
  };
}

void FakeCuda::BindEvents(CudaFunctions& f) {
  f.event_create = [this](void** out, unsigned) {
    if (const int code = Enter("cudaEventCreate")) return code;
    auto event = std::make_unique<Event>();
    event->device = std::max(current(), 0);
    *out = event.get();
    events_[*out] = std::move(event);
    return 0;
  };
  f.event_destroy = [this](void* handle) {
    if (EventFor(handle) == nullptr) return kInvalidHandle;
    events_.erase(handle);
    return 0;
  };
  f.event_record = [this](void* handle, void* on) {
    if (const int code = Enter("cudaEventRecord")) return code;
    Event* event = EventFor(handle);
    Stream* stream = StreamFor(on);
    if (stream == nullptr || event == nullptr) return kInvalidHandle;
    if (event->device != stream->device) {
      return Refuse(kInvalidHandle, "an event recorded on another device");
    }
    event->mark = streams_.Queue(stream, {});
    return 0;
  };
  f.event_synchronize = [this](void* handle) {
    if (const int code = Enter("cudaEventSynchronize")) return code;
    const Event* event = EventFor(handle);
    return event == nullptr ? kInvalidHandle : HostWaits(event->mark);
  };
  f.event_elapsed = [this](float* milliseconds, void* begin, void* end) {
    if (const int code = Enter("cudaEventElapsedTime")) return code;
    const Event* first = EventFor(begin);
    const Event* last = EventFor(end);
    if (first == nullptr || last == nullptr || first->mark == nullptr ||
        last->mark == nullptr) {
      return kInvalidHandle;
    }
    if (!first->mark->done || !last->mark->done) return kNotReady;
    *milliseconds =
        static_cast<float>((last->mark->end - first->mark->end) * 1000);
    return 0;
  };
}

void FakeCuda::BindContexts(CudaFunctions& f) {
  f.take_last_error = [this] { return std::exchange(last_error_, 0); };
  f.error_name = &NameOf;
  f.error_text = [](int) { return "as told by the test"; };
  f.init = [](unsigned) { return 0; };
  f.driver_device = [this](int* handle, int ordinal) {
    *handle = ordinal;
    return ordinal < devices_ ? 0 : kInvalidDevice;
  };
  f.context_retain = [this](void** context, int device) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    contexts_.insert(device);
    *context = reinterpret_cast<void*>(static_cast<std::intptr_t>(device + 1));
    return 0;
  };
  f.context_push = [this](void* context) {
    Contexts().push_back(
        static_cast<int>(reinterpret_cast<std::intptr_t>(context)) - 1);
    return 0;
  };
  f.context_pop = [this](void** context) {
    *context = reinterpret_cast<void*>(
        static_cast<std::intptr_t>(Contexts().back() + 1));
    Contexts().pop_back();
    return 0;
  };
}

CudaFunctions FakeCuda::Functions() {
  CudaFunctions f;
  BindMemory(f);
  BindCopies(f);
  BindStreams(f);
  BindEvents(f);
  BindContexts(f);
  const auto guard = [this](auto&... functions) {
    (Guard(functions, mutex_, last_error_), ...);
  };
  guard(f.can_access_peer, f.enable_peer, f.malloc, f.free, f.memory_info,
        f.host_alloc, f.host_free, f.host_register, f.host_unregister, f.copy,
        f.copy_peer, f.device_synchronize, f.stream_create, f.stream_destroy,
        f.stream_synchronize, f.stream_wait, f.event_create, f.event_destroy,
        f.event_record, f.event_synchronize, f.event_elapsed,
        f.pointer_attributes);
  return f;
}

}  // namespace distorch
