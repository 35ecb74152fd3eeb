// SPDX-License-Identifier: Apache-2.0
// What kind of model a module is, and how it is shown to the user.
#ifndef DISTORCH_TELEMETRY_GROUPING_H_
#define DISTORCH_TELEMETRY_GROUPING_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace distorch {

// "checkpoint", "lora", "vae", "clip", "controlnet", "upscaler", "depth" or
// "model" (nothing matched). `classes` are the qualified names of the module's
// class and its bases, the class itself first ("comfy.model_base.WAN21");
// `file` is the file's relative name with its folder ("vae/ae.safetensors") or
// empty. The rules are a table in grouping.cc; the first that matches decides.
std::string_view ClassifyModel(const std::vector<std::string>& classes,
                               std::string_view file);

// "Wan2_2-T2V-A14B-HIGH (checkpoint, 2.1 GB, 145 layers)": GB from 1 GB on,
// else MB; binary units. `bytes` >= 0; "1 layer" in the singular.
std::string DisplayModel(std::string_view name, std::string_view type,
                         std::int64_t bytes, std::int64_t layers);

}  // namespace distorch

#endif  // DISTORCH_TELEMETRY_GROUPING_H_
