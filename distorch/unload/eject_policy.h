// SPDX-License-Identifier: Apache-2.0
// Which managed models an eject concerns, and what it gave back. Pure
// functions of data: whoever ejects carries the decision out.
#ifndef DISTORCH_UNLOAD_EJECT_POLICY_H_
#define DISTORCH_UNLOAD_EJECT_POLICY_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "allocation/bytes.h"

namespace distorch {

// Bytes by canonical device name.
using DeviceBytes = std::map<std::string, Bytes>;

// A managed model as the policy sees it.
struct ManagedState {
  std::int64_t id = 0;  // unique
  std::string name;     // for people; need not be unique
  bool eject = false;   // flagged for ejection
  DeviceBytes bytes;    // where its tensors are now
};

// The models to eject: exactly those flagged, the one with most bytes first
// (memory that others wait for comes back soonest), equal ones in the order
// given. Empty when none is flagged: the caller then does nothing at all.
std::vector<std::int64_t> ChooseEjected(
    const std::vector<ManagedState>& models);

// What one device looked like before and after.
struct DeviceReport {
  std::string device;
  Bytes before;  // allocated by this process
  Bytes after;
  Bytes freed;                       // before - after; may be negative when
                                     // others allocated meanwhile
  std::vector<std::string> holders;  // "name (1.50 GB)", largest first: the
                                     // managed models still there
};

struct EjectReport {
  std::vector<std::string> ejected;   // names, in the order of ejection
  std::vector<std::string> kept;      // names, in the order given
  std::vector<DeviceReport> devices;  // those the ejected models touched
};

// Puts a report together. `before` and `after` hold the allocated bytes of
// devices; those that are in neither are left out. `ejected` are the ids that
// were ejected, `models` the state before.
EjectReport MakeEjectReport(const std::vector<ManagedState>& models,
                            const std::vector<std::int64_t>& ejected,
                            const DeviceBytes& before,
                            const DeviceBytes& after);

}  // namespace distorch

#endif  // DISTORCH_UNLOAD_EJECT_POLICY_H_
