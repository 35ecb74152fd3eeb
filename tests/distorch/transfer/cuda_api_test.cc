// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/cuda_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string>

namespace distorch {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
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
  cuda.driver_device = [](int* handle, int device) {
    return *handle = device, 0;
  };
  cuda.context_retain = [](void**, int device) { return device == 1 ? 0 : 1; };
  cuda.context_push = [](void*) { return 0; };
  cuda.context_pop = [](void**) { return 0; };
  cuda.memory_info = [](std::size_t* free, std::size_t* total) {
    *free = 16;
    *total = 96;
    return 0;
  };
  EXPECT_EQ(CudaFailure(cuda, "cudaMalloc", 1, 64, 2),
            absl::ResourceExhaustedError(
                "cudaMalloc of 64 bytes on cuda:1 failed: "
                "cudaErrorMemoryAllocation (out of memory), 16 bytes are free "
                "there. Free memory there: unload a model, or give the device "
                "a smaller share."));
  EXPECT_EQ(taken, 1);
  // Nobody tells: the device cannot be asked any more.
  EXPECT_THAT(std::string(CudaFailure(cuda, "cudaMalloc", 2, 64, 2).message()),
              HasSubstr("(out of memory). Free memory there"));
  cuda.memory_info = [](std::size_t*, std::size_t*) { return 999; };
  EXPECT_THAT(std::string(CudaFailure(cuda, "cudaMalloc", 1, 64, 2).message()),
              HasSubstr("(out of memory). Free memory there"));
  // The host's is read from the system.
  const std::string host(
      CudaFailure(cuda, "cudaHostAlloc", -1, 64, 2).message());
  EXPECT_THAT(host, StartsWith("cudaHostAlloc of 64 bytes on cpu failed: "));
  // GoogleTest's own patterns know no classes of characters on Windows.
  const std::size_t end = host.find(" bytes are free there");
  ASSERT_NE(end, std::string::npos) << host;
  const std::string digits =
      host.substr(0, end).substr(host.rfind(", ", end) + 2);
  EXPECT_THAT(digits, Not(IsEmpty()));
  EXPECT_EQ(digits.find_first_not_of("0123456789"), std::string::npos) << host;
  cuda.error_name = [](int) -> const char* { return nullptr; };
  cuda.error_text = cuda.error_name;
  EXPECT_THAT(std::string(CudaFailure(cuda, "x", "y", 0, 0, 99).message()),
              StartsWith("x y failed: CUDA error 99 (). "));
}

}  // namespace
}  // namespace distorch
