# SPDX-License-Identifier: Apache-2.0
"""Whatever changes in models, and however, the scan sees it and agrees with a full walk."""

from __future__ import annotations

import copy
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scan_rows import block, own
from torch import nn

from distorch import memory
from distorch.memory import Scanner


def full_walk() -> dict[int, dict]:
    """The plain way: every object of the collector, recursive sums; root id -> facts."""
    gc.collect()
    modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
    children = {id(c) for m in modules for c in m.children()}
    found = {}
    for module in modules:
        if id(module) in children:
            continue
        storages, elements = {}, {}
        for tensor in [*module.parameters(), *module.buffers()]:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                storages[storage.data_ptr()] = (str(tensor.device), storage.nbytes())
        for tensor in module.parameters():
            elements[tensor.data_ptr() or id(tensor)] = tensor.numel()
        if storages:
            found[id(module)] = {
                "storages": storages,
                "parameters": sum(elements.values()),
                "layers": sum(
                    any(True for _ in m.parameters(recurse=False))
                    or any(True for _ in m.buffers(recurse=False))
                    for m in module.modules()
                ),
            }
    return found


def totals_of(found: dict[int, dict]) -> list[tuple]:
    """Bytes per model with shared storages counted once, in no particular order."""
    users: dict[int, int] = {}
    for facts in found.values():
        for storage in facts["storages"]:
            users[storage] = users.get(storage, 0) + 1
    return sorted(
        (
            sum(size for key, (_, size) in f["storages"].items() if users[key] == 1),
            f["layers"],
            f["parameters"],
        )
        for f in found.values()
    )


class Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
        self.register_buffer("table", torch.zeros(10))


def weight(elements: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(elements))


def set_in_a_loop(model: Changing) -> None:
    for _ in range(100):  # until Python has specialised the store
        model.note = object()
    model.__dict__["_buffers"] = {"table": torch.zeros(20)}


WRITES: dict[str, tuple[Callable[[Changing], object], int]] = {
    "item": (lambda m: m.one._parameters.__setitem__("weight", weight(5)), 460),
    "update": (lambda m: m.one._parameters.update(weight=weight(6)), 464),
    "new name": (lambda m: m.one._parameters.setdefault("more", weight(1)), 844),
    "pop": (lambda m: m.one._parameters.pop("weight"), 440),
    "clear": (lambda m: m._buffers.clear(), 800),
    "other dictionary": (lambda m: m.one.__dict__.update(_parameters={"w": weight(7)}), 468),
    "other dictionary by attribute": (
        lambda m: object.__setattr__(m.two, "_parameters", {"w": weight(8)}), 472),
    "other dictionary after a loop": (set_in_a_loop, 880),
    "other children": (lambda m: m.__dict__.update(_modules={"three": nn.Linear(3, 1)}), 56),
    "swapped children": (lambda m: m._modules.update(one=m.two), 440),
    "tensor as a parameter": (lambda m: m.one._parameters.update(weight=torch.zeros(9)), 476),
    "none": (lambda m: m.one._parameters.update(weight=None), 440),
    "data": (lambda m: setattr(m.one.weight, "data", torch.zeros(1000)), 4440),
    "set_": (lambda m: m.table.set_(torch.zeros(2000)), 8800),
}  # fmt: skip


@pytest.mark.parametrize("how", WRITES)
def test_a_write_past_every_hook_is_seen_by_the_next_scan(scanner: Scanner, how: str) -> None:
    write, expected = WRITES[how]
    model = Changing()
    for _ in range(3):
        assert own(scanner.rows(max_age=0), model)[0].bytes == {"cpu": 840}
    write(model)
    for _ in range(2):
        assert own(scanner.rows(max_age=0), model)[0].bytes == {"cpu": expected}


def test_a_child_that_lives_where_a_dead_one_did_stays_its_parents(scanner: Scanner) -> None:
    class Parent(nn.Module):
        pass

    parent = Parent()
    parent.weight = weight(10)
    for _ in range(200):
        parent._modules["child"] = nn.ReLU()
        scanner.rows(max_age=0)
        address = id(parent._modules.pop("child"))
        parent._modules["child"] = nn.ReLU()
        if id(parent._modules["child"]) == address:
            break
    else:
        pytest.fail("no address was given again")
    scanner.note_loaded(parent._modules["child"])  # before a scan has seen the other one die
    assert own(scanner.rows(max_age=0), parent)[0].modules == 2


def test_a_scripted_module_is_read_anew_each_time(scanner: Scanner) -> None:
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit"):
        model = torch.jit.trace(nn.Linear(10, 10), torch.zeros(1, 10))
    scanner.note_loaded(model)
    for _ in range(3):
        assert own(scanner.rows(max_age=0), model)[0].bytes == {"cpu": 440}
    model.double()
    assert own(scanner.rows(max_age=0), model)[0].bytes == {"cpu": 880}


def test_moves_writes_and_deletions_without_any_hook_are_seen(scanner):
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)

    model = Moving()

    def held() -> dict[str, int]:
        return own(scanner.rows(max_age=0), model)[0].bytes

    assert held() == {"cpu": 800}
    model.one.weight.data = torch.zeros(20, 10)
    assert held() == {"cpu": 1200}
    model.double()
    assert held() == {"cpu": 2400}
    model.two._parameters["weight"] = nn.Parameter(torch.zeros(5))
    assert held() == {"cpu": 1620}
    del model._modules["two"]
    assert held() == {"cpu": 1600}
    model.register_buffer("table", torch.zeros(25))
    assert held() == {"cpu": 1700}
    model.to("meta")
    assert all(r.class_name != "Moving" for r in scanner.rows(max_age=0))


def test_answer_equals_a_full_walk_under_churn(scanner):
    foreign = {row.id for row in scanner.rows(max_age=0, deep=True)}
    rng = random.Random(11)
    models: list[nn.Module] = []
    for step in range(400):
        action = rng.randrange(8)
        if len(models) < 3 or action == 0:
            models.append(nn.Sequential(*[block(rng.randint(2, 9)) for _ in range(3)]))
        elif action == 1:
            models.pop(rng.randrange(len(models)))
        elif action == 2:
            rng.choice(models).to(rng.choice([torch.float16, torch.float32, torch.float64]))
        elif action == 3:
            rng.choice(models)[0] = nn.Linear(3, rng.randint(1, 9))
        elif action == 4:
            target = rng.choice(models)
            target._modules.pop(next(iter(target._modules)), None) if len(target) > 1 else None
        elif action == 5:
            rng.choice(models).append(rng.choice(models)[-1])
        elif action == 6:
            parameter = next(iter(rng.choice(models).parameters()), None)
            if parameter is not None:
                parameter.data = torch.zeros(rng.randint(1, 50))
        else:
            models.append(copy.deepcopy(rng.choice(models)))
            scanner.walk()
        scanner.invalidate()
        rows = [r for r in scanner.rows() if r.id not in foreign]
        found = full_walk()
        mine = sorted(
            (total, row.layers, row.parameters)
            for row, total in zip(rows, _unshared(scanner, rows), strict=True)
        )
        assert mine == totals_of(found), f"step {step}"


def _unshared(scanner: Scanner, rows: list[memory.Row]) -> list[int]:
    """The bytes of each row without storages that other models use as well."""
    held = []
    for row in rows:
        module = scanner.module(row.id)
        held.append({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                     for t in [*module.parameters(), *module.buffers()]})  # fmt: skip
    users = Counter(key for storages in held for key in storages)
    # An older owner counts the storage; for a younger sharer it is in shared_bytes.
    return [
        row.total - sum(size for key, size in storages.items() if users[key] > 1)
        + sum(row.shared_bytes.values()) if row.shares_with else row.total
        for row, storages in zip(rows, held, strict=True)
    ]  # fmt: skip


def test_a_module_that_is_still_being_built_is_read_when_it_is(scanner):
    """Another thread may be anywhere in its `__init__`."""
    half = nn.Linear.__new__(nn.Linear)
    scanner.walk()
    before = scanner.rows(max_age=0)
    assert half not in [scanner.module(row.id) for row in before]
    half.__init__(20, 10, bias=False)
    scanner.walk()
    assert own(scanner.rows(max_age=0), half)[0].bytes == {"cpu": 800}


def test_threads_may_scan_while_models_come_and_go(scanner):
    stop = threading.Event()
    errors: list[BaseException] = []

    def run(action):
        try:
            while not stop.is_set():
                action()
        except BaseException as error:
            errors.append(error)

    def churn():
        model = nn.Sequential(block(4), block(4))
        model.to(torch.float64)
        del model

    actions = [churn, churn, lambda: scanner.rows(max_age=0), scanner.walk, scanner.invalidate,
               lambda: [r.as_json() for r in scanner.rows()]]  # fmt: skip
    threads = [threading.Thread(target=run, args=(a,)) for a in actions]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
