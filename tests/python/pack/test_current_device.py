# SPDX-License-Identifier: Apache-2.0
"""A model runs with its device as the current one, also where ComfyUI does not see to it."""

from __future__ import annotations

import sys
import weakref

import pytest
import torch

from distorch.allocation import parse


class Coder(torch.nn.Module):
    """What ComfyUI calls of a VAE; says which device is current."""

    def __init__(self) -> None:
        super().__init__()
        self.device = None
        self.seen: list[tuple[str, int]] = []

    def decode(self, latent: int, *, fail: bool = False) -> int:
        self.seen.append(("decode", torch.sim.current_device()))
        if fail:
            raise ValueError("broken")
        return latent + 1

    def encode_token_weights(self, tokens: int) -> int:
        self.seen.append(("encode_token_weights", torch.sim.current_device()))
        return tokens + 2


@pytest.mark.parametrize("knows", [False, True])
def test_text_encoders_and_vaes_compute_on_the_current_device(
    pack, comfy, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    management = sys.modules["comfy.model_management"]
    if knows:
        monkeypatch.setattr(management, "cuda_device_context", lambda device: None, raising=False)
    else:
        monkeypatch.delattr(management, "cuda_device_context", raising=False)
    adopt, request = pack.load("patches.placing.adopt"), pack.load("patches.placing.request")
    patcher = comfy.model(size=128)
    coder = Coder()
    coder.layer = patcher.model
    patcher.model = coder
    patcher.load_device = torch.device("sim:1")
    spec = parse("sim:1,*#sim:1", kinds=["sim"])
    adopt.adopt(patcher, request.Request("sim:1", spec))
    assert coder.decode(1) == 2
    assert coder.encode_token_weights(1) == 3
    expected = 0 if knows else 1
    assert coder.seen == [("decode", expected), ("encode_token_weights", expected)]
    with pytest.raises(ValueError, match="broken"):
        coder.decode(1, fail=True)
    assert torch.sim.current_device() == 0
    alive = weakref.ref(coder)
    del coder, patcher
    assert alive() is None, "the guard keeps no model alive"
