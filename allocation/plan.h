// SPDX-License-Identifier: Apache-2.0
// What the planner reads and what it returns: plain data.
#ifndef DISTORCH_ALLOCATION_PLAN_H_
#define DISTORCH_ALLOCATION_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/device_id.h"
#include "allocation/spec.h"

namespace distorch {

// The unit of placement: a module with its own parameters.
struct Block {
  std::string name;  // unique in the model
  // What placing this block adds to a device, 0 or more. Storage that several
  // blocks share is counted in one of them.
  Bytes bytes;
  // The layer group (a repeated module) it is part of; "": a group of its own.
  std::string group;
  // Why it must stay on the compute device; "": free to move.
  std::string pinned;
  // Blocks with the same key share storage and stay together. The name of a
  // block is a key of that block too. "": none.
  std::string tied;
  bool patched = false;    // a patch (LoRA) is applied when it is loaded
  std::string layer_type;  // "Linear"; for the tables only, may be empty
  // What its compute takes, in any one unit (nanoseconds, as measured), 0 or
  // more. Groups that are spread are spaced by it; by bytes where all are 0.
  int64_t cost = 0;
};

// A row of the table of devices. Not every device tells its memory: what nobody
// knows is nullopt, never 0.
struct Device {
  DeviceId id;
  std::optional<Bytes> total;  // memory it has
  std::optional<Bytes> free;   // of that, what is free now
  Bytes reserve;               // of that, what must be left free
  double link_gbps = 0;        // GB/s to the compute device; 0: unknown
};

// The row of the table, or null.
const Device* FindDevice(absl::Span<const Device> table,
                         const DeviceId& device);

enum class Order {
  kAuto,        // accelerators contiguous; what cpu and compute share, spread
  kContiguous,  // each device one part of the model, in the order of the string
  kStrided,     // each device's groups spread evenly over the model
};

struct PlanOptions {
  Order order = Order::kAuto;
  // A donor with less free memory than its entry asks for is an error, where
  // otherwise its cap is lowered with a note.
  bool strict = false;
  // The most staging slots into which layer groups are to be streamed on the
  // compute device, whose cap then holds its weights and the slots. 0: nothing
  // is streamed.
  uint32_t slots = 0;
};

// As many slots as the links of the donors can make use of.
inline constexpr uint32_t kSlotsForEveryLink = ~uint32_t{0};

// Why a block is where it is.
enum class Reason : uint8_t {
  kPinned,      // must stay on the compute device
  kTiedPinned,  // tied to a block that must stay there
  kLoose,       // in no layer group: such blocks cannot be copied ahead
  kPart,        // in the device's contiguous part
  kSpread,      // in the device's evenly spread share
  kBoundary,    // its group is split: a cap ends inside it
  kRest,        // on the device that takes the rest
  kRepacked,    // placed singly, where it fits, to keep every cap
};

// What one device may hold and holds.
struct DeviceShare {
  DeviceId device;
  Bytes asked;      // what the string asks for, in bytes of this model
  Bytes cap;        // the most it may hold: never above `available`, if known
  Bytes available;  // free memory less the reserve; Max() if not known
  Bytes used;       // weights that the plan puts there
  Bytes slots;      // what streaming takes there, on the compute device only
  uint32_t blocks = 0;
  bool in_string = false;  // has an entry (or is part of `auto`)
  bool is_rest = false;    // takes what the others leave
  ExecutionMode mode = ExecutionMode::kAuto;
};

// Made by MakePlan. Block i goes to devices[placement[i]].
struct Plan {
  Spec spec;
  DeviceId compute;
  Order order = Order::kAuto;
  Bytes model_bytes;
  uint32_t slots = 0;  // staging slots on the compute device
  Bytes slot_bytes;    // of one: the most that is streamed of a layer group
  // The compute device's cap holds no slot: streaming goes beyond it.
  bool slots_exceed_cap = false;
  // In the order of the string; devices that it does not name come after.
  std::vector<DeviceShare> devices;
  std::vector<uint32_t> placement;
  std::vector<Reason> reasons;
  std::vector<std::string> notes;

  const DeviceId& DeviceOf(size_t block) const {
    return devices[placement[block]].device;
  }
};

// Whether the plan keeps its word for these blocks: every block has a place,
// the sums agree, no device holds more than its cap, slots included, pinned
// blocks are on the compute device, tied ones together. Internal, naming the
// first fault.
absl::Status CheckInvariants(const Plan& plan, absl::Span<const Block> blocks);

// "stays on cuda:0: embedding", one line.
std::string ReasonText(const Plan& plan, absl::Span<const Block> blocks,
                       size_t block);

// A device that was considered when nothing fitted.
struct Candidate {
  DeviceId device;
  Bytes asked;
  Bytes cap;
  Bytes free;  // less the reserve; Max() if not known
};

// Why there is no plan, in parts.
struct PlanFailure {
  std::string problem;
  std::vector<Candidate> candidates;
  std::string remedy;  // one thing to do

  // The problem, one line for each candidate, the remedy.
  std::string Message() const;
};

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_PLAN_H_
