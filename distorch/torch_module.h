// SPDX-License-Identifier: Apache-2.0
// Placing a torch::nn::Module. Header only: compiled by who uses it with his
// own libtorch, and linked with distorch::placement, distorch::planner and
// distorch::stream_scheduler.
//
//   auto placed = distorch::PlaceModule(*model, spec, compute, devices);
//   x = x.to("cuda:0");
//   for (int i = 0; i < 24; ++i) {
//     const auto use = (*placed)->Use("layers." + std::to_string(i));
//     x = model->layers[i]->forward(x);      // its weights are on cuda:0
//   }
//   (*placed)->Unload();                     // as it was; copies nothing
//
// libtorch has no hooks around the forward pass of a C++ module, so the caller
// says which layer group, or which block outside of groups, it is about to run.
// Groups come ahead of their use, by the order of the pass before.
//
// What torch throws (out of memory, for one) passes through as it is, after
// everything was brought back to where it was; errors of DisTorch's own are
// statuses. One thread at a time. Kernels and copies go to the streams that are
// current for the calling thread, and to one more for copies.
#ifndef DISTORCH_DISTORCH_TORCH_MODULE_H_
#define DISTORCH_DISTORCH_TORCH_MODULE_H_

#include <torch/torch.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocation/block_inventory.h"
#include "allocation/plan.h"
#include "allocation/planner.h"
#include "distorch/placement/placement.h"
#include "distorch/torch_module_table.h"
#include "distorch/torch_streamer.h"

namespace distorch {

// A module whose blocks are where a plan put them. Refers to the module's
// tensors; unloads it when it dies.
class PlacedModule {
 public:
  // The weights of a group are on the compute device while this lives.
  class GroupUse {
   public:
    explicit GroupUse(std::function<void()> end) : end_(std::move(end)) {}
    GroupUse(GroupUse&& other) noexcept
        : end_(std::exchange(other.end_, nullptr)) {}
    GroupUse& operator=(GroupUse&&) = delete;  // ends once
    ~GroupUse() {
      if (end_) end_();
    }

   private:
    std::function<void()> end_;
  };

  ~PlacedModule() {
    try {
      Unload();
    } catch (...) {  // every tensor is back by then; what failed was a copy
    }
  }
  PlacedModule(const PlacedModule&) = delete;  // the module is placed once
  PlacedModule& operator=(const PlacedModule&) = delete;

  // Brings the weights of a layer group, or of a block outside of groups, to
  // the compute device, behind the copy of them; starts the next copies. A
  // name that has nothing elsewhere is none of ours, which is no error.
  GroupUse Use(const std::string& name) {
    const auto group = groups_.find(name);
    if (group == groups_.end()) return GroupUse(nullptr);
    streamer_->Enter(group->second);
    return GroupUse([this, index = group->second] { streamer_->Leave(index); });
  }
  // A forward pass begins. The one before is what the order is learned from.
  void BeginStep() {
    if (streamer_) streamer_->BeginStep();
  }

  absl::Status Verify() { return placement_->Verify(table_); }
  const Plan& plan() const { return plan_; }
  const Placement& placement() const { return *placement_; }
  // Bytes copied to the compute device by Use so far.
  Bytes bytes_streamed() const {
    return streamer_ ? streamer_->bytes_copied() : Bytes();
  }

  // The module holds again what it held. Does nothing the second time.
  void Unload() {
    if (streamer_) streamer_->Drain();
    streamer_.reset();
    groups_.clear();
    if (placement_) placement_->Release(table_);
  }

 private:
  friend absl::StatusOr<std::unique_ptr<PlacedModule>> PlaceModule(
      torch::nn::Module&, const Spec&, const DeviceId&,
      absl::Span<const Device>, TorchPatches, int);

  PlacedModule(torch::nn::Module& module, const DeviceId& compute,
               TorchPatches patches)
      : table_(module, compute, std::move(patches)) {}

  TorchModuleTable table_;
  Plan plan_;
  std::unique_ptr<Placement> placement_;
  std::unique_ptr<TorchStreamer> streamer_;
  std::map<std::string, int> groups_;  // by name, the streamer's index
};

// Plans, places and verifies. `devices`: the planner's table, `compute` among
// them. `slots`: staging slots on the compute device, which the plan counts in
// its cap. InvalidArgument, ResourceExhausted: see MakePlan and Placement.
inline absl::StatusOr<std::unique_ptr<PlacedModule>> PlaceModule(
    torch::nn::Module& module, const Spec& spec, const DeviceId& compute,
    absl::Span<const Device> devices, TorchPatches patches = {},
    int slots = 2) {
  std::unique_ptr<PlacedModule> placed(
      new PlacedModule(module, compute, std::move(patches)));
  TorchModuleTable& table = placed->table_;
  const std::vector<Block> blocks = table.Blocks();
  PlanOptions options;
  options.slots = slots;
  absl::StatusOr<Plan> plan = MakePlan(spec, blocks, devices, compute, options);
  if (!plan.ok()) return plan.status();
  placed->plan_ = *std::move(plan);

  std::vector<DeviceId> all = {DeviceId("cpu")};
  const auto index = [&all](const DeviceId& device) {
    for (uint32_t d = 0; d < all.size(); ++d) {
      if (all[d] == device) return d;
    }
    all.push_back(device);
    return static_cast<uint32_t>(all.size() - 1);
  };
  const uint32_t here = index(compute);
  std::vector<PlacedBlock> described;
  std::vector<uint32_t> places;
  for (size_t n = 0; n < blocks.size(); ++n) {
    described.push_back({blocks[n].name, blocks[n].group,
                         !blocks[n].pinned.empty(), blocks[n].tied.empty()});
    places.push_back(index(placed->plan_.DeviceOf(n)));
  }
  for (const std::string& name : table.FoundOn()) {
    index(*DeviceId::FromString(name));
  }
  table.SetDevices(all);
  placed->placement_ =
      std::make_unique<Placement>(all, here, described, table.Infos());
  if (absl::Status s = placed->placement_->Assign(places); !s.ok()) return s;
  BringOptions bring;
  bring.patched = table.Patched();
  if (absl::Status s = placed->placement_->Bring(table, bring); !s.ok()) {
    return s;
  }
  if (absl::Status s = placed->Verify(); !s.ok()) return s;

  // What is elsewhere, by layer group, or by block outside of groups.
  std::map<std::string, std::vector<torch::Tensor>> away;
  std::vector<std::string> order;
  const std::vector<TensorInfo> infos = table.Infos();
  for (uint32_t i = 0; i < infos.size(); ++i) {
    const Block& block = blocks[infos[i].block];
    if (places[infos[i].block] == here || infos[i].same != i) continue;
    const std::string& name = block.group.empty() ? block.name : block.group;
    if (!away.contains(name)) order.push_back(name);
    away[name].push_back(table.tensor(i));
  }
  if (order.empty() || compute.IsHost()) return placed;
  std::vector<std::vector<torch::Tensor>> groups;
  for (const std::string& name : order) {
    placed->groups_.emplace(name, static_cast<int>(groups.size()));
    groups.push_back(away[name]);
  }
  placed->streamer_ = std::make_unique<TorchStreamer>(
      std::move(groups), torch::Device(compute.ToString()), slots);
  return placed;
}

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TORCH_MODULE_H_
