// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace distorch {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::Field;
using testing::Ge;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

// A device of 1000 bytes whose allocator counts its peak until it is read.
struct FakeDevice {
  std::mutex mutex;
  bool lost = false;
  int reads = 0;
  std::int64_t others = 0, reserved = 0, peak = 0;

  void Reserve(std::int64_t bytes) {
    const std::lock_guard lock(mutex);
    reserved += bytes;
    peak = std::max(peak, reserved);
  }
  DeviceSource Source() {
    return [this](DeviceReading* reading) {
      const std::lock_guard lock(mutex);
      ++reads;
      if (lost) return false;
      *reading = {1000, others + reserved, reserved, reserved, peak};
      peak = reserved;
      return true;
    };
  }
};

MemorySampler::Options Manual(double* now, std::size_t capacity = 10) {
  return {.interval = absl::Hours(1), .capacity = capacity, .now = [now] {
            return (*now)++;
          }};
}

template <typename Condition>
bool Eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

TEST(MemorySamplerTest, KeepsTheNewestSamplesOldestFirst) {
  double now = 100;
  MemorySampler sampler(Manual(&now, 3));
  FakeDevice device;
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  EXPECT_THAT(sampler.Samples(0), IsEmpty());
  for (int i = 0; i < 5; ++i) {
    device.Reserve(10);
    sampler.TakeSample();
  }
  const auto samples = sampler.Samples(0);
  EXPECT_THAT(samples, ElementsAre(Field(&MemorySample::time, 102),
                                   Field(&MemorySample::time, 103),
                                   Field(&MemorySample::time, 104)));
  EXPECT_EQ(samples.front().devices.at(0).used, 30);
  EXPECT_EQ(samples.back().devices.at(0).used, 50);
  EXPECT_EQ(samples.back().devices.at(0).total, 1000);
  EXPECT_THAT(sampler.Used(), ElementsAre(Pair("sim:0", 50)));
  EXPECT_THAT(sampler.Samples(104), SizeIs(1));
}

TEST(MemorySamplerTest, ABurstBetweenTwoSamplesIsInThePeakOfTheSecondOnly) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  FakeDevice device;
  device.others = 100;
  device.Reserve(50);
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  sampler.TakeSample();
  device.Reserve(700);
  device.Reserve(-700);
  sampler.TakeSample();
  sampler.TakeSample();
  std::vector<std::int64_t> peaks;
  for (const MemorySample& sample : sampler.Samples(0)) {
    EXPECT_EQ(sample.devices.at(0).used, 150);
    peaks.push_back(sample.devices.at(0).peak);
  }
  EXPECT_THAT(peaks, ElementsAre(150, 850, 150));
}

TEST(MemorySamplerTest, WhatIsReadBetweenSamplesCountsForThePeak) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  FakeDevice device;
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  device.others = 400;
  sampler.Poll();
  device.others = 0;
  sampler.TakeSample();
  EXPECT_EQ(sampler.Samples(0).at(0).devices.at(0).peak, 400);
}

TEST(MemorySamplerTest, APeakIsNeverMoreThanTheDeviceHas) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  FakeDevice device;
  device.others = 600;
  device.Reserve(900);  // while the others were not there yet
  device.Reserve(-900);
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  sampler.TakeSample();
  EXPECT_EQ(sampler.Samples(0).at(0).devices.at(0).peak, 1000);
}

TEST(MemorySamplerTest, FiguresOfTheAllocatorCanBePushed) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  const DeviceSource driver = [](DeviceReading* reading) {
    *reading = {1000, 500, 0, -1, 0};
    return true;
  };
  ASSERT_TRUE(sampler.AddDevice("cuda:0", driver).ok());
  sampler.TakeSample();
  ASSERT_TRUE(sampler.Push("cuda:0", {0, 0, 100, 200, 450}).ok());
  sampler.TakeSample();
  sampler.TakeSample();
  const auto samples = sampler.Samples(0);
  EXPECT_EQ(samples.at(0).devices.at(0).peak, 500);
  EXPECT_EQ(samples.at(1).devices.at(0).peak, 500 - 200 + 450);
  EXPECT_EQ(samples.at(1).devices.at(0).allocated, 100);
  EXPECT_EQ(samples.at(2).devices.at(0).reserved, 200) << "holds until pushed";
  EXPECT_EQ(samples.at(2).devices.at(0).peak, 500);
}

TEST(MemorySamplerTest, ADeviceWithoutASourceIsKnownOnceItIsPushed) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  ASSERT_TRUE(sampler.AddDevice("xpu:0", nullptr).ok());
  sampler.TakeSample();
  ASSERT_TRUE(sampler.Push("xpu:0", {1000, 70, 60, 60, 90}).ok());
  sampler.TakeSample();
  EXPECT_THAT(sampler.Samples(0).at(0).devices, IsEmpty());
  EXPECT_EQ(sampler.Samples(0).at(1).devices.at(0).peak, 100);
  EXPECT_EQ(sampler.Push("xpu:1", {}).message(),
            "the sampler has no device xpu:1");
}

TEST(MemorySamplerTest, ADeviceThatCannotBeReadIsAbsent) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  FakeDevice first;
  FakeDevice second;
  ASSERT_TRUE(sampler.AddDevice("sim:0", first.Source()).ok());
  ASSERT_TRUE(sampler.AddDevice("sim:1", second.Source()).ok());
  first.lost = true;
  sampler.TakeSample();
  first.lost = false;
  sampler.TakeSample();
  const auto samples = sampler.Samples(0);
  EXPECT_THAT(samples.at(0).devices,
              ElementsAre(Field(&DeviceSample::device, 1U)));
  EXPECT_THAT(samples.at(1).devices, SizeIs(2));
  EXPECT_EQ(sampler.AddDevice("sim:1", second.Source()).message(),
            "the sampler has a device sim:1");
}

TEST(MemorySamplerTest, AWindowHasThePeaksBetweenItsEnds) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  FakeDevice device;
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  ASSERT_TRUE(sampler.AddDevice("xpu:0", nullptr).ok());
  device.Reserve(900);
  device.Reserve(-900);
  const std::int64_t prompt = sampler.OpenWindow();
  device.Reserve(200);
  const std::int64_t node = sampler.OpenWindow();
  device.Reserve(300);
  device.Reserve(-500);
  sampler.TakeSample();
  EXPECT_THAT(sampler.CloseWindow(node), ElementsAre(Pair("sim:0", 500)));
  device.Reserve(600);
  device.Reserve(-600);
  EXPECT_THAT(sampler.WindowPeaks(prompt), ElementsAre(Pair("sim:0", 600)));
  EXPECT_THAT(sampler.CloseWindow(prompt), ElementsAre(Pair("sim:0", 600)));
  EXPECT_THAT(sampler.CloseWindow(prompt), IsEmpty()) << "it is closed";
}

TEST(MemorySamplerTest, TheNumberOfWindowsIsBounded) {
  double now = 0;
  MemorySampler::Options options = Manual(&now);
  options.most_windows = 2;
  MemorySampler sampler(std::move(options));
  FakeDevice device;
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  const std::int64_t first = sampler.OpenWindow();
  const std::int64_t second = sampler.OpenWindow();
  const std::int64_t third = sampler.OpenWindow();
  EXPECT_THAT(sampler.CloseWindow(first), IsEmpty());
  EXPECT_THAT(sampler.CloseWindow(second), SizeIs(1));
  EXPECT_THAT(sampler.CloseWindow(third), SizeIs(1));
}

TEST(MemorySamplerTest, SamplesInTheBackgroundUntilStopped) {
  MemorySampler sampler({.interval = absl::Milliseconds(1), .capacity = 5});
  FakeDevice device;
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  ASSERT_TRUE(sampler.Start().ok());
  EXPECT_EQ(sampler.Start().message(), "the sampler runs already");
  ASSERT_TRUE(Eventually([&] { return sampler.Samples(0).size() == 5; }));
  EXPECT_TRUE(sampler.running());
#ifdef _WIN32  // counts a thread's time in ticks of 16 ms
  EXPECT_GE(sampler.CpuSeconds(), 0);
#else
  EXPECT_GT(sampler.CpuSeconds(), 0);
#endif
  sampler.Stop();
  EXPECT_FALSE(sampler.running());
  const int reads = device.reads;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(device.reads, reads);
  sampler.Stop();
  ASSERT_TRUE(sampler.Start().ok()) << "it can be started again";
}

TEST(MemorySamplerTest, MayBeUsedFromManyThreads) {
  MemorySampler sampler({.interval = absl::Milliseconds(1), .capacity = 50});
  FakeDevice device;
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  ASSERT_TRUE(sampler.AddDevice("cuda:0", nullptr).ok());
  ASSERT_TRUE(sampler.Start().ok());
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::int64_t window = sampler.OpenWindow();
        device.Reserve(1);
        if (!sampler.Push("cuda:0", {1000, 10, 5, 5, 9}).ok()) ++wrong;
        if (i == 100 &&
            !sampler.AddDevice("more" + std::to_string(t), nullptr).ok()) {
          ++wrong;
        }
        for (const MemorySample& sample : sampler.Samples(0)) {
          for (const DeviceSample& one : sample.devices) {
            if (one.peak < one.used) ++wrong;
          }
        }
        device.Reserve(-1);
        if (sampler.CloseWindow(window).empty()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_THAT(sampler.devices(), SizeIs(6));
}

#ifndef _WIN32
TEST(MemorySamplerTest, AChildOfAForkHasItsSamplesAndNoThread) {
  MemorySampler sampler({.interval = absl::Milliseconds(1), .capacity = 5});
  FakeDevice device;
  ASSERT_TRUE(sampler.AddDevice("sim:0", device.Source()).ok());
  ASSERT_TRUE(sampler.Start().ok());
  ASSERT_TRUE(Eventually([&] { return sampler.Samples(0).size() == 5; }));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    sampler.Stop();
    const bool good = !sampler.running() && sampler.Samples(0).size() == 5;
    _exit(good ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_TRUE(sampler.running()) << "the parent's goes on";
}
#endif

TEST(MemorySamplerTest, ReadsTheHost) {
  double now = 0;
  MemorySampler sampler(Manual(&now));
  ASSERT_TRUE(sampler.AddDevice("cpu", HostSource()).ok());
  sampler.TakeSample();
  EXPECT_THAT(sampler.Samples(0).at(0).devices,
              ElementsAre(AllOf(Field(&DeviceSample::total, Ge(1 << 20)),
                                Field(&DeviceSample::used, Ge(1)),
                                Field(&DeviceSample::reserved, 0))));
}

int ReadFigures(int index, std::int64_t figures[5]) {
  if (index > 1) return 7;
  for (int i = 0; i < 5; ++i) figures[i] = 10 * index + i;
  return 0;
}

TEST(MemorySamplerTest, ReadsALibrarysFunction) {
  DeviceReading reading;
  EXPECT_TRUE(FunctionSource(&ReadFigures, 1)(&reading));
  EXPECT_EQ(reading.total, 10);
  EXPECT_EQ(reading.reserved_peak, 14);
  EXPECT_FALSE(FunctionSource(&ReadFigures, 2)(&reading));
}

TEST(MemorySamplerTest, ReadsNvml) {
  NvmlFunctions driver;
  driver.init = [] { return 0; };
  driver.shutdown = [] { return 0; };
  driver.handle = [](unsigned, NvmlFunctions::Handle*) { return 0; };
  int error = 0;
  driver.memory = [&](NvmlFunctions::Handle, NvmlFunctions::Memory* memory) {
    *memory = {100, 70, 30};
    return error;
  };
  auto nvml = Nvml::Open(std::move(driver));
  ASSERT_TRUE(nvml.ok());
  const DeviceSource source = NvmlSource(*std::move(nvml), 0);
  DeviceReading reading;
  ASSERT_TRUE(source(&reading));
  EXPECT_EQ(reading.total, 100);
  EXPECT_EQ(reading.used, 30);
  EXPECT_EQ(reading.reserved, -1);
  error = 15;
  EXPECT_FALSE(source(&reading));
}

}  // namespace
}  // namespace distorch
