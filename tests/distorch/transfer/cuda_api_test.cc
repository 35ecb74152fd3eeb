// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/cuda_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace distorch {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

// A library that every process has, and none of CUDA's.
#ifdef _WIN32
constexpr char kSystem[] = "kernel32.dll";
#else
constexpr char kSystem[] = "libc.so.6";
#endif

TEST(LoadCudaTest, SaysWhichPartIsNotThereAndWhatToDo) {
  EXPECT_EQ(
      LoadCuda("/nowhere/libcudart.so", "/nowhere/libcuda.so").status(),
      absl::UnavailableError("/nowhere/libcuda.so was not found: no NVIDIA "
                             "driver on this machine"));
  EXPECT_THAT(
      std::string(
          LoadCuda("/nowhere/libcudart.so", kSystem).status().message()),
      StartsWith("/nowhere/libcudart.so was not found: import a torch"));
  const std::string message(LoadCuda(kSystem, kSystem).status().message());
  EXPECT_THAT(message, StartsWith("CUDA lacks cudaGetDeviceCount, "));
  EXPECT_THAT(message, HasSubstr("cuCtxPopCurrent_v2"));
  EXPECT_THAT(message,
              EndsWith("update the driver and CUDA to version 12 or later"));
}

TEST(LoadHipTest, LooksForHipsNames) {
  EXPECT_THAT(
      std::string(LoadHip("/nowhere/libamdhip64.so").status().message()),
      StartsWith(
          "/nowhere/libamdhip64.so was not found: import a torch that is "
          "built for ROCm"));
  const std::string message(LoadHip(kSystem).status().message());
  EXPECT_THAT(message, StartsWith("HIP lacks hipGetDeviceCount, "));
  for (const char* name : {"hipHostMalloc", "hipHostFree", "hipHostRegister",
                           "hipMemcpyAsync", "hipStreamWaitEvent",
                           "hipDevicePrimaryCtxRetain", "hipCtxPopCurrent:"}) {
    EXPECT_THAT(message, HasSubstr(name));
  }
  EXPECT_THAT(message, EndsWith("update ROCm to version 6 or later"));
}

TEST(CudaFailureTest, OutOfMemoryIsItsOwnKindAndTakesTheErrorOff) {
  CudaFunctions cuda;
  int taken = 0;
  cuda.take_last_error = [&] { return ++taken; };
  cuda.error_name = [](int) { return "cudaErrorMemoryAllocation"; };
  cuda.error_text = [](int) { return "out of memory"; };
  EXPECT_EQ(CudaFailure(cuda, "cudaMalloc", "on cuda:1", 64, 2),
            absl::ResourceExhaustedError(
                "cudaMalloc of 64 bytes on cuda:1 failed: "
                "cudaErrorMemoryAllocation (out of memory). Free memory there: "
                "unload a model, or give the device a smaller share."));
  EXPECT_EQ(taken, 1);
  cuda.error_name = [](int) -> const char* { return nullptr; };
  cuda.error_text = cuda.error_name;
  EXPECT_THAT(std::string(CudaFailure(cuda, "x", "y", 0, 99).message()),
              StartsWith("x y failed: CUDA error 99 (). "));
}

}  // namespace
}  // namespace distorch
