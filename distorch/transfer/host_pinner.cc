// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/host_pinner.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "distorch/transfer/host_waits.h"

namespace distorch {
namespace {

std::int64_t Pages(std::int64_t bytes) {
  return (bytes + HostPinner::kPage - 1) / HostPinner::kPage *
         HostPinner::kPage;
}

}  // namespace

PinBudget PinBudget::Of(std::int64_t limit) {
  auto count = std::make_shared<std::atomic<std::int64_t>>(0);
  return {[limit] { return limit; }, [count] { return count->load(); },
          [count](std::int64_t bytes) { *count += bytes; }};
}

PinnedSlab::PinnedSlab(const CudaFunctions* cuda, int device, PinBudget budget,
                       std::shared_ptr<void> owner)
    : cuda_(*cuda),
      device_(device),
      budget_(std::move(budget)),
      owner_(std::move(owner)) {}

PinnedSlab::~PinnedSlab() {
  if (segments_.empty()) return;
  const DeviceGuard guard(cuda_, device_);
  // Errors are taken off and otherwise ignored: nothing is left to be told.
  const int code = cuda_.device_synchronize();
  if (code != 0) cuda_.take_last_error();
  if (code == CudaFunctions::kNotReady) {  // somebody copies from it for ever
    Abandon(std::move(owner_));
    return;
  }
  for (const PinnedSegment& each : segments_) {
    if (cuda_.host_unregister(each.begin) != 0) cuda_.take_last_error();
  }
  budget_.add(-bytes());
}

std::int64_t PinnedSlab::bytes() const {
  std::int64_t sum = 0;
  for (const PinnedSegment& each : segments_) sum += each.bytes;
  return sum;
}

HostPinner::HostPinner(const CudaFunctions* cuda, int device, PinBudget budget,
                       std::int64_t cap, std::int64_t segment)
    : cuda_(*cuda),
      device_(device),
      budget_(std::move(budget)),
      cap_(cap),
      segment_(Pages(segment)) {}

// Segments of the usual size, or up to the next border.
std::vector<PinnedSegment> HostPinner::Cut(
    std::byte* data, std::int64_t bytes,
    const std::vector<std::int64_t>& borders) const {
  const std::int64_t size = Pages(bytes);
  std::vector<PinnedSegment> result;
  std::int64_t begin = 0;
  std::int64_t last = 0;  // border before which the segment could end
  const auto end_at = [&](std::int64_t end) {
    if (end - begin > segment_ && last > begin) {
      result.push_back({data + begin, last - begin});
      begin = last;
    }
    last = end;
  };
  for (const std::int64_t border : borders) end_at(border);
  end_at(size);
  if (size > begin) result.push_back({data + begin, size - begin});
  return result;
}

std::string HostPinner::Register(const PinnedSegment& segment) {
  if (segment.bytes > cap_ - pinned()) {
    return absl::StrCat("the cap of ", cap_,
                        " bytes for pinned memory is reached");
  }
  const std::int64_t limit = budget_.limit();
  if (segment.bytes > limit - budget_.used()) {
    return absl::StrCat("the limit of ", limit,
                        " bytes of pinned memory of all models is reached");
  }
  const DeviceGuard guard(cuda_, device_);
  if (!guard.status().ok()) return std::string(guard.status().message());
  const int code = cuda_.host_register(segment.begin,
                                       static_cast<std::size_t>(segment.bytes),
                                       CudaFunctions::kPortable);
  if (code == 0) return "";
  const absl::Status failed = CudaFailure(cuda_, "cudaHostRegister",
                                          /*device=*/-1, segment.bytes, code);
  return std::string(failed.message());
}

std::shared_ptr<const PinnedSlab> HostPinner::Pin(
    void* data, std::int64_t bytes, const std::vector<std::int64_t>& borders,
    std::shared_ptr<void> owner) {
  if (const auto known = slabs_.find(data); known != slabs_.end()) {
    return known->second;
  }
  const auto slab =
      std::make_shared<PinnedSlab>(&cuda_, device_, budget_, std::move(owner));
  slabs_[data] = slab;
  if (reinterpret_cast<std::uintptr_t>(data) % kPage != 0) {
    trouble_ = "the memory does not begin at a page";
    return slab;
  }
  for (const PinnedSegment& each :
       Cut(static_cast<std::byte*>(data), bytes, borders)) {
    std::string why = Register(each);
    if (!why.empty()) {
      trouble_ = std::move(why);
      break;
    }
    slab->segments_.push_back(each);
    budget_.add(each.bytes);
  }
  return slab;
}

void HostPinner::KeepOnly(const std::vector<const void*>& kept) {
  for (auto each = slabs_.begin(); each != slabs_.end();) {
    const bool keep =
        std::find(kept.begin(), kept.end(), each->first) != kept.end();
    each = keep ? std::next(each) : slabs_.erase(each);
  }
}

std::int64_t HostPinner::pinned() const {
  std::int64_t sum = 0;
  for (const auto& [_, slab] : slabs_) sum += slab->bytes();
  return sum;
}

}  // namespace distorch
