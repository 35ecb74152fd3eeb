// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/grouping.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace distorch {
namespace {

enum class Where {
  kClass,   // anywhere in the name of the class itself, without its package
  kFamily,  // anywhere in the qualified name of the class or of a base
  kFolder,  // the start of the file's relative name
};

struct TypeRule {
  Where where;
  std::string_view pattern;  // lower case
  std::string_view type;
};

// In order: what a class says of itself, then the package it comes from, then
// the folder of its file. Special words come before the general ones they are
// part of ("controlnetflux" before "flux", "t5" only for text encoders).
constexpr TypeRule kRules[] = {
    {Where::kClass, "lora", "lora"},
    {Where::kClass, "lycoris", "lora"},
    {Where::kClass, "controlnet", "controlnet"},
    {Where::kClass, "t2iadapter", "controlnet"},
    {Where::kFamily, "comfy.cldm.", "controlnet"},
    {Where::kFamily, "comfy.t2i_adapter.", "controlnet"},
    {Where::kClass, "depthanything", "depth"},
    {Where::kClass, "depthestimation", "depth"},
    {Where::kClass, "depthpro", "depth"},
    {Where::kClass, "zoedepth", "depth"},
    {Where::kClass, "midas", "depth"},
    {Where::kClass, "dptdepth", "depth"},
    {Where::kClass, "metric3d", "depth"},
    {Where::kClass, "vae", "vae"},
    {Where::kClass, "autoencod", "vae"},
    {Where::kClass, "taesd", "vae"},
    {Where::kClass, "taehv", "vae"},
    {Where::kClass, "musicdcae", "vae"},
    {Where::kClass, "stagea", "vae"},
    {Where::kClass, "stagec_coder", "vae"},
    {Where::kClass, "videotokenizer", "vae"},
    {Where::kClass, "pixelspaceconversion", "vae"},
    {Where::kClass, "octreegaussiandecoder", "vae"},
    {Where::kClass, "minimaxmusic3dav", "vae"},
    {Where::kFamily, "comfy.model_base.", "checkpoint"},
    {Where::kFamily, "comfy.text_encoders.", "clip"},
    {Where::kFamily, "comfy.sd1_clip.", "clip"},
    {Where::kFamily, "comfy.sdxl_clip.", "clip"},
    {Where::kFamily, "comfy.clip_model.", "clip"},
    {Where::kFamily, "comfy.image_encoders.", "clip"},
    {Where::kClass, "clip", "clip"},
    {Where::kClass, "textencoder", "clip"},
    {Where::kClass, "textmodel", "clip"},
    {Where::kClass, "t5", "clip"},
    {Where::kClass, "temodel", "clip"},
    {Where::kClass, "bertmodel", "clip"},
    {Where::kClass, "llama", "clip"},
    {Where::kClass, "qwen2", "clip"},
    {Where::kClass, "qwen3", "clip"},
    {Where::kClass, "gemma", "clip"},
    {Where::kClass, "siglip", "clip"},
    {Where::kClass, "dinov", "clip"},
    {Where::kFamily, "spandrel", "upscaler"},
    {Where::kClass, "esrgan", "upscaler"},
    {Where::kClass, "rrdbnet", "upscaler"},
    {Where::kClass, "swinir", "upscaler"},
    {Where::kClass, "swin2sr", "upscaler"},
    {Where::kClass, "srvgg", "upscaler"},
    {Where::kClass, "upscale", "upscaler"},
    {Where::kClass, "upsampler", "upscaler"},
    {Where::kClass, "superresolution", "upscaler"},
    {Where::kClass, "srmodel3d", "upscaler"},
    {Where::kClass, "wanvideo", "checkpoint"},
    {Where::kClass, "wan2", "checkpoint"},
    {Where::kClass, "wanmodel", "checkpoint"},
    {Where::kClass, "unet", "checkpoint"},
    {Where::kClass, "transformer2d", "checkpoint"},
    {Where::kClass, "transformer3d", "checkpoint"},
    {Where::kClass, "mmdit", "checkpoint"},
    {Where::kClass, "diffusion", "checkpoint"},
    {Where::kClass, "flux", "checkpoint"},
    {Where::kClass, "sdxl", "checkpoint"},
    {Where::kClass, "hunyuanvideo", "checkpoint"},
    {Where::kClass, "qwenimage", "checkpoint"},
    {Where::kClass, "ltxv", "checkpoint"},
    {Where::kClass, "depth", "depth"},
    {Where::kFolder, "checkpoints/", "checkpoint"},
    {Where::kFolder, "diffusion_models/", "checkpoint"},
    {Where::kFolder, "unet/", "checkpoint"},
    {Where::kFolder, "loras/", "lora"},
    {Where::kFolder, "vae/", "vae"},
    {Where::kFolder, "vae_approx/", "vae"},
    {Where::kFolder, "text_encoders/", "clip"},
    {Where::kFolder, "clip/", "clip"},
    {Where::kFolder, "clip_vision/", "clip"},
    {Where::kFolder, "controlnet/", "controlnet"},
    {Where::kFolder, "model_patches/", "controlnet"},
    {Where::kFolder, "upscale_models/", "upscaler"},
    {Where::kFolder, "latent_upscale_models/", "upscaler"},
};

bool Has(std::string_view text, std::string_view pattern) {
  return text.find(pattern) != std::string_view::npos;
}

bool Matches(const TypeRule& rule, const std::vector<std::string>& families,
             std::string_view own, std::string_view file) {
  switch (rule.where) {
    case Where::kClass:
      return Has(own, rule.pattern);
    case Where::kFolder:
      return file.substr(0, rule.pattern.size()) == rule.pattern;
    case Where::kFamily:
      break;
  }
  for (const std::string& family : families) {
    if (Has(family, rule.pattern)) return true;
  }
  return false;
}

}  // namespace

std::string_view ClassifyModel(const std::vector<std::string>& classes,
                               std::string_view file) {
  std::vector<std::string> families;
  families.reserve(classes.size());
  for (const std::string& name : classes) {
    families.push_back(absl::AsciiStrToLower(name));
  }
  std::string_view own;
  if (!families.empty()) own = families.front();
  own = own.substr(own.rfind('.') + 1);  // npos + 1 == 0: no package
  const std::string path = absl::AsciiStrToLower({file.data(), file.size()});
  for (const TypeRule& rule : kRules) {
    if (Matches(rule, families, own, path)) return rule.type;
  }
  return "model";
}

std::string DisplayModel(std::string_view name, std::string_view type,
                         std::int64_t bytes, std::int64_t layers) {
  constexpr double kMegabyte = 1024.0 * 1024.0;
  constexpr double kGigabyte = 1024.0 * kMegabyte;
  const auto size = static_cast<double>(bytes);
  const std::string amount = size >= kGigabyte
                                 ? absl::StrFormat("%.1f GB", size / kGigabyte)
                                 : absl::StrFormat("%.0f MB", size / kMegabyte);
  return absl::StrFormat("%s (%s, %s, %d %s)", std::string(name),
                         std::string(type), amount, layers,
                         layers == 1 ? "layer" : "layers");
}

}  // namespace distorch
