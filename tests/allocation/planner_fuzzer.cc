// SPDX-License-Identifier: Apache-2.0
// Any bytes as blocks, a table of devices, options and a string: a plan keeps
// its word, and the same arguments give the same; a failure is one of the two
// that are promised, and says what to do.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocation/parser.h"
#include "allocation/planner.h"

namespace {

using ::distorch::Block;
using ::distorch::Bytes;
using ::distorch::Device;
using ::distorch::DeviceId;

void Require(bool holds) {
  if (!holds) std::abort();
}

// Numbers from bytes; zeros when there are no more.
class Source {
 public:
  Source(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  uint32_t Byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  bool Chance(uint32_t in) { return Byte() % in == 0; }
  // Mostly small, sometimes as large or as wrong as can be.
  Bytes Size() {
    const uint32_t kind = Byte();
    if (kind == 255) return Bytes::Max();
    if (kind == 254) return Bytes(-1);
    const int64_t low = Byte();
    const int64_t value = low | int64_t{Byte()} << 8;
    return Bytes(kind > 200 ? value << 40 : value);
  }
  std::string Rest() { return {reinterpret_cast<const char*>(data_), left_}; }

 private:
  const uint8_t* data_;
  size_t left_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Source source(data, size);
  std::vector<Device> devices;
  for (uint32_t i = source.Byte() % 5; i-- > 0;) {
    Device device;
    device.id = DeviceId("cuda", static_cast<int>(i));
    device.total = source.Size();
    device.free = source.Size();
    if (source.Chance(4)) device.id = DeviceId("cpu");
    if (source.Chance(5)) device.free.reset();
    if (source.Chance(5)) device.total.reset();
    if (source.Chance(3)) device.reserve = source.Size();
    if (source.Chance(2)) device.link_gbps = source.Byte();
    devices.push_back(std::move(device));
  }
  std::vector<Block> blocks;
  for (uint32_t i = source.Byte() % 24; i-- > 0;) {
    Block block;
    block.name = absl::StrCat("b", source.Chance(20) ? 0 : i);
    block.bytes = source.Size();
    if (!source.Chance(3)) block.group = absl::StrCat("g", source.Byte() % 5);
    if (source.Chance(8)) block.pinned = "head";
    if (source.Chance(6)) block.tied = absl::StrCat("b", source.Byte() % 5);
    if (source.Chance(3)) block.cost = source.Size().value();
    blocks.push_back(std::move(block));
  }
  distorch::PlanOptions options;
  options.order = static_cast<distorch::Order>(source.Byte() % 3);
  options.strict = source.Chance(3);
  options.slots = source.Byte();
  if (options.slots > 8) options.slots = distorch::kSlotsForEveryLink;
  const DeviceId compute = source.Chance(4) ? DeviceId() : DeviceId("cuda", 0);
  const auto spec = distorch::ParseSpec(source.Rest());
  if (!spec.ok()) return 0;
  distorch::PlanFailure failure;
  const auto plan =
      distorch::MakePlan(*spec, blocks, devices, compute, options, &failure);
  if (!plan.ok()) {
    const bool full =
        plan.status().code() == absl::StatusCode::kResourceExhausted;
    Require(full || plan.status().code() == absl::StatusCode::kInvalidArgument);
    Require(!full || (failure.Message() == plan.status().message() &&
                      !failure.remedy.empty()));
    return 0;
  }
  Require(distorch::CheckInvariants(*plan, blocks).ok());
  const auto again =
      distorch::MakePlan(*spec, blocks, devices, compute, options);
  Require(again.ok() && again->placement == plan->placement &&
          again->notes == plan->notes && again->slots == plan->slots);
  return 0;
}
