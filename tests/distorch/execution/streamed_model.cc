// SPDX-License-Identifier: Apache-2.0
#include "tests/distorch/execution/streamed_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/support/aligned_memory.h"

namespace distorch {
namespace {

constexpr std::int64_t kPage = HostPinner::kPage;
constexpr std::int64_t kChunk = 3000;  // several a page-sized part

std::shared_ptr<void> NewPages(std::int64_t pages) {
  return AlignedMemory(kPage, static_cast<std::size_t>(pages * kPage));
}

}  // namespace

Machine::Machine(std::uint32_t seed, const PlantedFault& planted)
    : random(seed),
      fault(planted),
      fake(1 + kDonors, seed),
      sound(fake.Functions()),
      cuda(sound) {
  fake.records_calls = false;
  if (fault.tamper) fault.tamper(fake, cuda);
  budget = PinBudget::Of((5 + Draw(40)) * kPage);
  router = std::make_unique<Router>(
      cuda, [this] { return fake.seconds(); }, 4096, kChunk);
  donors.push_back(nullptr);
  for (int device = 1; device <= kDonors; ++device) {
    donors.push_back(fake.NewStream(device));
    const Way way = Draw(3) > 0 ? Way::kPeer : Way::kStaged;
    Check("adopt", router->Adopt(device, 0, way, 10));
    if (!fault.pools_stay_closed) fake.OpenPool(device, 0);
  }
  compute = {fake.NewStream(0), fake.NewStream(0)};
}

int Machine::Draw(int below) {
  return std::uniform_int_distribution<int>(0, below - 1)(random);
}

void Machine::Check(const char* what, const absl::Status& status) {
  if (!status.ok()) {
    found.push_back(absl::StrCat(what, ": ", std::string(status.message())));
  }
}

void Machine::Order(void* stream, void* before, int device) {
  const DeviceGuard guard(sound, device);
  void* event = nullptr;
  sound.event_create(&event, CudaFunctions::kDisableTiming);
  sound.event_record(event, before);
  sound.stream_wait(stream, event, 0);
  sound.event_destroy(event);
}

std::vector<std::string> Machine::Finish() {
  router.reset();
  fake.RunAll();
  const std::vector<std::string>& told = fake.violations;
  found.insert(found.end(), told.begin(), told.end());
  const std::size_t streams = compute.size() + kDonors;
  if (fake.handles() != streams) {
    found.push_back(absl::StrCat(fake.handles() - streams,
                                 " streams and events were left behind"));
  }
  if (budget.used() != 0) {
    found.push_back(
        absl::StrCat(budget.used(), " bytes still count as pinned"));
  }
  if (fake.current() != -1) found.push_back("a context was left");
  if (fake.registrations() != 0) {
    found.push_back("host memory was left registered");
  }
  if (fake.last_error() != 0) {
    found.push_back("an error was left for the next call");
  }
  return found;
}

StreamedModel::StreamedModel(Machine* machine, int number)
    : machine_(*machine), number_(number) {
  const int groups = 2 + machine_.Draw(6);
  for (int i = 0; i < groups; ++i) MakeGroup();
  for (int g = 0; g < groups; ++g) {
    const auto parts = groups_[static_cast<std::size_t>(g)].parts.size();
    for (std::size_t p = 0; p < parts; ++p) {
      Fill(g, static_cast<int>(p), nullptr);
    }
  }
  Open();
}

void StreamedModel::MakeGroup() {
  Group group;
  const int parts = 1 + machine_.Draw(3);
  for (int i = 0; i < parts; ++i) {
    Part part;
    part.device = machine_.Draw(2) == 0 ? kHost : 1 + machine_.Draw(2);
    if (part.device == kHost) {
      const int pages = 1 + machine_.Draw(4);
      part.owner = NewPages(pages);
      part.data = static_cast<std::byte*>(part.owner.get());
      part.bytes = pages * kPage - machine_.Draw(2) * 256;
      part.pinned = machine_.Draw(4) > 0;
      if (machine_.fault.tamper || machine_.fault.unregisters_itself) {
        machine_.kept.push_back(part.owner);
      }
    } else {
      part.bytes = 256 * (1 + machine_.Draw(20));
      const auto size = static_cast<std::size_t>(part.bytes);
      part.data = static_cast<std::byte*>(
          machine_.Draw(2) == 0
              ? machine_.fake.NewMemory(part.device, size)
              : machine_.fake.NewPoolMemory(part.device, size));
    }
    group.bytes += part.bytes;
    group.parts.push_back(std::move(part));
  }
  groups_.push_back(std::move(group));
}

unsigned char StreamedModel::Value(int group, int part) const {
  return static_cast<unsigned char>(number_ * 101 + group * 13 + part * 5 +
                                    version_ * 31);
}

// By the host, or by a kernel of the donor.
void StreamedModel::Fill(int group, int part, void* stream) {
  const Part& at = groups_[static_cast<std::size_t>(group)]
                       .parts[static_cast<std::size_t>(part)];
  const auto size = static_cast<std::size_t>(at.bytes);
  const unsigned char value = Value(group, part);
  if (at.device == kHost || stream == nullptr) {
    if (at.device == kHost) machine_.fake.HostAccess(at.data, size, true);
    std::memset(at.data, value, size);
    return;
  }
  machine_.fake.Launch(
      stream, 0, {{at.data, size, true}},
      [data = at.data, value, size] { std::memset(data, value, size); });
}

void StreamedModel::Open() {
  streamed_.clear();
  std::int64_t slot_bytes = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (!groups_[g].streamed) continue;
    streamed_.push_back(static_cast<int>(g));
    slot_bytes = std::max(slot_bytes, groups_[g].bytes);
  }
  if (streamed_.empty()) return;
  if (pinner_ == nullptr) {
    pinner_ = std::make_unique<HostPinner>(&machine_.cuda, 0, machine_.budget,
                                           HostPinner::kNoCap,
                                           (1 + machine_.Draw(2)) * kPage);
  }
  std::vector<ByteGroup> groups;
  std::vector<const void*> kept;
  for (const int g : streamed_) {
    ByteGroup group;
    std::int64_t at = 0;
    for (const Part& part : groups_[static_cast<std::size_t>(g)].parts) {
      std::shared_ptr<const PinnedSlab> slab;
      if (part.pinned) {
        std::vector<std::int64_t> borders;
        for (std::int64_t b = kPage; b < part.bytes; b += kPage) {
          borders.push_back(b);
        }
        slab = pinner_->Pin(part.data, part.bytes, borders, part.owner);
        kept.push_back(part.data);
      }
      group.parts.push_back({part.data, part.device, at, part.bytes, slab});
      at += part.bytes;
    }
    groups.push_back(std::move(group));
  }
  pinner_->KeepOnly(kept);
  slots_on_ = machine_.compute[static_cast<std::size_t>(machine_.Draw(2))];
  const auto size = static_cast<std::size_t>(slot_bytes);
  const int slots = 1 + machine_.Draw(3);
  for (int i = 0; i < slots; ++i) {
    slots_.push_back(machine_.fake.NewMemory(0, size));
    // Given out again by the allocator: a kernel of before still uses it.
    machine_.fake.Launch(
        slots_on_, 0, {{slots_.back(), size, true}},
        [data = slots_.back(), size] { std::memset(data, 0x77, size); });
  }
  ByteStreamer::Options options{&machine_.cuda, machine_.router.get(), 0,
                                slots_, kChunk};
  auto made =
      ByteStreamer::Make(std::move(options), std::move(groups), slots_on_);
  machine_.Check("make", made.status());
  if (made.ok()) streamer_ = *std::move(made);
}

void StreamedModel::GiveSlotsBack() {
  for (void* slot : slots_) machine_.fake.ReturnToPool(slot, slots_on_);
  slots_.clear();
}

void StreamedModel::Close() {
  if (machine_.fault.slots_go_first) GiveSlotsBack();
  streamer_.reset();
  GiveSlotsBack();
}

void StreamedModel::LaunchOn(void* stream, int index, int slot) {
  const int g = streamed_[static_cast<std::size_t>(index)];
  const Group& group = groups_[static_cast<std::size_t>(g)];
  struct Expected {
    std::int64_t bytes;
    unsigned char value;
  };
  std::vector<Expected> expected;
  for (std::size_t p = 0; p < group.parts.size(); ++p) {
    expected.push_back({group.parts[p].bytes, Value(g, static_cast<int>(p))});
  }
  const auto* data =
      static_cast<const unsigned char*>(slots_[static_cast<std::size_t>(slot)]);
  machine_.fake.Launch(
      stream, 0, {{data, static_cast<std::size_t>(group.bytes), false}},
      [this_machine = &machine_, data, expected = std::move(expected), g] {
        const unsigned char* at = data;
        for (const auto& [bytes, value] : expected) {
          const auto wrong = std::find_if(
              at, at + bytes, [v = value](unsigned char b) { return b != v; });
          if (wrong != at + bytes) {
            this_machine->found.push_back(
                absl::StrCat("wrong bytes in group ", g));
            return;
          }
          at += bytes;
        }
      });
}

void StreamedModel::Step(bool interrupted) {
  if (streamer_ == nullptr) return;
  std::vector<int> order;
  for (std::size_t i = 0; i < streamed_.size(); ++i) {
    if (machine_.Draw(12) == 0) continue;  // left out this time
    order.push_back(static_cast<int>(i));
    if (machine_.Draw(12) == 0) order.push_back(static_cast<int>(i));
  }
  if (machine_.Draw(10) == 0) std::reverse(order.begin(), order.end());
  const std::size_t until = interrupted ? order.size() / 2 : order.size();
  streamer_->BeginStep();
  std::size_t stream = static_cast<std::size_t>(machine_.Draw(2));
  for (std::size_t i = 0; i < order.size(); ++i) {
    void* compute = machine_.compute[stream];
    const absl::StatusOr<int> slot = streamer_->Enter(order[i], compute);
    machine_.Check("enter", slot.status());
    if (!slot.ok()) {
      streamer_->Reset();
      return;
    }
    LaunchOn(machine_.fault.computes_elsewhere ? machine_.compute[1 - stream]
                                               : compute,
             order[i], *slot);
    if (interrupted && i == until) {
      streamer_->Reset();
      return;
    }
    if (machine_.Draw(20) == 0) stream = 1 - stream;  // inside of the group
    machine_.Check("leave",
                   streamer_->Leave(order[i], machine_.compute[stream]));
  }
}

void StreamedModel::Write() {
  if (streamer_ != nullptr && !machine_.fault.writes_without_reset) {
    streamer_->Reset();
  }
  ++version_;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    for (std::size_t p = 0; p < groups_[g].parts.size(); ++p) {
      const int device = groups_[g].parts[p].device;
      Fill(static_cast<int>(g), static_cast<int>(p),
           machine_.donors[static_cast<std::size_t>(std::max(device, 0))]);
    }
  }
  if (streamer_ != nullptr && !machine_.fault.writes_without_reset) {
    streamer_->Reset();  // and waits for what the donors have written
  }
}

void StreamedModel::Spill() {
  Close();
  for (Group& group : groups_) group.streamed = machine_.Draw(4) > 0;
  Open();
}

StreamedModel::~StreamedModel() {
  if (machine_.fault.unregisters_itself) {
    const DeviceGuard guard(machine_.cuda, 0);
    for (const Group& group : groups_) {
      for (const Part& part : group.parts) {
        if (part.pinned) machine_.cuda.host_unregister(part.data);
      }
    }
  }
  const auto free_donors = [this] {
    for (Group& group : groups_) {
      for (Part& part : group.parts) {
        if (part.device >= 0) {
          machine_.fake.ReturnToPool(
              part.data,
              machine_.donors[static_cast<std::size_t>(part.device)]);
        }
      }
    }
  };
  if (machine_.fault.weights_go_first) free_donors();
  // In whatever order the collector takes them apart.
  if (machine_.Draw(2) == 0) pinner_.reset();
  if (machine_.Draw(2) == 0) {
    for (Group& group : groups_) {
      for (Part& part : group.parts) {
        if (part.pinned) part.owner.reset();
      }
    }
  }
  Close();
  if (!machine_.fault.weights_go_first) free_donors();
}

}  // namespace distorch
