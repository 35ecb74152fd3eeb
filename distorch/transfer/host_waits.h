// SPDX-License-Identifier: Apache-2.0
// Ends the host's waits for a device that does not answer any more.
//
// CUDA's own waits have no limit: a copy that never ends (a link that hangs, a
// driver that lost its device) would hang the process without a word. So the
// host asks again and again whether the work is done, for `patience` seconds.
// Nothing can cancel that work: what it reads and writes must stay as it is
// until the process ends, and is given to Abandon.
#ifndef DISTORCH_TRANSFER_HOST_WAITS_H_
#define DISTORCH_TRANSFER_HOST_WAITS_H_

#include <functional>
#include <memory>

#include "distorch/transfer/cuda_api.h"

namespace distorch {

// CUDA's questions whether work is done: 0, kNotReady, or an error.
struct Queries {
  std::function<int(CudaFunctions::Stream)> stream;
  std::function<int(CudaFunctions::Event)> event;
};

// The host's time; tests give their own.
struct HostTime {
  std::function<double()> now;        // seconds since any time
  std::function<void(double)> pause;  // so many seconds, 0: let others run
};

// Makes the waits of `functions`: stream_synchronize and event_synchronize by
// asking, device_synchronize, which CUDA has no question for, by the one that
// is there, on a thread that is left alone if it does not return. Each answers
// kNotReady after functions.patience seconds. Short waits are busy ones, as
// CUDA's are; after twenty milliseconds the host sleeps in between.
void BoundWaits(CudaFunctions& functions, Queries queries, HostTime time = {});

// Keeps something until the process ends. Any thread.
void Abandon(std::shared_ptr<void> kept);

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_HOST_WAITS_H_
