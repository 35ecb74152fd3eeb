// SPDX-License-Identifier: Apache-2.0
#ifndef DISTORCH_BINDINGS_TENSOR_SWAP_H_
#define DISTORCH_BINDINGS_TENSOR_SWAP_H_

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "distorch/execution/stream_scheduler.h"

namespace distorch::bindings {

// "copies", "ahead", "on_demand", "wasted".
pybind11::typing::Dict<pybind11::str, std::int64_t> AsDict(
    const StreamCounters& counters);

// Where the tensors of a layer group hang (module tables), what is stored
// there, and what hangs there while the group computes from a slot. In C++
// because it is done twice a group and step. Holds tables and tensors, no
// modules: nothing that could lead back to its owner.
class TensorSwap {
 public:
  using Table = pybind11::typing::Dict<pybind11::str, pybind11::object>;
  using Place = std::tuple<Table, pybind11::str, pybind11::object>;

  TensorSwap(const std::vector<Place>& places,
             std::vector<std::vector<pybind11::object>> in_slots)
      : in_slots_(std::move(in_slots)) {
    for (const auto& [table, name, stored] : places) {
      places_.push_back({table, name, stored});
    }
    for (const auto& slot : in_slots_) {
      if (slot.size() != places_.size()) {
        throw pybind11::value_error("each slot needs a tensor for each place");
      }
    }
  }

  // False, with nothing changed, if a table holds another tensor than stored.
  bool Enter(std::size_t slot) {
    const std::vector<pybind11::object>& in_slots = in_slots_.at(slot);
    for (const Entry& entry : places_) {
      PyObject* now =
          PyDict_GetItemWithError(entry.table.ptr(), entry.name.ptr());
      if (now == nullptr && PyErr_Occurred() != nullptr) {
        throw pybind11::error_already_set();
      }
      if (now != entry.stored.ptr()) return false;
    }
    for (std::size_t i = 0; i < places_.size(); ++i)
      Set(places_[i], in_slots[i]);
    return true;
  }

  void Leave() {
    for (const Entry& entry : places_) Set(entry, entry.stored);
  }

 private:
  struct Entry {
    pybind11::dict table;
    pybind11::str name;
    pybind11::object stored;
  };

  static void Set(const Entry& entry, const pybind11::object& tensor) {
    if (PyDict_SetItem(entry.table.ptr(), entry.name.ptr(), tensor.ptr()) !=
        0) {
      throw pybind11::error_already_set();
    }
  }

  std::vector<Entry> places_;
  std::vector<std::vector<pybind11::object>> in_slots_;  // by slot
};

// How often each tensor of some groups was written to. In C++ because torch is
// asked of many at each step. Holds the tensors, which have to count: none of
// inference mode.
class TensorVersions {
 public:
  explicit TensorVersions(
      const std::vector<std::vector<pybind11::object>>& groups) {
    for (const auto& tensors : groups) {
      Group& group = groups_.emplace_back();
      for (const auto& tensor : tensors) group.push_back({tensor});
      Written(group);
    }
  }

  // Whether a tensor of these groups was written to since they were asked last.
  bool Changed(const std::vector<std::size_t>& groups) {
    bool changed = false;
    for (const std::size_t group : groups) {
      changed = Written(groups_.at(group)) || changed;
    }
    return changed;
  }

 private:
  struct Entry {
    pybind11::object tensor;
    long long seen = -1;
  };
  using Group = std::vector<Entry>;

  bool Written(Group& group) const {
    bool written = false;
    for (Entry& entry : group) {
      const auto version = pybind11::reinterpret_steal<pybind11::object>(
          PyObject_GetAttr(entry.tensor.ptr(), name_.ptr()));
      if (!version) throw pybind11::error_already_set();
      const long long now = PyLong_AsLongLong(version.ptr());
      if (now == -1 && PyErr_Occurred() != nullptr) {
        throw pybind11::error_already_set();
      }
      written = written || now != entry.seen;
      entry.seen = now;
    }
    return written;
  }

  std::vector<Group> groups_;
  pybind11::str name_ = pybind11::reinterpret_steal<pybind11::str>(
      PyUnicode_InternFromString("_version"));
};

}  // namespace distorch::bindings

#endif  // DISTORCH_BINDINGS_TENSOR_SWAP_H_
