// SPDX-License-Identifier: Apache-2.0
// The values of cudaError_t that the double answers (driver_types.h of the CUDA
// Toolkit 13).
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_CUDA_CODES_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_CUDA_CODES_H_

namespace distorch {

inline constexpr int kInvalidValue = 1;
inline constexpr int kInvalidDevice = 101;
inline constexpr int kInvalidHandle = 400;
inline constexpr int kNotReady = 600;
inline constexpr int kPeerAlreadyEnabled = 704;
inline constexpr int kPeerNotEnabled = 705;
inline constexpr int kAlreadyRegistered = 712;
inline constexpr int kNotRegistered = 713;
inline constexpr int kNotPermitted = 800;

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_CUDA_CODES_H_
