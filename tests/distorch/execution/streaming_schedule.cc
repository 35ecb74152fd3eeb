// SPDX-License-Identifier: Apache-2.0
#include "tests/distorch/execution/streaming_schedule.h"

#include <memory>
#include <utility>

#include "tests/distorch/execution/streamed_model.h"

namespace distorch {

std::vector<std::string> RunSchedule(std::uint32_t seed,
                                     const PlantedFault& fault) {
  Machine machine(seed, fault);
  std::vector<std::unique_ptr<StreamedModel>> models;
  int number = 0;
  const int events = 8 + machine.Draw(24);
  for (int i = 0; i < events; ++i) {
    const int what = machine.Draw(10);
    if (models.empty() || (what == 0 && models.size() < 3)) {
      models.push_back(std::make_unique<StreamedModel>(&machine, number++));
      continue;
    }
    auto& model = models[static_cast<std::size_t>(
        machine.Draw(static_cast<int>(models.size())))];
    if (what == 1) {
      model->Write();
    } else if (what == 2) {
      model->Spill();
    } else if (what == 3) {  // ejected, or just dead, in the middle of it all
      model = std::move(models.back());
      models.pop_back();
    } else {
      model->Step(/*interrupted=*/what == 4);
    }
  }
  models.clear();
  return machine.Finish();
}

}  // namespace distorch
