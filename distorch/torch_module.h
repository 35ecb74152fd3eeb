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
#include "distorch/placement/slab_layout.h"
#include "distorch/torch_streamer.h"

namespace distorch {

// Patches a weight in place: called with a contiguous copy of its own on the
// compute device, by the name of its parameter.
using TorchPatches = std::map<std::string, std::function<void(torch::Tensor&)>>;

// The tensors of a module, for Placement. See
// distorch/placement/tensor_table.h.
class TorchModuleTable : public TensorTable {
 public:
  // Keeps `module`'s tensors, not the module. `devices` are Placement's.
  TorchModuleTable(torch::nn::Module& module, const DeviceId& compute,
                   TorchPatches patches)
      : patches_(std::move(patches)), compute_(compute.ToString()) {
    std::map<const void*, uint32_t> first;
    for (const auto& item : module.named_modules("", true)) {
      AddBlock(item.key(), *item.value(), &first);
    }
  }

  // What the planner is to know of the blocks.
  std::vector<Block> Blocks() const {
    std::vector<std::string> names;
    for (const Block& block : blocks_) names.push_back(block.name);
    const std::vector<std::string> groups = GroupNames(names);
    std::vector<Block> blocks = blocks_;
    for (size_t n = 0; n < blocks.size(); ++n) blocks[n].group = groups[n];
    return blocks;
  }
  void SetDevices(const std::vector<DeviceId>& devices) {
    for (const DeviceId& device : devices) {
      devices_.emplace_back(device.ToString());
    }
    for (Entry& entry : entries_) {
      entry.info.device = static_cast<uint32_t>(IndexOf(entry.found.device()));
    }
  }
  std::vector<TensorInfo> Infos() const {
    std::vector<TensorInfo> infos;
    for (const Entry& entry : entries_) infos.push_back(entry.info);
    return infos;
  }
  std::set<std::string> FoundOn() const {
    std::set<std::string> names;
    for (const Entry& e : entries_) names.insert(e.found.device().str());
    return names;
  }
  std::vector<bool> Patched() const {
    std::vector<bool> patched;
    for (const Entry& entry : entries_) {
      patched.push_back(patches_.count(entry.name) != 0);
    }
    return patched;
  }
  // The tensor that the module holds; a handle, not a copy.
  const torch::Tensor& tensor(uint32_t i) const { return entries_[i].tensor; }
  void SetData(uint32_t i, const torch::Tensor& data) {
    const torch::NoGradGuard no_grad;
    entries_[i].tensor.set_data(data);
  }

  Made Make(uint32_t i, uint32_t device, From from,
            const SlabPlace& place) override {
    const torch::NoGradGuard no_grad;
    const Entry& entry = entries_[i];
    const bool current = from == From::kCurrent;
    torch::Tensor source = current ? entry.tensor.detach() : entry.found;
    const auto patch = patches_.find(entries_[entry.info.same].name);
    if (!current && patch != patches_.end()) {
      source = source.to(compute_, source.scalar_type(), /*non_blocking=*/false,
                         /*copy=*/true, torch::MemoryFormat::Contiguous);
      patch->second(source);
    }
    torch::Tensor made;
    if (place.slab != kNoSlab) {
      made = SlabView(slabs_.at(place.slab), place.offsets[0], entry.found);
      made.copy_(source);
    } else {
      made = torch::empty_like(entry.found,
                               entry.found.options().device(devices_[device]));
      made.copy_(source);
    }
    made_.emplace(++next_, made.detach());
    return {next_, Bytes()};
  }
  void Hang(uint32_t i, MadeId id) override {
    SetData(i, id == kFound ? entries_[i].found : made_.at(id));
    entries_[i].version = entries_[i].tensor._version();
    entries_[i].hangs = id;
  }
  void Drop(MadeId made) noexcept override { made_.erase(made); }
  SlabId MakeSlab(uint32_t device, Bytes bytes) override {
    slabs_.emplace(
        ++next_,
        torch::empty(
            {bytes.value()},
            torch::TensorOptions(devices_[device]).dtype(torch::kUInt8)));
    return next_;
  }
  void SealSlab(SlabId slab) noexcept override { slabs_.erase(slab); }
  std::vector<int64_t> ReadBack() override {
    std::vector<int64_t> places;
    for (const Entry& e : entries_)
      places.push_back(IndexOf(e.tensor.device()));
    return places;
  }
  std::string PlaceOf(uint32_t i) override {
    return entries_[i].tensor.device().str();
  }
  bool Written(uint32_t i) override {
    const Entry& entry = entries_[i];
    return entry.hangs != kFound && entry.tensor._version() != entry.version;
  }
  void KeepWritten(uint32_t i) override {
    const torch::NoGradGuard no_grad;
    entries_[i].found.copy_(entries_[i].tensor.detach());
  }

 private:
  struct Entry {
    std::string name;
    torch::Tensor tensor;  // the module's
    torch::Tensor found;   // what it held
    TensorInfo info;
    MadeId hangs = kFound;
    int64_t version = 0;
  };

  void AddBlock(const std::string& name, torch::nn::Module& module,
                std::map<const void*, uint32_t>* first) {
    Block block;
    block.name = name.empty() ? "(root)" : name;
    const auto add = [&](const auto& items) {
      for (const auto& item : items) {
        if (!item.value().defined()) continue;
        Entry entry;
        entry.name = name.empty() ? item.key() : name + "." + item.key();
        entry.tensor = item.value();
        entry.found = item.value().detach();
        const auto i = static_cast<uint32_t>(entries_.size());
        entry.info.block = static_cast<uint32_t>(blocks_.size());
        entry.info.same =
            first->emplace(entry.tensor.unsafeGetTensorImpl(), i).first->second;
        entry.info.parts = {Bytes(static_cast<int64_t>(entry.found.nbytes()))};
        if (entry.info.same == i) {
          block.bytes += entry.info.parts[0];
        } else {  // both blocks hold it, and move together
          Block& other = blocks_[entries_[entry.info.same].info.block];
          other.tied = block.tied = other.name;
        }
        entries_.push_back(std::move(entry));
      }
    };
    const size_t before = entries_.size();
    add(module.named_parameters(/*recurse=*/false));
    add(module.named_buffers(/*recurse=*/false));
    if (entries_.size() > before) blocks_.push_back(std::move(block));
  }

  int64_t IndexOf(const torch::Device& device) const {
    for (size_t d = 0; d < devices_.size(); ++d) {
      if (devices_[d].type() == device.type() &&
          (device.is_cpu() || devices_[d].index() == device.index())) {
        return static_cast<int64_t>(d);
      }
    }
    return -1;
  }

  std::vector<Entry> entries_;
  std::vector<Block> blocks_;
  std::vector<torch::Device> devices_;
  TorchPatches patches_;
  torch::Device compute_;
  std::map<MadeId, torch::Tensor> made_;
  std::map<SlabId, torch::Tensor> slabs_;
  uint64_t next_ = 0;
};

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
