# SPDX-License-Identifier: Apache-2.0
"""What nodes of other packs ask for and give: names, types and defaults, as ComfyUI-MultiGPU wraps them.

One block a node: a line "name: output=TYPE ..." and one for each input, "name TYPE default key=value ..."; those behind a
line "?" are optional. `[a,b]` is a choice, `@folder` one of the files in a model folder.
"""

from __future__ import annotations

from typing import Any

WANVIDEO = """
WanVideoModelLoader: model=WANVIDEOMODEL
model @unet_gguf+diffusion_models
base_precision [fp32,bf16,fp16,fp16_fast] bf16
quantization [disabled,fp8_e4m3fn,fp8_e4m3fn_fast,fp8_e4m3fn_scaled,fp8_e4m3fn_scaled_fast,fp8_e5m2] disabled
load_device [main_device,offload_device] offload_device
?
attention_mode [sdpa,flash_attn_2,flash_attn_3,sageattn,sageattn_3,radial_sage_attention] sdpa
compile_args WANCOMPILEARGS
block_swap_args BLOCKSWAPARGS
lora WANVIDLORA
vram_management_args VRAM_MANAGEMENTARGS
extra_model VACEPATH
fantasytalking_model FANTASYTALKINGMODEL
multitalk_model MULTITALKMODEL
fantasyportrait_model FANTASYPORTRAITMODEL
rms_norm_function [default,pytorch] default

WanVideoSampler: samples=LATENT denoised_samples=LATENT
model WANVIDEOMODEL
image_embeds WANVIDIMAGE_EMBEDS
steps INT 30 min=1
cfg FLOAT 6.0 min=0.0 max=30.0 step=0.01
shift FLOAT 5.0 min=0.0 max=1000.0 step=0.01
seed INT 0 min=0 max=18446744073709551615
force_offload BOOLEAN True
scheduler [unipc,unipc/beta,dpm++,dpm++/beta,dpm++_sde,dpm++_sde/beta,euler,euler/beta,deis,lcm,lcm/beta,res_multistep] unipc
riflex_freq_index INT 0 min=0 max=1000 step=1
?
text_embeds WANVIDEOTEXTEMBEDS
samples LATENT
denoise_strength FLOAT 1.0 min=0.0 max=1.0 step=0.01
feta_args FETAARGS
context_options WANVIDCONTEXT
cache_args CACHEARGS
flowedit_args FLOWEDITARGS
batched_cfg BOOLEAN False
slg_args SLGARGS
rope_function [default,comfy,comfy_chunked] comfy
loop_args LOOPARGS
experimental_args EXPERIMENTALARGS
sigmas SIGMAS
unianimate_poses UNIANIMATE_POSE
fantasytalking_embeds FANTASYTALKING_EMBEDS
uni3c_embeds UNI3C_EMBEDS
multitalk_embeds MULTITALK_EMBEDS
freeinit_args FREEINITARGS
start_step INT 0 min=0 max=10000 step=1
end_step INT -1 min=-1 max=10000 step=1
add_noise_to_samples BOOLEAN False

WanVideoBlockSwap: block_swap_args=BLOCKSWAPARGS
blocks_to_swap INT 20 min=0 max=48 step=1
offload_img_emb BOOLEAN False
offload_txt_emb BOOLEAN False
?
use_non_blocking BOOLEAN False
vace_blocks_to_swap INT 0 min=0 max=15 step=1
prefetch_blocks INT 0 min=0 max=40 step=1
block_swap_debug BOOLEAN False

LoadWanVideoT5TextEncoder: wan_t5_model=WANTEXTENCODER
model_name @text_encoders
precision [fp32,bf16] bf16
?
load_device [main_device,offload_device] offload_device
quantization [disabled,fp8_e4m3fn] disabled

LoadWanVideoClipTextEncoder: wan_clip_vision=CLIP_VISION
model_name @clip_vision
precision [fp16,fp32,bf16] fp16
?
load_device [main_device,offload_device] offload_device

WanVideoTextEncode: text_embeds=WANVIDEOTEXTEMBEDS
positive_prompt STRING "" multiline=True
negative_prompt STRING "" multiline=True
?
t5 WANTEXTENCODER
force_offload BOOLEAN True
model_to_offload WANVIDEOMODEL
use_disk_cache BOOLEAN False
device [gpu,cpu] gpu

WanVideoTextEncodeSingle: text_embeds=WANVIDEOTEXTEMBEDS
prompt STRING "" multiline=True
?
t5 WANTEXTENCODER
force_offload BOOLEAN True
model_to_offload WANVIDEOMODEL
use_disk_cache BOOLEAN False
device [gpu,cpu] gpu

WanVideoTextEncodeCached: text_embeds=WANVIDEOTEXTEMBEDS negative_text_embeds=WANVIDEOTEXTEMBEDS positive_prompt=STRING
model_name @text_encoders
precision [fp32,bf16] bf16
positive_prompt STRING "" multiline=True
negative_prompt STRING "" multiline=True
quantization [disabled,fp8_e4m3fn] disabled
use_disk_cache BOOLEAN True
device [gpu,cpu] gpu
?
extender_args WANVIDEOPROMPTEXTENDER_ARGS

WanVideoVAELoader: vae=WANVAE
model_name @vae
?
precision [fp16,fp32,bf16] bf16
compile_args WANCOMPILEARGS

WanVideoTinyVAELoader: vae=WANVAE
model_name @vae_approx
?
precision [fp16,fp32,bf16] fp16
parallel BOOLEAN False

WanVideoImageToVideoEncode: image_embeds=WANVIDIMAGE_EMBEDS
width INT 832 min=64 max=8096 step=8
height INT 480 min=64 max=8096 step=8
num_frames INT 81 min=1 max=10000 step=4
noise_aug_strength FLOAT 0.0 min=0.0 max=10.0 step=0.001
start_latent_strength FLOAT 1.0 min=0.0 max=10.0 step=0.001
end_latent_strength FLOAT 1.0 min=0.0 max=10.0 step=0.001
force_offload BOOLEAN True
?
vae WANVAE
clip_embeds WANVIDIMAGE_CLIPEMBEDS
start_image IMAGE
end_image IMAGE
control_embeds WANVIDIMAGE_EMBEDS
fun_or_fl2v_model BOOLEAN True
temporal_mask MASK
extra_latents LATENT
tiled_vae BOOLEAN False
add_cond_latents ADD_COND_LATENTS

WanVideoDecode: images=IMAGE
vae WANVAE
samples LATENT
enable_vae_tiling BOOLEAN False
tile_x INT 272 min=40 max=2048 step=8
tile_y INT 272 min=40 max=2048 step=8
tile_stride_x INT 144 min=32 max=2040 step=8
tile_stride_y INT 128 min=32 max=2040 step=8
?
normalization [default,minmax]

WanVideoEncode: samples=LATENT
vae WANVAE
image IMAGE
enable_vae_tiling BOOLEAN False
tile_x INT 272 min=64 max=2048 step=1
tile_y INT 272 min=64 max=2048 step=1
tile_stride_x INT 144 min=32 max=2048 step=32
tile_stride_y INT 128 min=32 max=2048 step=32
?
noise_aug_strength FLOAT 0.0 min=0.0 max=10.0 step=0.001
latent_strength FLOAT 1.0 min=0.0 max=10.0 step=0.001
mask MASK

WanVideoVACEEncode: vace_embeds=WANVIDIMAGE_EMBEDS
vae WANVAE
width INT 832 min=64 max=8096 step=8
height INT 480 min=64 max=8096 step=8
num_frames INT 81 min=1 max=10000 step=4
strength FLOAT 1.0 min=0.0 max=10.0 step=0.001
vace_start_percent FLOAT 0.0 min=0.0 max=1.0 step=0.01
vace_end_percent FLOAT 1.0 min=0.0 max=1.0 step=0.01
?
input_frames IMAGE
ref_images IMAGE
input_masks MASK
prev_vace_embeds WANVIDIMAGE_EMBEDS
tiled_vae BOOLEAN False

WanVideoClipVisionEncode: image_embeds=WANVIDIMAGE_CLIPEMBEDS
clip_vision CLIP_VISION
image_1 IMAGE
strength_1 FLOAT 1.0 min=0.0 max=10.0 step=0.001
strength_2 FLOAT 1.0 min=0.0 max=10.0 step=0.001
crop [center,disabled] center
combine_embeds [average,sum,concat,batch] average
force_offload BOOLEAN True
?
image_2 IMAGE
negative_image IMAGE
tiles INT 0 min=0 max=16 step=2
ratio FLOAT 0.5 min=0.0 max=1.0 step=0.01

WanVideoControlnetLoader: controlnet=WANVIDEOCONTROLNET
model @controlnet
base_precision [fp32,bf16,fp16] bf16
quantization [disabled,fp8_e4m3fn,fp8_e4m3fn_fast,fp8_e5m2,fp8_e4m3fn_fast_no_ffn] disabled
load_device [main_device,offload_device] main_device

WanVideoUni3C_ControlnetLoader: controlnet=WANVIDEOCONTROLNET
model @controlnet
base_precision [fp32,bf16,fp16] fp16
quantization [disabled,fp8_e4m3fn,fp8_e5m2] disabled
load_device [main_device,offload_device] main_device
attention_mode [sdpa,sageattn] sdpa
?
compile_args WANCOMPILEARGS

FantasyTalkingModelLoader: model=FANTASYTALKINGMODEL
model @diffusion_models
base_precision [fp32,bf16,fp16] fp16

Wav2VecModelLoader: wav2vec_model=WAV2VECMODEL
model @wav2vec2
base_precision [fp32,bf16,fp16] fp16
load_device [main_device,offload_device] main_device

DownloadAndLoadWav2VecModel: wav2vec_model=WAV2VECMODEL
model [TencentGameMate/chinese-wav2vec2-base,facebook/wav2vec2-base-960h]
base_precision [fp32,bf16,fp16] fp16
load_device [main_device,offload_device] main_device
"""

FLORENCE = """
Florence2ModelLoader: florence2_model=FL2MODEL
model @LLM
precision [fp16,bf16,fp32]
attention [flash_attention_2,sdpa,eager] sdpa
?
lora PEFTLORA
convert_to_safetensors BOOLEAN False

DownloadAndLoadFlorence2Model: florence2_model=FL2MODEL
model [microsoft/Florence-2-base,microsoft/Florence-2-large,MiaoshouAI/Florence-2-large-PromptGen-v2.0] microsoft/Florence-2-base
precision [fp16,bf16,fp32] fp16
attention [flash_attention_2,sdpa,eager] sdpa
?
lora PEFTLORA
convert_to_safetensors BOOLEAN False
"""

MMAUDIO = """
MMAudioModelLoader: mmaudio_model=MMAUDIO_MODEL
mmaudio_model @mmaudio
base_precision [fp16,fp32,bf16] fp16

MMAudioFeatureUtilsLoader: mmaudio_featureutils=MMAUDIO_FEATUREUTILS
vae_model @mmaudio
synchformer_model @mmaudio
clip_model @mmaudio
?
bigvgan_vocoder_model VOCODER_MODEL
mode [16k,44k] 44k
precision [fp16,fp32,bf16] fp16

MMAudioSampler: audio=AUDIO
mmaudio_model MMAUDIO_MODEL
feature_utils MMAUDIO_FEATUREUTILS
duration FLOAT 8 step=0.01
steps INT 25 step=1
cfg FLOAT 4.5 step=0.1
seed INT 0 min=0 max=18446744073709551615
prompt STRING "" multiline=True
negative_prompt STRING "" multiline=True
mask_away_clip BOOLEAN False
force_offload BOOLEAN True
?
images IMAGE
"""

PACKS = {
    "ComfyUI-WanVideoWrapper": WANVIDEO,
    "ComfyUI-Florence2": FLORENCE,
    "ComfyUI-LTXVideo": """
LTXVLoader: model=MODEL vae=VAE
ckpt_name @checkpoints
dtype [bfloat16,float32] bfloat16
""",
    "ComfyUI_bitsandbytes_NF4": """
CheckpointLoaderNF4: MODEL=MODEL CLIP=CLIP VAE=VAE
ckpt_name @checkpoints
""",
    "x-flux-comfyui": """
LoadFluxControlNet: ControlNet=FluxControlNet
model_name [flux-dev,flux-dev-fp8,flux-schnell]
controlnet_path @xlabs_controlnets
""",
    "ComfyUI-MMAudio": MMAUDIO,
    "PuLID_ComfyUI": """
PulidModelLoader: PULID=PULID
pulid_file @pulid

PulidInsightFaceLoader: FACEANALYSIS=FACEANALYSIS
provider [CPU,CUDA,ROCM,CoreML]

PulidEvaClipLoader: EVA_CLIP=EVA_CLIP
""",
}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False, '""': ""}.get(text, text)


def _input(line: str) -> tuple[str, tuple[Any, ...]]:
    name, kind, *rest = line.split(" ")
    default = [part for part in rest if "=" not in part]
    options = {k: _value(v) for k, _, v in (part.partition("=") for part in rest if "=" in part)}
    if default:
        options = {"default": _value(default[0]), **options}
    if kind.startswith("["):
        return name, (kind[1:-1].split(","), options)
    return name, (kind, options)


def nodes_of(pack: str) -> dict[str, tuple[dict[str, str], dict[str, Any], dict[str, Any]]]:
    """Each node's outputs, required inputs and optional inputs; a model folder's files are "@folder" still."""
    found = {}
    for block in PACKS[pack].strip().split("\n\n"):
        head, *lines = block.split("\n")
        name, _, outputs = head.partition(": ")
        at = lines.index("?") if "?" in lines else len(lines)
        required, optional = (dict(map(_input, part)) for part in (lines[:at], lines[at + 1 :]))
        found[name] = (dict(o.split("=") for o in outputs.split(" ")), required, optional)
    return found
