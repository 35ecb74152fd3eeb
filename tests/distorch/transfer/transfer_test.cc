// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kChunk = 64;  // bytes: many chunks in a small copy

std::vector<std::byte> Numbers(std::int64_t bytes, int first) {
  std::vector<std::byte> result(static_cast<std::size_t>(bytes));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = static_cast<std::byte>(first + static_cast<int>(i * 7));
  }
  return result;
}

void Set(void* data, const std::vector<std::byte>& bytes) {
  std::memcpy(data, bytes.data(), bytes.size());
}

std::vector<std::byte> Get(const void* data, std::int64_t bytes) {
  const auto* first = static_cast<const std::byte*>(data);
  return {first, first + bytes};
}

TEST(TransferTest, RefusesRequestsThatNameNoCopy) {
  int word = 0;
  const struct {
    const char* name;
    CopyRequest request;
    const char* message;
  } cases[] = {
      {"negative", {&word, 0, &word, 1, -1, {0}}, "a copy of -1 bytes is none"},
      {"no source",
       {&word, 0, nullptr, 1, 4, {0}},
       "a copy from cuda:1 to cuda:0 needs two addresses"},
      {"two hosts",
       {&word, kHost, &word, kHost, 4, {0}},
       "a copy from cpu to cpu has no device: use memcpy"},
      {"third device",
       {&word, 0, &word, 1, 4, {2}},
       "a copy from cuda:1 to cuda:0 needs a stream of one of them, not of "
       "cuda:2"},
      {"no stream",
       {&word, 0, &word, kHost, 4, {}},
       "a copy from cpu to cuda:0 needs a stream of one of them, not of cpu"},
  };
  for (const auto& each : cases) {
    const absl::Status status = CheckRequest(each.request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << each.name;
    EXPECT_EQ(status.message(), each.message) << each.name;
  }
}

TEST(DirectTransferTest, PinnedCopiesAreQueuedOnTheStreamsDevice) {
  FakeCuda fake(2);
  const CudaFunctions cuda = fake.Functions();
  void* source = fake.NewMemory(kHost, 100);
  void* target = fake.NewMemory(1, 100);
  Set(source, Numbers(100, 1));
  DirectTransfer direct(&cuda);
  const absl::Status done =
      direct.Copy({target, 1, source, kHost, 100, {1, fake.NewStream(1)}});
  ASSERT_TRUE(done.ok()) << done;
  EXPECT_THAT(fake.calls, ElementsAre("cudaMemcpyAsync cuda:1"));
  EXPECT_NE(Get(target, 100), Numbers(100, 1)) << "the host did not wait";
  fake.RunAll();
  EXPECT_EQ(Get(target, 100), Numbers(100, 1));
  EXPECT_THAT(fake.violations, IsEmpty());
}

TEST(DirectTransferTest, ErrorsNameDeviceBytesAndOneRemedy) {
  FakeCuda fake(2);
  const CudaFunctions cuda = fake.Functions();
  void* source = fake.NewMemory(kHost, 100);
  void* target = fake.NewMemory(1, 100);
  DirectTransfer direct(&cuda);
  const CopyRequest request{target, 1, source, kHost, 100, {1, nullptr}};
  fake.FailCall("cudaMemcpyAsync", 1, 1);
  EXPECT_EQ(direct.Copy(request),
            absl::InternalError(
                "cudaMemcpyAsync of 100 bytes from cpu to cuda:1 failed: "
                "cudaErrorInvalidValue (as told by the test). Run with "
                "CUDA_LAUNCH_BLOCKING=1: an earlier call on this device may be "
                "the one that failed."));
  fake.FailCall("cudaMemcpyAsync", 1, 700);
  EXPECT_THAT(std::string(direct.Copy(request).message()),
              HasSubstr("The device is lost to this process: restart it"));
  EXPECT_TRUE(direct.Copy(request).ok());
  EXPECT_EQ(direct.Copy({target, 5, source, kHost, 100, {5, nullptr}}),
            absl::InternalError("cuda:5 cannot be used: the driver answers "
                                "error 101. Compare the device's number with "
                                "`distorch devices`."));
}

TEST(PeerTransferTest, AccessIsEnabledBothWaysAndTheGuardRestores) {
  FakeCuda fake(2);
  const CudaFunctions cuda = fake.Functions();
  const DeviceGuard callers(cuda, 1);
  EXPECT_TRUE(EnablePeerAccess(cuda, 0, 1));
  EXPECT_TRUE(EnablePeerAccess(cuda, 0, 1)) << "enabled before is no error";
  EXPECT_EQ(fake.current(), 1);
  void* source = fake.NewMemory(0, 100);
  void* target = fake.NewMemory(1, 100);
  Set(source, Numbers(100, 5));
  PeerTransfer peer(&cuda, true);
  ASSERT_TRUE(peer.Copy({target, 1, source, 0, 100, {0, nullptr}}).ok());
  EXPECT_EQ(fake.calls.back(), "cudaMemcpyPeerAsync cuda:0");
  EXPECT_EQ(fake.current(), 1);
  fake.RunAll();
  EXPECT_EQ(Get(target, 100), Numbers(100, 5));
  EXPECT_EQ(peer.Copy({target, 1, source, kHost, 4, {1, nullptr}}),
            absl::InvalidArgumentError(
                "a peer copy needs two devices, not from cpu to cuda:1"));
}

TEST(PeerTransferTest, OneDirectionOnlyIsNoAccess) {
  FakeCuda fake(2);
  const CudaFunctions cuda = fake.Functions();
  fake.SetPeer(1, 0, false);
  EXPECT_FALSE(EnablePeerAccess(cuda, 0, 1));
  FakeCuda refusing(2);
  const CudaFunctions other = refusing.Functions();
  refusing.FailCall("cudaDeviceEnablePeerAccess", 1, 711);
  EXPECT_FALSE(EnablePeerAccess(other, 0, 1));
}

// What the caller's own stream does before and after: writes the source (or
// overwrites the target) ahead of the copy, and reads the target behind it.
class StagedTransferTest : public testing::TestWithParam<std::uint32_t> {};

TEST_P(StagedTransferTest, AnyOrderOfStreamsGivesTheRightBytes) {
  FakeCuda fake(2, GetParam());
  const CudaFunctions cuda = fake.Functions();
  for (const bool on_target : {true, false}) {
    StagedTransfer staged(&cuda, kChunk);
    const int caller = on_target ? 1 : 0;
    void* stream = fake.NewStream(caller);
    void* source = fake.NewMemory(0, 1000);
    void* target = fake.NewMemory(1, 1000);
    void* before = fake.NewMemory(caller, 1000);
    void* after = fake.NewMemory(caller, 1000);
    DirectTransfer direct(&cuda);
    for (const std::int64_t bytes : {1, 64, 65, 300, 640, 1000}) {
      const auto wanted = Numbers(bytes, static_cast<int>(bytes));
      Set(before, wanted);
      Set(source, on_target ? wanted : Numbers(bytes, 99));
      if (!on_target) {  // the source is written by the caller's stream
        const CopyRequest write{source, 0, before, 0, bytes, {0, stream}};
        ASSERT_TRUE(direct.Copy(write).ok());
      } else {  // the target is still being written by the caller's stream
        const CopyRequest write{target, 1, after, 1, bytes, {1, stream}};
        ASSERT_TRUE(direct.Copy(write).ok());
      }
      const absl::Status done =
          staged.Copy({target, 1, source, 0, bytes, {caller, stream}});
      ASSERT_TRUE(done.ok()) << done;
      if (on_target) {
        const CopyRequest read{after, 1, target, 1, bytes, {1, stream}};
        ASSERT_TRUE(direct.Copy(read).ok());
      } else {  // the source may be overwritten behind the copy
        const CopyRequest clear{source, 0, after, 0, bytes, {0, stream}};
        ASSERT_TRUE(direct.Copy(clear).ok());
      }
      fake.RunAll();
      EXPECT_EQ(Get(target, bytes), wanted) << bytes;
      if (on_target) {
        EXPECT_EQ(Get(after, bytes), wanted) << bytes;
      }
    }
  }
  EXPECT_THAT(fake.violations, IsEmpty());
}

TEST_P(StagedTransferTest, CopiesOneBehindTheOtherDoNotMix) {
  FakeCuda fake(2, GetParam());
  const CudaFunctions cuda = fake.Functions();
  StagedTransfer staged(&cuda, kChunk);
  std::vector<std::pair<void*, std::vector<std::byte>>> expected;
  for (int i = 0; i < 6; ++i) {
    const auto wanted = Numbers(200, i * 31);
    void* source = fake.NewMemory(0, 200);
    void* target = fake.NewMemory(1, 200);
    Set(source, wanted);
    const int caller = i % 2;  // both sides in turns, streams of their own
    const absl::Status done = staged.Copy(
        {target, 1, source, 0, 200, {caller, fake.NewStream(caller)}});
    ASSERT_TRUE(done.ok()) << done;
    expected.emplace_back(target, wanted);
  }
  const auto waits = std::count_if(
      fake.calls.begin(), fake.calls.end(), [](const std::string& call) {
        return call.find("Synchronize") != std::string::npos;
      });
  EXPECT_EQ(waits, 0) << "between devices the host never waits";
  fake.RunAll();
  for (const auto& [target, wanted] : expected) {
    EXPECT_EQ(Get(target, 200), wanted);
  }
  EXPECT_THAT(fake.violations, IsEmpty());
}

TEST_P(StagedTransferTest, PageableMemoryIsFreeOnReturn) {
  FakeCuda fake(1, GetParam());
  const CudaFunctions cuda = fake.Functions();
  StagedTransfer staged(&cuda, kChunk);
  void* device = fake.NewMemory(0, 1000);
  void* stream = fake.NewStream(0);
  for (const std::int64_t bytes : {1, 64, 65, 1000}) {
    const auto wanted = Numbers(bytes, static_cast<int>(bytes) + 3);
    std::vector<std::byte> host = wanted;
    absl::Status done =
        staged.Copy({device, 0, host.data(), kHost, bytes, {0, stream}});
    ASSERT_TRUE(done.ok()) << done;
    std::fill(host.begin(), host.end(), std::byte{0});  // may be changed now
    done = staged.Copy({host.data(), kHost, device, 0, bytes, {0, stream}});
    ASSERT_TRUE(done.ok()) << done;
    EXPECT_EQ(host, wanted) << "read on return, " << bytes << " bytes";
  }
  EXPECT_THAT(fake.violations, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Schedules, StagedTransferTest,
                         testing::Range(1U, 101U));

TEST(StagedTransferTest, EveryFailingCallLeavesAUsableTransfer) {
  const char* const names[] = {
      "cudaHostAlloc",       "cudaEventCreate", "cudaStreamCreateWithFlags",
      "cudaMemcpyAsync",     "cudaEventRecord", "cudaStreamWaitEvent",
      "cudaEventSynchronize"};
  int failed = 0;
  for (const auto& [from, to] : {std::pair(0, 1), {kHost, 1}, {0, kHost}}) {
    for (const char* name : names) {
      for (int nth = 1; nth < 30; ++nth) {
        FakeCuda fake(2, static_cast<std::uint32_t>(nth));
        const CudaFunctions cuda = fake.Functions();
        void* stream = fake.NewStream(std::max(from, to));
        std::vector<std::byte> host(500);
        void* source = from < 0 ? host.data() : fake.NewMemory(from, 500);
        void* target = to < 0 ? host.data() : fake.NewMemory(to, 500);
        Set(source, Numbers(500, 1));
        const std::size_t memory = fake.allocations();
        {
          StagedTransfer staged(&cuda, kChunk);
          const CopyRequest request{target, to,  source,
                                    from,   500, {std::max(from, to), stream}};
          fake.FailCall(name, nth,
                        std::string(name) == "cudaHostAlloc" ? 2 : 1);
          const absl::Status status = staged.Copy(request);
          if (status.ok()) {
            fake.RunAll();
            break;  // it has fewer calls of this name
          }
          ++failed;
          EXPECT_THAT(std::string(status.message()), HasSubstr("failed: "));
          EXPECT_EQ(status.code(), std::string(name) == "cudaHostAlloc"
                                       ? absl::StatusCode::kResourceExhausted
                                       : absl::StatusCode::kInternal);
          Set(source, Numbers(500, 7));
          ASSERT_TRUE(staged.Copy(request).ok()) << name << " " << nth;
          fake.RunAll();
          EXPECT_EQ(Get(target, 500), Numbers(500, 7)) << name << " " << nth;
        }
        EXPECT_EQ(fake.allocations(), memory) << name << " " << nth;
        EXPECT_EQ(fake.handles(), 1U) << "the test's stream; " << name;
        EXPECT_EQ(fake.current(), -1) << name;
        EXPECT_THAT(fake.violations, IsEmpty()) << name << " " << nth;
      }
    }
  }
  EXPECT_GE(failed, 100) << "calls that were made to fail";
}

TEST(StagedTransferTest, ACopyThatNeverEndsIsToldAndItsBuffersKept) {
  FakeCuda fake(2);
  const CudaFunctions cuda = fake.Functions();
  auto staged = std::make_unique<StagedTransfer>(&cuda, kChunk);
  void* first = fake.NewMemory(0, 500);
  void* second = fake.NewMemory(1, 500);
  std::vector<std::byte> host(500);
  const CopyRequest stuck{host.data(), kHost, first,
                          0,           500,   {0, fake.NewStream(0)}};
  const CopyRequest other{second, 1,   host.data(),
                          kHost,  500, {1, fake.NewStream(1)}};
  const std::size_t before = fake.allocations();
  fake.Hang(0, kHost);
  const absl::Status told = staged->Copy(stuck);
  EXPECT_EQ(told.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(told.message()),
              HasSubstr("cudaEventSynchronize of 500 bytes on cuda:0 did not "
                        "end in 600 s. The device does not answer"));
  EXPECT_THAT(std::string(staged->Copy(stuck).message()),
              HasSubstr("a staged copy of 500 bytes on cuda:0 did not end"));
  EXPECT_TRUE(staged->Copy(other).ok()) << "another pair's";
  staged.reset();
  EXPECT_LT(fake.seconds(), 601) << "nothing was waited for twice";
  EXPECT_EQ(fake.allocations(), before + 2);
  EXPECT_THAT(fake.violations, IsEmpty());
}

// Between devices the host waits at the end only.
TEST(StagedTransferTest, BuffersOfWhatNeverEndedAreKeptAtTheEnd) {
  FakeCuda fake(2);
  const CudaFunctions cuda = fake.Functions();
  auto staged = std::make_unique<StagedTransfer>(&cuda, kChunk);
  fake.Hang(kHost, 1);
  ASSERT_TRUE(staged
                  ->Copy({fake.NewMemory(1, 500),
                          1,
                          fake.NewMemory(0, 500),
                          0,
                          500,
                          {0, fake.NewStream(0)}})
                  .ok());
  const std::size_t before = fake.allocations();
  staged.reset();
  EXPECT_LT(fake.seconds(), 601) << "nothing was waited for twice";
  EXPECT_EQ(fake.allocations(), before);
  EXPECT_THAT(fake.violations, IsEmpty());
}

TEST(StagedTransferTest, ThreadsShareThePairsBuffers) {
  const std::vector<std::pair<int, int>> pairs = {{0, 1}, {0, 1}, {0, 1},
                                                  {1, 0}, {1, 0}, {2, 1}};
  FakeCuda fake(3);
  const CudaFunctions cuda = fake.Functions();
  StagedTransfer staged(&cuda, kChunk);
  std::vector<CopyRequest> requests;
  for (const auto& [from, to] : pairs) {
    void* source = fake.NewMemory(from, 300);
    Set(source, Numbers(300, static_cast<int>(requests.size()) * 41));
    requests.push_back({fake.NewMemory(to, 300),
                        to,
                        source,
                        from,
                        300,
                        {to, fake.NewStream(to)}});
  }
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  for (const CopyRequest& request : requests) {
    threads.emplace_back([&] {
      for (int round = 0; round < 25; ++round) {
        failed += staged.Copy(request).ok() ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  fake.RunAll();
  EXPECT_EQ(failed, 0);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(Get(requests[i].target, 300),
              Numbers(300, static_cast<int>(i) * 41));
  }
  const auto buffers = std::count_if(
      fake.calls.begin(), fake.calls.end(),
      [](const std::string& call) { return call.find("cudaHostAlloc") == 0; });
  EXPECT_EQ(buffers, 2 * 3) << "two a pair, whoever copies first";
  EXPECT_THAT(fake.violations, IsEmpty());
}

// While a copy is held up inside CUDA, those of other pairs are served.
TEST(StagedTransferTest, PairsDoNotWaitForEachOther) {
  FakeCuda fake(3);
  CudaFunctions cuda = fake.Functions();
  void* const slow = fake.NewMemory(0, 300);
  std::promise<void> inside;
  std::promise<void> go_on;
  bool others_were_served = false;
  cuda.copy = [&, copy = cuda.copy](void* to, const void* from,
                                    std::size_t bytes, int kind, void* stream) {
    if (from == slow) {
      inside.set_value();
      others_were_served =
          go_on.get_future().wait_for(std::chrono::seconds(10)) ==
          std::future_status::ready;
    }
    return copy(to, from, bytes, kind, stream);
  };
  StagedTransfer staged(&cuda, kChunk);
  const auto request = [&](int from, int to, void* source) {
    const int caller = std::max(from, to);
    return CopyRequest{fake.NewMemory(to, 300),         to, source, from, 300,
                       {caller, fake.NewStream(caller)}};
  };
  std::vector<CopyRequest> requests = {request(0, 1, slow)};
  for (const auto& [from, to] : {std::pair(1, 0), {0, 2}, {2, kHost}}) {
    requests.push_back(request(from, to, fake.NewMemory(from, 300)));
  }
  for (std::size_t i = 0; i < requests.size(); ++i) {
    std::memcpy(const_cast<void*>(requests[i].source),
                Numbers(300, static_cast<int>(i) * 41).data(), 300);
  }
  std::thread held([&] { EXPECT_TRUE(staged.Copy(requests[0]).ok()); });
  inside.get_future().wait();
  for (std::size_t i = 1; i < requests.size(); ++i) {
    EXPECT_TRUE(staged.Copy(requests[i]).ok());
  }
  go_on.set_value();
  held.join();
  EXPECT_TRUE(others_were_served);
  fake.RunAll();
  for (std::size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(Get(requests[i].target, 300),
              Numbers(300, static_cast<int>(i) * 41));
  }
  EXPECT_THAT(fake.violations, IsEmpty());
}

}  // namespace
}  // namespace distorch
