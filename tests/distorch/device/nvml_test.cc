// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/nvml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

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
            "nvmlDeviceGetMemoryInfo failed with NVML error 15");
}

TEST(NvmlTest, FailureNamesTheCallAndNvmlsError) {
  FakeDriver driver;
  driver.fail_memory_with = 15;
  auto nvml = Nvml::Open(driver.Functions());
  ASSERT_TRUE(nvml.ok());
  const auto devices = (*nvml)->Devices();
  EXPECT_EQ(devices.status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(devices.status().message(),
            "nvmlDeviceGetMemoryInfo failed with NVML error 15");
}

TEST(NvmlTest, InitialisationThatFailsIsNotShutDown) {
  FakeDriver driver;
  NvmlFunctions functions = driver.Functions();
  functions.init = [] { return 9; };
  const auto nvml = Nvml::Open(std::move(functions));
  EXPECT_EQ(nvml.status().message(), "nvmlInit failed with NVML error 9");
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

TEST(VisibleNvmlIndicesTest, FollowsTheVariable) {
  const auto devices = ThreeDevices();
  EXPECT_THAT(VisibleNvmlIndices("", true, devices), ElementsAre(0, 1, 2));
  EXPECT_THAT(VisibleNvmlIndices("", false, devices), IsEmpty());
  EXPECT_THAT(VisibleNvmlIndices("2, 0", false, devices), ElementsAre(2, 0));
  EXPECT_THAT(VisibleNvmlIndices("GPU-22,GPU-11", false, devices),
              ElementsAre(2, 1));
  EXPECT_THAT(VisibleNvmlIndices("1,7,0", false, devices), ElementsAre(1));
  EXPECT_THAT(VisibleNvmlIndices("-1", false, devices), IsEmpty());
}

}  // namespace
}  // namespace distorch
