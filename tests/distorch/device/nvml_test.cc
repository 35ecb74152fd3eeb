// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/nvml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

struct FakeDriver {
  unsigned devices = 2;
  int fail_memory_with = 0;
  int shutdowns = 0;

  NvmlFunctions Functions() {
    using Handle = NvmlFunctions::Handle;
    NvmlFunctions f;
    f.init = [] { return 0; };
    f.shutdown = [this] { return ++shutdowns, 0; };
    f.count = [this](unsigned* n) { return *n = devices, 0; };
    f.handle = [](unsigned i, Handle* h) {
      *h = reinterpret_cast<Handle>(static_cast<std::uintptr_t>(i + 1));
      return 0;
    };
    f.uuid = [](Handle h, char* text, unsigned size) {
      std::snprintf(text, size, "GPU-%zu-abc",
                    reinterpret_cast<std::uintptr_t>(h) - 1);
      return 0;
    };
    f.name = [](Handle, char* text, unsigned size) {
      std::snprintf(text, size, "Imaginary 9000");
      return 0;
    };
    f.memory = [this](Handle, NvmlFunctions::Memory* m) {
      *m = {100, 60, 40};
      return fail_memory_with;
    };
    f.pcie_generation = [](Handle, unsigned* v) { return *v = 4, 0; };
    return f;
  }
};

TEST(NvmlTest, ListsDevicesWithoutACudaContext) {
  FakeDriver driver;
  {
    auto nvml = Nvml::Open(driver.Functions());
    ASSERT_TRUE(nvml.ok()) << nvml.status();
    auto devices = (*nvml)->Devices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    ASSERT_EQ(devices->size(), 2U);
    const NvmlDevice& second = (*devices)[1];
    EXPECT_EQ(second.index, 1);
    EXPECT_EQ(second.uuid, "GPU-1-abc");
    EXPECT_EQ(second.name, "Imaginary 9000");
    EXPECT_EQ(second.total, 100);
    EXPECT_EQ(second.free, 60);
    EXPECT_EQ(second.used, 40);
    EXPECT_EQ(second.pcie_generation, 4);
    EXPECT_EQ(second.pcie_width, 0) << "the driver has no such function";
    EXPECT_EQ((*nvml)->DriverVersion(), "");
  }
  EXPECT_EQ(driver.shutdowns, 1);
}

TEST(NvmlTest, TellsHowDevicesAreConnected) {
  FakeDriver driver;
  driver.devices = 3;
  NvmlFunctions functions = driver.Functions();
  using Handle = NvmlFunctions::Handle;
  functions.pcie_current_generation = [](Handle, unsigned* v) {
    return *v = 1, 0;
  };
  functions.pcie_current_width = [](Handle, unsigned* v) { return *v = 8, 0; };
  functions.nvlink_state = [](Handle, unsigned link, unsigned* up) {
    *up = link != 1;
    return link < 4 ? 0 : 2;
  };
  functions.p2p_status = [](Handle a, Handle b, int what, int* status) {
    const auto sum = reinterpret_cast<std::uintptr_t>(a) +
                     reinterpret_cast<std::uintptr_t>(b);
    *status = what == 2 && sum == 4 ? 0 : 5;  // the first and the third
    return 0;
  };
  auto nvml = Nvml::Open(std::move(functions));
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  const auto devices = (*nvml)->Devices();
  ASSERT_TRUE(devices.ok()) << devices.status();
  EXPECT_EQ(devices->front().pcie_current_generation, 1);
  EXPECT_EQ(devices->front().pcie_current_width, 8);
  EXPECT_EQ(devices->front().nvlinks, 3) << "one of four is down";
  EXPECT_THAT((*nvml)->NvlinkPairs(), ElementsAre(NvlinkPair(0, 2)));
}

TEST(NvmlTest, TellsTheMemoryOfOneDevice) {
  FakeDriver driver;
  auto nvml = Nvml::Open(driver.Functions());
  ASSERT_TRUE(nvml.ok());
  const auto memory = (*nvml)->MemoryOf(1);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->total, 100);
  EXPECT_EQ(memory->free, 60);
  driver.fail_memory_with = 15;
  EXPECT_EQ((*nvml)->MemoryOf(1).status().message(),
            "nvmlDeviceGetMemoryInfo failed: NVML error 15, the GPU is lost");
  EXPECT_EQ((*nvml)->MemoryOf(1, 0).status().message(),
            "this driver's NVML knows no slices of a GPU");
}

TEST(NvmlTest, TellsWhatADeviceDoes) {
  FakeDriver driver;
  NvmlFunctions f = driver.Functions();
  using Handle = NvmlFunctions::Handle;
  using Process = NvmlFunctions::Process;
  f.utilization = [](Handle, NvmlFunctions::Utilization* u) {
    return *u = {37, 12}, 0;
  };
  f.temperature = [](Handle, int sensor, unsigned* v) {
    return *v = 61, sensor;
  };
  f.power = [](Handle, unsigned* v) { return *v = 215'500, 0; };
  f.power_limit = [](Handle, unsigned* v) { return *v = 450'000, 0; };
  f.pcie_traffic = [](Handle, int counter, unsigned* v) {
    return *v = counter == 1 ? 1000 : 20, 0;
  };
  // A process more at each call: the first list is too short.
  unsigned there = 9;
  f.compute_processes = [&there](Handle, unsigned* count, Process* found) {
    const unsigned room = *count;
    *count = there++;
    if (room < *count) return 7;
    for (unsigned i = 0; i < *count; ++i) found[i] = {100 + i, 10 * i, 0, 0};
    found[3].memory = ~0ULL;
    return 0;
  };
  f.graphics_processes = [](Handle, unsigned* count, Process* found) {
    const unsigned room = *count;
    *count = 1;
    if (room < 1) return 7;
    found[0] = {101, 500, 0, 0};  // also computes
    return 0;
  };
  f.process_name = [](unsigned pid, char* text, unsigned size) {
    std::snprintf(text, size, "/usr/bin/python%u", pid);
    return pid == 102 ? 6 : 0;
  };
  auto nvml = Nvml::Open(std::move(f));
  ASSERT_TRUE(nvml.ok());
  const auto activity = (*nvml)->ActivityOf(0);
  ASSERT_TRUE(activity.ok()) << activity.status();
  EXPECT_EQ(activity->load, 37);
  EXPECT_EQ(activity->temperature, 61);
  EXPECT_EQ(activity->power, 215.5);
  EXPECT_EQ(activity->power_limit, 450.0);
  EXPECT_EQ(activity->pcie_received, 1000 * 1024);
  EXPECT_EQ(activity->pcie_sent, 20 * 1024);
  ASSERT_TRUE(activity->processes.has_value());
  const std::vector<NvmlProcess>& processes = *activity->processes;
  ASSERT_EQ(processes.size(), 10U);
  EXPECT_EQ(processes[0].pid, 101U);
  EXPECT_EQ(processes[0].bytes, 500);
  EXPECT_EQ(processes[0].name, "python101");
  EXPECT_EQ(processes[1].pid, 109U);
  EXPECT_EQ(processes.back().pid, 103U);
  EXPECT_EQ(processes.back().bytes, std::nullopt);
}

TEST(NvmlTest, WhatADeviceDoesIsUnknownWhereItIsNotTold) {
  FakeDriver driver;
  NvmlFunctions lacking = driver.Functions();
  NvmlFunctions refusing = driver.Functions();
  using Handle = NvmlFunctions::Handle;
  const auto refuse = [](Handle, unsigned* v) { return *v = 0, 3; };
  refusing.utilization = [](Handle, NvmlFunctions::Utilization*) { return 3; };
  refusing.temperature = [](Handle, int, unsigned*) { return 3; };
  refusing.power = refusing.power_limit = refuse;
  refusing.pcie_traffic = [](Handle, int, unsigned*) { return 3; };
  refusing.compute_processes = refusing.graphics_processes =
      [](Handle, unsigned*, NvmlFunctions::Process*) { return 4; };
  for (NvmlFunctions* functions : {&lacking, &refusing}) {
    auto nvml = Nvml::Open(std::move(*functions));
    ASSERT_TRUE(nvml.ok());
    const auto activity = (*nvml)->ActivityOf(1);
    ASSERT_TRUE(activity.ok()) << activity.status();
    EXPECT_EQ(activity->load, std::nullopt);
    EXPECT_EQ(activity->temperature, std::nullopt);
    EXPECT_EQ(activity->power, std::nullopt);
    EXPECT_EQ(activity->power_limit, std::nullopt);
    EXPECT_EQ(activity->pcie_received, std::nullopt);
    EXPECT_EQ(activity->pcie_sent, std::nullopt);
    EXPECT_EQ(activity->processes, std::nullopt);
    EXPECT_FALSE((*nvml)->ActivityOf(0, 0).ok()) << "no slices there";
  }
}

TEST(NvmlTest, OneDeviceThatDoesNotAnswerHidesNoOther) {
  FakeDriver driver;
  driver.devices = 3;
  for (const int code : {3, 4, 15}) {
    NvmlFunctions functions = driver.Functions();
    functions.memory = [&](NvmlFunctions::Handle h, NvmlFunctions::Memory* m) {
      *m = {100, 60, 40};
      return reinterpret_cast<std::uintptr_t>(h) == 2 ? code : 0;
    };
    functions.handle = [&](unsigned i, NvmlFunctions::Handle* h) {
      *h = reinterpret_cast<NvmlFunctions::Handle>(
          static_cast<std::uintptr_t>(i + 1));
      return i == 2 ? code : 0;
    };
    auto nvml = Nvml::Open(std::move(functions));
    ASSERT_TRUE(nvml.ok());
    const auto devices = (*nvml)->Devices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    ASSERT_EQ(devices->size(), 3U);
    EXPECT_EQ((*devices)[0].total, 100);
    EXPECT_EQ((*devices)[0].problem, "");
    EXPECT_EQ((*devices)[1].total, std::nullopt);
    EXPECT_EQ((*devices)[1].free, std::nullopt);
    EXPECT_EQ((*devices)[1].uuid, "GPU-1-abc");
    EXPECT_EQ((*devices)[1].problem,
              "nvmlDeviceGetMemoryInfo failed: " + NvmlErrorText(code));
    EXPECT_EQ((*devices)[2].index, 2);
    EXPECT_EQ((*devices)[2].problem,
              "nvmlDeviceGetHandleByIndex failed: " + NvmlErrorText(code));
  }
}

TEST(NvmlTest, SaysWhatAnErrorIs) {
  EXPECT_EQ(NvmlErrorText(15), "NVML error 15, the GPU is lost");
  EXPECT_EQ(NvmlErrorText(999), "NVML error 999");
}

TEST(NvmlTest, FailureNamesTheCallAndNvmlsError) {
  FakeDriver driver;
  NvmlFunctions functions = driver.Functions();
  functions.count = [](unsigned*) { return 999; };
  auto nvml = Nvml::Open(std::move(functions));
  ASSERT_TRUE(nvml.ok());
  const auto devices = (*nvml)->Devices();
  EXPECT_EQ(devices.status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(devices.status().message(),
            "nvmlDeviceGetCount failed: NVML error 999");
}

// The second of three cards is cut: slices 0 and 2 of at most seven, with 10
// and 20 of memory.
NvmlFunctions WithSlices(FakeDriver* driver) {
  using Handle = NvmlFunctions::Handle;
  NvmlFunctions f = driver->Functions();
  const auto number = [](Handle h) {
    return reinterpret_cast<std::uintptr_t>(h);
  };
  f.mig_mode = [number](Handle h, unsigned* now, unsigned* then) {
    if (number(h) == 3) return 3;  // no such thing there
    *now = *then = number(h) == 2 ? 1 : 0;
    return 0;
  };
  f.mig_count = [](Handle, unsigned* n) { return *n = 7, 0; };
  f.mig_handle = [](Handle, unsigned i, Handle* h) {
    *h = reinterpret_cast<Handle>(static_cast<std::uintptr_t>(100 + i));
    return i == 0 || i == 2 ? 0 : 6;
  };
  f.uuid = [number](Handle h, char* text, unsigned size) {
    const bool slice = number(h) >= 100;
    std::snprintf(text, size, slice ? "MIG-%zu" : "GPU-%zu",
                  slice ? number(h) - 100 : number(h) - 1);
    return 0;
  };
  f.memory = [number](Handle h, NvmlFunctions::Memory* m) {
    const unsigned long long total = number(h) == 100   ? 10
                                     : number(h) == 102 ? 20
                                                        : 100;
    *m = {total, total - 4, 4};
    return 0;
  };
  return f;
}

TEST(NvmlTest, ASliceIsAskedForItself) {
  FakeDriver driver;
  driver.devices = 3;
  NvmlFunctions f = WithSlices(&driver);
  using Handle = NvmlFunctions::Handle;
  f.utilization = [](Handle h, NvmlFunctions::Utilization* u) {
    *u = {50, 50};
    return reinterpret_cast<std::uintptr_t>(h) >= 100 ? 3 : 0;
  };
  f.compute_processes = [](Handle h, unsigned* count, NvmlFunctions::Process*) {
    return *count = 0, reinterpret_cast<std::uintptr_t>(h) == 102 ? 0 : 3;
  };
  auto nvml = Nvml::Open(std::move(f));
  ASSERT_TRUE(nvml.ok());
  const auto card = (*nvml)->ActivityOf(1);
  const auto slice = (*nvml)->ActivityOf(1, 2);
  ASSERT_TRUE(card.ok() && slice.ok());
  EXPECT_EQ(card->load, 50);
  EXPECT_EQ(card->processes, std::nullopt);
  EXPECT_EQ(slice->load, std::nullopt) << "the card's is not the slice's";
  ASSERT_TRUE(slice->processes.has_value());
  EXPECT_THAT(*slice->processes, IsEmpty());
}

TEST(NvmlTest, ListsTheSlicesOfACard) {
  FakeDriver driver;
  driver.devices = 3;
  auto nvml = Nvml::Open(WithSlices(&driver));
  ASSERT_TRUE(nvml.ok());
  const auto devices = (*nvml)->Devices();
  ASSERT_TRUE(devices.ok()) << devices.status();
  std::vector<std::string> uuids;
  for (const NvmlDevice& device : *devices) uuids.push_back(device.uuid);
  EXPECT_THAT(uuids, ElementsAre("GPU-0", "GPU-1", "MIG-0", "MIG-2", "GPU-2"));
  EXPECT_TRUE((*devices)[1].cut);
  const NvmlDevice& slice = (*devices)[3];
  EXPECT_EQ(slice.index, 1);
  EXPECT_EQ(slice.slice, 2);
  EXPECT_FALSE(slice.cut);
  EXPECT_EQ(slice.total, 20);
  EXPECT_EQ(slice.pcie_generation, 4) << "of the card";
  const auto memory = (*nvml)->MemoryOf(1, 2);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->free, 16);
  EXPECT_EQ((*nvml)->MemoryOf(1, 1).status().message(),
            "nvmlDeviceGetMigDeviceHandleByIndex failed: NVML error 6");
}

TEST(VisibleNvmlTest, ShowsSlices) {
  FakeDriver driver;
  driver.devices = 3;
  auto nvml = Nvml::Open(WithSlices(&driver));
  ASSERT_TRUE(nvml.ok());
  auto devices = *(*nvml)->Devices();  // GPU-0 GPU-1 MIG-0 MIG-2 GPU-2
  EXPECT_THAT(VisibleNvml("MIG-2", false, devices), ElementsAre(3));
  EXPECT_THAT(VisibleNvml("MIG-2,MIG-0", false, devices), ElementsAre(3, 2));
  EXPECT_THAT(VisibleNvml("0,MIG-2", false, devices), ElementsAre(0, 3));
  EXPECT_THAT(VisibleNvml("MIG-9", false, devices), IsEmpty());
  EXPECT_THAT(VisibleNvml("1", false, devices), ElementsAre(2))
      << "a card that is cut stands for its first slice";
  EXPECT_THAT(VisibleNvml("GPU-1,2", false, devices), ElementsAre(2, 4));
  EXPECT_THAT(VisibleNvml("", true, devices), ElementsAre(0, 2, 4));
  devices.erase(devices.begin() + 2, devices.begin() + 4);
  EXPECT_THAT(VisibleNvml("", true, devices), ElementsAre(0, 2))
      << "a card that is cut into nothing shows nothing";
  EXPECT_THAT(VisibleNvml("0,1,2", false, devices), ElementsAre(0));
}

TEST(NvmlTest, InitialisationThatFailsIsNotShutDown) {
  FakeDriver driver;
  NvmlFunctions functions = driver.Functions();
  functions.init = [] { return 9; };
  const auto nvml = Nvml::Open(std::move(functions));
  EXPECT_EQ(nvml.status().message(),
            "nvmlInit failed: NVML error 9, the driver is not loaded");
  EXPECT_EQ(driver.shutdowns, 0);
}

std::vector<NvmlDevice> ThreeDevices() {
  std::vector<NvmlDevice> devices(3);
  for (int i = 0; i < 3; ++i) {
    devices[static_cast<std::size_t>(i)].index = i;
    devices[static_cast<std::size_t>(i)].uuid = "GPU-" + std::to_string(i * 11);
  }
  return devices;
}

TEST(VisibleNvmlTest, FollowsTheVariable) {
  const auto devices = ThreeDevices();
  EXPECT_THAT(VisibleNvml("", true, devices), ElementsAre(0, 1, 2));
  EXPECT_THAT(VisibleNvml("", false, devices), IsEmpty());
  EXPECT_THAT(VisibleNvml("2, 0", false, devices), ElementsAre(2, 0));
  EXPECT_THAT(VisibleNvml("GPU-22,GPU-11", false, devices), ElementsAre(2, 1));
  EXPECT_THAT(VisibleNvml("1,7,0", false, devices), ElementsAre(1));
  EXPECT_THAT(VisibleNvml("-1", false, devices), IsEmpty());
}

}  // namespace
}  // namespace distorch
