// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/nccl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(CheckAllocatorTest, RefusesCudaMallocAsync) {
  for (const char* fine :
       {"", "expandable_segments:True", "backend:native",
        "max_split_size_mb:64,garbage_collection_threshold:0.8"}) {
    EXPECT_TRUE(CheckAllocator(fine).ok()) << fine;
  }
  for (const char* bad :
       {"backend:cudaMallocAsync", " backend : cudaMallocAsync ",
        "max_split_size_mb:64,backend:cudaMallocAsync"}) {
    const absl::Status status = CheckAllocator(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << bad;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("Remove backend:cudaMallocAsync from "
                          "PYTORCH_CUDA_ALLOC_CONF"))
        << bad;
  }
}

TEST(LoadNcclTest, SaysWhatIsMissing) {
  EXPECT_EQ(LoadNccl("/nowhere/libnccl.so.2").status(),
            absl::UnavailableError("/nowhere/libnccl.so.2 was not found: "
                                   "import a torch that is built for CUDA "
                                   "first"));
#ifdef _WIN32
  EXPECT_THAT(std::string(LoadNccl("").status().message()),
              HasSubstr("no NCCL for Windows"));
  const std::string system = "kernel32.dll";
#else
  const std::string system = "libc.so.6";
#endif
  const std::string lacks(LoadNccl(system).status().message());
  EXPECT_THAT(lacks, HasSubstr(system + " lacks ncclCommInitAll, "));
  EXPECT_THAT(lacks, HasSubstr(": update NCCL to 2.7 or later"));
}

class NcclTest : public testing::TestWithParam<std::uint32_t> {
 protected:
  static constexpr std::int64_t kBytes = 128;

  std::unique_ptr<NcclGroup> Open(std::vector<int> devices) {
    auto group = NcclGroup::Open(fake_.Nccl(), &cuda_, std::move(devices));
    EXPECT_TRUE(group.ok()) << group.status();
    return *std::move(group);
  }
  void* Filled(int device, int value) {
    void* data = fake_.NewMemory(device, kBytes);
    std::memset(data, value, kBytes);
    return data;
  }
  static std::vector<int> Read(const void* data) {
    const auto* first = static_cast<const unsigned char*>(data);
    return {first, first + kBytes};
  }

  FakeCuda fake_{4, GetParam()};
  CudaFunctions cuda_ = fake_.Functions();
};

TEST_P(NcclTest, BroadcastGivesEveryDeviceTheBlock) {
  auto group = Open({2, 0, 3});
  const StreamOn root{0, fake_.NewStream(0)};
  std::vector<NcclTarget> targets;
  for (const int device : {2, 3}) {
    targets.push_back({Filled(device, 0), {device, fake_.NewStream(device)}});
  }
  void* source = Filled(0, 9);
  const absl::Status done = group->Broadcast(source, root, targets, kBytes);
  ASSERT_TRUE(done.ok()) << done;
  fake_.RunAll();
  for (const NcclTarget& target : targets) {
    EXPECT_THAT(Read(target.data), Each(9));
  }
  EXPECT_THAT(fake_.violations, IsEmpty());
  EXPECT_EQ(fake_.current(), -1);
}

TEST_P(NcclTest, ExchangeServesAllPairsOfOneGroupedCall) {
  const std::vector<int> devices = {0, 1, 2, 3};
  auto group = Open(devices);
  std::vector<StreamOn> streams;
  std::vector<void*> own;
  for (const int device : devices) {
    streams.push_back({device, fake_.NewStream(device)});
    own.push_back(Filled(device, device + 1));
  }
  std::vector<NcclMessage> messages;
  for (const auto from : {0U, 1U, 2U, 3U}) {
    for (const auto to : {0U, 1U, 2U, 3U}) {
      if (from == to) continue;
      messages.push_back({own[from], streams[from],
                          Filled(static_cast<int>(to), 0), streams[to],
                          kBytes});
    }
  }
  const absl::Status done = group->Exchange(messages);
  ASSERT_TRUE(done.ok()) << done;
  fake_.RunAll();
  for (const NcclMessage& message : messages) {
    EXPECT_THAT(Read(message.target), Each(message.source_stream.device + 1));
  }
  const auto count = [&](const std::string& name) {
    return std::count_if(
        fake_.calls.begin(), fake_.calls.end(),
        [&](const std::string& call) { return call.find(name) == 0; });
  };
  EXPECT_EQ(count("ncclGroupStart"), 1);
  EXPECT_EQ(count("ncclSend"), 12);
  EXPECT_EQ(count("ncclRecv"), 12);
  EXPECT_THAT(fake_.violations, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Schedules, NcclTest, testing::Range(1U, 11U));

using NcclErrorTest = NcclTest;

TEST_P(NcclErrorTest, RefusesWhatIsNoGroupAndNoMessage) {
  for (const auto& [devices, text] : {std::pair(std::vector<int>{}, "none"),
                                      {{1}, "cuda:1"},
                                      {{1, 1}, "cuda:1, cuda:1"},
                                      {{kHost, 1}, "cpu, cuda:1"}}) {
    EXPECT_EQ(NcclGroup::Open(fake_.Nccl(), &cuda_, devices).status(),
              absl::InvalidArgumentError(
                  std::string("a group needs two or more different CUDA "
                              "devices, not ") +
                  text));
  }
  auto group = Open({0, 1, 2});
  void* block = Filled(0, 1);
  const StreamOn root{0, fake_.NewStream(0)};
  const NcclTarget one{Filled(1, 0), {1, fake_.NewStream(1)}};
  const NcclTarget two{Filled(2, 0), {2, fake_.NewStream(2)}};
  const NcclTarget other{Filled(3, 0), {3, fake_.NewStream(3)}};
  EXPECT_EQ(group->Broadcast(block, root, {one, one}, kBytes).message(),
            "cuda:1 takes part twice in one broadcast");
  EXPECT_EQ(group->Broadcast(block, root, {one}, kBytes).message(),
            "a broadcast over cuda:0, cuda:1, cuda:2 needs all of them, but 2 "
            "take part");
  EXPECT_EQ(group->Broadcast(block, root, {one, other}, kBytes).message(),
            "cuda:3 is not in the group of cuda:0, cuda:1, cuda:2");
  EXPECT_EQ(group->Exchange({{block, root, block, root, kBytes}}).message(),
            "a message of 128 bytes from cuda:0 to cuda:0 is none");
  EXPECT_TRUE(group->Broadcast(block, root, {one, two}, 0).ok());
  EXPECT_TRUE(group->Broadcast(block, root, {one, two}, kBytes).ok());
  fake_.RunAll();
}

TEST_P(NcclErrorTest, AGroupThatFailedSaysSoFromThenOnAndIsAborted) {
  void* block = Filled(0, 1);
  const StreamOn root{0, fake_.NewStream(0)};
  const NcclTarget one{Filled(1, 0), {1, fake_.NewStream(1)}};
  {
    auto group = Open({0, 1});
    fake_.FailCall("ncclBroadcast", 2, 3);
    const absl::Status failed = group->Broadcast(block, root, {one}, kBytes);
    EXPECT_EQ(
        failed,
        absl::InternalError(
            "ncclBroadcast of 128 bytes over cuda:0, cuda:1 failed: internal "
            "error (as told by the test). Set NCCL_DEBUG=WARN and run again to "
            "see NCCL's reason."));
    EXPECT_EQ(fake_.calls.back(), "ncclGroupEnd") << "never left open";
    const absl::Status again = group->Broadcast(block, root, {one}, kBytes);
    EXPECT_EQ(again.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(again.message()),
                HasSubstr("the group over cuda:0, cuda:1 ended with an error "
                          "before: ncclBroadcast of 128 bytes"));
  }
  EXPECT_EQ(fake_.calls.back(), "ncclCommAbort cuda:1");
  fake_.FailCall("ncclCommInitAll", 1, 5);
  EXPECT_THAT(
      std::string(
          NcclGroup::Open(fake_.Nccl(), &cuda_, {0, 1}).status().message()),
      HasSubstr("ncclCommInitAll over cuda:0, cuda:1 failed: invalid "
                "usage"));
}

TEST_P(NcclErrorTest, AGroupThatIsFineIsDestroyed) {
  Open({0, 1});
  EXPECT_EQ(fake_.calls.back(), "ncclCommDestroy cuda:1");
}

INSTANTIATE_TEST_SUITE_P(Once, NcclErrorTest, testing::Values(1U));

}  // namespace
}  // namespace distorch
