// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kSample = 1 << 20;
constexpr std::int64_t kChunk = 1 << 16;

class RouterTest : public testing::Test {
 protected:
  Router Make() {
    return Router(
        fake_.Functions(), [this] { return fake_.seconds(); }, kSample, kChunk);
  }
  auto Calls(const std::string& name) {
    return std::count_if(
        fake_.calls.begin(), fake_.calls.end(),
        [&](const std::string& call) { return call.find(name) == 0; });
  }

  FakeCuda fake_{3};
  CudaFunctions cuda_ = fake_.Functions();
};

TEST_F(RouterTest, TakesThePeerCopyWhereAccessMakesItFast) {
  Router router = Make();
  const auto choice = router.Choose(0, 1);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->way, Way::kPeer);
  EXPECT_TRUE(choice->peer_access);
  EXPECT_NEAR(choice->gbps, 50, 0.1);
  ASSERT_EQ(choice->candidates.size(), 2U);
  EXPECT_EQ(choice->candidates[1].way, Way::kStaged);
  EXPECT_NEAR(choice->candidates[1].gbps, 20. * 16 / 17, 0.1)
      << "20 GB/s, both halves at once but for one of 16 buffers";
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(RouterTest, TakesTheStagedCopyWithoutAccess) {
  fake_.SetPeer(0, 1, false);
  Router router = Make();
  const auto choice = router.Choose(0, 1);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->way, Way::kStaged);
  EXPECT_FALSE(choice->peer_access);
  EXPECT_EQ(choice->candidates[0].way, Way::kDriver);
  fake_.driver_gbps = 15;
  EXPECT_EQ(router.Choose(1, 0)->way, Way::kDriver) << "each direction alone";
}

TEST_F(RouterTest, MeasuresAPairOnceAndGivesTheMemoryBack) {
  Router router = Make();
  const std::size_t memory = fake_.allocations();
  ASSERT_TRUE(router.Choose(0, 1).ok());
  EXPECT_EQ(fake_.allocations(), memory + 2) << "the staging buffers stay";
  const std::size_t calls = fake_.calls.size();
  ASSERT_TRUE(router.Choose(0, 1).ok());
  EXPECT_EQ(fake_.calls.size(), calls);
}

TEST_F(RouterTest, ThreadsWaitForTheOneThatMeasures) {
  Router router = Make();
  std::vector<std::thread> threads;
  std::atomic<int> peers = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const auto choice = router.Choose(0, 1);
      peers += choice.ok() && choice->way == Way::kPeer ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(peers, 4);
  EXPECT_EQ(Calls("cudaMemcpyPeerAsync"), 4) << "a first copy and three timed";
}

TEST_F(RouterTest, WrongBytesRuleAWayOut) {
  fake_.Corrupt(0, 1);
  Router router = Make();
  const auto choice = router.Choose(0, 1);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->way, Way::kStaged);
  EXPECT_EQ(choice->candidates[0].error,
            "wrong bytes arrived on cuda:1 from cuda:0 (1048576 bytes). Switch "
            "the IOMMU off or to pass-through in the firmware.");
}

TEST_F(RouterTest, NoWayListsEveryCandidateWithItsReason) {
  Router router = Make();
  for (int i = 1; i <= 3; ++i) fake_.FailCall("cudaMalloc", i, 2);
  fake_.Corrupt(kHost, 1);
  const auto choice = router.Choose(0, 1);
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kInternal);
  fake_.Corrupt(-2, -2);
  const std::string message(choice.status().message());
  EXPECT_THAT(message, HasSubstr("no way from cuda:0 to cuda:1 works:\n  "
                                 "peer: cudaMalloc of 16384 bytes on cuda:0 "
                                 "failed: cudaErrorMemoryAllocation"));
  EXPECT_THAT(message, HasSubstr("\n  staged: wrong bytes arrived"));
  EXPECT_TRUE(router.Choose(0, 1).ok()) << "a failure is not kept";
}

TEST_F(RouterTest, MeasuresWithLessWhereThereIsNoRoom) {
  Router router = Make();
  fake_.FailCall("cudaMalloc", 1, 2);
  fake_.FailCall("cudaMalloc", 3, 2);  // the second end of the second try
  const auto choice = router.Choose(0, 1);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->way, Way::kPeer);
  EXPECT_EQ(fake_.allocations(), 2U) << "the staging buffers of the other way";
}

TEST_F(RouterTest, CopiesAlsoWhereThereIsNoRoomToMeasure) {
  Router router = Make();
  std::vector<std::byte> pageable(2 * kChunk, std::byte{3});
  void* first = fake_.NewMemory(0, 2 * kChunk);
  void* second = fake_.NewMemory(1, 2 * kChunk);
  const StreamOn on_first{0, fake_.NewStream(0)};
  const StreamOn on_second{1, fake_.NewStream(1)};
  for (int i = 1; i <= 12; ++i) fake_.FailCall("cudaMalloc", i, 2);
  auto way =
      router.Copy({first, 0, pageable.data(), kHost, 2 * kChunk, on_first});
  ASSERT_TRUE(way.ok()) << way.status();
  EXPECT_EQ(*way, Way::kDirect);
  void* written = nullptr;  // work on the other device is not ordered
  {
    const DeviceGuard guard(cuda_, 0);
    cuda_.event_create(&written, CudaFunctions::kDisableTiming);
    cuda_.event_record(written, on_first.handle);
    cuda_.event_synchronize(written);
  }
  way = router.Copy({second, 1, first, 0, 2 * kChunk, on_second});
  ASSERT_TRUE(way.ok()) << way.status();
  EXPECT_EQ(*way, Way::kStaged);
  fake_.RunAll();
  EXPECT_EQ(*static_cast<std::byte*>(second), std::byte{3});
  EXPECT_EQ(router.Choose(0, 1)->way, Way::kPeer) << "measured once there is";
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(RouterTest, AWayThatNeverEndsIsToldAndItsMemoryKept) {
  Router router = Make();
  fake_.Hang(0, 1);
  const auto choice = router.Choose(0, 1);
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(choice.status().message()),
              HasSubstr("cudaStreamSynchronize of 1048576 bytes on cuda:1 did "
                        "not end in 600 s. The device does not answer"));
  EXPECT_LT(fake_.seconds(), 601) << "no second way was tried";
  EXPECT_EQ(fake_.allocations(), 2U) << "both ends of the sample";
  EXPECT_TRUE(router.Choose(2, 0).ok()) << "other pairs are measured";
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(RouterTest, PageableMemoryGoesTheFasterWayPinnedDirectly) {
  Router router = Make();
  void* pinned = fake_.NewMemory(kHost, 2 * kChunk);
  void* device = fake_.NewMemory(0, 2 * kChunk);
  std::vector<std::byte> pageable(2 * kChunk, std::byte{3});
  const StreamOn stream{0, fake_.NewStream(0)};
  ASSERT_TRUE(router.Copy({device, 0, pinned, kHost, 99, stream}).ok());
  ASSERT_TRUE(
      router.Copy({device, 0, pageable.data(), kHost, 99, stream}).ok());
  EXPECT_EQ(Calls("cudaHostAlloc"), 0) << "neither needs a measurement";
  ASSERT_TRUE(
      router.Copy({device, 0, pageable.data(), kHost, 2 * kChunk, stream})
          .ok());
  const auto choice = router.Choose(kHost, 0);
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(choice->candidates[0].way, Way::kDirect);
  EXPECT_EQ(choice->candidates[1].way, Way::kStaged);
  fake_.RunAll();
  EXPECT_EQ(*static_cast<std::byte*>(device), std::byte{3});
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(RouterTest, MeasuresPinnedAndPageableInBothDirections) {
  Router router = Make();
  for (const auto pages : {HostPages::kPinned, HostPages::kPageable}) {
    for (const auto& [from, to] : {std::pair(kHost, 2), {2, kHost}}) {
      const auto gbps =
          router.Measure(from, to, Way::kDirect, pages, kSample, 3);
      ASSERT_TRUE(gbps.ok()) << gbps.status();
      EXPECT_NEAR(*gbps, 20, 0.1);
    }
  }
  EXPECT_EQ(fake_.allocations(), 0U);
  EXPECT_EQ(fake_.handles(), 0U);
  EXPECT_EQ(
      router.Measure(0, 1, Way::kDirect, HostPages::kPinned, 5, 1).status(),
      absl::InvalidArgumentError(
          "direct from cuda:0 to cuda:1, 5 bytes, 1 times cannot be measured"));
}

TEST_F(RouterTest, AWayMeasuredBeforeIsTakenUnmeasured) {
  Router router = Make();
  ASSERT_TRUE(router.Adopt(0, 1, Way::kStaged, 11).ok());
  EXPECT_EQ(router.Choose(0, 1)->way, Way::kStaged);
  fake_.SetPeer(2, 1, false);
  ASSERT_TRUE(router.Adopt(2, 1, Way::kPeer, 50).ok());
  EXPECT_EQ(router.Choose(2, 1)->way, Way::kDriver) << "access is gone";
  EXPECT_EQ(Calls("cudaMemcpy"), 0);
  EXPECT_EQ(
      router.Adopt(0, 1, Way::kDirect, 1),
      absl::InvalidArgumentError("direct is no way from cuda:0 to cuda:1"));
}

}  // namespace
}  // namespace distorch
