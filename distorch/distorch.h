// SPDX-License-Identifier: Apache-2.0
// All of DisTorch that needs no torch, for programs that link distorch::core:
// read an allocation string, list the blocks of a file, plan, place through a
// table of your own, schedule copies, keep models and unload them.
// For torch::nn::Module include <distorch/torch_module.h> as well.
#ifndef DISTORCH_DISTORCH_DISTORCH_H_
#define DISTORCH_DISTORCH_DISTORCH_H_

#include "allocation/block_inventory.h"
#include "allocation/mode_choice.h"
#include "allocation/parser.h"
#include "allocation/plan.h"
#include "allocation/plan_json.h"
#include "allocation/plan_step.h"
#include "allocation/planner.h"
#include "allocation/printer.h"
#include "allocation/report.h"
#include "distorch/device/host_memory.h"
#include "distorch/device/nvml.h"
#include "distorch/execution/mode_decision.h"
#include "distorch/execution/step_profile.h"
#include "distorch/execution/stream_scheduler.h"
#include "distorch/placement/placement.h"
#include "distorch/telemetry/safetensors_header.h"
#include "distorch/unload/cache_clearer.h"
#include "distorch/unload/managed_models.h"

#endif  // DISTORCH_DISTORCH_DISTORCH_H_
