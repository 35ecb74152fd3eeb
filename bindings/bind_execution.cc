// SPDX-License-Identifier: Apache-2.0
// distorch/execution for Python: the scheduler, with Python functions as its
// backend. They are called with the lock held, by the thread that called the
// scheduler; what they raise comes out of that call unchanged.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "distorch/execution/stream_scheduler.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

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
  void Reset() { scheduler_.Reset(); }
  std::vector<int> Order() const { return scheduler_.order(); }
  py::dict Counters() const {
    const StreamCounters& counters = scheduler_.counters();
    py::dict result;
    result["copies"] = counters.copies;
    result["ahead"] = counters.ahead;
    result["on_demand"] = counters.on_demand;
    result["wasted"] = counters.wasted;
    return result;
  }

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

// Where the tensors of a layer group hang (module tables), what is stored
// there, and what hangs there while the group computes from a slot. In C++
// because it is done twice a group and step. Holds tables and tensors, no
// modules: nothing that could lead back to its owner.
class TensorSwap {
 public:
  using Place = std::tuple<py::dict, py::str, py::object>;

  TensorSwap(const std::vector<Place>& places,
             std::vector<std::vector<py::object>> lent)
      : lent_(std::move(lent)) {
    for (const auto& [table, name, stored] : places) {
      places_.push_back({table, name, stored});
    }
    for (const auto& slot : lent_) {
      if (slot.size() != places_.size()) {
        throw py::value_error("each slot needs a tensor for each place");
      }
    }
  }

  // False, with nothing changed, if a table holds another tensor than stored.
  bool Enter(size_t slot) {
    const std::vector<py::object>& lent = lent_.at(slot);
    for (const Entry& entry : places_) {
      PyObject* now =
          PyDict_GetItemWithError(entry.table.ptr(), entry.name.ptr());
      if (now == nullptr && PyErr_Occurred() != nullptr) {
        throw py::error_already_set();
      }
      if (now != entry.stored.ptr()) return false;
    }
    for (size_t i = 0; i < places_.size(); ++i) Set(places_[i], lent[i]);
    return true;
  }

  void Leave() {
    for (const Entry& entry : places_) Set(entry, entry.stored);
  }

 private:
  struct Entry {
    py::dict table;
    py::str name;
    py::object stored;
  };

  static void Set(const Entry& entry, const py::object& tensor) {
    if (PyDict_SetItem(entry.table.ptr(), entry.name.ptr(), tensor.ptr()) !=
        0) {
      throw py::error_already_set();
    }
  }

  std::vector<Entry> places_;
  std::vector<std::vector<py::object>> lent_;  // by slot
};

}  // namespace

void BindExecution(py::module_& module) {
  py::class_<PythonScheduler>(module, "StreamScheduler")
      .def(py::init<py::function, py::function, py::function, py::function, int,
                    int>(),
           py::arg("start_copy"), py::arg("await_copy"), py::arg("mark_used"),
           py::arg("drain"), py::arg("groups"), py::arg("slots"))
      .def("begin_step", &PythonScheduler::BeginStep)
      .def("acquire", &PythonScheduler::Acquire, py::arg("group"))
      .def("release", &PythonScheduler::Release, py::arg("group"))
      .def("reset", &PythonScheduler::Reset)
      .def_property_readonly("order", &PythonScheduler::Order)
      .def_property_readonly("counters", &PythonScheduler::Counters);
  py::class_<TensorSwap>(module, "TensorSwap",
                         "The tensors of a layer group in their modules' "
                         "tables, and those of each slot.")
      .def(py::init<const std::vector<TensorSwap::Place>&,
                    std::vector<std::vector<py::object>>>(),
           py::arg("places"), py::arg("lent"))
      .def("enter", &TensorSwap::Enter, py::arg("slot"),
           "Hang a slot's tensors in; False, with nothing changed, if a table "
           "holds another tensor than the stored one.")
      .def("leave", &TensorSwap::Leave, "Hang the stored tensors in again.");
}

}  // namespace distorch::bindings
