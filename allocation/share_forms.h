// SPDX-License-Identifier: Apache-2.0
// What each form of string asks of each device: internal to the planner, the
// first half of allocation/shares.h.
#ifndef DISTORCH_ALLOCATION_SHARE_FORMS_H_
#define DISTORCH_ALLOCATION_SHARE_FORMS_H_

#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/device_id.h"
#include "allocation/plan.h"
#include "allocation/shares.h"
#include "allocation/spec.h"

namespace distorch::planner_internal {

// Fills in the devices that the string names, what it asks of each, the rest
// device and the notes; caps are what is asked, whatever is free. Devices need
// not be in the table, but for `compute`.
void ResolveForm(const Spec& spec, absl::Span<const Device> table,
                 const DeviceId& compute, Bytes model_bytes, Bytes pinned_bytes,
                 Shares* shares);

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_SHARE_FORMS_H_
