# SPDX-License-Identifier: Apache-2.0
"""Runs layer groups on the donor that stores them: the inputs go there, the outputs stay until they are needed.

Inputs that all groups of a step share (positional embeddings, conditioning) are sent once a step. Which ones those are
is learned: in the first step every input is sent each time, and one that came to every group as the same object with
the same content is sent once from then on. Outputs are `TravellingTensor`s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from distorch.devices import device_module
from distorch.model_blocks import TensorPlace
from distorch.nested import map_tensors, tensors_in
from distorch.parts import moved, parts_of, tensor_bytes, version
from distorch.run.travelling import TravellingTensor, travelling


@dataclass
class _Sent:
    source: torch.Tensor
    source_version: int
    there: torch.Tensor
    version: int
    path: str

    @property
    def fresh(self) -> bool:
        """Whether neither end was written since, as far as versions tell."""
        return version(self.source) == self.source_version and version(self.there) == self.version


@dataclass
class _Input:
    """What is known of the inputs at one path."""

    shared: bool = False  # proven to be the same for all groups of a step
    varies: bool = False
    uses: int = 0


class Sender:
    """Sends inputs to one donor. One thread at a time."""

    def __init__(self, donor: torch.device, count: Callable[[int], None]) -> None:
        """`count(bytes)` is called for every copy."""
        self.donor = donor
        self._count = count
        self._inputs: dict[str, _Input] = {}
        self._step: dict[str, _Sent] = {}

    def begin_step(self) -> None:
        """Learn from the step before and forget what was sent in it."""
        for path in self._step:
            known = self._inputs[path]
            known.shared = known.shared or (known.uses > 0 and not known.varies)
            known.varies = known.varies or not known.shared
            known.uses = 0
        self._step.clear()

    def forget(self) -> None:
        """Forget what was sent in a step that was cut off; nothing is to be learned from it."""
        for path in self._step:
            self._inputs[path].uses = 0
        self._step.clear()

    def send(self, tensor: torch.Tensor, path: str) -> _Sent:
        """Return the tensor on the donor."""
        known = self._inputs.setdefault(path, _Input())
        before = self._step.get(path)
        if known.varies:
            return self._move(tensor, path)
        if before is None:
            self._step[path] = self._move(tensor, path)
            return self._step[path]
        known.uses += 1
        if known.shared and before.source is tensor and before.fresh:
            return before
        sent = self._move(tensor, path)
        same = before.source is tensor and before.fresh
        if known.shared or not same or not torch.equal(sent.there, before.there):
            known.shared, known.varies = False, True
            self._step.pop(path)
        return sent

    def written(self, sent: _Sent) -> None:
        """A group writes to this input: it is nobody's to share."""
        known = self._inputs[sent.path]
        known.shared, known.varies = False, True
        self._step.pop(sent.path, None)

    def _move(self, tensor: torch.Tensor, path: str) -> _Sent:
        # A plain tensor even in inference mode: it counts its versions.
        with torch.inference_mode(False), torch.no_grad():
            there = tensor.detach().to(self.donor)
        self._count(tensor_bytes(there))
        return _Sent(tensor, version(tensor), there, version(there), path)


@dataclass
class MigratedGroup:
    """A layer group that runs on a donor.

    `companions` are its tensors that lie elsewhere (small ones that every device needs); they get a copy on the donor.
    """

    name: str
    companions: list[TensorPlace] = field(default_factory=list)
    there: list[torch.Tensor] = field(default_factory=list)
    here: list[torch.Tensor] = field(default_factory=list)


class Migrator:
    """Runs groups on one donor. One thread at a time.

    Attributes:
        bytes_sent: bytes of inputs copied to the donor since it was made.
        bytes_returned: bytes of outputs that something elsewhere needed.
    """

    def __init__(self, donor: torch.device, compute: torch.device, *, objects: bool = True) -> None:
        """`objects`: whether arguments of any class are looked into (`map_tensors`)."""
        self.donor, self.compute = donor, compute
        self.bytes_sent = self.bytes_returned = 0
        self._sender = Sender(donor, self._sent_bytes)
        self._sent: list[_Sent] = []
        # What stands for other tensors inside the arguments: (it, the caller's), by id.
        self._stands: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._inside: Any = None  # the arguments as the group sees them
        self._objects = objects
        self._current: Any = None
        self._module: Any = device_module(donor.type)

    def _sent_bytes(self, size: int) -> None:
        self.bytes_sent += size

    def _arrived(self, size: int) -> None:
        self.bytes_returned += size

    def prepare(self, group: MigratedGroup) -> None:
        """Copy the group's companions to the donor. Raises torch.OutOfMemoryError when there is no room."""
        with torch.inference_mode(False), torch.no_grad():
            for ref in group.companions:
                group.there.append(moved(ref.get(), self.donor))

    def refresh(self, group: MigratedGroup) -> None:
        """The group's own tensors were written: bring its copies up to date."""
        with torch.no_grad():
            for ref, there in zip(group.companions, group.there, strict=True):
                for part, old in zip(parts_of(there), parts_of(ref.get()), strict=True):
                    part.copy_(old)

    def begin_step(self) -> None:
        """A step ends or begins: nothing sent in it is used again."""
        self._sender.begin_step()

    def forget(self) -> None:
        """The step was cut off."""
        self.forget_call()
        self._sender.forget()

    def forget_call(self) -> None:
        """A group's call did not come to its end."""
        self._give_back_inputs()
        self._stands.clear()

    def enter(
        self, group: MigratedGroup, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bring the inputs to the donor; returns them. On an error nothing has changed."""
        self.forget_call()
        given, named = list(args), dict(kwargs)
        self._inside = given, named
        try:
            for i, value in enumerate(args):
                given[i] = self._map(value, str(i))
            for key, value in kwargs.items():
                named[key] = self._map(value, key)
        except BaseException:
            self.forget_call()
            raise
        group.here = [ref.get() for ref in group.companions]
        for ref, there in zip(group.companions, group.there, strict=True):
            ref.table[ref.name] = there
        self._become_current()
        return tuple(given), named

    def _map(self, value: Any, path: str) -> Any:
        return map_tensors(value, self._bring, path, inner=self._bring_late, objects=self._objects)

    def _bring(self, tensor: torch.Tensor, path: str) -> torch.Tensor:
        source = tensor
        if type(tensor) is TravellingTensor:
            there = tensor.on(self.donor)
            if there is not None:
                self._stands[id(there)] = there, source
                return there
            tensor = tensor.home()
        if tensor.device == self.donor:
            return tensor
        sent = self._sender.send(tensor, path)
        self._sent.append(sent)
        self._stands[id(sent.there)] = sent.there, source
        return sent.there

    def _bring_late(self, tensor: torch.Tensor, path: str) -> torch.Tensor:
        """Of a list or an object a group may need few tensors, or none: each comes when it is used."""
        if tensor.device == self.donor and type(tensor) is not TravellingTensor:
            return tensor
        if type(tensor) is TravellingTensor and tensor.on(self.donor) is not None:
            return self._bring(tensor, path)
        late = travelling(tensor, self.donor, self._sent_bytes)
        self._stands[id(late)] = late, tensor
        return late

    def leave(self, group: MigratedGroup, output: Any) -> Any:
        """Take the outputs over; returns what the model's code sees."""
        self.put_back(group, output)
        result = map_tensors(output, self._wrap, objects=self._objects)
        self._stands.clear()
        return result

    def _wrap(self, tensor: torch.Tensor, _path: str = "") -> torch.Tensor:
        """Return the caller's tensor for one that stands for it, a travelling one for what the group has made."""
        stands = self._stands.get(id(tensor))
        if stands is not None:
            return stands[1]
        if type(tensor) is TravellingTensor or tensor.device != self.donor:
            return tensor
        return travelling(tensor, self.compute, self._arrived)

    def _give_back_inputs(self, output: Any = None) -> None:
        """The arguments hold the caller's tensors again, or what the group has put there. Done once."""
        inside, self._inside = self._inside, None
        if inside is None:
            return
        returned = {
            t.untyped_storage().data_ptr()
            for t in tensors_in(output)
            if type(t) is not TravellingTensor and t.device == self.donor
        }
        for sent in self._sent:
            if not sent.fresh:
                self._sender.written(sent)
                # Written in place. Where it is returned, the caller goes on with what is returned.
                if sent.there.untyped_storage().data_ptr() not in returned:
                    sent.source.copy_(sent.there)
                else:
                    self._stands.pop(id(sent.there), None)
        for late, source in list(self._stands.values()):
            if type(late) is TravellingTensor and late.written:
                source.copy_(late.home())
        self._sent = []
        map_tensors(inside, self._wrap, objects=self._objects)

    def put_back(self, group: MigratedGroup, output: Any = None) -> None:
        """The group and its caller hold their own tensors again. Safe to call twice."""
        if group.here:
            for ref, stored in zip(group.companions, group.here, strict=True):
                ref.table[ref.name] = stored
            group.here = []
        self._give_back_current()
        self._give_back_inputs(output)

    # Kernels that are launched by hand (Triton, extensions) go to the current device.

    def _become_current(self) -> None:
        if hasattr(self._module, "set_device") and self._current is None:
            self._current = self._module.current_device()
            self._module.set_device(self.donor)

    def _give_back_current(self) -> None:
        if self._current is not None:
            self._module.set_device(self._current)
            self._current = None
