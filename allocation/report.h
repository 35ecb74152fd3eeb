// SPDX-License-Identifier: Apache-2.0
// The tables that users paste into reports: the five that ComfyUI-MultiGPU
// logged, under the names it gave them, aligned.
#ifndef DISTORCH_ALLOCATION_REPORT_H_
#define DISTORCH_ALLOCATION_REPORT_H_

#include <string>

#include "absl/types/span.h"
#include "allocation/plan.h"

namespace distorch {

// "Model Virtual VRAM Analysis", "Final Allocation String", "Model Device
// Allocations", "Model Caps" (if layer groups are streamed), "Model Layer
// Distribution" (if blocks have a layer type), "Model Final Device/Layer
// Assignments", then the notes and, for a device filled above 90 % of its
// memory, a warning. Lines end in "\n".
std::string FormatTables(const Plan& plan, absl::Span<const Block> blocks,
                         absl::Span<const Device> devices);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_REPORT_H_
