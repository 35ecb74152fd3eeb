// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/fake_cuda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "distorch/transfer/transfer.h"

namespace distorch {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::size_t kBytes = 256;

class FakeCudaTest : public testing::Test {
 protected:
  FakeCudaTest() { cuda_.context_push(reinterpret_cast<void*>(1)); }
  ~FakeCudaTest() override {
    void* popped = nullptr;
    cuda_.context_pop(&popped);
  }
  int Copy(void* to, const void* from, std::size_t bytes, void* stream) {
    return cuda_.copy(to, from, bytes, CudaFunctions::kMemcpyDefault, stream);
  }
  void* Event() {
    void* event = nullptr;
    EXPECT_EQ(cuda_.event_create(&event, CudaFunctions::kDisableTiming), 0);
    return event;
  }
  static std::vector<std::byte> Bytes(const void* data, std::size_t bytes) {
    const auto* first = static_cast<const std::byte*>(data);
    return {first, first + bytes};
  }

  FakeCuda fake_{2};
  CudaFunctions cuda_ = fake_.Functions();
  void* a_ = fake_.NewStream(0);
  void* b_ = fake_.NewStream(0);
  void* device_ = fake_.NewMemory(0, kBytes);
  void* pinned_ = fake_.NewMemory(kHost, kBytes);
};

TEST_F(FakeCudaTest, WorkIsLateUntilSomebodyWaits) {
  std::memset(pinned_, 7, kBytes);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  EXPECT_THAT(Bytes(device_, kBytes), Each(MemoryRanges::kUnwritten));
  ASSERT_EQ(cuda_.stream_synchronize(b_), 0);
  EXPECT_THAT(Bytes(device_, kBytes), Each(MemoryRanges::kUnwritten));
  ASSERT_EQ(cuda_.stream_synchronize(a_), 0);
  EXPECT_THAT(Bytes(device_, kBytes), Each(std::byte{7}));
  fake_.HostAccess(pinned_, kBytes, true);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(FakeCudaTest, WhatIsPoppedIsTheContextThatWasPushed) {
  void* context = nullptr;
  ASSERT_EQ(cuda_.context_retain(&context, 2), 0);
  ASSERT_EQ(cuda_.context_push(context), 0);
  void* popped = nullptr;
  ASSERT_EQ(cuda_.context_pop(&popped), 0);
  EXPECT_EQ(popped, context);
}

TEST_F(FakeCudaTest, TellsOfCopiesThatNoEventOrders) {
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  ASSERT_EQ(Copy(device_, pinned_, 10, b_), 0);
  ASSERT_EQ(fake_.violations.size(), 1U);
  EXPECT_EQ(fake_.violations[0],
            "copy #2 of stream 2 writes 10 bytes that copy #1 of stream 1 "
            "writes: nothing orders them");
}

TEST_F(FakeCudaTest, AnEventOrdersWhatWasBeforeItsRecord) {
  void* event = Event();
  ASSERT_EQ(cuda_.stream_wait(b_, event, 0), 0) << "never recorded: no wait";
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  ASSERT_EQ(cuda_.event_record(event, a_), 0);
  ASSERT_EQ(cuda_.stream_wait(b_, event, 0), 0);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, b_), 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0) << "b's is not before it";
  EXPECT_EQ(fake_.violations.size(), 1U);
}

TEST_F(FakeCudaTest, AWaitMeansTheRecordThatWasLastThen) {
  void* event = Event();
  ASSERT_EQ(cuda_.event_record(event, a_), 0);
  ASSERT_EQ(cuda_.stream_wait(b_, event, 0), 0);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  ASSERT_EQ(cuda_.event_record(event, a_), 0);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, b_), 0);
  EXPECT_EQ(fake_.violations.size(), 1U);
}

TEST_F(FakeCudaTest, TheHostRacesWithWhatItDidNotWaitFor) {
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  fake_.HostAccess(pinned_, kBytes, false);
  EXPECT_THAT(fake_.violations, IsEmpty()) << "both read";
  fake_.HostAccess(pinned_, 1, true);
  EXPECT_EQ(fake_.violations.size(), 1U);
}

TEST_F(FakeCudaTest, KernelsAreOrderedAsCopiesAre) {
  int ran = 0;
  fake_.Launch(a_, 1, {{device_, 10, true}}, [&] { ran = 1; });
  fake_.Launch(b_, 1, {{device_, 10, false}}, [&] { ran = 2; });
  EXPECT_EQ(ran, 0);
  EXPECT_EQ(fake_.violations,
            std::vector<std::string>{
                "kernel #2 of stream 2 reads 10 bytes that kernel #1 of stream "
                "1 writes: nothing orders them"});
  fake_.RunAll();
  EXPECT_NE(ran, 0);
}

TEST_F(FakeCudaTest, BlockingStreamsAndTheDefaultStreamWaitForEachOther) {
  void* blocking = nullptr;
  ASSERT_EQ(cuda_.stream_create(&blocking, 0), 0);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, blocking), 0);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, nullptr), 0);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, blocking), 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0) << "made non-blocking";
  EXPECT_EQ(fake_.violations.size(), 1U);
}

TEST_F(FakeCudaTest, ACopyAcrossTwoRegistrationsIsRefused) {
  std::vector<std::byte> host(kBytes);
  ASSERT_EQ(cuda_.host_register(host.data(), 100, CudaFunctions::kPortable), 0);
  EXPECT_EQ(cuda_.host_register(host.data() + 99, 50, 1), 712) << "overlaps";
  ASSERT_EQ(cuda_.host_register(host.data() + 100, 100, 1), 0);
  EXPECT_EQ(Copy(device_, host.data() + 100, 100, a_), 0);
  EXPECT_EQ(Copy(device_, host.data() + 50, 100, a_), 1);
  EXPECT_EQ(Copy(device_, host.data() + 150, 60, a_), 1);
  EXPECT_EQ(cuda_.host_unregister(host.data() + 1), 713);
  EXPECT_EQ(cuda_.host_unregister(host.data()), 0);
  EXPECT_EQ(Copy(device_, host.data() + 50, 60, a_), 1);
  EXPECT_THAT(fake_.violations,
              ElementsAre("a copy's source runs over the end of a registration "
                          "by 50 bytes",
                          "a copy's source runs over the end of a registration "
                          "by 10 bytes",
                          "memory given back that was not taken",
                          "a copy's source is registered at one end only"));
  EXPECT_EQ(fake_.last_error(), 1);
  EXPECT_EQ(cuda_.take_last_error(), 1);
  EXPECT_EQ(fake_.last_error(), 0);
  fake_.RunAll();
}

TEST_F(FakeCudaTest, UnregisteringUnderACopyIsTold) {
  std::vector<std::byte> host(kBytes);
  ASSERT_EQ(cuda_.host_register(host.data(), kBytes, 1), 0);
  ASSERT_EQ(Copy(device_, host.data(), kBytes, a_), 0);
  ASSERT_EQ(cuda_.host_unregister(host.data()), 0);
  EXPECT_THAT(fake_.violations,
              ElementsAre("free #2 of the host writes 256 bytes that copy #1 "
                          "of stream 1 reads: nothing orders them"));
}

TEST_F(FakeCudaTest, MemoryThatWasGivenBackIsRefusedAndPoisoned) {
  void* gone = fake_.NewMemory(0, kBytes);
  ASSERT_EQ(cuda_.free(gone), 0);
  EXPECT_EQ(Copy(gone, pinned_, kBytes, a_), 1);
  EXPECT_EQ(cuda_.free(gone), 1);
  EXPECT_THAT(fake_.violations,
              ElementsAre("a copy's target was given back",
                          "memory given back that was not taken"));
  EXPECT_THAT(Bytes(gone, kBytes), Each(MemoryRanges::kFreed));
}

TEST_F(FakeCudaTest, APoolTakesMemoryBackBehindItsStreamOnly) {
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  void* event = Event();
  ASSERT_EQ(cuda_.event_record(event, a_), 0);
  void* other = fake_.NewMemory(0, kBytes);
  ASSERT_EQ(Copy(other, pinned_, kBytes, a_), 0);
  ASSERT_EQ(cuda_.stream_wait(b_, event, 0), 0);
  fake_.ReturnToPool(device_, b_);
  EXPECT_THAT(fake_.violations, IsEmpty());
  fake_.ReturnToPool(other, b_);
  EXPECT_EQ(fake_.violations.size(), 1U);
  fake_.RunAll();
  EXPECT_THAT(Bytes(device_, kBytes), Each(MemoryRanges::kFreed));
}

TEST_F(FakeCudaTest, PeersAndPoolsHaveToBeOpened) {
  void* there = fake_.NewMemory(1, kBytes);
  EXPECT_EQ(Copy(device_, there, kBytes, a_), 705);
  EXPECT_EQ(cuda_.copy_peer(device_, 0, there, 1, kBytes, a_), 0)
      << "the driver stages it";
  EXPECT_EQ(cuda_.copy_peer(device_, 0, there, 0, kBytes, a_), 1);
  void* pool = fake_.NewPoolMemory(1, kBytes);
  EXPECT_EQ(cuda_.copy_peer(device_, 0, pool, 1, kBytes, a_), 1);
  fake_.OpenPool(1, 0);
  EXPECT_EQ(cuda_.copy_peer(device_, 0, pool, 1, kBytes, a_), 0);
  EXPECT_THAT(fake_.violations,
              ElementsAre("access from cuda:1 to cuda:0 was not opened",
                          "a peer copy of another device's memory",
                          "a pool of cuda:1 or cuda:0 was not opened to the "
                          "other"));
}

TEST_F(FakeCudaTest, HandlesThatWereDestroyedAreRefused) {
  void* event = Event();
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  ASSERT_EQ(cuda_.event_record(event, a_), 0);
  ASSERT_EQ(cuda_.stream_destroy(a_), 0);
  EXPECT_EQ(Copy(device_, pinned_, kBytes, a_), 400);
  EXPECT_EQ(cuda_.stream_destroy(a_), 400);
  ASSERT_EQ(cuda_.event_synchronize(event), 0) << "its work is still done";
  ASSERT_EQ(cuda_.event_destroy(event), 0);
  EXPECT_EQ(cuda_.event_record(event, b_), 400);
  EXPECT_EQ(cuda_.event_destroy(event), 400);
  EXPECT_EQ(fake_.violations.size(), 4U);
  EXPECT_EQ(fake_.handles(), 1U) << "b";
}

TEST_F(FakeCudaTest, StreamsAndEventsBelongToADevice) {
  void* there = fake_.NewStream(1);
  EXPECT_EQ(cuda_.event_record(Event(), there), 400);
  EXPECT_THAT(fake_.violations,
              ElementsAre("a stream of cuda:1 under cuda:0",
                          "an event recorded on another device"));
}

TEST_F(FakeCudaTest, APageableSourceMayChangeOnReturn) {
  std::vector<std::byte> host(kBytes, std::byte{1});
  ASSERT_EQ(Copy(device_, host.data(), kBytes, a_), 0);
  std::fill(host.begin(), host.end(), std::byte{2});
  ASSERT_EQ(Copy(host.data(), device_, kBytes, a_), 0);
  EXPECT_THAT(host, Each(std::byte{1}));
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(FakeCudaTest, TimeIsThatOfLinksStreamsAndEvents) {
  fake_.clock().keeps_timeline = true;
  fake_.clock().SetLink({kHost, 0}, 256.0 / (1 << 30));  // a second
  void* event = Event();
  void* begin = Event();
  ASSERT_EQ(cuda_.event_record(begin, b_), 0);
  ASSERT_EQ(Copy(device_, pinned_, kBytes, a_), 0);
  ASSERT_EQ(cuda_.event_record(event, a_), 0);
  ASSERT_EQ(cuda_.stream_wait(b_, event, 0), 0);
  fake_.Launch(b_, 0.5, {{device_, kBytes, false}}, {}, "layer");
  ASSERT_EQ(cuda_.event_record(event, b_), 0);
  float milliseconds = 0;
  EXPECT_EQ(cuda_.event_elapsed(&milliseconds, begin, event), 600);
  EXPECT_DOUBLE_EQ(fake_.seconds(), 0) << "the host did not wait";
  ASSERT_EQ(cuda_.event_synchronize(event), 0);
  EXPECT_DOUBLE_EQ(fake_.seconds(), 1.5);
  ASSERT_EQ(cuda_.event_elapsed(&milliseconds, begin, event), 0);
  EXPECT_FLOAT_EQ(milliseconds, 1500);
  ASSERT_EQ(fake_.clock().timeline.size(), 2U);
  EXPECT_EQ(fake_.clock().timeline[0].label, "cpu to cuda:0");
  EXPECT_EQ(fake_.clock().timeline[1].label, "layer");
  EXPECT_DOUBLE_EQ(fake_.clock().timeline[1].begin, 1);
}

TEST_F(FakeCudaTest, OnlyDevicesThatAreUsedGetAContext) {
  EXPECT_EQ(fake_.NewMemory(1, 1) == nullptr, false);
  EXPECT_THAT(fake_.contexts(), IsEmpty());
  Event();
  EXPECT_THAT(fake_.contexts(), ElementsAre(0));
}

TEST(FakeCudaSeedsTest, SomeSeedsAreEagerMostAreLate) {
  int late = 0;
  for (std::uint32_t seed = 0; seed < 80; ++seed) {
    FakeCuda fake(1, seed);
    bool ran = false;
    fake.Launch(fake.NewStream(0), 0, {}, [&] { ran = true; });
    late += ran ? 0 : 1;
  }
  EXPECT_GE(late, 60);
  EXPECT_LE(late, 70);
}

TEST(FakeCudaSeedsTest, AMissingWaitIsToldWithEverySeedAndGivesWrongBytes) {
  int wrong = 0;
  for (std::uint32_t seed = 1; seed <= 50; ++seed) {
    FakeCuda fake(2, seed);
    CudaFunctions cuda = fake.Functions();
    cuda.stream_wait = [](void*, void*, unsigned) { return 0; };
    StagedTransfer staged(&cuda, 64);
    auto* source = static_cast<std::byte*>(fake.NewMemory(0, 500));
    auto* target = static_cast<std::byte*>(fake.NewMemory(1, 500));
    std::memset(source, 1, 500);
    ASSERT_TRUE(
        staged.Copy({target, 1, source, 0, 500, {1, fake.NewStream(1)}}).ok());
    fake.RunAll();
    EXPECT_FALSE(fake.violations.empty()) << seed;
    wrong += std::memcmp(source, target, 500) != 0 ? 1 : 0;
  }
  EXPECT_GE(wrong, 15);
}

}  // namespace
}  // namespace distorch
