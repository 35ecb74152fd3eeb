// SPDX-License-Identifier: Apache-2.0
// What would go where: plans a safetensors file without loading it.
//   plan_file model.safetensors "cuda:0,2.5gb;cpu,*"
#include <distorch/distorch.h>

#include <iostream>

int main(int argc, char** argv) {
  using namespace distorch;
  if (argc != 3) {
    std::cerr << "usage: plan_file FILE.safetensors ALLOCATION\n";
    return 2;
  }
  const auto header = SafetensorsHeader::ReadFile(argv[1]);
  const auto spec = ParseSpec(argv[2]);
  if (!header.ok() || !spec.ok()) {
    std::cerr << (header.ok() ? spec.status() : header.status()).message()
              << "\n";
    return 1;
  }
  std::vector<TensorEntry> tensors;
  for (size_t i = 0; i < header->size(); ++i) {
    tensors.push_back(
        {std::string(header->name(i)),
         Bytes(static_cast<int64_t>(header->end(i) - header->begin(i)))});
  }
  const std::vector<Block> blocks = BlocksOfTensors(tensors);
  // The machine to plan for: two cards of 24 GB and 64 GB of host memory.
  const std::vector<Device> devices = {
      {DeviceId("cuda", 0), GiB(24), GiB(24), Bytes()},
      {DeviceId("cuda", 1), GiB(24), GiB(24), Bytes()},
      {DeviceId("cpu"), GiB(64), GiB(64), Bytes()}};
  const auto plan = MakePlan(*spec, blocks, devices, DeviceId("cuda", 0));
  if (!plan.ok()) {
    std::cerr << plan.status().message() << "\n";
    return 1;
  }
  std::cout << FormatTables(*plan, blocks, devices);
}
