// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/staged_lane.h"

#include <algorithm>
#include <cstring>

namespace distorch {
namespace {

std::byte* At(void* data, std::int64_t offset) {
  return static_cast<std::byte*>(data) + offset;
}
const std::byte* At(const void* data, std::int64_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}

}  // namespace

StagedLane::~StagedLane() {
  // Errors are ignored: nothing is left to be told.
  for (const int end : {source_, target_}) {
    if (end < 0) continue;
    const DeviceGuard guard(cuda_, end);
    void* stream = end == source_ ? source_stream_ : target_stream_;
    if (stream != nullptr) {
      Settled(stalled_ ? 0 : cuda_.stream_synchronize(stream));
      cuda_.stream_destroy(stream);
    }
    void* entry = end == source_ ? entry_source_ : entry_target_;
    if (entry != nullptr) cuda_.event_destroy(entry);
    for (Slot& each : slots_) {
      void* event = end == source_ ? each.filled : each.drained;
      if (event == nullptr) continue;
      Settled(stalled_ ? 0 : cuda_.event_synchronize(event));
      cuda_.event_destroy(event);
    }
  }
  if (stalled_) return;  // the buffers may still be read and written
  for (Slot& each : slots_) {
    if (each.buffer != nullptr) cuda_.host_free(each.buffer);
  }
}

absl::Status StagedLane::Make() {
  const DeviceGuard guard(cuda_, std::max(source_, target_));
  if (!guard.status().ok()) return guard.status();
  for (Slot& each : slots_) {
    const int code =
        cuda_.host_alloc(&each.buffer, static_cast<std::size_t>(chunk_),
                         CudaFunctions::kPortable);
    if (absl::Status s = Done("cudaHostAlloc", kHost, chunk_, code); !s.ok()) {
      return s;
    }
  }
  if (source_ >= 0) {
    for (Slot& each : slots_) {
      if (absl::Status s = MakeEvent(source_, &each.filled); !s.ok()) return s;
    }
  }
  if (target_ >= 0) {
    for (Slot& each : slots_) {
      if (absl::Status s = MakeEvent(target_, &each.drained); !s.ok()) return s;
    }
  }
  if (source_ < 0 || target_ < 0) return absl::OkStatus();
  absl::Status made = MakeStream(source_, &source_stream_);
  if (made.ok()) made = MakeStream(target_, &target_stream_);
  if (made.ok()) made = MakeEvent(source_, &entry_source_);
  if (made.ok()) made = MakeEvent(target_, &entry_target_);
  return made;
}

absl::Status StagedLane::Copy(const CopyRequest& request) {
  if (stalled_) {
    return Done("a staged copy", request.stream.device, request.bytes,
                CudaFunctions::kNotReady);
  }
  absl::Status done = source_ < 0   ? FromHost(request)
                      : target_ < 0 ? ToHost(request)
                                    : Between(request);
  if (!done.ok()) Settle(request);
  return done;
}

absl::Status StagedLane::FromHost(const CopyRequest& request) {
  for (std::int64_t begin = 0, i = 0; begin < request.bytes;
       begin += chunk_, ++i) {
    const std::int64_t size = std::min(chunk_, request.bytes - begin);
    Slot& to = slot(i);
    if (to.busy) {
      absl::Status s = HostWait(to.drained, target_, request.bytes);
      if (!s.ok()) return s;
    }
    std::memcpy(to.buffer, At(request.source, begin),
                static_cast<std::size_t>(size));
    absl::Status s =
        Move(At(request.target, begin), to.buffer, size, request.stream);
    if (s.ok()) s = Record(to.drained, request.stream);
    if (!s.ok()) return s;
    to.busy = true;
  }
  return absl::OkStatus();
}

absl::Status StagedLane::ToHost(const CopyRequest& request) {
  const std::int64_t chunks = (request.bytes + chunk_ - 1) / chunk_;
  const auto size = [&](std::int64_t i) {
    return std::min(chunk_, request.bytes - i * chunk_);
  };
  // One chunk ahead: the device fills a buffer while the host empties the
  // other. The host is done with a buffer before it queues into it again.
  for (std::int64_t i = 0; i <= chunks; ++i) {
    if (i < chunks) {
      Slot& next = slot(i);
      absl::Status s = Move(next.buffer, At(request.source, i * chunk_),
                            size(i), request.stream);
      if (s.ok()) s = Record(next.filled, request.stream);
      if (!s.ok()) return s;
    }
    if (i > 0) {
      Slot& full = slot(i - 1);
      absl::Status s = HostWait(full.filled, source_, request.bytes);
      if (!s.ok()) return s;
      std::memcpy(At(request.target, (i - 1) * chunk_), full.buffer,
                  static_cast<std::size_t>(size(i - 1)));
    }
  }
  return absl::OkStatus();
}

absl::Status StagedLane::Between(const CopyRequest& request) {
  const StreamOn caller = request.stream;
  const bool on_target = caller.device == target_;
  const StreamOn out = on_target ? StreamOn{source_, source_stream_} : caller;
  const StreamOn in = on_target ? caller : StreamOn{target_, target_stream_};
  // Behind what the caller has queued: also the end on the other device, whose
  // bytes may be read or written by that work.
  void* entry = on_target ? entry_target_ : entry_source_;
  absl::Status s = Record(entry, caller);
  if (s.ok()) s = Wait(on_target ? out : in, entry);
  for (std::int64_t begin = 0, i = 0; s.ok() && begin < request.bytes;
       begin += chunk_, ++i) {
    const std::int64_t size = std::min(chunk_, request.bytes - begin);
    Slot& through = slot(i);
    if (through.busy) s = Wait(out, through.drained);
    if (s.ok()) s = Move(through.buffer, At(request.source, begin), size, out);
    if (s.ok()) s = Record(through.filled, out);
    if (s.ok()) s = Wait(in, through.filled);
    if (s.ok()) s = Move(At(request.target, begin), through.buffer, size, in);
    if (s.ok()) s = Record(through.drained, in);
    if (!s.ok()) return s;
    through.busy = true;
    // The caller's later work on its stream comes after the bytes arrived.
    if (!on_target && begin + size == request.bytes) {
      s = Wait(out, through.drained);
    }
  }
  return s;
}

absl::Status StagedLane::MakeEvent(int device, void** event) {
  const DeviceGuard guard(cuda_, device);
  if (!guard.status().ok()) return guard.status();
  return Done("cudaEventCreate", device, 0,
              cuda_.event_create(event, CudaFunctions::kDisableTiming));
}

absl::Status StagedLane::MakeStream(int device, void** stream) {
  const DeviceGuard guard(cuda_, device);
  if (!guard.status().ok()) return guard.status();
  return Done("cudaStreamCreate", device, 0,
              cuda_.stream_create(stream, CudaFunctions::kNonBlocking));
}

absl::Status StagedLane::Move(void* target, const void* source,
                              std::int64_t bytes, StreamOn stream) {
  const DeviceGuard guard(cuda_, stream.device);
  if (!guard.status().ok()) return guard.status();
  return Done("cudaMemcpyAsync (staged)", stream.device, bytes,
              cuda_.copy(target, source, static_cast<std::size_t>(bytes),
                         CudaFunctions::kMemcpyDefault, stream.handle));
}

absl::Status StagedLane::Record(void* event, StreamOn stream) {
  const DeviceGuard guard(cuda_, stream.device);
  if (!guard.status().ok()) return guard.status();
  return Done("cudaEventRecord", stream.device, 0,
              cuda_.event_record(event, stream.handle));
}

absl::Status StagedLane::Wait(StreamOn stream, void* event) {
  const DeviceGuard guard(cuda_, stream.device);
  if (!guard.status().ok()) return guard.status();
  return Done("cudaStreamWaitEvent", stream.device, 0,
              cuda_.stream_wait(stream.handle, event, 0));
}

absl::Status StagedLane::HostWait(void* event, int device, std::int64_t bytes) {
  const DeviceGuard guard(cuda_, device);
  if (!guard.status().ok()) return guard.status();
  return Done("cudaEventSynchronize", device, bytes,
              cuda_.event_synchronize(event));
}

absl::Status StagedLane::Done(const char* call, int device, std::int64_t bytes,
                              int code) {
  if (code == 0) return absl::OkStatus();
  Settled(code);
  return CudaFailure(cuda_, call, device, bytes, code);
}

// Notes of a wait whether it ended without what it waited for.
void StagedLane::Settled(int code) {
  stalled_ = stalled_ || code == CudaFunctions::kNotReady;
}

// After a failed copy: waits for what was queued of it, so that the buffers
// are free again.
void StagedLane::Settle(const CopyRequest& request) {
  const StreamOn streams[] = {
      request.stream, {source_, source_stream_}, {target_, target_stream_}};
  for (const StreamOn& each : streams) {
    const bool callers = &each == streams;
    if (each.device < 0 || (!callers && each.handle == nullptr)) continue;
    const DeviceGuard guard(cuda_, each.device);
    if (!guard.status().ok()) continue;
    Settled(stalled_ ? 0 : cuda_.stream_synchronize(each.handle));
    cuda_.take_last_error();
  }
  for (Slot& each : slots_) each.busy = false;
}

}  // namespace distorch
