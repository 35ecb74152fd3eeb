// SPDX-License-Identifier: Apache-2.0
// distorch/execution for Python: the scheduler, with Python functions as its
// backend. They are called with the lock held, by the thread that called the
// scheduler; what they raise comes out of that call unchanged.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tensor_swap.h"
#include "distorch/execution/stream_scheduler.h"

namespace distorch::bindings {

namespace py = pybind11;

py::typing::Dict<py::str, std::int64_t> AsDict(const StreamCounters& counters) {
  py::typing::Dict<py::str, std::int64_t> result;
  result["copies"] = counters.copies;
  result["ahead"] = counters.ahead;
  result["on_demand"] = counters.on_demand;
  result["wasted"] = counters.wasted;
  return result;
}

namespace {

class PythonBackend : public StreamBackend {
 public:
  PythonBackend(py::function start_copy, py::function await,
                py::function mark_used, py::function drain)
      : start_copy_(std::move(start_copy)),
        await_(std::move(await)),
        mark_used_(std::move(mark_used)),
        drain_(std::move(drain)) {}

  absl::Status StartCopy(int group, int slot) override {
    return Call([&] { start_copy_(group, slot); });
  }
  absl::Status Await(int slot) override {
    return Call([&] { await_(slot); });
  }
  absl::Status MarkUsed(int slot) override {
    return Call([&] { mark_used_(slot); });
  }
  void Drain() override { drain_(); }

  // Throws what the last failed call raised, if there is anything.
  void Rethrow() {
    if (auto error = std::exchange(error_, nullptr)) {
      std::rethrow_exception(error);
    }
  }
  void Forget() { error_ = nullptr; }

 private:
  template <typename Function>
  absl::Status Call(Function function) {
    try {
      function();
      return absl::OkStatus();
    } catch (py::error_already_set&) {
      error_ = std::current_exception();
      return absl::InternalError("the backend raised");
    }
  }

  py::function start_copy_;
  py::function await_;
  py::function mark_used_;
  py::function drain_;
  std::exception_ptr error_;
};

class PythonScheduler {
 public:
  PythonScheduler(py::function start_copy, py::function await,
                  py::function mark_used, py::function drain, int groups,
                  int slots)
      : backend_(std::move(start_copy), std::move(await), std::move(mark_used),
                 std::move(drain)),
        scheduler_(&backend_, groups, slots) {
    if (groups < 1 || slots < 1) {
      throw py::value_error("at least one group and one slot are needed");
    }
  }

  void BeginStep() { scheduler_.BeginStep(); }
  int Acquire(int group) {
    const absl::StatusOr<int> slot = scheduler_.Acquire(group);
    if (!slot.ok()) Raise(slot.status());
    backend_.Forget();  // a copy ahead that failed is tried again later
    return *slot;
  }
  void Release(int group) {
    const absl::Status status = scheduler_.Release(group);
    if (!status.ok()) Raise(status);
    backend_.Forget();
  }
  // One call before a group computes and one after it; see TensorSwap.
  bool Enter(int group, TensorSwap& swap) {
    const int slot = Acquire(group);
    if (swap.Enter(static_cast<size_t>(slot))) return true;
    Release(group);
    return false;
  }
  void Leave(int group, TensorSwap& swap) {
    swap.Leave();
    Release(group);
  }
  void Reset() { scheduler_.Reset(); }
  std::vector<int> InSlots() const { return scheduler_.in_slots(); }
  std::vector<int> Order() const { return scheduler_.order(); }
  auto Counters() const { return AsDict(scheduler_.counters()); }

 private:
  void Raise(const absl::Status& status) {
    backend_.Rethrow();
    if (absl::IsInvalidArgument(status)) {
      throw py::value_error(std::string(status.message()));
    }
    // Slots that are all held are misuse, too, and no want of memory.
    throw std::runtime_error(std::string(status.message()));
  }

  PythonBackend backend_;
  StreamScheduler scheduler_;
};

}  // namespace

void BindExecution(py::module_& module) {
  py::class_<TensorSwap>(module, "TensorSwap",
                         "The tensors of a layer group in their modules' "
                         "tables, and those of each slot.")
      .def(py::init<const std::vector<TensorSwap::Place>&,
                    std::vector<std::vector<py::object>>>(),
           py::arg("places"), py::arg("in_slots"))
      .def("enter", &TensorSwap::Enter, py::arg("slot"),
           "Hang a slot's tensors in; False, with nothing changed, if a table "
           "holds another tensor than the stored one.")
      .def("leave", &TensorSwap::Leave, "Hang the stored tensors in again.");
  py::class_<TensorVersions>(module, "TensorVersions",
                             "Tells whether tensors were written to; those of "
                             "inference mode do not count.")
      .def(py::init<const std::vector<std::vector<py::object>>&>(),
           py::arg("groups"))
      .def("changed", &TensorVersions::Changed, py::arg("groups"),
           "Whether a tensor of these groups was written to since they were "
           "asked last.");
  py::class_<PythonScheduler>(module, "StreamScheduler")
      .def(py::init<py::typing::Callable<py::object(int, int)>,
                    py::typing::Callable<py::object(int)>,
                    py::typing::Callable<py::object(int)>,
                    py::typing::Callable<py::object()>, int, int>(),
           py::arg("start_copy"), py::arg("await_copy"), py::arg("mark_used"),
           py::arg("drain"), py::arg("groups"), py::arg("slots"))
      .def("begin_step", &PythonScheduler::BeginStep)
      .def("acquire", &PythonScheduler::Acquire, py::arg("group"))
      .def("release", &PythonScheduler::Release, py::arg("group"))
      .def("enter", &PythonScheduler::Enter, py::arg("group"), py::arg("swap"))
      .def("leave", &PythonScheduler::Leave, py::arg("group"), py::arg("swap"))
      .def("reset", &PythonScheduler::Reset)
      .def("in_slots", &PythonScheduler::InSlots)
      .def_property_readonly("order", &PythonScheduler::Order)
      .def_property_readonly("counters", &PythonScheduler::Counters);
}

}  // namespace distorch::bindings
