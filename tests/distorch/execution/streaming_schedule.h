// SPDX-License-Identifier: Apache-2.0
// Schedules of what happens to streamed models, over the double of CUDA: loads,
// steps in and out of order, on several streams, interrupts, weights that are
// written in place, spills and returns, ejects, models that just die.
//
// All is drawn from a seed: what the models are (groups that lie in pinned and
// pageable host memory, on two other devices, in memory of pools), and what
// happens. Kernels read the slots and compare every byte.
#ifndef DISTORCH_TESTS_DISTORCH_EXECUTION_STREAMING_SCHEDULE_H_
#define DISTORCH_TESTS_DISTORCH_EXECUTION_STREAMING_SCHEDULE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "distorch/transfer/cuda_api.h"
#include "tests/support/cuda/fake_cuda.h"

namespace distorch {

// What is done wrong on purpose.
struct PlantedFault {
  // Changes the entry points under the product.
  std::function<void(FakeCuda&, CudaFunctions&)> tamper;
  // Or what the user of the streamer does:
  bool slots_go_first = false;      // given back before the streamer ends
  bool weights_go_first = false;    // memory of donors, likewise
  bool unregisters_itself = false;  // host memory, before the streamer ends
  bool pools_stay_closed = false;  // no first copy of torch between two devices
  bool writes_without_reset = false;
  bool computes_elsewhere = false;  // on another stream than it says
};

// What was found: refusals, races, wrong bytes, errors, what was left behind.
// Empty when all is well.
std::vector<std::string> RunSchedule(std::uint32_t seed,
                                     const PlantedFault& fault = {});

}  // namespace distorch

#endif  // DISTORCH_TESTS_DISTORCH_EXECUTION_STREAMING_SCHEDULE_H_
