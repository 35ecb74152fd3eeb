// SPDX-License-Identifier: Apache-2.0
// The tensors of a torch::nn::Module for Placement. Part of torch_module.h,
// which programs include.
#ifndef DISTORCH_DISTORCH_TORCH_MODULE_TABLE_H_
#define DISTORCH_DISTORCH_TORCH_MODULE_TABLE_H_

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

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TORCH_MODULE_TABLE_H_
