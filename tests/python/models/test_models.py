# SPDX-License-Identifier: Apache-2.0
"""Ten of the models of `make models`, one for each way in which code goes about its weights."""

from __future__ import annotations

import pytest
import small_transformers
import sweep
import transformers

pytestmark = pytest.mark.filterwarnings("ignore")

TEN = [
    "BartModel",  # encoder and decoder, embeddings tied
    "CLIPModel",  # two towers
    "Idefics3Model",  # sends its inputs to the device of its first parameter
    "GPT2Model",  # convolutions of its own as linear layers
    "LlamaModel",  # a cache of keys and values
    "MambaModel",  # reads the weights of a child that it does not call
    "MixtralModel",  # experts as one tensor
    "RwkvModel",  # writes into slices of a list of states that it is given
    "SwitchTransformersModel",  # brings a layer to the type that it has
    "T5Model",  # a position table in the first layer for all
]


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("name", TEN)
def test_a_model_runs_in_every_way_as_in_one_piece(name: str) -> None:
    cls = getattr(transformers, name)
    model, inputs = small_transformers.make(cls, cls.config_class)
    expected = sweep.reference(model, inputs)
    results = {way: sweep.check(model, inputs, way, expected) for way in sweep.WAYS}
    assert {way: result.reason for way, result in results.items()} == dict.fromkeys(sweep.WAYS, "")
    assert results["place"].streamed == 0
    assert results["stream"].streamed > 0
    assert results["migrate"].migrated > 0
