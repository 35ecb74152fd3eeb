// SPDX-License-Identifier: Apache-2.0
// The passes behind MakePlan: internal to the planner. The methods are in
// planner.cc (checks, sums), planner_layout.cc (passes 3 to 6) and
// planner_slots.cc (pass 7).
#ifndef DISTORCH_ALLOCATION_PLANNER_IMPL_H_
#define DISTORCH_ALLOCATION_PLANNER_IMPL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocation/failures.h"
#include "allocation/layout.h"
#include "allocation/planner.h"
#include "allocation/shares.h"
#include "allocation/slots.h"
#include "allocation/units.h"

namespace distorch::planner_internal {

class Planner {
 public:
  Planner(const Spec& spec, absl::Span<const Block> blocks,
          absl::Span<const Device> table, const PlanOptions& options,
          PlanFailure* failure)
      : spec_(spec),
        blocks_(blocks),
        table_(table),
        options_(options),
        failure_(*failure) {}

  absl::StatusOr<Plan> Run(const DeviceId& compute);

 private:
  absl::Status ChooseCompute(const DeviceId& compute);
  absl::Status CheckTable() const;
  absl::Status Place(const Shares& resolved, Bytes reserved);
  absl::Status PlaceWithSlots();
  bool PlaceWithin(uint32_t most, const Shares& resolved);
  Bytes BeyondCap() const;
  absl::Status PlacePinned();
  void LayOut();
  Layout Ordered(Layout contiguous) const;
  Layout SpreadSharedWithHost(Layout contiguous) const;
  absl::Status FitRest();
  Bytes RoundedOff() const;
  bool AreMeantToHoldAll() const;
  absl::Status NothingFits() {
    return Fail(
        RestDoesNotFit(units_, table_, layout_.room[shares_.rest], &shares_));
  }
  absl::Status Fail(PlanFailure failure);
  Plan Collect();

  const Spec& spec_;
  const absl::Span<const Block> blocks_;
  const absl::Span<const Device> table_;
  const PlanOptions& options_;
  PlanFailure& failure_;

  DeviceId compute_;
  Units units_;
  Shares shares_;
  Bytes reserved_;  // for slots
  Slots slots_;
  bool slots_exceed_cap_ = false;
  std::vector<Bytes> room_;  // by device, for movable atoms
  Layout layout_;
  std::vector<std::string> notes_;
};

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_PLANNER_IMPL_H_
