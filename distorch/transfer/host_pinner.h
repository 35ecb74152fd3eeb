// SPDX-License-Identifier: Apache-2.0
// Pins host memory that exists, so that copies from it are fast and the host
// does not wait for them: in segments, below a cap, with a way back.
//
//   HostPinner pinner(&cuda, /*device=*/0, budget);
//   auto slab = pinner.Pin(data, bytes, borders, owner);
//   slab->segments()         // what is pinned of it: all, a part, or nothing
//
// CUDA knows a registration by its first address, and refuses a copy that
// crosses the border of two, or that is registered at one end only. So segments
// end only where one tensor ends and the next begins, and whoever copies cuts
// his copies there too (byte_streamer.h does).
//
// A segment is unregistered when nobody owns its slab any more: not the pinner,
// and not one of those that copy from it, who let go of it after their copies
// are done. Before, the device is waited for, as torch copies from the memory
// too; if it does not answer any more, the memory stays as it is for good. What
// cannot be registered stays pageable; that is no error.
#ifndef DISTORCH_TRANSFER_HOST_PINNER_H_
#define DISTORCH_TRANSFER_HOST_PINNER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "distorch/transfer/cuda_api.h"

namespace distorch {

// What all of a process may pin. Ours counts with everybody else's: ComfyUI
// keeps one limit and one count of its own, and gives both here.
struct PinBudget {
  std::function<std::int64_t()> limit;    // bytes
  std::function<std::int64_t()> used;     // bytes, ours included
  std::function<void(std::int64_t)> add;  // ours: more, or less if negative

  // One count for all who are given a copy of it.
  static PinBudget Of(std::int64_t limit);
};

// Some pinned bytes: one registration.
struct PinnedSegment {
  std::byte* begin = nullptr;
  std::int64_t bytes = 0;

  const std::byte* end() const { return begin + bytes; }
};

// The pinned parts of one slab. Any thread may be the last to let go of it.
class PinnedSlab {
 public:
  PinnedSlab(const CudaFunctions* cuda, int device, PinBudget budget,
             std::shared_ptr<void> owner);
  PinnedSlab(const PinnedSlab&) = delete;  // owns the registrations
  PinnedSlab& operator=(const PinnedSlab&) = delete;
  // Waits for the device, unregisters, and lets the memory go.
  ~PinnedSlab();

  // In rising order; neighbours are not joined.
  const std::vector<PinnedSegment>& segments() const { return segments_; }
  std::int64_t bytes() const;

 private:
  friend class HostPinner;

  const CudaFunctions& cuda_;
  const int device_;
  const PinBudget budget_;
  std::shared_ptr<void> owner_;  // of the memory
  std::vector<PinnedSegment> segments_;
};

// The slabs of one model. One thread at a time.
class HostPinner {
 public:
  // A failure costs one segment, and registering small ones one by one costs
  // time.
  static constexpr std::int64_t kSegment = std::int64_t{256} << 20;
  // Of the host. Larger pages of some systems are multiples of it; the driver
  // rounds by itself there.
  static constexpr std::int64_t kPage = 4096;
  static constexpr std::int64_t kNoCap =
      std::numeric_limits<std::int64_t>::max();

  // `cuda` outlives it and its slabs; `device` is the one whose copies are to
  // be fast (the memory is pinned for all). `cap`: bytes of this pinner alone.
  HostPinner(const CudaFunctions* cuda, int device, PinBudget budget,
             std::int64_t cap = kNoCap, std::int64_t segment = kSegment);

  HostPinner(const HostPinner&) = delete;  // one count
  HostPinner& operator=(const HostPinner&) = delete;
  ~HostPinner() = default;

  // Pins `bytes` from `data` on as far as it goes; the same slab again for the
  // same `data`. The memory is owned to the end of the last page.
  // `borders`: bytes from `data` on, rising multiples of a page, where a
  // segment may end besides the end. `owner` keeps the memory alive while it is
  // pinned. Memory that begins inside a page is not pinned.
  std::shared_ptr<const PinnedSlab> Pin(
      void* data, std::int64_t bytes, const std::vector<std::int64_t>& borders,
      std::shared_ptr<void> owner);

  // Lets go of all slabs but those that begin at these addresses.
  void KeepOnly(const std::vector<const void*>& kept);

  // Bytes that are pinned now.
  std::int64_t pinned() const;
  // Why something stayed pageable; empty when nothing did.
  const std::string& trouble() const { return trouble_; }

 private:
  std::vector<PinnedSegment> Cut(
      std::byte* data, std::int64_t bytes,
      const std::vector<std::int64_t>& borders) const;
  // Empty, or why the segment stays pageable.
  std::string Register(const PinnedSegment& segment);

  const CudaFunctions& cuda_;
  const int device_;
  const PinBudget budget_;
  const std::int64_t cap_;
  const std::int64_t segment_;
  std::map<const void*, std::shared_ptr<const PinnedSlab>> slabs_;
  std::string trouble_;
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_HOST_PINNER_H_
