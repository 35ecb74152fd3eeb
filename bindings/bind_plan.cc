// SPDX-License-Identifier: Apache-2.0
// The planner of allocation/ for Python; see bind_allocation.cc for its inputs.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "allocation/plan.h"
#include "allocation/plan_json.h"
#include "allocation/plan_step.h"
#include "allocation/planner.h"
#include "allocation/report.h"
#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/status.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// A plan with what it was made from, so that it can name its blocks.
struct BoundPlan {
  Plan plan;
  std::shared_ptr<const std::vector<Block>> blocks;
  std::vector<Device> devices;
};

// Why there is no plan: `candidates` is empty unless nothing fitted.
struct PlanFault {
  std::string message;
  bool does_not_fit = false;
  PlanFailure failure;
};

std::variant<BoundPlan, PlanFault> PlanShim(const Spec& spec,
                                            std::vector<Block> blocks,
                                            std::vector<Device> devices,
                                            const std::string& compute,
                                            const PlanOptions& options) {
  const DeviceId device = compute.empty() ? DeviceId() : DeviceFrom(compute);
  PlanFault fault;
  absl::StatusOr<Plan> plan =
      MakePlan(spec, blocks, devices, device, options, &fault.failure);
  if (plan.ok()) {
    return BoundPlan{
        *std::move(plan),
        std::make_shared<const std::vector<Block>>(std::move(blocks)),
        std::move(devices)};
  }
  fault.message = std::string(plan.status().message());
  fault.does_not_fit =
      plan.status().code() == absl::StatusCode::kResourceExhausted;
  return fault;
}

py::typing::Dict<py::str, py::str> PlacementShim(const BoundPlan& bound) {
  std::vector<py::str> names;
  for (const DeviceShare& share : bound.plan.devices) {
    names.emplace_back(share.device.ToString());
  }
  py::typing::Dict<py::str, py::str> placement;
  for (size_t i = 0; i < bound.blocks->size(); ++i) {
    placement[py::str((*bound.blocks)[i].name)] =
        names[bound.plan.placement[i]];
  }
  return placement;
}

// Neighbouring blocks on one device: (device, blocks, bytes, name of the first,
// why it is there). One row for many blocks: whoever draws a plan again and
// again would spend his time on making Python objects of each.
using Stretch =
    py::typing::Tuple<py::str, std::int64_t, std::int64_t, py::str, py::str>;
py::typing::List<Stretch> StretchesShim(const BoundPlan& bound) {
  const Plan& plan = bound.plan;
  const std::vector<Block>& blocks = *bound.blocks;
  py::typing::List<Stretch> stretches;
  for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {
    Bytes bytes;
    for (; end < blocks.size() && plan.placement[end] == plan.placement[begin];
         ++end) {
      bytes += blocks[end].bytes;
    }
    stretches.append(py::make_tuple(
        plan.devices[plan.placement[begin]].device.ToString(), end - begin,
        bytes.value(), blocks[begin].name, ReasonText(plan, blocks, begin)));
  }
  return stretches;
}

py::typing::Dict<py::str, py::str> ReasonsShim(const BoundPlan& bound) {
  py::typing::Dict<py::str, py::str> reasons;
  for (size_t i = 0; i < bound.blocks->size(); ++i) {
    reasons[py::str((*bound.blocks)[i].name)] =
        ReasonText(bound.plan, *bound.blocks, i);
  }
  return reasons;
}

// {device: value(share)} over the plan's devices.
template <typename Value>
auto ByDevice(Value value) {
  return [value](const BoundPlan& bound) {
    py::typing::Dict<py::str, decltype(value(DeviceShare()))> by_device;
    for (const DeviceShare& share : bound.plan.devices) {
      by_device[py::str(share.device.ToString())] = value(share);
    }
    return by_device;
  };
}

}  // namespace

void BindPlan(py::module_& module) {
  py::class_<PlanFault>(module, "PlanFault", "Why there is no plan.")
      .def_readonly("message", &PlanFault::message)
      .def_readonly("does_not_fit", &PlanFault::does_not_fit)
      .def_property_readonly(
          "problem", [](const PlanFault& f) { return f.failure.problem; })
      .def_property_readonly(
          "remedy", [](const PlanFault& f) { return f.failure.remedy; })
      .def_property_readonly("candidates", [](const PlanFault& fault) {
        std::vector<std::tuple<std::string, int64_t, int64_t, int64_t>> rows;
        for (const Candidate& c : fault.failure.candidates) {
          rows.emplace_back(c.device.ToString(), c.asked.value(), c.cap.value(),
                            c.free.value());
        }
        return rows;
      });
  py::class_<BoundPlan>(module, "Plan", "A place for every block.")
      .def_property_readonly("placement", &PlacementShim)
      .def_property_readonly("reasons", &ReasonsShim)
      .def_property_readonly("stretches", &StretchesShim)
      .def_property_readonly("totals", ByDevice([](const DeviceShare& share) {
                               return share.used.value();
                             }))
      .def_property_readonly("caps", ByDevice([](const DeviceShare& share) {
                               return share.cap.value();
                             }))
      .def_property_readonly(
          "staging", ByDevice([](const DeviceShare& share) {
            return share.slots.value();
          }),
          "Bytes by device that streaming takes beside the weights.")
      .def_property_readonly(
          "slots", [](const BoundPlan& bound) { return bound.plan.slots; },
          "Staging slots on the compute device.")
      .def_property_readonly(
          "slot_bytes",
          [](const BoundPlan& bound) { return bound.plan.slot_bytes.value(); })
      .def_property_readonly(
          "modes", ByDevice([](const DeviceShare& share) {
            return std::string(ModeName(share.mode));
          }),
          "'auto', 'stream' or 'migrate' by device, as the string says.")
      .def_property_readonly(
          "notes", [](const BoundPlan& bound) { return bound.plan.notes; })
      .def_property_readonly(
          "compute",
          [](const BoundPlan& bound) { return bound.plan.compute.ToString(); })
      .def_property_readonly(
          "spec", [](const BoundPlan& bound) { return bound.plan.spec; })
      .def_property_readonly(
          "model_bytes",
          [](const BoundPlan& bound) { return bound.plan.model_bytes.value(); })
      .def_property_readonly(
          "blocks", [](const BoundPlan& bound) { return *bound.blocks; })
      .def("to_json",
           [](const BoundPlan& bound) {
             return PlanToFullJson(bound.plan, *bound.blocks);
           })
      .def("to_stable_json",
           [](const BoundPlan& bound) {
             return PlanToJson(bound.plan, *bound.blocks);
           })
      .def("tables",
           [](const BoundPlan& bound) {
             return FormatTables(bound.plan, *bound.blocks, bound.devices);
           })
      .def(
          "predict_step",
          [](const BoundPlan& bound, double compute_seconds,
             std::int64_t activations, int slots) {
            return PredictPlan(bound.plan, *bound.blocks, bound.devices,
                               {compute_seconds, activations, slots});
          },
          py::arg("compute_seconds"), py::arg("activations"),
          py::arg("slots") = 2,
          "How each donor is best used, and what a step then takes; its blocks "
          "need layer groups. compute_seconds: with all weights on the compute "
          "device; activations: bytes that one layer group takes, and as many "
          "that it gives.")
      .def(
          "check_invariants",
          [](const BoundPlan& bound) {
            Check(CheckInvariants(bound.plan, *bound.blocks));
          },
          "Raises RuntimeError naming the first broken promise.");
  // The arguments are copies by then: planning needs no Python object.
  module.def("plan_blocks", &PlanShim, py::arg("spec"), py::arg("blocks"),
             py::arg("devices"), py::arg("compute"), py::arg("options"),
             py::call_guard<py::gil_scoped_release>());
}

}  // namespace distorch::bindings
