// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/byte_streamer.h"

#include <algorithm>
#include <utility>

#include "distorch/transfer/host_waits.h"

namespace distorch {

ByteStreamer::ByteStreamer(const Options& options, int groups)
    : cuda_(*options.cuda),
      router_(options.router),
      device_(options.device),
      chunk_(options.chunk),
      owner_(options.owner),
      scheduler_(this, groups, static_cast<int>(options.slots.size())) {
  for (void* data : options.slots) {
    slots_.emplace_back();
    slots_.back().data = static_cast<std::byte*>(data);
  }
}

absl::StatusOr<std::unique_ptr<ByteStreamer>> ByteStreamer::Make(
    Options options, std::vector<ByteGroup> groups, void* compute) {
  if (groups.empty() || options.slots.empty()) {
    return absl::InvalidArgumentError(
        "at least one group and one slot are needed");
  }
  std::unique_ptr<ByteStreamer> made(
      new ByteStreamer(options, static_cast<int>(groups.size())));
  absl::Status prepared = made->Prepare(std::move(groups), compute);
  if (!prepared.ok()) return prepared;
  return made;
}

ByteStreamer::~ByteStreamer() {
  if (context_ == nullptr) return;  // nothing was made
  Drain();
  thread_.reset();
  staged_.reset();
  if (!stalled_.ok()) {
    Abandon(std::move(owner_));
    for (auto& slab : slabs_) {
      Abandon(std::const_pointer_cast<PinnedSlab>(std::move(slab)));
    }
  }
  const DeviceGuard guard(cuda_, context_);
  // Errors are ignored: nothing is left to be told.
  for (const Slot& slot : slots_) {
    if (slot.used != nullptr) cuda_.event_destroy(slot.used);
    for (void* event : slot.ready) {
      if (event != nullptr) cuda_.event_destroy(event);
    }
  }
  for (void* stream : streams_) cuda_.stream_destroy(stream);
}

std::size_t ByteStreamer::copies(int group) const {
  std::size_t count = 0;
  for (const Share& share : groups_[static_cast<std::size_t>(group)].shares) {
    count += share.parts.size();
  }
  return count;
}

absl::StatusOr<int> ByteStreamer::Enter(int group, void* compute) {
  const DeviceGuard guard(cuda_, context_);
  if (!guard.status().ok()) return guard.status();
  if (!stalled_.ok()) return stalled_;
  compute_ = compute;
  absl::StatusOr<int> slot = scheduler_.Acquire(group);
  if (!slot.ok()) return Noted(slot.status());
  return slot;
}

absl::Status ByteStreamer::Leave(int group, void* compute) {
  const DeviceGuard guard(cuda_, context_);
  if (!guard.status().ok()) return guard.status();
  compute_ = compute;
  return Noted(scheduler_.Release(group));
}

absl::Status ByteStreamer::StartCopy(int group, int slot) {
  const Group& from = groups_[static_cast<std::size_t>(group)];
  Slot& to = slots_[static_cast<std::size_t>(slot)];
  bytes_copied_ += from.bytes;
  if (to.pending != nullptr) {
    // Into the same slot, for nobody any more: its outcome does not matter.
    to.pending->Wait().IgnoreError();
    to.pending.reset();
  }
  if (!from.pageable || thread_ == nullptr) return Fill(from, to);
  to.pending = thread_->Submit([this, &from, &to]() -> absl::Status {
    const DeviceGuard guard(cuda_, context_);
    return guard.status().ok() ? Fill(from, to) : guard.status();
  });
  return absl::OkStatus();
}

absl::Status ByteStreamer::Fill(const Group& group, Slot& slot) {
  for (const Share& share : group.shares) {
    void* stream = streams_[share.stream];
    if (absl::Status s = Wait(stream, slot.used); !s.ok()) return s;
    if (slot.awaited) continue;  // what filled it comes before `used`
    for (const std::size_t other : slot.filling) {  // overwritten unread
      if (other == share.stream) continue;
      absl::Status s = Wait(stream, slot.ready[other]);
      if (!s.ok()) return s;
    }
  }
  absl::Status status;
  std::vector<std::size_t>& filling = slot.filling;
  if (slot.awaited) filling.clear();
  slot.awaited = false;
  slot.bytes = group.bytes;
  for (const Share& share : group.shares) {
    void* stream = streams_[share.stream];
    for (const Part& part : share.parts) {
      if (status.ok()) status = CopyPart(part, slot, stream);
    }
    if (std::find(filling.begin(), filling.end(), share.stream) ==
        filling.end()) {
      filling.push_back(share.stream);
    }
    // Also of a part: what comes next comes behind it.
    const absl::Status recorded = Record(slot.ready[share.stream], stream);
    if (status.ok()) status = recorded;
  }
  return status;
}

absl::Status ByteStreamer::CopyPart(const Part& part, const Slot& slot,
                                    void* stream) {
  std::byte* const target = slot.data + part.at;
  const CopyRequest request{target,      device_,
                            part.source, part.source_device,
                            part.bytes,  {device_, stream}};
  if (part.pageable && staged_ != nullptr) return staged_->Copy(request);
  if (part.source_device >= 0 && part.source_device != device_) {
    return router_->Copy(request).status();
  }
  return Told(
      "cudaMemcpyAsync", part.bytes,
      cuda_.copy(target, part.source, static_cast<std::size_t>(part.bytes),
                 CudaFunctions::kMemcpyDefault, stream));
}

absl::Status ByteStreamer::Await(int slot) {
  Slot& of = slots_[static_cast<std::size_t>(slot)];
  if (of.pending != nullptr) {  // queued by then
    const absl::Status queued = of.pending->Wait();
    of.pending.reset();
    if (!queued.ok()) return queued;
  }
  for (const std::size_t stream : of.filling) {
    if (absl::Status s = Wait(compute_, of.ready[stream]); !s.ok()) return s;
  }
  if (of.on != compute_) {  // `used` is to stand for those on both streams
    if (absl::Status s = Wait(compute_, of.used); !s.ok()) return s;
  }
  of.awaited = true;
  of.held = true;
  of.on = compute_;
  return absl::OkStatus();
}

absl::Status ByteStreamer::MarkUsed(int slot) {
  Slot& of = slots_[static_cast<std::size_t>(slot)];
  if (of.on != compute_) {  // the kernels before are on another stream
    absl::Status s = Record(of.used, of.on);
    if (s.ok()) s = Wait(compute_, of.used);
    if (!s.ok()) return s;
  }
  absl::Status marked = Record(of.used, compute_);
  of.held = !marked.ok();
  return marked;
}

void ByteStreamer::Drain() {
  std::int64_t bytes = 0;  // that may be under way
  for (Slot& slot : slots_) {
    if (slot.pending != nullptr) Noted(slot.pending->Wait()).IgnoreError();
    slot.pending.reset();
    bytes += slot.bytes;
  }
  const DeviceGuard guard(cuda_, context_);
  // What fails now has failed before, and was told then; but for what does not
  // end, and then nothing else is waited for.
  const auto note = [&](const char* call, int code) {
    if (code != 0) Noted(Told(call, bytes, code)).IgnoreError();
  };
  for (void* stream : streams_) {
    if (!stalled_.ok()) break;
    note("cudaStreamSynchronize", cuda_.stream_synchronize(stream));
  }
  for (Slot& slot : slots_) {
    if (slot.used == nullptr) continue;
    if (slot.held) {
      note("cudaEventRecord", cuda_.event_record(slot.used, slot.on));
    }
    if (stalled_.ok()) {
      note("cudaEventSynchronize", cuda_.event_synchronize(slot.used));
    }
    slot.held = false;
    slot.awaited = true;
    slot.filling.clear();
  }
}

void ByteStreamer::Reset() {
  scheduler_.Reset();
  Noted(SettleSources()).IgnoreError();
}

absl::Status ByteStreamer::SettleSources() {
  for (const int source : sources_) {
    if (source < 0 || source == device_ || !stalled_.ok()) continue;
    const DeviceGuard guard(cuda_, source);
    const int code = cuda_.device_synchronize();
    if (code != 0) cuda_.take_last_error();
    if (code == CudaFunctions::kNotReady) {
      return CudaFailure(cuda_, "cudaDeviceSynchronize", source, 0, code);
    }
  }
  return absl::OkStatus();
}

absl::Status ByteStreamer::Noted(absl::Status status) {
  if (absl::IsDeadlineExceeded(status)) stalled_ = status;
  return status;
}

absl::Status ByteStreamer::Record(void* event, void* stream) {
  return Told("cudaEventRecord", 0, cuda_.event_record(event, stream));
}

absl::Status ByteStreamer::Wait(void* stream, void* event) {
  return Told("cudaStreamWaitEvent", 0, cuda_.stream_wait(stream, event, 0));
}

absl::Status ByteStreamer::Told(const char* call, std::int64_t bytes,
                                int code) {
  if (code == 0) return absl::OkStatus();
  return CudaFailure(cuda_, call, device_, bytes, code);
}

}  // namespace distorch
