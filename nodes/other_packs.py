# SPDX-License-Identifier: Apache-2.0
"""Nodes of other packs with a device of their own: which, and what is added to them. One row a node.

Ids, inputs and outputs are ComfyUI-MultiGPU's. The inputs are asked of the pack's own node whenever ComfyUI asks for
ours; a row says only what is ours. `others.py` makes the classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from . import wanvideo

DEVICE_TYPE = "MULTIGPUDEVICE"


@dataclasses.dataclass(frozen=True)
class DeviceInput:
    """A device among a node's inputs.

    Attributes:
        name: the input's.
        part: "required" or "optional".
        behind: the input that it stands behind; "": it is the first of its part; None: the last.
        instead: an input of the pack's node in whose place it stands. That one then gets the first of `gives` for the
            host, the second for an accelerator.
        link: whether it comes from another node, and is no widget.
        default: None: the first accelerator.
    """

    name: str = "device"
    part: str = "optional"
    behind: str | None = None
    instead: str = ""
    gives: tuple[str, str] = ("", "")
    link: bool = False
    default: str | None = None


#: `(the pack's node, inputs, device)`: calls the node some other way than with these inputs on that device.
Call = Callable[[Any, dict[str, Any], str], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Row:
    """What a node of another pack becomes.

    Attributes:
        outputs: the pack's: name and type.
        device: where it computes.
        offload: where its models wait; None: as ComfyUI says.
        gives: name of an output behind the pack's own that gives the device on; "": none.
        alias: another name for one of its inputs, as (name, of), where the pack does not know it itself.
        more: inputs of ours behind all others.
        call: see `Call`.
        category: in ComfyUI's menu.
    """

    outputs: Mapping[str, str]
    device: DeviceInput = DeviceInput()
    offload: DeviceInput | None = None
    gives: str = ""
    alias: tuple[str, str] = ("", "")
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    call: Call | None = None
    category: str = "multigpu"


def _wan(outputs: Mapping[str, str], device: DeviceInput, **more: Any) -> Row:
    return Row(outputs, device, category="multigpu/WanVideoWrapper", **more)


def _link(behind: str, part: str = "required", name: str = "load_device") -> DeviceInput:
    return DeviceInput(name, part, behind, link=True)


def _encoder_link(behind: str) -> DeviceInput:
    return DeviceInput(
        "load_device", "optional", behind, instead="device", gives=("cpu", "gpu"), link=True
    )


_LOADER = DeviceInput(instead="load_device", gives=("offload_device", "main_device"))
_LAST = DeviceInput("device", "required")
_FIRST = DeviceInput("load_device", "optional", "")

WANVIDEO: dict[str, Row] = {
    "WanVideoModelLoader": _wan(
        {"model": "WANVIDEOMODEL"},
        DeviceInput("compute_device", "required"),
        gives="compute_device",
        alias=("vace_model", "extra_model"),
        more=wanvideo.MORE,
        call=wanvideo.load,
    ),
    "WanVideoSampler": _wan(
        {"samples": "LATENT", "denoised_samples": "LATENT"},
        _link("model", name="compute_device"),
        call=wanvideo.sample,
    ),
    "WanVideoBlockSwap": _wan(
        {"block_swap_args": "BLOCKSWAPARGS"},
        DeviceInput("swap_device", default="cpu"),
        call=wanvideo.swap,
    ),
    "LoadWanVideoT5TextEncoder": _wan(
        {"wan_t5_model": "WANTEXTENCODER"}, _LOADER, gives="load_device"
    ),
    "LoadWanVideoClipTextEncoder": _wan(
        {"wan_clip_vision": "CLIP_VISION"}, _LOADER, gives="load_device"
    ),
    "WanVideoVAELoader": _wan({"vae": "WANVAE"}, _FIRST, gives="load_device"),
    "WanVideoTinyVAELoader": _wan({"vae": "WANVAE"}, _FIRST, gives="load_device"),
    "WanVideoTextEncode": _wan({"text_embeds": "WANVIDEOTEXTEMBEDS"}, _encoder_link("t5")),
    "WanVideoTextEncodeSingle": _wan({"text_embeds": "WANVIDEOTEXTEMBEDS"}, _encoder_link("t5")),
    "WanVideoTextEncodeCached": _wan(
        {
            "text_embeds": "WANVIDEOTEXTEMBEDS",
            "negative_text_embeds": "WANVIDEOTEXTEMBEDS",
            "positive_prompt": "STRING",
        },
        DeviceInput("load_device", "required", instead="device", gives=("cpu", "gpu")),
    ),
    "WanVideoImageToVideoEncode": _wan(
        {"image_embeds": "WANVIDIMAGE_EMBEDS"}, _link("vae", "optional")
    ),
    "WanVideoDecode": _wan({"images": "IMAGE"}, _link("vae")),
    "WanVideoEncode": _wan({"samples": "LATENT"}, _link("vae")),
    "WanVideoVACEEncode": _wan({"vace_embeds": "WANVIDIMAGE_EMBEDS"}, _link("vae")),
    "WanVideoClipVisionEncode": _wan(
        {"image_embeds": "WANVIDIMAGE_CLIPEMBEDS"}, _link("clip_vision")
    ),
    "WanVideoControlnetLoader": _wan({"controlnet": "WANVIDEOCONTROLNET"}, _LAST),
    "WanVideoUni3C_ControlnetLoader": _wan(
        {"controlnet": "WANVIDEOCONTROLNET"}, DeviceInput("device", "required", "load_device")
    ),
    "FantasyTalkingModelLoader": _wan({"model": "FANTASYTALKINGMODEL"}, _LAST),
    "Wav2VecModelLoader": _wan({"wav2vec_model": "WAV2VECMODEL"}, _LAST),
    "DownloadAndLoadWav2VecModel": _wan({"wav2vec_model": "WAV2VECMODEL"}, _LAST),
}

_FLORENCE = Row(
    {"florence2_model": "FL2MODEL"}, offload=DeviceInput("offload_device", default="cpu")
)

#: The pack's folder → its nodes; ours are called like them, with "MultiGPU" behind.
PACKS: dict[str, dict[str, Row]] = {
    "ComfyUI-WanVideoWrapper": WANVIDEO,
    "ComfyUI-Florence2": {
        "Florence2ModelLoader": _FLORENCE,
        "DownloadAndLoadFlorence2Model": _FLORENCE,
    },
    "ComfyUI-LTXVideo": {"LTXVLoader": Row({"model": "MODEL", "vae": "VAE"})},
    "ComfyUI_bitsandbytes_NF4": {
        "CheckpointLoaderNF4": Row({"MODEL": "MODEL", "CLIP": "CLIP", "VAE": "VAE"})
    },
    "x-flux-comfyui": {"LoadFluxControlNet": Row({"ControlNet": "FluxControlNet"})},
    "ComfyUI-MMAudio": {
        "MMAudioModelLoader": Row({"mmaudio_model": "MMAUDIO_MODEL"}),
        "MMAudioFeatureUtilsLoader": Row({"mmaudio_featureutils": "MMAUDIO_FEATUREUTILS"}),
        "MMAudioSampler": Row({"audio": "AUDIO"}),
    },
    "PuLID_ComfyUI": {
        "PulidModelLoader": Row({"PULID": "PULID"}),
        "PulidInsightFaceLoader": Row({"FACEANALYSIS": "FACEANALYSIS"}),
        "PulidEvaClipLoader": Row({"EVA_CLIP": "EVA_CLIP"}),
    },
}
