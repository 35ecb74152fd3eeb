// SPDX-License-Identifier: Apache-2.0
// Keeps a ModuleRegistry equal to the live Python modules, through weak
// references only.
//
// Modules come in by Note() (torch's registration hooks), Add() (loaders) and
// Walk() (a list of objects). Verify() then compares each known module with
// what was seen of it last (children, tensors, their memory) and asks Python
// for details only where something differs. It does not rely on the hooks for
// anything but the discovery of models: deletions, `.data = ` and direct writes
// to `_parameters` are all seen.
//
// Threads: every method needs the interpreter's lock; Note() may run at any
// time, the others must not run together (Python's side holds a lock of its
// own, as `describe` may let other threads run).
#ifndef DISTORCH_BINDINGS_MODULE_SCANNER_H_
#define DISTORCH_BINDINGS_MODULE_SCANNER_H_

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "distorch/telemetry/registry.h"
#include "distorch/telemetry/scan.h"

namespace distorch::bindings {

class ModuleScanner {
 public:
  // `module_type`: torch.nn.Module. `plain_types`: tensor classes that have no
  // tensors inside. `identity`: methods of one tensor giving integers that
  // change with its memory (data_ptr); `deep`: more, for a deep check (numel).
  // `describe(tensor)`: list of (device, dtype, storage, data, bytes, numel).
  // `expand(module)`: (children, parameters, buffers) of a module that does not
  // keep them in plain dictionaries (a scripted module).
  ModuleScanner(pybind11::object module_type, pybind11::tuple plain_types,
                pybind11::tuple identity, pybind11::tuple deep,
                pybind11::object describe, pybind11::object expand);

  // Remembers that `module` was touched. Cheap (no Python call is made).
  void Note(PyObject* module);
  // False when `module` was known.
  bool Add(PyObject* module);
  // Adds the modules among `objects`; returns how many were new.
  std::size_t Walk(const pybind11::list& objects);
  // Returns how many modules appeared, changed or died. A tensor counts as
  // unchanged while it is the same object with memory at the same address; a
  // sixty-fourth part of the modules in turn, or all with `deep`, are asked
  // for device and size as well, which tells memory that was freed and given
  // again apart.
  std::size_t Verify(bool deep);

  MemoryScan& scan() { return scan_; }
  const ModuleRegistry& registry() const { return registry_; }
  const std::string& name(std::int32_t index) const {
    return names_[static_cast<std::size_t>(index)];
  }
  // A new reference to the module, or None when it died.
  pybind11::object Module(ModuleId id) const;
  // The model with this serial; -1 where none of scan().Models() has it.
  ModuleId RootOfSerial(std::int64_t serial);
  // When the module was first seen, in seconds since 1970; 0: not known.
  double Seen(ModuleId id) const { return entry(id).seen; }
  double SeenOf(PyObject* module) const;

 private:
  // The dictionaries of a module, and their versions (PEP 509): equal versions
  // mean equal contents, which saves looking at them.
  struct Watched {
    PyObject* attributes = nullptr;  // null: look at everything
    std::uint64_t attributes_version = 0;
    std::array<PyObject*, 3> members = {};  // modules, parameters, buffers
    std::array<std::uint64_t, 3> versions = {};
  };
  struct Entry {
    pybind11::object reference;  // weakref.ref; null: not in use
    PyObject* address = nullptr;
    // Borrowed like all that follows: what is here is used only after the
    // versions have shown that the module still holds it.
    Watched watched;
    // For each tensor its address and what the identity methods said; only
    // where `watched` is set.
    std::vector<std::uint64_t> memory;
    std::vector<std::uint64_t> signature;  // empty: never verified
    std::vector<std::uint64_t> deep;
    double seen = 0;
    bool touched = true;  // details must be read whatever the signature says

    void PrefetchMemory() const { __builtin_prefetch(memory.data()); }
    // `stride`: how many numbers a tensor has in `memory`.
    void Prefetch(std::size_t stride) const;
  };
  // A dictionary of a module. All modules get it as the same attribute, counted
  // from the first: looking there first saves the look-up by name.
  struct Member {
    explicit Member(const char* text)
        : name(pybind11::reinterpret_steal<pybind11::str>(
              PyUnicode_InternFromString(text))) {}

    pybind11::str name;
    Py_ssize_t hint = 0;  // of PyDict_Next
    bool hinted = false;
  };
  // A signature that is read from its begin.
  struct Expected {
    const std::vector<std::uint64_t>& signature;
    std::size_t at = 0;

    // Whether `value` comes next, which is then passed.
    bool Is(std::uint64_t value) {
      if (at == signature.size() || signature[at] != value) return false;
      ++at;
      return true;
    }
    bool AtEnd() const { return at == signature.size(); }
  };
  struct Noted {
    pybind11::object reference;
    double seen;
  };
  struct Parts {
    std::vector<pybind11::object> children;
    std::vector<std::pair<pybind11::object, bool>> tensors;  // , is parameter
  };

  // Stands between the parts of a signature; no address has this value.
  static constexpr std::uint64_t kChildrenEnd = ~std::uint64_t{0};
  static std::uint64_t AddressOf(const PyObject* object) {
    return reinterpret_cast<std::uintptr_t>(object);
  }

  Entry& entry(ModuleId id) { return entries_[static_cast<std::size_t>(id)]; }
  const Entry& entry(ModuleId id) const {
    return entries_[static_cast<std::size_t>(id)];
  }
  // False for a module that lives where a dead one did.
  bool Knows(PyObject* module) const;
  ModuleId Register(PyObject* module, double seen);
  void TakeNoted();
  // Whether the module is as `one` says, without taking it apart. The module
  // must be kept alive by the caller.
  bool Unchanged(PyObject* module, Entry* one, bool deep);
  bool UnchangedParts(PyObject* module, const Watched& found, const Entry& one,
                      bool deep);
  void RemoveDead(const std::vector<ModuleId>& dead,
                  std::vector<ModuleId>* changed);
  bool Refresh(ModuleId id);
  // The dictionary (borrowed), or null where there is none.
  static PyObject* DictionaryOf(PyObject* attributes, Member* member);
  static void FindHint(PyObject* attributes, Member* member);
  void Collect(PyObject* module, Parts* parts);
  void Expand(PyObject* module, Parts* parts);
  // The dictionaries as they are now; those of `known` where it can tell that
  // they still are the module's. A member is null where there is none.
  Watched Look(PyObject* module, const Watched& known);
  // Fills in `memory`; false where versions do not tell everything, or reading
  // a tensor may run Python code.
  bool Remember(const Watched& watched, const Parts& parts,
                std::vector<std::uint64_t>* memory);
  bool SameMemory(const std::vector<std::uint64_t>& memory);
  bool SameChildren(PyObject* modules, Expected* expected) const;
  bool SameTensors(PyObject* dictionary, bool parameters, Expected* expected);
  bool SameCalls(PyObject* tensor, const pybind11::tuple& methods,
                 Expected* expected);
  bool UnchangedDeep(PyObject* module, const Watched& found, const Entry& one);
  void CollectTensors(PyObject* dictionary, bool parameters, Parts* parts);
  std::vector<std::uint64_t> Signature(const Parts& parts);
  std::vector<std::uint64_t> DeepSignature(const Parts& parts);
  // Appends what each method says of `tensor`; false where one fails (a tensor
  // without memory of its own), which leaves `signature` as it was.
  bool Call(PyObject* tensor, const pybind11::tuple& methods,
            std::vector<std::uint64_t>* signature);
  bool IsPlain(PyObject* tensor) const;
  void Describe(PyObject* tensor, bool parameter,
                std::vector<TensorRecord>* records);
  std::int32_t Intern(pybind11::handle text);
  bool IsModule(PyObject* object) const;

  pybind11::object module_type_;
  pybind11::tuple plain_types_, identity_, deep_;
  pybind11::object describe_, expand_;
  Member parameters_key_{"_parameters"}, buffers_key_{"_buffers"},
      modules_key_{"_modules"};
  ModuleRegistry registry_;
  MemoryScan scan_{&registry_};
  std::vector<Entry> entries_;
  std::vector<Noted> noted_;
  absl::flat_hash_map<PyObject*, ModuleId> by_address_;
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, std::int32_t> name_index_;
  std::vector<std::uint64_t> called_;  // scratch of SameCalls, SameMemory
  std::uint64_t round_ = 0;
  bool registered_ = false;  // modules that Verify() has not seen
};

}  // namespace distorch::bindings

#endif  // DISTORCH_BINDINGS_MODULE_SCANNER_H_
