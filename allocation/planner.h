// SPDX-License-Identifier: Apache-2.0
// Turns what a string asks for into a place for every block.
//
//   blocks: 40 of 300 MB; devices: cuda:0 and cuda:1 of 24 GB, cpu of 64 GB
//   MakePlan("cuda:0,2.5gb;cuda:1,3.0g;cpu,*", compute cuda:0)
//     cuda:0 2400 MB, cuda:1 3000 MB, cpu 6600 MB
//
// A pure function of its arguments: no clock, no device, no log; the same
// arguments always give the same plan. The passes:
//   1  blocks become atoms (tied blocks are one) in layer groups
//   2  the string and the table give each device what it may hold
//   3  pinned atoms go to the compute device and count against its cap
//   4  the compute device, if the string names it, takes what is in no layer
//      group (option `order` = auto); then every device gets one contiguous
//      part, in the order of the string; the rest device (`*`, or else cpu)
//      gets what is left
//   5  the option `order` spreads groups evenly over the model
//   6  where the rest device would overflow, atoms are placed singly
//   7  where layer groups are streamed (option `slots`), 3 to 6 anew with less
//      room on the compute device, until it holds the slots too
//   8  sums and notes
//
// Rules beyond the string:
// - A compute device that the string does not name gets what must stay there
//   (pinned blocks), the slots, and nothing else.
// - The cap of the compute device counts the slots. Where it leaves no room for
//   as many as the links could use there are fewer; where it leaves none, two
//   slots go beyond it, with a note. A ratio is no cap: slots come beside it.
// - Percentages alone are ratios: each device gets at most its share, rounded
//   down to whole blocks, and cpu (or the last device) gets what rounding
//   leaves. Beside other amounts a percentage is a cap, but for that of cpu.
// - Without `*` what the caps leave goes to cpu, with a note, also beyond a
//   percentage; but an entry for cpu that is a size or a share of memory is a
//   cap as any other.
#ifndef DISTORCH_ALLOCATION_PLANNER_H_
#define DISTORCH_ALLOCATION_PLANNER_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocation/device_id.h"
#include "allocation/plan.h"
#include "allocation/spec.h"

namespace distorch {

// Plans for running on `compute`; if that is empty, on the device that the
// string names. cpu may be absent from the table: its memory is then not
// checked.
//
// InvalidArgument: no compute device, a device that is not in the table or is
// there twice, two blocks of one name, a negative size, a link's bandwidth that
// is negative or no number. ResourceExhausted: no plan keeps every cap;
// `failure`, if given, receives the message's parts.
//
// Time: proportional to the blocks for each device at worst; 10,000 blocks on
// 8 devices take less than a millisecond.
absl::StatusOr<Plan> MakePlan(const Spec& spec, absl::Span<const Block> blocks,
                              absl::Span<const Device> devices,
                              const DeviceId& compute,
                              const PlanOptions& options = {},
                              PlanFailure* failure = nullptr);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_PLANNER_H_
