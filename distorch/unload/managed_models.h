// SPDX-License-Identifier: Apache-2.0
// The models whose memory can be given back: which of them an unload concerns,
// in which order they go, and what it came to.
//
//   ManagedModels models(&memory);
//   const ModelHandle flux = models.Add(std::make_shared<MyModel>(...));
//   models.Unload({.of = Selection::Of::kFlagged});       // a "free"
//   models.Unload({.of = Selection::Of::kThese, .handles = {flux}});
//   models.Unload({.of = Selection::Of::kAllBut,           // room for flux on
//                  .handles = {flux}, .device = "cuda:0"});  // its own device
//
// Strict no-op: when a selection concerns no model, not one is unloaded or let
// go of, no device is measured, no cache is cleared; with `kFlagged` models are
// not even asked what they hold.
//
// What is held here are adapters. One may stand for a model of a language with
// a garbage collector: it then knows its model weakly and answers for a dead
// one that it is neither loaded nor kept, until its owner calls Remove.
//
// Threads: all calls may be made from several threads. Models and memory are
// called without a lock, by the thread that called; a model that one thread
// unloads is passed over by the others.
#ifndef DISTORCH_UNLOAD_MANAGED_MODELS_H_
#define DISTORCH_UNLOAD_MANAGED_MODELS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "distorch/device/mutex.h"
#include "distorch/unload/unload_report.h"

namespace distorch {

// One model as its owner gives it in. Calls may come from any thread.
class ManagedModel {
 public:
  virtual ~ManagedModel() = default;
  virtual std::string Name() const = 0;   // for people; need not be unique
  virtual bool Loaded() const = 0;        // whether Unload has something to do
  virtual bool Flagged() const = 0;       // for the next unload of the flagged
  virtual bool Kept() const = 0;          // held through "free"
  virtual DeviceBytes Holds() const = 0;  // where it is now; nothing where it
                                          // cannot tell
  // Takes the model off `device`, or off every one when that is empty. It stays
  // in host memory for whoever holds it. An error is reported; the unload goes
  // on with the next model.
  virtual absl::Status Unload(const std::string& device) = 0;
  // Ends the keeping: whoever else holds it decides how long it lives.
  virtual void LetGo() = 0;
};

// The devices' memory, as the report needs it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // Bytes taken on these devices, by whomever. One that cannot tell is left
  // out of the answer, and so of the report.
  virtual DeviceBytes InUse(const std::vector<std::string>& devices) = 0;
  // Gives back what was freed on these devices and only cached.
  virtual absl::Status Clear(const std::vector<std::string>& devices) = 0;
};

using ModelHandle = std::int64_t;  // unique for the life of a ManagedModels

struct Selection {
  enum class Of { kFlagged, kThese, kAllBut };
  Of of = Of::kFlagged;
  std::vector<ModelHandle> handles = {};  // for kThese and kAllBut; unknown
                                          // ones are passed over
  // Not empty: only models that hold something there, and only what is there.
  std::string device = {};
  bool let_go = false;  // also end the keeping of what is unloaded, and with
                        // kThese of what is in host memory already
};

class ManagedModels {
 public:
  // `memory` must outlive the object.
  explicit ManagedModels(DeviceMemory* memory) : memory_(memory) {}

  ManagedModels(const ManagedModels&) = delete;  // one owner of the order
  ManagedModels& operator=(const ManagedModels&) = delete;

  // Takes a model in, behind those that are there.
  ModelHandle Add(std::shared_ptr<ManagedModel> model);

  // Forgets a model without unloading it; false when there is no such handle.
  // May be called while that model is being unloaded.
  bool Remove(ModelHandle handle);

  // In the order in which they came.
  std::vector<ModelHandle> handles() const;

  // Unloads what `selection` concerns, the model with most bytes first (memory
  // that others wait for comes back soonest; equal ones in their order), then
  // lets go of it if asked, then clears the caches of the devices that it left.
  UnloadReport Unload(const Selection& selection);

 private:
  struct Entry {
    std::shared_ptr<ManagedModel> model;
    int unloads = 0;    // how often it was unloaded here
    bool busy = false;  // is being unloaded
  };
  struct Chosen {
    ModelHandle handle = 0;
    std::shared_ptr<ManagedModel> model;
    DeviceBytes holds;
  };
  using Entries = std::vector<std::pair<ModelHandle, Entry>>;

  Entries Look() const;
  bool Claim(ModelHandle handle, int unloads);
  void Unclaim(ModelHandle handle);
  // Both call models, and the second the memory.
  std::vector<Chosen> Choose(const Entries& entries, const Selection& selection)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void CarryOut(const std::vector<Chosen>& chosen, const Selection& selection,
                UnloadReport& report) ABSL_LOCKS_EXCLUDED(mutex_);

  DeviceMemory* memory_;
  // Never held while a model or the memory is called, or a model is dropped.
  mutable Mutex mutex_;
  std::map<ModelHandle, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  ModelHandle next_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace distorch

#endif  // DISTORCH_UNLOAD_MANAGED_MODELS_H_
