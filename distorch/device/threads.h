// SPDX-License-Identifier: Apache-2.0
// Threads of our own.
#ifndef DISTORCH_DEVICE_THREADS_H_
#define DISTORCH_DEVICE_THREADS_H_

#include <functional>
#include <thread>

#include "absl/status/statusor.h"

namespace distorch {

// Starts a thread that runs `body`. The system's tools show it by `name`, of at
// most 15 characters. Signals are left to the threads that know what to do with
// them: none is delivered to it. Internal when the system gives no thread.
absl::StatusOr<std::thread> StartThread(const char* name,
                                        std::function<void()> body);

// Seconds of processor time that the calling thread has used.
double ThreadCpuSeconds();

}  // namespace distorch

#endif  // DISTORCH_DEVICE_THREADS_H_
