// SPDX-License-Identifier: Apache-2.0
// The plan as JSON. Keys and their meaning are stable; keys may be added.
#ifndef DISTORCH_ALLOCATION_PLAN_JSON_H_
#define DISTORCH_ALLOCATION_PLAN_JSON_H_

#include <string>
#include <string_view>

#include "absl/types/span.h"
#include "allocation/plan.h"

namespace distorch {

// {"placement": {block: device}, "totals": {device: bytes}, "notes": [...]}:
// blocks in the order of the model, devices in the order of the string. One
// line, UTF-8.
std::string PlanToJson(const Plan& plan, absl::Span<const Block> blocks);

// The same and "version": 1, "allocation", "compute", "order", "model_bytes",
// "caps" {device: bytes}, "modes" {device: mode}, "reasons" {block: text}.
std::string PlanToFullJson(const Plan& plan, absl::Span<const Block> blocks);

// `text` in double quotes, escaped. Bytes above 0x7F pass unchanged.
std::string JsonString(std::string_view text);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_PLAN_JSON_H_
