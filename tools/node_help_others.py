# SPDX-License-Identifier: Apache-2.0
"""The help pages of the nodes for other packs: what is ours in them. All else is the pack's, and its own help's."""

from __future__ import annotations

from collections.abc import Iterator

COMPUTE = "where it computes; a device that is missing is replaced by ComfyUI's own, with a warning"
LINK = f"{COMPUTE}. From the loader's second output, or from **Device Selector**"
GIVES = "the device, for the nodes that use what is loaded here"

# Node of the pack -> what it does, the name of its device input, its outputs, whether it gives the device on.
Row = tuple[str, str, dict[str, str], str]

WAN: dict[str, Row] = {
    "WanVideoModelLoader": (
        "Loads the video model.",
        "compute_device",
        {"model": "the model"},
        "compute_device",
    ),
    "WanVideoSampler": (
        "Samples a video.",
        "compute_device",
        {"samples": "the result", "denoised_samples": "the last step's estimate of it"},
        "",
    ),
    "LoadWanVideoT5TextEncoder": (
        "Loads the text encoder.",
        "device",
        {"wan_t5_model": "the text encoder"},
        "load_device",
    ),
    "LoadWanVideoClipTextEncoder": (
        "Loads the image encoder.",
        "device",
        {"wan_clip_vision": "the image encoder"},
        "load_device",
    ),
    "WanVideoVAELoader": ("Loads the VAE.", "load_device", {"vae": "the VAE"}, "load_device"),
    "WanVideoTinyVAELoader": (
        "Loads the small VAE.",
        "load_device",
        {"vae": "the VAE"},
        "load_device",
    ),
    "WanVideoTextEncode": ("Encodes prompts.", "load_device", {"text_embeds": "both prompts"}, ""),
    "WanVideoTextEncodeSingle": (
        "Encodes a prompt.",
        "load_device",
        {"text_embeds": "the prompt"},
        "",
    ),
    "WanVideoTextEncodeCached": (
        "Loads the text encoder, encodes prompts, and lets go of it.",
        "load_device",
        {
            "text_embeds": "both prompts",
            "negative_text_embeds": "the negative one",
            "positive_prompt": "the positive one as text",
        },
        "",
    ),
    "WanVideoImageToVideoEncode": (
        "Encodes the images that a video begins and ends with.",
        "load_device",
        {"image_embeds": "the images for the sampler"},
        "",
    ),
    "WanVideoEncode": ("Encodes images.", "load_device", {"samples": "the latents"}, ""),
    "WanVideoDecode": ("Decodes latents.", "load_device", {"images": "the images"}, ""),
    "WanVideoVACEEncode": (
        "Encodes the inputs of VACE.",
        "load_device",
        {"vace_embeds": "the inputs for the sampler"},
        "",
    ),
    "WanVideoClipVisionEncode": (
        "Encodes images with the image encoder.",
        "load_device",
        {"image_embeds": "the images for the sampler"},
        "",
    ),
    "WanVideoControlnetLoader": (
        "Loads a ControlNet.",
        "device",
        {"controlnet": "the ControlNet"},
        "",
    ),
    "WanVideoUni3C_ControlnetLoader": (
        "Loads Uni3C's ControlNet.",
        "device",
        {"controlnet": "the ControlNet"},
        "",
    ),
    "FantasyTalkingModelLoader": ("Loads FantasyTalking.", "device", {"model": "the model"}, ""),
    "Wav2VecModelLoader": ("Loads Wav2Vec.", "device", {"wav2vec_model": "the model"}, ""),
    "DownloadAndLoadWav2VecModel": (
        "Loads Wav2Vec; fetches it first where it is missing.",
        "device",
        {"wav2vec_model": "the model"},
        "",
    ),
}

OTHERS: dict[str, tuple[str, dict[str, str]]] = {
    "LTXVLoader": ("ComfyUI-LTXVideo", {"model": "the model", "vae": "the VAE"}),
    "CheckpointLoaderNF4": (
        "ComfyUI_bitsandbytes_NF4",
        {"MODEL": "the diffusion model", "CLIP": "the text encoder", "VAE": "the VAE"},
    ),
    "LoadFluxControlNet": ("x-flux-comfyui", {"ControlNet": "the ControlNet"}),
    "MMAudioModelLoader": ("ComfyUI-MMAudio", {"mmaudio_model": "the model"}),
    "MMAudioFeatureUtilsLoader": ("ComfyUI-MMAudio", {"mmaudio_featureutils": "its encoders"}),
    "MMAudioSampler": ("ComfyUI-MMAudio", {"audio": "the sound"}),
    "PulidModelLoader": ("PuLID_ComfyUI", {"PULID": "the model"}),
    "PulidInsightFaceLoader": ("PuLID_ComfyUI", {"FACEANALYSIS": "the face analysis"}),
    "PulidEvaClipLoader": ("PuLID_ComfyUI", {"EVA_CLIP": "the image encoder"}),
    "Florence2ModelLoader": ("ComfyUI-Florence2", {"florence2_model": "the model"}),
    "DownloadAndLoadFlorence2Model": ("ComfyUI-Florence2", {"florence2_model": "the model"}),
}

WAN_PACK = "ComfyUI-WanVideoWrapper"
REST = (
    "The node is {}'s **{}**; inputs that are not named here, and what they mean, are that pack's."
)
PLACED = (
    "With a string the pack's block swap and VRAM management have no effect. The blocks are brought to their devices when "
    "a sampler begins and leave them when it ends. Needs the sampler of this pack, **WanVideoSamplerMultiGPU**; GGUF "
    "weights of that pack stay on the compute device."
)


def pages(string: str) -> Iterator[tuple[str, str, dict[str, str], dict[str, str], str]]:
    """Yield node id, first paragraph, our inputs, outputs, and what else there is to say; `string`: of an allocation."""
    for name, (first, device, outputs, gives) in WAN.items():
        links = not name.startswith(("Load", "Download", "Wav", "Fantasy")) and "Loader" not in name
        inputs = {device: LINK if links and not name.endswith("Cached") else COMPUTE}
        rest = REST.format(WAN_PACK, name)
        if name == "WanVideoModelLoader":
            inputs["vace_model"] = "another name of `extra_model`, for saved workflows"
            inputs["expert_mode_allocations"] = f"{string} on the transformer, whenever it samples"
            rest = f"{PLACED}\n\n{rest}"
        more = {**outputs, **({gives: GIVES} if gives else {})}
        yield f"{name}MultiGPU", first, inputs, more, rest
    yield (
        "WanVideoBlockSwapMultiGPU",
        "Settings of the block swap of WanVideoWrapper, with the device that receives the swapped blocks.",
        {"swap_device": "where swapped blocks, and the sampler's caches, wait"},
        {"block_swap_args": "the settings"},
        REST.format(WAN_PACK, "WanVideoBlockSwap"),
    )
    for name, (pack, outputs) in OTHERS.items():
        inputs = {"device": COMPUTE}
        if "Florence" in name:
            inputs["offload_device"] = "where the model waits"
        rest = REST.format(pack, name)
        yield (
            f"{name}MultiGPU",
            f"{name} of {pack}, on a device of your choice.",
            inputs,
            outputs,
            rest,
        )
