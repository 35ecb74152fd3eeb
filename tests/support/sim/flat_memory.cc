// SPDX-License-Identifier: Apache-2.0
#include "tests/support/sim/flat_memory.h"

#include <cstddef>
#include <memory>
#include <utility>

#include "tests/support/sim/sim_memory.h"

namespace distorch_sim {
namespace {

// DLManagedTensor of DLPack 0.8,
// https://dmlc.github.io/dlpack/latest/c_api.html.
struct Managed {
  void* data;
  struct {
    std::int32_t type;
    std::int32_t id;
  } device;
  std::int32_t ndim;
  struct {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
  void* context;
  void (*deleter)(Managed*);
};
constexpr std::int32_t kDLCPU = 1;
constexpr std::int32_t kDLExtDev = 12;  // torch's PrivateUse1
constexpr std::uint8_t kDLUInt = 1;

struct Flat {
  Managed managed{};
  std::int64_t shape[1];
  std::int64_t strides[1] = {1};
  pybind11::object owner;

  Flat(void* data, std::int64_t bytes, std::int32_t type, std::int32_t id,
       void (*deleter)(Managed*))
      : shape{bytes} {
    managed.data = data;
    managed.device = {type, id};
    managed.ndim = 1;
    managed.dtype = {kDLUInt, 8, 1};
    managed.shape = shape;
    managed.strides = strides;
    managed.context = this;
    managed.deleter = deleter;
  }
};

pybind11::capsule Named(std::unique_ptr<Flat> flat) {
  pybind11::capsule capsule(&flat->managed, "dltensor", [](PyObject* unused) {
    // One that was taken has another name, and is its taker's.
    if (!PyCapsule_IsValid(unused, "dltensor")) return;
    auto* managed =
        static_cast<Managed*>(PyCapsule_GetPointer(unused, "dltensor"));
    managed->deleter(managed);
  });
  static_cast<void>(flat.release());
  return capsule;
}

}  // namespace

pybind11::capsule NewMemory(int device, std::int64_t bytes) {
  std::unique_ptr<void, decltype(&Free)> data(
      Allocate(device, static_cast<std::size_t>(bytes)), &Free);
  auto flat = std::make_unique<Flat>(
      data.get(), bytes, kDLExtDev, device, [](Managed* managed) {
        Free(managed->data);
        delete static_cast<Flat*>(managed->context);
      });
  static_cast<void>(data.release());
  return Named(std::move(flat));
}

pybind11::capsule OnHost(std::uintptr_t data, std::int64_t bytes,
                         pybind11::object owner) {
  auto flat = std::make_unique<Flat>(
      reinterpret_cast<void*>(data), bytes, kDLCPU, 0, [](Managed* managed) {
        const pybind11::gil_scoped_acquire lock;
        delete static_cast<Flat*>(managed->context);
      });
  flat->owner = std::move(owner);
  return Named(std::move(flat));
}

}  // namespace distorch_sim
