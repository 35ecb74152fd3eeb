// SPDX-License-Identifier: Apache-2.0
// NVML as a library of the system: each function is found by NVML's own name.
#include <gtest/gtest.h>

#include <optional>

#include "distorch/device/nvml.h"

namespace distorch {
namespace {

TEST(NvmlLibraryTest, EachFunctionIsFoundByItsName) {
  const auto nvml = Nvml::Open();
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  const auto devices = (*nvml)->Devices();
  ASSERT_TRUE(devices.ok()) << devices.status();
  ASSERT_EQ(devices->size(), 1U);
  const NvmlDevice& device = devices->front();
  EXPECT_EQ(device.problem, "");
  EXPECT_EQ(device.uuid, "GPU-1-2-3");
  EXPECT_EQ(device.name, "Imaginary 9000");
  EXPECT_EQ(device.total, 1000);
  EXPECT_EQ(device.used, 400);
  EXPECT_EQ(device.pcie_generation, 5);
  EXPECT_EQ(device.pcie_width, 16);
  EXPECT_EQ(device.pcie_current_generation, 4);
  EXPECT_EQ(device.pcie_current_width, 8);
  EXPECT_EQ(device.nvlinks, 2);
  EXPECT_EQ((*nvml)->DriverVersion(), "580.10");
}

TEST(NvmlLibraryTest, TheProcessSharesOne) {
  const auto nvml = Nvml::Shared();
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  EXPECT_EQ((*nvml)->DriverVersion(), "580.10");
  const auto again = Nvml::Shared();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*nvml, *again);
}

TEST(NvmlLibraryTest, WhatTheDeviceDoesIsAskedByItsNamesToo) {
  const auto nvml = Nvml::Open();
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  const auto activity = (*nvml)->ActivityOf(0);
  ASSERT_TRUE(activity.ok()) << activity.status();
  EXPECT_EQ(activity->load, 70);
  EXPECT_EQ(activity->temperature, 55);
  EXPECT_EQ(activity->power, 250);
  EXPECT_EQ(activity->power_limit, 350);
  EXPECT_GT(*activity->pcie_received, *activity->pcie_sent);
  EXPECT_FALSE(activity->processes.has_value())
      << "this driver lacks the functions that list them";
}

}  // namespace
}  // namespace distorch
