// SPDX-License-Identifier: Apache-2.0
// Faults such as a change of the product could bring, planted between it and
// the double: calls left out, moved, or given other arguments.
#ifndef DISTORCH_TESTS_DISTORCH_EXECUTION_PLANTED_FAULTS_H_
#define DISTORCH_TESTS_DISTORCH_EXECUTION_PLANTED_FAULTS_H_

#include <string>
#include <vector>

#include "tests/distorch/execution/streaming_schedule.h"

namespace distorch {

struct NamedFault {
  std::string name;  // in CamelCase: names a test
  PlantedFault fault;
};

std::vector<NamedFault> PlantedFaults();

}  // namespace distorch

#endif  // DISTORCH_TESTS_DISTORCH_EXECUTION_PLANTED_FAULTS_H_
