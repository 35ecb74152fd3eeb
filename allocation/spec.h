// SPDX-License-Identifier: Apache-2.0
// What an allocation string asks for, as data. Made by ParseSpec
// (allocation/parser.h), printed by FormatSpec (allocation/printer.h), turned
// into a plan by MakePlan (allocation/planner.h). Who wants it otherwise edits
// the spec, not the text:
//
//   Spec spec = *ParseSpec("cuda:0,2gb;cuda:7,8gb;cpu,4gb");
//   spec = spec.On(DeviceId("cuda", 0)).Without({DeviceId("cuda", 7)});
//   FormatSpec(spec)                       // "cuda:0,2gb;cpu,*#cuda:0"
//
// Shares are held as whole numbers of billionths, so that no amount of memory
// ever passes through a floating-point number.
#ifndef DISTORCH_ALLOCATION_SPEC_H_
#define DISTORCH_ALLOCATION_SPEC_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/device_id.h"

namespace distorch {

inline constexpr int64_t kBillion = 1'000'000'000;

// A part of the model's bytes: `25%`.
struct ModelShare {
  static constexpr int64_t kWhole = 100 * kBillion;  // 100 %
  int64_t nano_percent = 0;  // 25 % is 25'000'000'000; at most 1'000'000 %
  friend bool operator==(ModelShare, ModelShare) = default;
};

// A part of the device's total memory: `0.8`, the predecessor's way.
struct MemoryShare {
  int64_t nano = 0;  // 0.8 is 800'000'000; at most kBillion
  friend bool operator==(MemoryShare, MemoryShare) = default;
};

// `*`: what the other entries leave.
struct Rest {
  friend bool operator==(Rest, Rest) = default;
};

using Amount = std::variant<Bytes, ModelShare, MemoryShare, Rest>;

// How blocks stored on a donor are run: their weights are copied to the
// compute device, the activations go to the donor, or the planner chooses.
enum class ExecutionMode { kAuto, kStream, kMigrate };

// One `device,amount[,mode=…]`.
struct Entry {
  DeviceId device;
  Amount amount;
  ExecutionMode mode = ExecutionMode::kAuto;
  friend bool operator==(const Entry&, const Entry&) = default;
};

// `cuda:0,2.5gb;cuda:1,25%;cpu,*`. Not empty, no device twice, at most one
// Rest; with a Rest the percentages add up to at most 100, and a list of
// percentages alone does not add up to 0.
struct EntryList {
  std::vector<Entry> entries;
  friend bool operator==(const EntryList&, const EntryList&) = default;
};

// `0.8`: that share of the compute device, the rest on the host.
struct ComputeShare {
  MemoryShare share;
  friend bool operator==(ComputeShare, ComputeShare) = default;
};

// `auto[,reserve=1.5gb]`: the free memory of all devices less a reserve on
// each. Without a reserve the planner's default holds.
struct AutoAllocation {
  std::optional<Bytes> reserve;
  friend bool operator==(const AutoAllocation&,
                         const AutoAllocation&) = default;
};

// `#cuda:0;4.0;cuda:1,cpu`: at most `amount` leaves the compute device for the
// donors, the first of them first.
struct VirtualVram {
  Bytes amount;
  std::vector<DeviceId> donors;  // not empty, no device twice
  friend bool operator==(const VirtualVram&, const VirtualVram&) = default;
};

struct Spec {
  std::variant<EntryList, ComputeShare, AutoAllocation, VirtualVram> form;
  // The compute device that the string names (`…#cuda:0;…`), or none.
  DeviceId compute;
  // Devices that the string named and Without() has taken out; a plan notes
  // them. No string has any.
  std::vector<DeviceId> gone = {};

  // Whether they ask for the same, whatever was taken out of them.
  friend bool operator==(const Spec& a, const Spec& b) {
    return a.form == b.form && a.compute == b.compute;
  }

  // The whole model on `compute`: `cuda:0,*#cuda:0`.
  static Spec Whole(const DeviceId& compute);

  // The devices it names, each once: of the entries or donors, as written, then
  // the compute device.
  std::vector<DeviceId> Devices() const;

  // Whether a plan may use devices that it does not name: `auto`.
  bool UsesEveryDevice() const {
    return std::holds_alternative<AutoAllocation>(form);
  }

  // The same, computed on `device`.
  Spec On(const DeviceId& device) const;

  // The same without the devices that are `lost`, its compute device not being
  // one of them. What they would have held goes to the others of a list of
  // percentages, in their ratio; else to `*`; else to the compute device,
  // if no entry limits it; else to cpu. A donor that is gone is cpu. Those that
  // it named are in the result's `gone`.
  Spec Without(absl::Span<const DeviceId> lost) const;
};

// "auto", "stream", "migrate".
inline std::string_view ModeName(ExecutionMode mode) {
  switch (mode) {
    case ExecutionMode::kStream:
      return "stream";
    case ExecutionMode::kMigrate:
      return "migrate";
    case ExecutionMode::kAuto:
      break;
  }
  return "auto";
}

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_SPEC_H_
