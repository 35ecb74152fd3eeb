// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/router.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "allocation/bytes.h"
#include "distorch/transfer/scratch.h"

namespace distorch {
namespace {

constexpr int kChoiceRepeats = 3;
// The smallest sample, by how much less than the full one: 1 MiB of 64.
constexpr std::int64_t kSmallestShare = 64;

double SteadySeconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Scratch::Kind KindOf(int device, HostPages pages) {
  if (device >= 0) return Scratch::Kind::kDevice;
  return pages == HostPages::kPinned ? Scratch::Kind::kPinned
                                     : Scratch::Kind::kPageable;
}

absl::Status WrongBytes(const CopyRequest& request) {
  return absl::InternalError(absl::StrCat(
      "wrong bytes arrived on ", PlaceName(request.target_device), " from ",
      PlaceName(request.source_device), " (", request.bytes,
      " bytes). Switch the IOMMU off or to pass-through in the firmware."));
}

// Whether `way` can serve a pair of these places at all.
bool Serves(Way way, int source, int target) {
  const bool devices = source >= 0 && target >= 0;
  switch (way) {
    case Way::kDirect:
      return !devices || source == target;
    case Way::kPeer:
    case Way::kDriver:
      return devices && source != target;
    case Way::kStaged:
      return source != target;
  }
  return false;
}

}  // namespace

Router::Router(CudaFunctions cuda, Clock clock, std::int64_t sample_bytes,
               std::int64_t chunk)
    : cuda_(std::move(cuda)),
      clock_(clock ? std::move(clock) : Clock(SteadySeconds)),
      sample_bytes_(sample_bytes),
      chunk_(chunk),
      direct_(&cuda_),
      peer_(&cuda_, true),
      driver_(&cuda_, false),
      staged_(&cuda_, chunk) {}

absl::StatusOr<int> Router::DeviceCount() const {
  int count = 0;
  const int code = cuda_.device_count(&count);
  if (code == 0) return count;
  return CudaFailure(cuda_, "cudaGetDeviceCount", kHost, 0, code);
}

Transfer* Router::TransferFor(Way way) {
  switch (way) {
    case Way::kDirect:
      return &direct_;
    case Way::kPeer:
      return &peer_;
    case Way::kDriver:
      return &driver_;
    case Way::kStaged:
      return &staged_;
  }
  return &direct_;
}

absl::StatusOr<Choice> Router::Choose(int source, int target) {
  if (source < 0 && target < 0) {
    return absl::InvalidArgumentError("a copy from cpu to cpu needs no way");
  }
  if (source == target) return Choice{};
  const MutexLock lock(mutex_);
  const std::pair pair(source, target);
  if (const auto found = choices_.find(pair); found != choices_.end()) {
    return found->second;
  }
  absl::StatusOr<Choice> choice = MeasurePair(source, target);
  if (choice.ok()) choices_[pair] = *choice;
  return choice;
}

std::optional<Way> Router::Known(int source, int target) {
  const MutexLock lock(mutex_);
  const auto found = choices_.find({source, target});
  if (found == choices_.end()) return std::nullopt;
  return found->second.way;
}

absl::Status Router::Adopt(int source, int target, Way way, double gbps) {
  if (!Serves(way, source, target)) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(WayName(way)), " is no way from ",
                     PlaceName(source), " to ", PlaceName(target)));
  }
  Choice choice;
  choice.way = way;
  choice.gbps = gbps;
  if (way == Way::kPeer) {
    choice.peer_access = EnablePeerAccess(cuda_, source, target);
    if (!choice.peer_access) choice.way = Way::kDriver;
  }
  const MutexLock lock(mutex_);
  choices_[{source, target}] = std::move(choice);
  return absl::OkStatus();
}

absl::StatusOr<Choice> Router::MeasurePair(int source, int target) {
  Choice choice;
  Way first = Way::kDirect;
  if (source >= 0 && target >= 0) {
    choice.peer_access = EnablePeerAccess(cuda_, source, target);
    first = choice.peer_access ? Way::kPeer : Way::kDriver;
  }
  std::string reasons;
  bool for_memory = true;  // all that failed did so for want of memory
  for (const Way way : {first, Way::kStaged}) {
    MeasuredWay candidate;
    candidate.way = way;
    const absl::StatusOr<double> gbps = MeasureInRoom(source, target, way);
    if (absl::IsDeadlineExceeded(gbps.status())) return gbps.status();
    for_memory = for_memory && absl::IsResourceExhausted(gbps.status());
    if (gbps.ok()) {
      candidate.gbps = *gbps;
      if (*gbps > choice.gbps) {
        choice.way = way;
        choice.gbps = *gbps;
      }
    } else {
      candidate.error = std::string(gbps.status().message());
      absl::StrAppend(&reasons, "\n  ", std::string(WayName(way)), ": ",
                      candidate.error);
    }
    choice.candidates.push_back(std::move(candidate));
  }
  if (choice.gbps > 0) return choice;
  const std::string message =
      absl::StrCat("no way from ", PlaceName(source), " to ", PlaceName(target),
                   " works:", reasons);
  return for_memory ? absl::ResourceExhaustedError(message)
                    : absl::InternalError(message);
}

absl::StatusOr<double> Router::MeasureInRoom(int source, int target, Way way) {
  for (std::int64_t share = 1;; share *= 8) {
    const std::int64_t bytes = std::max<std::int64_t>(1, sample_bytes_ / share);
    absl::StatusOr<double> gbps = Measure(
        source, target, way, HostPages::kPageable, bytes, kChoiceRepeats);
    if (share == kSmallestShare || !absl::IsResourceExhausted(gbps.status())) {
      return gbps;
    }
  }
}

absl::StatusOr<double> Router::Measure(int source, int target, Way way,
                                       HostPages pages, std::int64_t bytes,
                                       int repeats) {
  if (!Serves(way, source, target) || bytes < 1 || repeats < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(WayName(way)), " from ", PlaceName(source),
                     " to ", PlaceName(target), ", ", bytes, " bytes, ",
                     repeats, " times cannot be measured"));
  }
  const ScratchStream stream(cuda_, target >= 0 ? target : source);
  if (!stream.status().ok()) return stream.status();
  Scratch from(cuda_, KindOf(source, pages), source);
  Scratch to(cuda_, KindOf(target, pages), target);
  absl::Status made = from.Allocate(bytes);
  if (made.ok()) made = to.Allocate(bytes);
  if (!made.ok()) return made;
  const ScratchStream other(cuda_, source >= 0 ? source : target);
  if (!other.status().ok()) return other.status();

  // What failed may be under way all the same: the memory goes after it, or
  // stays.
  bool stalled = false;
  const auto noted = [&](absl::Status status) {
    stalled = absl::IsDeadlineExceeded(status);
    return status;
  };
  absl::Cleanup settle = [&] {
    for (const int device : {source, target}) {
      if (device < 0 || stalled) continue;
      const DeviceGuard guard(cuda_, device);
      const int code = cuda_.device_synchronize();
      if (code != 0) cuda_.take_last_error();
      stalled = code == CudaFunctions::kNotReady;
    }
    if (!stalled) return;
    from.Keep();
    to.Keep();
  };
  const std::vector<std::byte> pattern = Pattern(bytes);
  absl::Status s = noted(from.Write(pattern, other.on()));
  if (!s.ok()) return s;
  const CopyRequest request{to.data(), target, from.data(),
                            source,    bytes,  stream.on()};
  Transfer& transfer = *TransferFor(way);
  double gbps = 0;
  for (const int timed : {1, repeats}) {  // a first one, which also warms up
    std::vector<std::byte> arrived(pattern.size());
    s = noted(to.Write(arrived, stream.on()));
    const absl::StatusOr<double> speed =
        s.ok() ? Time(transfer, request, timed) : s;
    if (!speed.ok()) return noted(speed.status());
    gbps = *speed;
    s = noted(to.Read(arrived, stream.on()));
    if (!s.ok()) return s;
    if (arrived != pattern) return WrongBytes(request);
  }
  std::move(settle).Cancel();
  return gbps;
}

absl::StatusOr<double> Router::Time(Transfer& transfer,
                                    const CopyRequest& request, int repeats) {
  std::vector<double> seconds;
  const DeviceGuard guard(cuda_, request.stream.device);
  if (!guard.status().ok()) return guard.status();
  for (int i = 0; i < repeats; ++i) {
    const double begin = clock_();
    if (absl::Status s = transfer.Copy(request); !s.ok()) return s;
    const int code = cuda_.stream_synchronize(request.stream.handle);
    if (code != 0) {
      return CudaFailure(cuda_, "cudaStreamSynchronize", request.stream.device,
                         request.bytes, code);
    }
    seconds.push_back(clock_() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  return static_cast<double>(request.bytes) / std::max(median, 1e-9) /
         kBytesPerGb;
}

absl::StatusOr<Way> Router::Copy(const CopyRequest& request) {
  const auto by = [&](Way way) -> absl::StatusOr<Way> {
    absl::Status copied = TransferFor(way)->Copy(request);
    if (!copied.ok()) return copied;
    return way;
  };
  if (absl::Status wrong = CheckRequest(request); !wrong.ok()) return wrong;
  if (request.source_device == request.target_device) {
    return by(Way::kDirect);
  }
  const bool with_host = request.source_device < 0 || request.target_device < 0;
  if (with_host) {
    const void* host =
        request.source_device < 0 ? request.source : request.target;
    CudaFunctions::PointerAttributes attributes;
    const bool known = cuda_.pointer_attributes(&attributes, host) == 0;
    if (!known) cuda_.take_last_error();
    const bool pageable =
        !known || attributes.type == CudaFunctions::kUnregistered;
    if (!pageable || request.bytes < chunk_) return by(Way::kDirect);
  }
  if (const auto known = Known(request.source_device, request.target_device)) {
    return by(*known);
  }
  const absl::StatusOr<Choice> choice =
      Choose(request.source_device, request.target_device);
  if (choice.ok()) return by(choice->way);
  if (!absl::IsResourceExhausted(choice.status())) return choice.status();
  return by(with_host ? Way::kDirect : Way::kStaged);
}

}  // namespace distorch
