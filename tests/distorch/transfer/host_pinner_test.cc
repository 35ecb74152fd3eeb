// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/host_pinner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "distorch/transfer/transfer.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kPage = HostPinner::kPage;

class HostPinnerTest : public testing::Test {
 protected:
  HostPinner Make(std::int64_t limit, std::int64_t cap = HostPinner::kNoCap,
                  std::int64_t segment = 4 * kPage) {
    budget_ = PinBudget::Of(limit);
    return HostPinner(&cuda_, 0, budget_, cap, segment);
  }
  // Memory of whole pages; `freed` tells when its last owner lets go.
  std::shared_ptr<void> Pages(std::int64_t pages) {
    const auto size = static_cast<std::size_t>(pages * kPage);
    auto memory = AlignedMemory(kPage, size);
    return {memory.get(), [this, memory](void*) { ++freed_; }};
  }
  // Begins and ends of a slab's segments, in pages.
  static std::vector<std::pair<int, int>> Parts(const PinnedSlab& slab,
                                                const void* data) {
    std::vector<std::pair<int, int>> parts;
    for (const PinnedSegment& each : slab.segments()) {
      const auto begin = each.begin - static_cast<const std::byte*>(data);
      parts.emplace_back(begin / kPage, (begin + each.bytes) / kPage);
    }
    return parts;
  }

  FakeCuda fake_{2};
  CudaFunctions cuda_ = fake_.Functions();
  PinBudget budget_;
  int freed_ = 0;
};

TEST_F(HostPinnerTest, WhatADeviceReadsForEverStaysPinned) {
  HostPinner pinner = Make(100 * kPage);
  auto memory = Pages(2);
  pinner.Pin(memory.get(), 2 * kPage, {}, memory);
  fake_.Hang(kHost, 0);
  const CopyRequest copy{fake_.NewMemory(0, 8),  0, memory.get(), kHost, 8,
                         {0, fake_.NewStream(0)}};
  ASSERT_TRUE(DirectTransfer(&cuda_).Copy(copy).ok());
  memory.reset();
  pinner.KeepOnly({});
  EXPECT_EQ(fake_.registrations(), 1U);
  EXPECT_EQ(freed_, 0);
  EXPECT_EQ(budget_.used(), 2 * kPage) << "it is still pinned";
  EXPECT_LT(fake_.seconds(), 601);
  EXPECT_EQ(fake_.last_error(), 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(HostPinnerTest, SegmentsEndWhereATensorEnds) {
  HostPinner pinner = Make(100 * kPage);
  auto memory = Pages(12);
  const auto slab =
      pinner.Pin(memory.get(), 11 * kPage + 5,
                 {2 * kPage, 3 * kPage, 6 * kPage, 7 * kPage}, memory);
  EXPECT_THAT(Parts(*slab, memory.get()),
              ElementsAre(std::pair(0, 3), std::pair(3, 7), std::pair(7, 12)));
  EXPECT_EQ(pinner.pinned(), 12 * kPage);
  EXPECT_EQ(budget_.used(), 12 * kPage);
  EXPECT_EQ(pinner.trouble(), "");
  EXPECT_EQ(pinner.Pin(memory.get(), 11 * kPage + 5, {}, memory), slab);
  EXPECT_THAT(fake_.contexts(), ElementsAre(0));
}

TEST_F(HostPinnerTest, ATensorLargerThanASegmentIsOne) {
  HostPinner pinner = Make(100 * kPage);
  auto memory = Pages(20);
  const auto slab = pinner.Pin(memory.get(), 20 * kPage, {9 * kPage}, memory);
  EXPECT_THAT(Parts(*slab, memory.get()),
              ElementsAre(std::pair(0, 9), std::pair(9, 20)));
}

TEST_F(HostPinnerTest, StopsAtTheCapAndAtTheLimitOfAll) {
  HostPinner pinner = Make(11 * kPage, /*cap=*/6 * kPage);
  auto memory = Pages(12);
  const std::vector<std::int64_t> borders = {4 * kPage, 8 * kPage};
  const auto slab = pinner.Pin(memory.get(), 12 * kPage, borders, memory);
  EXPECT_THAT(Parts(*slab, memory.get()), ElementsAre(std::pair(0, 4)));
  EXPECT_EQ(pinner.trouble(),
            "the cap of 24576 bytes for pinned memory is reached");
  HostPinner other(&cuda_, 0, budget_, HostPinner::kNoCap, 4 * kPage);
  auto more = Pages(12);
  const auto second = other.Pin(more.get(), 12 * kPage, borders, more);
  EXPECT_THAT(Parts(*second, more.get()), ElementsAre(std::pair(0, 4)));
  EXPECT_EQ(other.trouble(),
            "the limit of 45056 bytes of pinned memory of all models is "
            "reached");
}

TEST_F(HostPinnerTest, OursCountsWithEverybodyElses) {
  std::int64_t total = 5 * kPage;  // as ComfyUI has pinned already
  const PinBudget shared{[] { return 12 * kPage; }, [&] { return total; },
                         [&](std::int64_t bytes) { total += bytes; }};
  HostPinner pinner(&cuda_, 0, shared, HostPinner::kNoCap, 4 * kPage);
  auto memory = Pages(8);
  pinner.Pin(memory.get(), 8 * kPage, {4 * kPage}, memory);
  EXPECT_EQ(total, 9 * kPage);
  total += 2 * kPage;  // ComfyUI's own
  pinner.KeepOnly({});
  EXPECT_EQ(total, 7 * kPage);
}

TEST_F(HostPinnerTest, AFailureLeavesTheRestPageableAndTakesTheErrorOff) {
  HostPinner pinner = Make(100 * kPage);
  auto memory = Pages(12);
  fake_.FailCall("cudaHostRegister", 2, 2);
  const auto slab =
      pinner.Pin(memory.get(), 12 * kPage, {4 * kPage, 8 * kPage}, memory);
  EXPECT_THAT(Parts(*slab, memory.get()), ElementsAre(std::pair(0, 4)));
  EXPECT_THAT(pinner.trouble(),
              HasSubstr("cudaHostRegister of 16384 bytes on cpu failed: "
                        "cudaErrorMemoryAllocation"));
  EXPECT_EQ(fake_.last_error(), 0);
  EXPECT_EQ(budget_.used(), 4 * kPage);
}

TEST_F(HostPinnerTest, MemoryThatBeginsInsideAPageIsLeftAlone) {
  HostPinner pinner = Make(100 * kPage);
  auto memory = Pages(2);
  auto* inside = static_cast<std::byte*>(memory.get()) + 64;
  EXPECT_THAT(pinner.Pin(inside, 100, {}, memory)->segments(), IsEmpty());
  EXPECT_EQ(pinner.trouble(), "the memory does not begin at a page");
}

TEST_F(HostPinnerTest, WhoCopiesFromASlabKeepsItPinned) {
  HostPinner pinner = Make(100 * kPage);
  auto memory = Pages(4);
  void* const data = memory.get();
  auto slab = pinner.Pin(data, 4 * kPage, {}, std::move(memory));
  pinner.KeepOnly({});
  EXPECT_EQ(freed_, 0);
  EXPECT_EQ(fake_.allocations(), 1U) << "registered";
  slab.reset();
  EXPECT_EQ(fake_.allocations(), 0U);
  EXPECT_EQ(freed_, 1);
  EXPECT_EQ(budget_.used(), 0);
}

TEST_F(HostPinnerTest, UnregisteringWaitsForCopiesOfAnybody) {
  HostPinner pinner = Make(100 * kPage);
  auto kept = Pages(1);
  auto gone = Pages(1);
  pinner.Pin(kept.get(), kPage, {}, kept);
  void* const data = gone.get();
  pinner.Pin(data, kPage, {}, std::move(gone));
  {
    const DeviceGuard guard(cuda_, 0);  // torch copies a tensor of it
    ASSERT_EQ(cuda_.copy(fake_.NewMemory(0, kPage), data, kPage,
                         CudaFunctions::kMemcpyDefault, fake_.NewStream(0)),
              0);
  }
  pinner.KeepOnly({kept.get()});
  EXPECT_EQ(freed_, 1);
  EXPECT_EQ(pinner.pinned(), kPage);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

}  // namespace
}  // namespace distorch
