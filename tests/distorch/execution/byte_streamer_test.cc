// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/byte_streamer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/aligned_memory.h"
#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr std::int64_t kBytes = 1024;
constexpr std::int64_t kPage = HostPinner::kPage;

class ByteStreamerTest : public testing::Test {
 protected:
  ByteStreamerTest() {
    for (int i = 0; i < 2; ++i) slots_.push_back(fake_.NewMemory(0, kSlot));
    EXPECT_TRUE(router_.Adopt(1, 0, Way::kPeer, 50).ok());
  }

  // A group whose bytes are all `value`, on a device or in pinned memory.
  ByteGroup Group(int device, unsigned char value,
                  std::int64_t bytes = kBytes) {
    void* data = fake_.NewMemory(device, static_cast<std::size_t>(bytes));
    std::memset(data, value, static_cast<std::size_t>(bytes));
    BytePart part{data, device, 0, bytes, nullptr};
    if (device == kHost) part.pinned = WholeSlab(data, bytes);
    ByteGroup group;
    group.parts.push_back(std::move(part));
    return group;
  }
  // Says of memory that is pinned already that it is.
  std::shared_ptr<const PinnedSlab> WholeSlab(void* data, std::int64_t bytes);

  std::unique_ptr<ByteStreamer> Make(std::vector<ByteGroup> groups) {
    ByteStreamer::Options options{&cuda_, &router_, 0, slots_, kBytes};
    auto made =
        ByteStreamer::Make(std::move(options), std::move(groups), compute_);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }
  // One step over the groups, whose bytes have these values.
  void Step(ByteStreamer& streamer, const std::vector<unsigned char>& values,
            double seconds = 0, std::int64_t bytes = kBytes) {
    streamer.BeginStep();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto slot = streamer.Enter(static_cast<int>(i), compute_);
      ASSERT_TRUE(slot.ok()) << slot.status();
      Compute(*slot, values[i], seconds, bytes);
      ASSERT_TRUE(streamer.Leave(static_cast<int>(i), compute_).ok());
    }
  }
  void Compute(int slot, unsigned char value, double seconds,
               std::int64_t bytes) {
    const auto* data =
        static_cast<const unsigned char*>(slots_[static_cast<size_t>(slot)]);
    const auto size = static_cast<std::size_t>(bytes);
    fake_.Launch(compute_, seconds, {{data, size, false}}, [=, this] {
      for (std::size_t i = 0; i < size; ++i) wrong_ += data[i] != value;
    });
  }
  double Seconds() {  // of the host, after all computing
    const DeviceGuard guard(cuda_, 0);
    cuda_.stream_synchronize(compute_);
    return fake_.seconds();
  }

  static constexpr std::size_t kSlot = 4 * kPage;
  FakeCuda fake_{3};
  CudaFunctions cuda_ = fake_.Functions();
  Router router_{cuda_, [this] { return fake_.seconds(); }, kBytes, kBytes};
  void* compute_ = fake_.NewStream(0);
  std::vector<void*> slots_;
  std::unique_ptr<HostPinner> pinner_;
  int wrong_ = 0;
};

// The double knows memory of cudaHostAlloc as pinned; the streamer is told by a
// slab whose registrations it does not make: there is none to cut at.
std::shared_ptr<const PinnedSlab> ByteStreamerTest::WholeSlab(
    void* data, std::int64_t bytes) {
  static CudaFunctions none = [] {
    CudaFunctions f;
    f.driver_device = [](int*, int) { return 0; };
    f.context_retain = [](void**, int) { return 0; };
    f.context_push = [](void*) { return 0; };
    f.context_pop = [](void**) { return 0; };
    f.device_synchronize = [] { return 0; };
    f.host_register = [](void*, std::size_t, unsigned) { return 0; };
    f.host_unregister = [](void*) { return 0; };
    return f;
  }();
  HostPinner pinner(&none, 0, PinBudget::Of(1 << 30));
  auto* first = static_cast<std::byte*>(data);
  const auto inside = reinterpret_cast<std::uintptr_t>(data) % kPage;
  return pinner.Pin(first - inside, bytes + static_cast<std::int64_t>(inside),
                    {}, nullptr);
}

TEST_F(ByteStreamerTest, NeedsGroupsSlotsAndForDonorsARouter) {
  ByteStreamer::Options options{&cuda_, nullptr, 0, slots_, kBytes};
  EXPECT_EQ(
      ByteStreamer::Make(options, {}, compute_).status(),
      absl::InvalidArgumentError("at least one group and one slot are needed"));
  EXPECT_EQ(ByteStreamer::Make(options, {Group(1, 1)}, compute_).status(),
            absl::InvalidArgumentError("copies from cuda:1 need a router"));
  EXPECT_EQ(fake_.handles(), 1U) << "the test's stream";
}

TEST_F(ByteStreamerTest, EveryStepGivesTheRightBytesAndLearnsTheOrder) {
  auto streamer =
      Make({Group(kHost, 1), Group(1, 2), Group(kHost, 3), Group(2, 4)});
  for (int i = 0; i < 3; ++i) Step(*streamer, {1, 2, 3, 4});
  streamer->BeginStep();
  EXPECT_THAT(streamer->order(), ElementsAre(0, 1, 2, 3));
  EXPECT_GE(streamer->counters().ahead, 7);
  EXPECT_EQ(streamer->bytes_copied(), streamer->counters().copies * kBytes);
  streamer.reset();
  fake_.RunAll();
  EXPECT_EQ(wrong_, 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(ByteStreamerTest, InAStepTheHostNeitherWaitsNorTakesMemory) {
  auto streamer = Make({Group(kHost, 1), Group(1, 2), Group(kHost, 3)});
  Step(*streamer, {1, 2, 3});
  fake_.calls.clear();
  Step(*streamer, {1, 2, 3});
  std::set<std::string> names;
  for (const std::string& call : fake_.calls) {
    names.insert(call.substr(0, call.find(' ')));
  }
  EXPECT_THAT(names, ElementsAre("cudaEventRecord", "cudaMemcpyAsync",
                                 "cudaMemcpyPeerAsync", "cudaStreamWaitEvent"));
}

// Rule 1: a copy never crosses the border of two registrations.
TEST_F(ByteStreamerTest, CopiesAreCutWhereRegistrationsEnd) {
  HostPinner pinner(&cuda_, 0, PinBudget::Of(3 * kPage), HostPinner::kNoCap,
                    kPage);
  const std::shared_ptr<void> memory = AlignedMemory(kPage, 4 * kPage);
  std::memset(memory.get(), 5, 4 * kPage);
  auto slab = pinner.Pin(memory.get(), 4 * kPage, {kPage, 2 * kPage, 3 * kPage},
                         memory);
  ASSERT_EQ(slab->segments().size(), 3U) << "the fourth is beyond the limit";
  auto* first = static_cast<std::byte*>(memory.get());
  ByteGroup all;
  all.parts.push_back({first + 512, kHost, 0, 4 * kPage - 512, slab});
  ByteGroup middle;
  middle.parts.push_back({first + kPage, kHost, 0, 2 * kPage, slab});
  auto streamer = Make({std::move(all), std::move(middle)});
  EXPECT_EQ(streamer->copies(0), 4U);
  EXPECT_EQ(streamer->copies(1), 2U);
  Step(*streamer, {5, 5}, 0, 2 * kPage);
  streamer.reset();
  EXPECT_EQ(wrong_, 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

// Rule 2: memory is given back after the copies, also when a model just dies.
TEST_F(ByteStreamerTest, WhenItDiesSlotsAndSourcesMayGoAtOnce) {
  HostPinner pinner(&cuda_, 0, PinBudget::Of(8 * kPage));
  std::shared_ptr<void> memory = AlignedMemory(kPage, 4 * kPage);
  ByteGroup group;
  group.parts.push_back({memory.get(), kHost, 0, 4 * kPage,
                         pinner.Pin(memory.get(), 4 * kPage, {}, memory)});
  memory.reset();
  pinner.KeepOnly({});
  auto streamer = Make({std::move(group), Group(1, 2), Group(1, 3)});
  ASSERT_TRUE(streamer->Enter(0, compute_).ok());  // and never left
  Compute(0, 0, 1, 4 * kPage);
  streamer.reset();
  for (void* slot : slots_) fake_.ReturnToPool(slot, fake_.NewStream(0));
  EXPECT_EQ(fake_.registrations(), 0U);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

// Rule 4: a copy waits for nothing that the donor computes, and one Reset does.
TEST_F(ByteStreamerTest, DonorsGoOnComputingBesideTheCopies) {
  auto streamer = Make({Group(1, 2), Group(1, 2)});
  void* donor = fake_.NewStream(1);
  fake_.Launch(donor, 100, {});
  Step(*streamer, {2, 2}, 1);
  EXPECT_LT(Seconds(), 3);
  streamer->Reset();
  EXPECT_GE(fake_.seconds(), 100);
}

// Rule 7: errors come from the call itself, are taken off, and no device that
// nobody uses gets a context.
TEST_F(ByteStreamerTest, EveryFailingCallIsToldAndAfterResetAllIsWell) {
  const char* const names[] = {"cudaMemcpyAsync", "cudaMemcpyPeerAsync",
                               "cudaEventRecord", "cudaStreamWaitEvent"};
  int failed = 0;
  for (const char* name : names) {
    for (int nth = 1; nth < 30; ++nth) {
      auto streamer = Make({Group(kHost, 1), Group(1, 2), Group(kHost, 3)});
      Step(*streamer, {1, 2, 3});
      fake_.FailCall(name, nth, 1);
      streamer->BeginStep();
      for (int group = 0; group < 3; ++group) {
        absl::Status told = streamer->Enter(group, compute_).status();
        if (told.ok()) told = streamer->Leave(group, compute_);
        if (told.ok()) continue;
        ++failed;
        EXPECT_EQ(told.code(), absl::StatusCode::kInternal);
        EXPECT_THAT(std::string(told.message()),
                    HasSubstr("cudaErrorInvalidValue (as told by the test)"));
        streamer->Reset();
        break;
      }
      fake_.FailNoMore();
      EXPECT_EQ(fake_.last_error(), 0) << name << " " << nth;
      Step(*streamer, {1, 2, 3});
    }
  }
  fake_.RunAll();
  EXPECT_GE(failed, 8) << "the rest failed ahead of use and was tried again";
  EXPECT_EQ(wrong_, 0);
  EXPECT_THAT(fake_.contexts(), ElementsAre(0, 1)) << "not 2";
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(ByteStreamerTest, FailuresWhileItIsMadeLeaveNothingBehind) {
  const std::size_t memory = fake_.allocations() + 2;
  std::vector<std::byte> pageable(kBytes);
  for (const char* name :
       {"cudaStreamCreateWithFlags", "cudaEventCreate", "cudaEventRecord"}) {
    for (int nth = 1; nth <= 2; ++nth) {
      fake_.FailCall(name, nth, 1);
      ByteStreamer::Options options{&cuda_, &router_, 0, slots_, kBytes};
      std::vector<ByteGroup> groups(2);
      groups[0].parts.push_back({pageable.data(), kHost, 0, kBytes, nullptr});
      groups[1].parts.push_back({slots_[0], 0, 0, kBytes, nullptr});
      EXPECT_EQ(ByteStreamer::Make(options, std::move(groups), compute_)
                    .status()
                    .code(),
                absl::StatusCode::kInternal)
          << name << nth;
    }
  }
  EXPECT_EQ(fake_.handles(), 1U);
  EXPECT_LE(fake_.allocations(), memory);
}

TEST_F(ByteStreamerTest, PageableMemoryComesThroughPinnedBuffers) {
  std::vector<std::byte> host(3 * kPage, std::byte{9});
  for (const bool staged : {true, false}) {
    ByteGroup group;
    group.parts.push_back({host.data(), kHost, 0, 3 * kPage, nullptr});
    if (!staged) fake_.FailCall("cudaHostAlloc", 1, 2);
    auto streamer = Make({std::move(group), Group(kHost, 2)});
    fake_.calls.clear();
    for (int i = 0; i < 3; ++i) {
      streamer->BeginStep();
      const auto slot = streamer->Enter(0, compute_);
      ASSERT_TRUE(slot.ok()) << slot.status();
      Compute(*slot, 9, 0, 3 * kPage);
      ASSERT_TRUE(streamer->Leave(0, compute_).ok());
      const auto other = streamer->Enter(1, compute_);
      ASSERT_TRUE(other.ok()) << other.status();
      Compute(*other, 2, 0, kBytes);
      ASSERT_TRUE(streamer->Leave(1, compute_).ok());
    }
    EXPECT_EQ(streamer->trouble() == "", staged) << streamer->trouble();
    EXPECT_THAT(fake_.calls, Not(Contains("cudaHostAlloc cuda:0")));
  }
  EXPECT_EQ(wrong_, 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

// A copy that never ends is told once, in the host's patience; what it may
// still write is kept, and other devices go on.
TEST_F(ByteStreamerTest, ACopyOfPageableMemoryThatNeverEndsIsToldAndKept) {
  fake_.Hang(kHost, 0);
  auto owner = std::make_shared<int>(0);
  const std::weak_ptr<int> kept = owner;
  std::vector<std::byte> memory(4 * kBytes);
  ByteGroup group;
  group.parts.push_back({memory.data(), kHost, 0, 4 * kBytes, nullptr});
  ByteStreamer::Options options{&cuda_, &router_, 0,
                                slots_, kBytes,   std::move(owner)};
  auto streamer = *ByteStreamer::Make(std::move(options), {group}, compute_);
  const absl::Status told = streamer->Enter(0, compute_).status();
  EXPECT_EQ(told, absl::DeadlineExceededError(
                      "cudaEventSynchronize of 4096 bytes on cuda:0 did not "
                      "end in 600 s. The device does not answer any more: "
                      "restart this process, and look into the system's log "
                      "(dmesg) for the driver's reason. What the device may "
                      "still write is kept until then."));
  streamer->Reset();
  EXPECT_EQ(streamer->Enter(0, compute_).status(), told);
  const std::size_t before = fake_.allocations();
  streamer.reset();
  EXPECT_LT(fake_.seconds(), 601) << "nothing was waited for twice";
  EXPECT_FALSE(kept.expired());
  EXPECT_EQ(fake_.allocations(), before) << "the buffers it goes through";
  EXPECT_EQ(fake_.handles(), 1U) << "the test's stream";

  void* other = fake_.NewStream(1);
  void* slot = fake_.NewMemory(1, kSlot);
  ByteStreamer::Options there{&cuda_, &router_, 1, {slot}, kBytes};
  auto sound = ByteStreamer::Make(std::move(there), {Group(kHost, 3)}, other);
  ASSERT_TRUE(sound.ok()) << sound.status();
  ASSERT_TRUE((*sound)->Enter(0, other).ok());
  fake_.Launch(other, 0, {{slot, kBytes, false}}, [=, this] {
    wrong_ += *static_cast<const unsigned char*>(slot) != 3;
  });
  ASSERT_TRUE((*sound)->Leave(0, other).ok());
  sound->reset();
  EXPECT_EQ(wrong_, 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(ByteStreamerTest, ACopyOfPinnedMemoryThatNeverEndsKeepsItPinned) {
  HostPinner pinner(&cuda_, 0, PinBudget::Of(8 * kPage));
  std::shared_ptr<void> memory = AlignedMemory(kPage, kPage);
  const std::weak_ptr<void> kept = memory;
  ByteGroup group;
  group.parts.push_back({memory.get(), kHost, 0, kPage,
                         pinner.Pin(memory.get(), kPage, {}, memory)});
  memory.reset();
  pinner.KeepOnly({});
  auto streamer = Make({std::move(group), Group(1, 2)});
  fake_.Hang(kHost, 0);
  ASSERT_TRUE(streamer->Enter(0, compute_).ok()) << "the host does not wait";
  streamer->Reset();  // as after an interrupt
  EXPECT_THAT(std::string(streamer->Enter(1, compute_).status().message()),
              HasSubstr("cudaStreamSynchronize of 4096 bytes on cuda:0 did not "
                        "end in 600 s."));
  streamer.reset();
  EXPECT_LT(fake_.seconds(), 601) << "nothing was waited for twice";
  EXPECT_FALSE(kept.expired());
  EXPECT_EQ(fake_.registrations(), 1U);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

// What wrote the sources before: a device that does not answer refuses.
TEST_F(ByteStreamerTest, ADonorThatDoesNotAnswerIsToldWhenItIsMade) {
  fake_.Hang(kHost, 1);
  void* donor = fake_.NewStream(1);
  void* written = fake_.NewMemory(1, kBytes);
  void* from = fake_.NewMemory(kHost, kBytes);
  const CopyRequest write{written, 1, from, kHost, kBytes, {1, donor}};
  ASSERT_TRUE(DirectTransfer(&cuda_).Copy(write).ok());
  ByteStreamer::Options options{&cuda_, &router_, 0, slots_, kBytes};
  const auto made =
      ByteStreamer::Make(std::move(options), {Group(1, 2)}, compute_);
  EXPECT_TRUE(absl::IsDeadlineExceeded(made.status())) << made.status();
  EXPECT_THAT(
      std::string(made.status().message()),
      HasSubstr("cudaDeviceSynchronize on cuda:1 did not end in 600 s"));
  EXPECT_LT(fake_.seconds(), 601);
}

TEST_F(ByteStreamerTest, TheDefaultStreamIsTheComputeDevices) {
  compute_ = nullptr;
  fake_.Launch(nullptr, 1, {{slots_[0], kBytes, true}});  // used before
  auto streamer = Make({Group(kHost, 1), Group(kHost, 2), Group(kHost, 3)});
  Step(*streamer, {1, 2, 3});
  Step(*streamer, {1, 2, 3});
  streamer.reset();
  EXPECT_EQ(wrong_, 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

TEST_F(ByteStreamerTest, LinksOfOneGroupAddUp) {
  constexpr std::int64_t kEach = 2 * kPage;
  const double gbps = static_cast<double>(kEach) / (1 << 30);  // a second
  ByteGroup both;
  for (const int source : {kHost, 1}) {
    fake_.clock().SetLink({source, 0}, gbps);
    BytePart part = Group(source, 7, kEach).parts[0];
    part.at = source == kHost ? 0 : kEach;
    both.parts.push_back(std::move(part));
  }
  auto streamer = Make({std::move(both)});
  Step(*streamer, {7}, 0, 2 * kEach);
  EXPECT_NEAR(Seconds(), 1, 1e-6);
  EXPECT_EQ(wrong_, 0);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

}  // namespace
}  // namespace distorch
