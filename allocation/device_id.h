// SPDX-License-Identifier: Apache-2.0
// The name of a device, as the user writes it and as torch does: a kind and an
// index.
//
//   DeviceId("cuda", 1).ToString()   // "cuda:1"
//   DeviceId("cpu").ToString()       // "cpu"
//   DeviceId::FromString("CUDA")     // cuda:0
//   DeviceId::FromString("mps")      // mps
//   DeviceId::FromString("cpu:1")    // std::nullopt: cpu has no index
//   DeviceId::FromString("corex:1")  // cuda:1: what torch calls that device
//
// Kinds are text, not an enumeration: a PrivateUse1 backend brings its own. No
// code may ask for a kind by name to learn what a device can do; the one
// distinction made here is the host (IsHost), which every other device copies
// from and to.
#ifndef DISTORCH_ALLOCATION_DEVICE_ID_H_
#define DISTORCH_ALLOCATION_DEVICE_ID_H_

#include <compare>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

namespace distorch {

// What torch calls devices of a kind that users know by its vendor's name:
// "cuda" for "corex" and "ixuca", "privateuseone" for "directml"; any other
// kind is its own. `kind` is in lower case.
std::string_view TorchKind(std::string_view kind);

struct DeviceId {
  static constexpr int kMaxIndex = 9999;

  DeviceId() = default;
  explicit DeviceId(std::string device_kind, int device_index = 0)
      : kind(std::move(device_kind)), index(device_index) {}

  // Reads "cuda:0", "cuda", "cpu", "mps", letters of any case, as TorchKind.
  // nullopt for anything else: an empty kind, characters other than letters,
  // digits and
  // "_" in it, a digit first, an index above kMaxIndex, an index other than 0
  // for a kind without one.
  static std::optional<DeviceId> FromString(std::string_view text);

  // Whether devices of this kind are told apart by an index in their names:
  // all but "cpu" and "mps".
  static bool KindHasIndex(std::string_view kind) {
    return kind != "cpu" && kind != "mps";
  }

  std::string ToString() const;
  bool IsHost() const { return kind == "cpu"; }
  bool empty() const { return kind.empty(); }

  // By kind, then by index as a number: cuda:2 comes before cuda:10.
  friend auto operator<=>(const DeviceId&, const DeviceId&) = default;

  template <typename H>
  friend H AbslHashValue(H state, const DeviceId& device) {
    return H::combine(std::move(state), device.kind, device.index);
  }

  std::string kind;  // lower case; empty: no device
  int index = 0;     // 0 for kinds without an index
};

inline std::ostream& operator<<(std::ostream& out, const DeviceId& device) {
  return out << device.ToString();
}

}  // namespace distorch

template <>
struct std::hash<distorch::DeviceId> {
  size_t operator()(const distorch::DeviceId& device) const noexcept {
    return std::hash<std::string>()(device.kind) * 31 +
           static_cast<size_t>(device.index);
  }
};

#endif  // DISTORCH_ALLOCATION_DEVICE_ID_H_
