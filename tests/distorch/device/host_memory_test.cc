// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/host_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace distorch {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;
constexpr char kMemInfo[] =
    "MemTotal:       16777216 kB\n"
    "MemFree:         1048576 kB\n"
    "MemAvailable:    8388608 kB\n";

// A root folder with the files that a test writes into it.
class HostMemoryTest : public testing::Test {
 protected:
  HostMemoryTest() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    root_ = std::filesystem::path(testing::TempDir()) /
            (std::string("host_memory_") + info->name());
    std::filesystem::remove_all(root_);
  }
  ~HostMemoryTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const auto whole = root_ / path;
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << text;
  }
  HostMemory Read() { return ReadHostMemoryFiles(root_.string()); }

 private:
  std::filesystem::path root_;
};

TEST(ParseMemInfoTest, ReadsKilobytes) {
  const HostMemory memory = ParseMemInfo(kMemInfo);
  EXPECT_EQ(memory.total, 16 * kGiB);
  EXPECT_EQ(memory.available, 8 * kGiB);
}

TEST(ParseMemInfoTest, ToleratesGarbage) {
  EXPECT_EQ(ParseMemInfo("").total, 0);
  EXPECT_EQ(ParseMemInfo("MemTotal: many kB\nMemAvailable: -5 kB\n").total, 0);
  EXPECT_EQ(ParseMemInfo("MemTotal: 4 kB\nMemAvailable: 9 kB\n").available,
            4096);
}

TEST_F(HostMemoryTest, IsZeroWhereNothingCanBeRead) {
  EXPECT_EQ(Read().total, 0);
  EXPECT_EQ(Read().available, 0);
}

TEST_F(HostMemoryTest, IsTheMachinesWithoutAControlGroup) {
  Write("proc/meminfo", kMemInfo);
  EXPECT_EQ(Read().available, 8 * kGiB);
}

TEST_F(HostMemoryTest, VersionTwoLimitsAndReclaimablePagesCount) {
  Write("proc/meminfo", kMemInfo);
  Write("proc/self/cgroup", "0::/box/inner\n");
  Write("sys/fs/cgroup/box/memory.max", "4294967296\n");
  Write("sys/fs/cgroup/box/memory.current", "3221225472\n");
  Write("sys/fs/cgroup/box/memory.stat", "anon 1\ninactive_file 1073741824\n");
  Write("sys/fs/cgroup/box/inner/memory.max", "max\n");
  EXPECT_EQ(Read().total, 4 * kGiB);
  EXPECT_EQ(Read().available, 2 * kGiB);
}

TEST_F(HostMemoryTest, VersionOneLimitsCount) {
  Write("proc/meminfo", kMemInfo);
  Write("proc/self/cgroup", "5:cpu:/\n3:memory:/docker/x\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648");
  Write("sys/fs/cgroup/memory/memory.usage_in_bytes", "2147483648");
  Write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 4096\n");
  EXPECT_EQ(Read().total, 2 * kGiB);
  EXPECT_EQ(Read().available, 4096);
}

TEST_F(HostMemoryTest, LimitAboveTheMachineIsNone) {
  Write("proc/meminfo", kMemInfo);
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/memory.max", "9223372036854771712\n");
  Write("sys/fs/cgroup/memory.current", "1\n");
  EXPECT_EQ(Read().total, 16 * kGiB);
}

}  // namespace
}  // namespace distorch
