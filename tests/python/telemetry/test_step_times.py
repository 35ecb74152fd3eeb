# SPDX-License-Identifier: Apache-2.0
"""Whose a step is, and how long one pass of it takes."""

from __future__ import annotations

import gc

import pytest

from distorch.memory.step_times import StepTimes


class Model:
    pass


class Sampler:
    """Reports steps by a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = StepTimes(clock=lambda: self.now, kept=2)

    def step(self, value: int, total: int, seconds: float, *models: Model) -> None:
        for model in models:
            self.steps.passed(model)
        self.now += seconds
        self.steps.progress(value, total)

    def run(self, seconds: float, *models: Model) -> None:
        """Four steps; the first also loads."""
        for value in range(1, 5):
            self.step(value, 4, seconds if value > 1 else 100.0, *models)


def test_the_first_report_holds_the_loading_and_does_not_count() -> None:
    sampler, model = Sampler(), Model()
    sampler.step(1, 4, 10.0, model)
    assert sampler.steps.seconds(id(model)) is None
    sampler.step(2, 4, 0.5, model)
    sampler.step(4, 4, 0.7, model)
    assert sampler.steps.seconds(id(model)) == pytest.approx(0.6)


def test_the_last_run_counts_once_it_has_two_reports() -> None:
    sampler, model = Sampler(), Model()
    sampler.run(0.5, model)
    sampler.step(1, 4, 30.0, model)
    assert sampler.steps.seconds(id(model)) == pytest.approx(0.5)
    sampler.step(2, 4, 2.0, model)
    assert sampler.steps.seconds(id(model)) == pytest.approx(2.0)


def test_a_step_is_the_models_that_ran_not_the_last_loaded_ones() -> None:
    sampler, high, low = Sampler(), Model(), Model()
    sampler.run(0.5, high)
    sampler.run(0.25, low)
    sampler.run(0.75, high)
    assert sampler.steps.seconds(id(high)) == pytest.approx(0.75)
    assert sampler.steps.seconds(id(low)) == pytest.approx(0.25)


def test_several_passes_of_a_step_are_told_apart() -> None:
    sampler, model = Sampler(), Model()
    sampler.run(0.8, model, model)  # a second-order sampler
    assert sampler.steps.seconds(id(model)) == pytest.approx(0.4)


def test_a_step_of_two_models_is_nobodys() -> None:
    sampler, model, negative = Sampler(), Model(), Model()
    sampler.run(0.5, model, negative)
    assert sampler.steps.seconds(id(model)) is None
    assert sampler.steps.seconds(id(negative)) is None


def test_a_bar_of_something_else_ends_the_run() -> None:
    sampler, model = Sampler(), Model()
    sampler.run(0.5, model)
    sampler.step(1, 64, 3.0)  # tiles
    sampler.step(2, 64, 3.0)
    assert sampler.steps.seconds(id(model)) == pytest.approx(0.5)


def test_models_are_not_held_and_not_mixed_up_with_later_ones() -> None:
    sampler, model = Sampler(), Model()
    sampler.run(0.5, model)
    key = id(model)
    del model
    gc.collect()
    assert sampler.steps.seconds(key) is None


def test_what_is_remembered_is_bounded() -> None:
    sampler, models = Sampler(), [Model() for _ in range(5)]
    for model in models:
        sampler.run(0.5, model)
    known = [sampler.steps.seconds(id(model)) is not None for model in models]
    assert known == [False, False, False, True, True]
    many = [Model() for _ in range(3000)]  # a sampler that reports nothing
    for model in many:
        sampler.steps.passed(model)
    assert len(sampler.steps._passes) <= 1000
