// SPDX-License-Identifier: Apache-2.0
// How a ByteStreamer is made: groups cut into copies, streams, events.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "distorch/execution/byte_streamer.h"

namespace distorch {

absl::Status ByteStreamer::Prepare(std::vector<ByteGroup> groups,
                                   void* compute) {
  absl::StatusOr<CudaFunctions::Context> context = ContextOf(cuda_, device_);
  if (!context.ok()) return context.status();
  context_ = *context;
  const DeviceGuard guard(cuda_, context_);
  if (!guard.status().ok()) return guard.status();
  for (ByteGroup& group : groups) {
    if (absl::Status s = AddGroup(std::move(group)); !s.ok()) return s;
  }
  if (absl::Status s = MakeEvents(compute); !s.ok()) return s;
  if (absl::Status s = Noted(SettleSources()); !s.ok()) return s;
  const bool pageable = std::any_of(groups_.begin(), groups_.end(),
                                    [](const Group& g) { return g.pageable; });
  if (!pageable) return absl::OkStatus();
  if (auto thread = CopyThread::Start(); thread.ok()) {
    thread_ = *std::move(thread);
  } else {
    trouble_ = absl::StrCat(std::string(thread.status().message()),
                            "; the host waits for such copies");
  }
  staged_ = std::make_unique<StagedTransfer>(&cuda_, chunk_);
  if (absl::Status s = staged_->Prepare(kHost, device_); !s.ok()) {
    staged_.reset();
    trouble_ = std::string(s.message());
  }
  return absl::OkStatus();
}

absl::Status ByteStreamer::AddGroup(ByteGroup group) {
  groups_.emplace_back();
  Group& added = groups_.back();
  for (BytePart& part : group.parts) {
    if (part.source_device >= 0 && part.source_device != device_ &&
        router_ == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "copies from ", PlaceName(part.source_device), " need a router"));
    }
    added.bytes += part.bytes;
    const absl::StatusOr<std::size_t> stream = StreamOf(part.source_device);
    if (!stream.ok()) return stream.status();
    const auto share =
        std::find_if(added.shares.begin(), added.shares.end(),
                     [&](const Share& each) { return each.stream == *stream; });
    if (share == added.shares.end()) added.shares.push_back({*stream, {}});
    // Cut where what is pinned begins and ends.
    const auto* first = static_cast<const std::byte*>(part.source);
    std::int64_t done = 0;
    if (part.pinned != nullptr) {
      for (const PinnedSegment& each : part.pinned->segments()) {
        const std::int64_t begin = std::max(done, each.begin - first);
        const std::int64_t end = std::min(part.bytes, each.end() - first);
        if (begin >= end) continue;
        if (begin > done) Add(part, done, begin, true, &added);
        Add(part, begin, end, false, &added);
        done = end;
      }
      slabs_.push_back(std::move(part.pinned));
    }
    const bool host = part.source_device < 0;
    if (done < part.bytes) Add(part, done, part.bytes, host, &added);
  }
  return absl::OkStatus();
}

void ByteStreamer::Add(const BytePart& part, std::int64_t begin,
                       std::int64_t end, bool pageable, Group* group) {
  group->pageable = group->pageable || pageable;
  const auto share = std::find_if(
      group->shares.begin(), group->shares.end(), [&](const Share& each) {
        return sources_[each.stream] == part.source_device;
      });
  share->parts.push_back({static_cast<const std::byte*>(part.source) + begin,
                          part.source_device, part.at + begin, end - begin,
                          pageable});
}

absl::StatusOr<std::size_t> ByteStreamer::StreamOf(int source_device) {
  const auto known = std::find(sources_.begin(), sources_.end(), source_device);
  if (known != sources_.end()) {
    return static_cast<std::size_t>(known - sources_.begin());
  }
  void* stream = nullptr;
  absl::Status made =
      Told("cudaStreamCreate", 0,
           cuda_.stream_create(&stream, CudaFunctions::kNonBlocking));
  if (!made.ok()) return made;
  sources_.push_back(source_device);
  streams_.push_back(stream);
  // Measured now and not in the middle of a step; a pair that cannot be
  // measured is served all the same.
  if (source_device >= 0 && source_device != device_) {
    router_->Choose(source_device, device_).status().IgnoreError();
  }
  return streams_.size() - 1;
}

absl::Status ByteStreamer::MakeEvents(void* compute) {
  const auto make = [&](void** event) {
    return Told("cudaEventCreate", 0,
                cuda_.event_create(event, CudaFunctions::kDisableTiming));
  };
  for (Slot& slot : slots_) {
    if (absl::Status s = make(&slot.used); !s.ok()) return s;
    slot.ready.resize(streams_.size());
    for (void*& event : slot.ready) {
      if (absl::Status s = make(&event); !s.ok()) return s;
    }
    // The allocator gives memory out again that kernels may still use.
    if (absl::Status s = Record(slot.used, compute); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace distorch
