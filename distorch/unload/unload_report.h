// SPDX-License-Identifier: Apache-2.0
// What an unload did, and what each device gave back: the one report of
// everything that unloads, and the one place where freed bytes are computed.
#ifndef DISTORCH_UNLOAD_UNLOAD_REPORT_H_
#define DISTORCH_UNLOAD_UNLOAD_REPORT_H_

#include <map>
#include <string>
#include <vector>

#include "allocation/bytes.h"

namespace distorch {

// Bytes by canonical device name ("cuda:0", "cpu").
using DeviceBytes = std::map<std::string, Bytes>;

// What each device of `before` gave back: before - after, where a device that
// is missing from `after` holds nothing any more. Devices that gave nothing
// back, or hold more than before because others allocated, are left out.
//   FreedBytes({{"cuda:0", MiB(5)}, {"cuda:1", MiB(1)}},
//              {{"cuda:0", MiB(2)}, {"cuda:1", MiB(4)}});  // {"cuda:0": 3 MiB}
DeviceBytes FreedBytes(const DeviceBytes& before, const DeviceBytes& after);

struct UnloadedModel {
  std::string name;
  // Those that it left, by name; "cpu" only where it was nowhere else.
  std::vector<std::string> devices;
};

struct StayingModel {
  std::string name;
  bool loaded = false;  // it is on a device, or the host computes with it
  bool kept = false;    // held through "free"; without `loaded`: in host memory
};

// What one device looked like before and after.
struct DeviceReport {
  std::string device;
  Bytes before;  // taken, by whomever
  Bytes after;
  Bytes freed;                       // as FreedBytes has it: never negative
  std::vector<std::string> holders;  // "name (1.50 GB)", largest first: the
                                     // models that are still there
};

struct UnloadReport {
  bool flagged_only = false;                 // chosen by their flag
  std::vector<UnloadedModel> unloaded = {};  // in the order of unloading
  std::vector<StayingModel> stay = {};       // in the order of the models
  std::vector<DeviceReport> devices = {};    // those that unloaded models left
  std::vector<std::string> failures = {};    // "name: what went wrong"
};

// For people, without a line break at the end:
//   unloaded flux from cuda:0, cuda:1
//   cuda:0: 4194304 bytes given back (4.00 MB), still there: vae (160 MB)
//   still loaded: vae
//   kept in system memory: wan
//   failed: flux: no such device
// Where nothing was unloaded the first line says so.
std::string FormatReport(const UnloadReport& report);

}  // namespace distorch

#endif  // DISTORCH_UNLOAD_UNLOAD_REPORT_H_
