// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/grouping.h"

#include <gtest/gtest.h>

namespace distorch {
namespace {

struct TypeCase {
  std::vector<std::string> classes;
  std::string file;
  std::string type;
};

class ClassifyTest : public testing::TestWithParam<TypeCase> {};

TEST_P(ClassifyTest, GivesTheType) {
  EXPECT_EQ(ClassifyModel(GetParam().classes, GetParam().file), GetParam().type)
      << (GetParam().classes.empty() ? "no class" : GetParam().classes[0]);
}

INSTANTIATE_TEST_SUITE_P(
    ComfyUi2026, ClassifyTest,
    testing::Values(
        TypeCase{{"comfy.model_base.WAN21", "comfy.model_base.BaseModel"},
                 "",
                 "checkpoint"},
        TypeCase{{"comfy.model_base.QwenImage"}, "", "checkpoint"},
        TypeCase{{"comfy.model_base.HunyuanVideo15"}, "", "checkpoint"},
        TypeCase{
            {"pack.MyFlux", "comfy.model_base.BaseModel"}, "", "checkpoint"},
        TypeCase{{"comfy.model_base.SD_X4Upscaler"}, "", "checkpoint"},
        TypeCase{{"comfy.model_base.DepthAnything3"}, "", "depth"},
        TypeCase{{"comfy.sdxl_clip.SDXLClipModel"}, "", "clip"},
        TypeCase{{"comfy.text_encoders.flux.FluxClipModel"}, "", "clip"},
        TypeCase{
            {"comfy.text_encoders.wan.te.<locals>.WanTEModel"}, "", "clip"},
        TypeCase{{"comfy.clip_model.CLIPVisionModelProjection"}, "", "clip"},
        TypeCase{{"comfy.image_encoders.dino2.Dinov2Model"}, "", "clip"},
        TypeCase{{"comfy.text_encoders.hunyuan_video.HunyuanVideoClipModel"},
                 "",
                 "clip"},
        TypeCase{
            {"comfy.ldm.models.autoencoder.AutoencodingEngine"}, "", "vae"},
        TypeCase{{"comfy.ldm.wan.vae2_2.WanVAE"}, "", "vae"},
        TypeCase{
            {"comfy.ldm.cosmos.vae.CausalContinuousVideoTokenizer"}, "", "vae"},
        TypeCase{
            {"comfy.ldm.ace.vae.music_dcae_pipeline.MusicDCAE"}, "", "vae"},
        TypeCase{{"comfy.taesd.taehv.TAEHV"}, "", "vae"},
        TypeCase{{"comfy.ldm.triposplat.vae.OctreeGaussianDecoder"}, "", "vae"},
        TypeCase{{"comfy.ldm.flux.controlnet.ControlNetFlux",
                  "comfy.ldm.flux.model.Flux"},
                 "",
                 "controlnet"},
        TypeCase{{"comfy.cldm.mmdit.ControlNet"}, "", "controlnet"},
        TypeCase{{"comfy.t2i_adapter.adapter.Adapter_light"}, "", "controlnet"},
        TypeCase{
            {"comfy.ldm.hunyuan_video.upsampler.SRModel3DV2"}, "", "upscaler"},
        TypeCase{{"comfy.ldm.lightricks.latent_upsampler.LatentUpsampler"},
                 "",
                 "upscaler"},
        TypeCase{
            {"spandrel.architectures.DAT.__arch.DAT.DAT"}, "", "upscaler"}));

INSTANTIATE_TEST_SUITE_P(
    OtherPacks, ClassifyTest,
    testing::Values(
        TypeCase{{"transformers.T5EncoderModel"}, "", "clip"},
        TypeCase{{"diffusers.SD3Transformer2DModel"}, "", "checkpoint"},
        TypeCase{{"diffusers.AutoencoderKL"}, "", "vae"},
        TypeCase{{"peft.LoRALinearLayer"}, "", "lora"},
        TypeCase{{"wanvideo.WanVideoModel"}, "", "checkpoint"},
        TypeCase{{"pack.Wan2_2Model"}, "", "checkpoint"},
        TypeCase{{"basicsr.RRDBNet"}, "", "upscaler"},
        TypeCase{{"transformers.DPTForDepthEstimation"}, "", "depth"},
        TypeCase{{"depth_anything_v2.DepthAnythingV2"}, "", "depth"},
        TypeCase{{"pack.Thing"}, "loras/my.safetensors", "lora"},
        TypeCase{{"pack.Thing"}, "upscale_models/x.pth", "upscaler"},
        TypeCase{{"pack.Thing"}, "latent_upscale_models/x.pth", "upscaler"},
        TypeCase{{"pack.Thing"}, "my/vae/x.pth", "model"},
        TypeCase{{"Thing"}, "", "model"}, TypeCase{{}, "", "model"}));

TEST(DisplayTest, GigabytesMegabytesAndTheSingular) {
  EXPECT_EQ(DisplayModel("Wan2_2-T2V-A14B-HIGH", "checkpoint",
                         std::int64_t{21} * (1 << 30) / 10, 145),
            "Wan2_2-T2V-A14B-HIGH (checkpoint, 2.1 GB, 145 layers)");
  EXPECT_EQ(DisplayModel("VACE-Depth", "model", std::int64_t{512} << 20, 45),
            "VACE-Depth (model, 512 MB, 45 layers)");
  EXPECT_EQ(DisplayModel("x", "model", 0, 1), "x (model, 0 MB, 1 layer)");
}

}  // namespace
}  // namespace distorch
