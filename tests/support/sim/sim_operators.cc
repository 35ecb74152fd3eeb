// SPDX-License-Identifier: Apache-2.0
// Operators of the simulated accelerators. Allocation, copies and views are
// written here; every other operator runs as the CPU's own kernel on the same
// memory: arguments are handed to it as CPU tensors over the device's bytes
// (nothing is copied), new results become device memory. Results are therefore
// those of the CPU to the last bit.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/support/sim/sim_backend.h"
#include "tests/support/sim/sim_memory.h"

namespace distorch_sim {
namespace {

using c10::IValue;
using Keys = c10::DispatchKeySet;
constexpr auto kType = c10::DeviceType::PrivateUse1;

bool OnSim(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kType;
}

int Place(const at::Tensor& tensor) {
  return OnSim(tensor) ? int{tensor.device().index()} : kHost;
}

// The same bytes, shape and strides as a CPU tensor. Holds on to the storage.
at::Tensor CpuView(const at::Tensor& tensor) {
  if (!OnSim(tensor)) return tensor;
  c10::Storage owner = tensor.storage();
  void* data = const_cast<void*>(owner.data());
  const auto bytes = owner.nbytes();
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), bytes,
      c10::DataPtr(
          data, new c10::Storage(owner),
          [](void* held) { delete static_cast<c10::Storage*>(held); },
          c10::Device(c10::DeviceType::CPU)),
      /*allocator=*/nullptr, /*resizable=*/false);
  at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), Keys(c10::DispatchKey::CPU), tensor.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(
      tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) view._set_conj(true);
  if (tensor.is_neg()) view._set_neg(true);
  return view;
}

at::Tensor EmptySim(at::IntArrayRef sizes, at::IntArrayRef strides,
                    at::ScalarType dtype, c10::Device device) {
  const c10::DeviceGuard guard(device);
  return at::detail::empty_strided_generic(sizes, strides, TheAllocator(),
                                           Keys(c10::DispatchKey::PrivateUse1),
                                           dtype);
}

// ---- what a backend has to bring itself -----------------------------------

at::Tensor Empty(c10::SymIntArrayRef sizes, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> /*layout*/,
                 std::optional<at::Device> device, std::optional<bool> /*pin*/,
                 std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic_symint(sizes, TheAllocator(),
                                          Keys(c10::DispatchKey::PrivateUse1),
                                          c10::dtype_or_default(dtype), format);
}

at::Tensor EmptyStrided(c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides,
                        std::optional<at::ScalarType> dtype,
                        std::optional<at::Layout> /*layout*/,
                        std::optional<at::Device> device,
                        std::optional<bool> /*pin*/) {
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_symint_generic(
      sizes, strides, TheAllocator(), Keys(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype));
}

// Bytes that cross are those of the source, before any conversion of dtype.
at::Tensor CopyFrom(const at::Tensor& source, const at::Tensor& target,
                    bool /*non_blocking*/) {
  CountCopy(Place(source), Place(target),
            static_cast<std::int64_t>(source.nbytes()));
  CpuView(target).copy_(CpuView(source));
  return target;
}

at::Tensor CopyFromAndResize(const at::Tensor& source,
                             const at::Tensor& target) {
  target.resize_(source.sizes());
  return CopyFrom(source, target, false);
}

// Integers as well, which GPUs count and the CPU does not.
at::Tensor Histc(const at::Tensor& tensor, std::int64_t bins,
                 const at::Scalar& least, const at::Scalar& most) {
  at::Tensor numbers = CpuView(tensor);
  if (!numbers.is_floating_point()) numbers = numbers.to(at::kDouble);
  const at::Tensor counts = at::histc(numbers, bins, least, most);
  at::Tensor result = EmptySim(counts.sizes(), counts.strides(),
                               tensor.scalar_type(), tensor.device());
  CpuView(result).copy_(counts);
  return result;
}

at::Scalar LocalScalar(const at::Tensor& tensor) {
  return at::_local_scalar_dense(CpuView(tensor));
}

at::Tensor AsStrided(const at::Tensor& tensor, c10::SymIntArrayRef sizes,
                     c10::SymIntArrayRef strides,
                     std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl_meta_symint(tensor, sizes, strides,
                                                       std::move(offset));
}
at::Tensor View(const at::Tensor& tensor, c10::SymIntArrayRef sizes) {
  return at::native::view(tensor, C10_AS_INTARRAYREF_SLOW(sizes));
}
at::Tensor ReshapeAlias(const at::Tensor& tensor, c10::SymIntArrayRef sizes,
                        c10::SymIntArrayRef strides) {
  return at::native::_reshape_alias(tensor, C10_AS_INTARRAYREF_SLOW(sizes),
                                    C10_AS_INTARRAYREF_SLOW(strides));
}
at::Tensor Unfold(const at::Tensor& tensor, std::int64_t dim, std::int64_t size,
                  std::int64_t step) {
  return at::native::unfold(tensor, dim, size, step);
}
at::Tensor Alias(const at::Tensor& tensor) { return at::native::alias(tensor); }
const at::Tensor& Resize(const at::Tensor& tensor, c10::SymIntArrayRef sizes,
                         std::optional<at::MemoryFormat> format) {
  return at::native::resize_(tensor, C10_AS_INTARRAYREF_SLOW(sizes), format);
}
at::Tensor& SetStorageOffset(at::Tensor& result, at::Storage source,
                             c10::SymInt offset, c10::SymIntArrayRef sizes,
                             c10::SymIntArrayRef strides) {
  return at::cpu::set_(result, std::move(source), offset.expect_int(),
                       C10_AS_INTARRAYREF_SLOW(sizes),
                       C10_AS_INTARRAYREF_SLOW(strides));
}
at::Tensor& SetStorage(at::Tensor& result, at::Storage source) {
  const auto elements =
      static_cast<std::int64_t>(source.nbytes() / result.element_size());
  return at::cpu::set_(result, std::move(source), 0, {elements}, {1});
}

// ---- everything else -------------------------------------------------------

// One call of a CPU kernel over device memory.
class CpuCall {
 public:
  CpuCall(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), stack_(stack) {}

  void Run() {
    const auto count = op_.schema().arguments().size();
    const auto first = stack_->size() - count;
    originals_.assign(stack_->begin() + static_cast<std::ptrdiff_t>(first),
                      stack_->end());
    for (std::size_t i = 0; i < count; ++i) {
      const auto* alias = op_.schema().arguments()[i].alias_info();
      (*stack_)[first + i] = alias != nullptr && alias->isWrite()
                                 ? ToCpuForWriting(originals_[i])
                                 : ToCpu(originals_[i]);
    }
    lowered_.assign(stack_->begin() + static_cast<std::ptrdiff_t>(first),
                    stack_->end());
    CallOnCpu();
    StoreResized();
    const auto returns = op_.schema().returns().size();
    const auto begin = stack_->size() - returns;
    for (std::size_t i = 0; i < returns; ++i) {
      (*stack_)[begin + i] = ToSim((*stack_)[begin + i], i);
    }
  }

 private:
  // As if the caller had called with CPU tensors: an autograd kernel that led
  // here has switched off what would note of which tensor a view is.
  void CallOnCpu() {
    c10::impl::LocalDispatchKeySet keys =
        c10::impl::tls_local_dispatch_key_set();
    keys.excluded_ = keys.excluded_.remove(c10::DispatchKey::ADInplaceOrView);
    if (!c10::InferenceMode::is_enabled()) {
      keys.excluded_ = keys.excluded_ - c10::autograd_dispatch_keyset;
    }
    const c10::impl::ForceDispatchKeyGuard guard(keys);
    op_.callBoxed(stack_);
  }

  void NoteDevice(c10::Device device) {
    if (!device_) {
      device_ =
          device.has_index()
              ? device
              : c10::Device(kType,
                            static_cast<c10::DeviceIndex>(CurrentDevice()));
    }
  }

  // Real accelerators refuse operands of different devices; a CPU kernel would
  // read them all, and a weight left behind would pass unseen. A CPU tensor
  // without dimensions is a number to every device.
  void RequireOnePlace(const at::Tensor& tensor) {
    if (!tensor.defined() || (!OnSim(tensor) && tensor.dim() == 0)) return;
    if (!place_) place_ = tensor.device();
    TORCH_CHECK(*place_ == tensor.device() || TakesManyDevices(),
                "Expected all tensors to be on the same device, but found at "
                "least two devices, ",
                *place_, " and ", tensor.device(), " (aten operator ",
                op_.schema().name(), ")");
  }

  // Lists that are walked one tensor at a time, and the recurrent operators on
  // packed sequences, whose lengths are on the host.
  bool TakesManyDevices() const {
    const std::string& name = op_.schema().name();
    return name.rfind("aten::_foreach_", 0) == 0 || name == "aten::lstm" ||
           name == "aten::gru" || name == "aten::rnn_tanh" ||
           name == "aten::rnn_relu";
  }

  // One tensor given twice stays one: kernels ask (attention to itself).
  at::Tensor Lower(const at::Tensor& tensor, bool written = false) {
    RequireOnePlace(tensor);
    if (!OnSim(tensor)) return tensor;
    NoteDevice(tensor.device());
    at::Tensor& view = views_[tensor.unsafeGetTensorImpl()];
    if (view.defined()) return view;
    // The view says of gradients what the tensor says. Composite operators ask,
    // also where none are recorded: at::matmul multiplies by a weight that
    // requires them in another way than by one that does not.
    const c10::InferenceMode as_the_tensor(tensor.is_inference());
    view = CpuView(tensor);
    if (!written) view.set_requires_grad(tensor.requires_grad());
    owners_.emplace(view.storage().unsafeGetStorageImpl(), tensor);
    return view;
  }

  // An empty `out=` tensor is there to be given a size by the kernel, which
  // memory of another owner cannot be.
  IValue ToCpuForWriting(const IValue& value) {
    if (!value.isTensor()) return ToCpu(value);
    if (!OnSim(value.toTensor()) || value.toTensor().numel() != 0) {
      return Lower(value.toTensor(), /*written=*/true);
    }
    RequireOnePlace(value.toTensor());
    NoteDevice(value.toTensor().device());
    return at::empty(value.toTensor().sizes(),
                     value.toTensor().options().device(at::kCPU));
  }

  IValue ToCpu(const IValue& value) {
    if (value.isTensor()) return Lower(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> lowered;
      for (const at::Tensor& tensor : value.toTensorVector()) {
        lowered.push_back(Lower(tensor));
      }
      return lowered;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> lowered;
      for (const auto& tensor : value.toOptionalTensorVector()) {
        // Indices may be on the host, as on real accelerators.
        const bool lower = tensor && OnSim(*tensor);
        lowered.push_back(lower ? std::optional(Lower(*tensor)) : tensor);
      }
      return lowered;
    }
    if (value.isDevice() && value.toDevice().type() == kType) {
      NoteDevice(value.toDevice());
      return c10::Device(c10::DeviceType::CPU);
    }
    return value;
  }

  // `out=` tensors that the kernel gave another size: their view has left the
  // device's memory, so the result is brought there.
  void StoreResized() {
    for (std::size_t i = 0; i < originals_.size(); ++i) {
      const auto* alias = op_.schema().arguments()[i].alias_info();
      if (alias == nullptr || !alias->isWrite() || !originals_[i].isTensor()) {
        continue;
      }
      const at::Tensor original = originals_[i].toTensor();
      const at::Tensor lowered = lowered_[i].toTensor();
      if (!OnSim(original) || original.sizes() == lowered.sizes()) continue;
      original.resize_(lowered.sizes());
      CpuView(original).copy_(lowered);
    }
  }

  at::Tensor Raise(const at::Tensor& tensor) const {
    if (!tensor.defined() || !device_ || !tensor.device().is_cpu()) {
      return tensor;
    }
    TORCH_CHECK(!tensor.is_nested() && !tensor.is_quantized() &&
                    tensor.layout() == at::kStrided,
                "sim: only dense tensors are simulated, aten operator ",
                op_.schema().name(), " made another kind");
    const auto owner = owners_.find(tensor.storage().unsafeGetStorageImpl());
    if (owner != owners_.end()) {  // a view of an argument
      at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(
          c10::Storage(owner->second.storage()),
          Keys(c10::DispatchKey::PrivateUse1), tensor.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(
          tensor.sizes(), tensor.strides(), tensor.storage_offset());
      return view;
    }
    at::Tensor result = EmptySim(tensor.sizes(), tensor.strides(),
                                 tensor.scalar_type(), *device_);
    CpuView(result).copy_(tensor);
    return result;
  }

  IValue ToSim(const IValue& value, std::size_t index) {
    const auto* alias = op_.schema().returns()[index].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      for (std::size_t i = 0; i < originals_.size(); ++i) {
        const auto* other = op_.schema().arguments()[i].alias_info();
        if (other != nullptr && other->beforeSets() == alias->beforeSets()) {
          return originals_[i];
        }
      }
    }
    if (value.isTensor()) return Raise(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> raised;
      for (const at::Tensor& tensor : value.toTensorVector()) {
        raised.push_back(Raise(tensor));
      }
      return raised;
    }
    return value;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  std::vector<IValue> originals_;
  std::vector<IValue> lowered_;
  std::unordered_map<c10::TensorImpl*, at::Tensor> views_;  // of operands
  std::unordered_map<c10::StorageImpl*, at::Tensor> owners_;
  std::optional<c10::Device> device_;
  std::optional<c10::Device> place_;  // of the operands seen so far
};

void OnCpu(const c10::OperatorHandle& op, Keys /*keys*/,
           torch::jit::Stack* stack) {
  CpuCall(op, stack).Run();
}

bool HoldsTensors(const c10::Type& type) {
  if (type.kind() == c10::TypeKind::TensorType) return true;
  const auto parts = type.containedTypes();
  return std::any_of(parts.begin(), parts.end(),
                     [](const auto& part) { return HoldsTensors(*part); });
}

// Composite operators choose their parts by the kind of device: taken whole,
// they choose what they would choose for a CPU tensor. That is every one that
// makes new tensors from tensors. Those that make views, write, or are told a
// device are parts themselves, and so are `clone`, which counts as a copy, and
// the packing of sequences, whose lengths stay on the host.
bool RunsWhole(const c10::OperatorHandle& op) {
  using c10::DispatchKey;
  const c10::FunctionSchema& schema = op.schema();
  if (schema.name() == "aten::clone" ||
      schema.name() == "aten::_pack_padded_sequence" ||
      schema.name() == "aten::_pad_packed_sequence" ||
      op.hasKernelForDispatchKey(DispatchKey::PrivateUse1) ||
      !(op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd) ||
        op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd))) {
    return false;
  }
  bool takes_tensors = false;
  for (const c10::Argument& argument : schema.arguments()) {
    if (argument.alias_info() != nullptr || argument.name() == "device") {
      return false;
    }
    takes_tensors |= HoldsTensors(*argument.type());
  }
  return takes_tensors && !schema.returns().empty() &&
         HoldsTensors(*schema.returns()[0].type());
}

// Memory of either kind may be given to a tensor of the other, as between the
// host and CUDA.
bool HasCompatibleType(const at::Tensor& self, const at::Tensor& from) {
  return self.layout() == at::kStrided && from.layout() == at::kStrided &&
         self.is_inference() == from.is_inference();
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_has_compatible_shallow_copy_type", TORCH_FN(HasCompatibleType));
  m.impl("empty.memory_format", TORCH_FN(Empty));
  m.impl("empty_strided", TORCH_FN(EmptyStrided));
  m.impl("_copy_from", TORCH_FN(CopyFrom));
  m.impl("_copy_from_and_resize", TORCH_FN(CopyFromAndResize));
  m.impl("_local_scalar_dense", TORCH_FN(LocalScalar));
  m.impl("histc", TORCH_FN(Histc));
  m.impl("as_strided", TORCH_FN(AsStrided));
  m.impl("view", TORCH_FN(View));
  m.impl("_reshape_alias", TORCH_FN(ReshapeAlias));
  m.impl("unfold", TORCH_FN(Unfold));
  m.impl("alias", TORCH_FN(Alias));
  m.impl("resize_", TORCH_FN(Resize));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(SetStorageOffset));
  m.impl("set_.source_Storage", TORCH_FN(SetStorage));
  for (const c10::OperatorName& name :
       c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (name.getNamespace() != "aten" || !op || !op->hasSchema() ||
        !RunsWhole(*op)) {
      continue;
    }
    m.impl(c10::toString(name).c_str(),
           torch::CppFunction::makeFromBoxedFunction<&OnCpu>());
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&OnCpu>());
}

// torch.autocast casts here as on CUDA.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define DISTORCH_SIM_LOWER(...) \
  KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define DISTORCH_SIM_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define DISTORCH_SIM_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(DISTORCH_SIM_LOWER)
  AT_FORALL_FP32(DISTORCH_SIM_FP32)
  AT_FORALL_PROMOTE(DISTORCH_SIM_PROMOTE)
}

}  // namespace distorch_sim
