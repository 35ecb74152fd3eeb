// SPDX-License-Identifier: Apache-2.0
// Places a torch::nn transformer over several devices, runs it with weights
// that come ahead of their use, unloads it, and compares with the plain run.
#include <distorch/distorch.h>
#include <distorch/torch_module.h>

#include <iostream>

#ifdef DISTORCH_EXAMPLE_SIM
#include "tests/support/sim/sim_backend.h"
#include "tests/support/sim/sim_memory.h"
#endif

namespace nn = torch::nn;
using distorch::DeviceId;

struct ModelImpl : nn::Module {
  ModelImpl() {
    for (int i = 0; i < 8; ++i) {
      layers->push_back(nn::TransformerEncoderLayer(
          nn::TransformerEncoderLayerOptions(64, 4).dim_feedforward(128)));
    }
    register_module("layers", layers);
    register_module("head", head);
  }
  // `use` is told before each part runs, and holds its weights meanwhile.
  template <typename Use>
  torch::Tensor forward(torch::Tensor x, Use use) {
    for (size_t i = 0; i < layers->size(); ++i) {
      const auto weights = use("layers." + std::to_string(i));
      x = layers[i]->as<nn::TransformerEncoderLayer>()->forward(x);
    }
    const auto weights = use("head");
    return head->forward(x);
  }
  nn::ModuleList layers;
  nn::Linear head{64, 10};
};
TORCH_MODULE(Model);

int main() {
  DeviceId compute("cpu");
  std::string text = "cpu,*";
  std::vector<distorch::Device> devices = {
      {DeviceId("cpu"), distorch::GiB(8), distorch::GiB(8), {}}};
#ifdef DISTORCH_EXAMPLE_SIM
  c10::register_privateuse1_backend("sim");
  distorch_sim::RegisterDevice();
  distorch_sim::Configure({64 << 20, 64 << 20});
  compute = DeviceId("sim", 0);
  text = "sim:0,400kb;sim:1,600kb;cpu,*";
  for (int i : {0, 1}) {
    devices.push_back(
        {DeviceId("sim", i), distorch::MiB(64), distorch::MiB(64), {}});
  }
#endif
  torch::manual_seed(0);
  Model model;
  model->eval();
  const torch::NoGradGuard no_grad;
  const torch::Tensor x = torch::randn({5, 2, 64});
  const torch::Tensor expected =
      model->forward(x, [](const std::string&) { return 0; });

  const auto spec =
      distorch::ParseSpec(text, {.devices = {}, .extra_kinds = {"sim"}});
  if (!spec.ok()) return std::cerr << spec.status().message() << "\n", 1;
  auto placed = distorch::PlaceModule(*model, *spec, compute, devices);
  if (!placed.ok()) return std::cerr << placed.status().message() << "\n", 1;
  for (const distorch::DeviceShare& share : (*placed)->plan().devices) {
    std::cout << share.device << ": " << distorch::FormatBytes(share.used)
              << "\n";
  }
  bool equal = true;
  for (int step = 0; step < 3; ++step) {
    (*placed)->BeginStep();
    const torch::Tensor y = model->forward(
        x.to(compute.ToString()),
        [&](const std::string& name) { return (*placed)->Use(name); });
    equal = equal && torch::equal(y.cpu(), expected);
  }
  std::cout << "streamed: "
            << distorch::FormatBytes((*placed)->bytes_streamed()) << "\n";
  (*placed)->Unload();
  equal = equal &&
          torch::equal(model->forward(x, [](const std::string&) { return 0; }),
                       expected);
  std::cout << "equal bit for bit: " << (equal ? "yes" : "no") << "\n";
  return equal ? 0 : 1;
}
