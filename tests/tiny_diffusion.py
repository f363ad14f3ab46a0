"""Tiny random diffusion models in the hub's folder layout: `tiny_sdxl(folder)`, `tiny_sd15(folder)`. 64 x 64 px, adapters for 1024-d embeddings.

    tiny_sdxl(folder)                     the base (model_index.json, unet/, vae/, ...) and the adapter (sdxl_models/ip-adapter_sdxl_vit-h.safetensors), both in `folder`
    tiny_sdxl(folder, adapter=other)      the adapter in another folder, as on the hub
"""
import json
from pathlib import Path
import torch

SDXL_FILE, SD15_FILE = "sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "models/ip-adapter_sd15.safetensors"

def tiny_tokenizer(folder):
    "A CLIPTokenizer of printable ASCII, 190 tokens; its two files are written to `folder`."
    from transformers import CLIPTokenizer
    folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]; vocab = [*letters, *(c+"</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder/"vocab.json").write_text(json.dumps({v: i for i, v in enumerate(vocab)})); (folder/"merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder/"vocab.json"), str(folder/"merges.txt"), model_max_length=77)

def _text_config(tokenizer, width):
    from transformers import CLIPTextConfig
    return CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=77, projection_dim=width,
                          bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)

UNET = dict(sample_size=32, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=8)
UNET_SDXL = UNET | dict(attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6*8+32,
                        transformer_layers_per_block=1, cross_attention_dim=64)
UNET_SD15 = UNET | dict(attention_head_dim=4, cross_attention_dim=32)
VAE = dict(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",)*2, up_block_types=("UpDecoderBlock2D",)*2, latent_channels=4, norm_num_groups=8, sample_size=64)
NOISE = dict(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear")

def adapter_state(unet, dim=1024, tokens=4, image_scale=.02, scale=.5):
    "The tensors of an IP-Adapter file for `unet` (name -> tensor): one Linear to `tokens` tokens, LayerNorm, and keys and values for each cross-attention."
    width = unet.config.cross_attention_dim; cross = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]
    state = {"image_proj.proj.weight": torch.randn(tokens*width, dim)*image_scale, "image_proj.proj.bias": torch.zeros(tokens*width), "image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    for k, name in enumerate(cross):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for w in ("to_k_ip", "to_v_ip"): state[f"ip_adapter.{2*k+1}.{w}.weight"] = torch.randn(hidden, width)*scale
    return state

def _write(pipe, folder, adapter, file, dim):
    from safetensors.torch import save_file
    pipe.save_pretrained(folder)
    path = Path(adapter or folder)/file; path.parent.mkdir(parents=True, exist_ok=True)
    save_file(adapter_state(pipe.unet, dim), path)
    return Path(folder)

def tiny_sdxl(folder, adapter=None, dim=1024, seed=0, file=SDXL_FILE):
    "Writes a tiny SDXL with its IP-Adapter; returns `folder`. For another width than the official 1024 give the adapter another name, for example file=\"ip-adapter.safetensors\"."
    from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    with torch.random.fork_rng():
        torch.manual_seed(seed); tokenizer = tiny_tokenizer(Path(folder)/"tokenizer"); text = _text_config(tokenizer, 32)
        pipe = StableDiffusionXLPipeline(vae=AutoencoderKL(**VAE, force_upcast=True), text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text), tokenizer=tokenizer, tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(**UNET_SDXL), scheduler=EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing"), force_zeros_for_empty_prompt=True, add_watermarker=False)
        return _write(pipe, folder, adapter, file, dim)

def tiny_sd15(folder, adapter=None, dim=1024, seed=0, file=SD15_FILE):
    "Writes a tiny Stable Diffusion 1.5 with its IP-Adapter; returns `folder`."
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel
    with torch.random.fork_rng():
        torch.manual_seed(seed); tokenizer = tiny_tokenizer(Path(folder)/"tokenizer")
        pipe = StableDiffusionPipeline(vae=AutoencoderKL(**VAE), text_encoder=CLIPTextModel(_text_config(tokenizer, 32)), tokenizer=tokenizer, unet=UNet2DConditionModel(**UNET_SD15),
            scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1), safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        return _write(pipe, folder, adapter, file, dim)
