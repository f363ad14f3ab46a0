"""Pictures a second and peak GPU memory of `generate()` beside the plain diffusers call, on the full-size SDXL-Turbo architecture with random weights.

    python scripts/bench_generation.py                     GPU, fp16, 512 px, 4 steps, batch 1 4 16, with and without torch.compile (about 14 GB of GPU memory to start)
    python scripts/bench_generation.py --tiny              the same on a tiny network, on the CPU too: shows that the script runs, says nothing about a GPU

Nothing is downloaded: the networks are made from their configuration, so speed and memory are those of the real model and the pictures are noise. The
plain call is `StableDiffusionXLPipeline(...)` with the adapter loaded and the empty prompt's embeddings given: one embedding, n pictures, which is what diffusers can do (`generate` draws n
*different* embeddings with the same work). It runs first and alone. Each figure is the median of `--repeats` timed calls after two warm-up calls of the same
batch (compilation happens there, and its seconds are shown). Peak memory is torch.cuda.max_memory_allocated over the timed calls, weights included; a batch
that the plain call cannot hold is NaN.
"""
import argparse, gc, statistics, sys, time, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, torch
sys.path.insert(0, str(Path(__file__).parents[1]/"tests"))
from tiny_diffusion import UNET_SDXL, VAE, adapter_state

FULL_UNET = dict(sample_size=64, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280), layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048,
                 use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
FULL_VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, down_block_types=("DownEncoderBlock2D",)*4, up_block_types=("UpDecoderBlock2D",)*4, scaling_factor=.13025, sample_size=1024)

def networks(tiny, device):
    from diffusers import AutoencoderKL, UNet2DConditionModel
    with torch.device(device): return UNet2DConditionModel(**(UNET_SDXL if tiny else FULL_UNET)).eval(), AutoencoderKL(**(VAE if tiny else FULL_VAE), force_upcast=True).eval()

def full_size_parameters():
    "Parameter counts of the full-size networks; no memory is taken for them."
    return {k: sum(p.numel() for p in m.parameters()) for k, m in zip(("unet", "vae"), networks(False, "meta"))}

def pipeline(tiny, device, dtype):
    "A plain SDXL pipeline without text encoders, in `dtype`, and its adapter's tensors by name."
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline
    torch.manual_seed(0); unet, vae = (m.to(dtype) for m in networks(tiny, device))
    turbo = EulerAncestralDiscreteScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1)
    pipe = StableDiffusionXLPipeline(vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet, scheduler=turbo, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {k: v.to(dtype) for k, v in adapter_state(unet, scale=.02).items()}

def prompt_of(pipe, device, dtype):
    "Numbers in the shape of the encoded empty prompt: 77 tokens and the pooled vector."
    c = pipe.unet.config; g = torch.Generator().manual_seed(1)
    return dict(prompt_embeds=torch.randn(1, 77, c.cross_attention_dim, generator=g).to(device, dtype), pooled_prompt_embeds=torch.randn(1, c.projection_class_embeddings_input_dim-6*c.addition_time_embed_dim, generator=g).to(device, dtype))

def measure(draw, n, repeats, device):
    "dict of pictures/s, seconds, warm-up seconds and peak GB for `draw(n)`, which must end with its pictures in main memory."
    cuda = device.type == "cuda"; wait = (lambda: torch.cuda.synchronize(device)) if cuda else (lambda: None)
    def timed(): wait(); t0 = time.perf_counter(); pictures = draw(n); wait(); assert len(pictures) == n; return time.perf_counter()-t0
    gc.collect(); torch.cuda.empty_cache()                                     # nothing happens without a GPU
    try: warm = timed()+timed()
    except torch.OutOfMemoryError: return dict(batch=n, **{"pictures/s": float("nan"), "s a batch": float("nan"), "warm-up s": float("nan"), "peak GB": float("nan")})
    if cuda: torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(timed() for _ in range(repeats))
    return dict(batch=n, **{"pictures/s": n/seconds, "s a batch": seconds, "warm-up s": warm, "peak GB": torch.cuda.max_memory_allocated(device)/1e9 if cuda else float("nan")})

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tiny", action="store_true", help="a tiny network, 64 px; fp32 and an uncompiling backend on a CPU")
    p.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16]); p.add_argument("--repeats", type=int, default=5); p.add_argument("--steps", type=int, default=4)
    p.add_argument("--compile-mode", default="default", help="torch.compile mode: default, max-autotune-no-cudagraphs, ..."); p.add_argument("--no-compile", action="store_true")
    p.add_argument("--vae", choices=("fp32", "fp16"), default="fp32", help="fp16: as with the fixed VAE (force_upcast false)"); p.add_argument("--json", help="also write the table here")
    a = p.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not a.tiny: p.error("no GPU here: the full-size network takes one (use --tiny to see that the script runs)")
    from necomimi.generation import generate, load_generator
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    pipe, adapter = pipeline(a.tiny, device, dtype); size = pipe.unet.config.sample_size*pipe.vae_scale_factor
    if a.vae == "fp16": pipe.vae.register_to_config(force_upcast=False)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{'tiny' if a.tiny else 'full-size'} SDXL-Turbo, random weights: UNet {sum(x.numel() for x in pipe.unet.parameters()):,}, VAE {sum(x.numel() for x in pipe.vae.parameters()):,} parameters; {size} x {size} px, {a.steps} steps, "
          f"{str(dtype)[6:]}, VAE {a.vae if dtype == torch.float16 else 'fp32'}; {where}; torch {torch.__version__}")
    e, prompt, rows = np.random.default_rng(0).normal(size=(max(a.batches), 1024)).astype("float32"), prompt_of(pipe, device, dtype), []

    # what diffusers does by itself, first and alone
    from necomimi.generation import read_adapter
    pipe.load_ip_adapter(read_adapter(adapter), subfolder="", weight_name="", image_encoder_folder=None); pipe.set_ip_adapter_scale(1.)
    def plain(n):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)                    # diffusers' own upcast_vae
            return pipe(**prompt, num_images_per_prompt=n, ip_adapter_image_embeds=[torch.from_numpy(e[:1])[None].to(device, dtype)], num_inference_steps=a.steps, guidance_scale=0.,
                        generator=[torch.Generator().manual_seed(i) for i in range(n)], output_type="np").images
    rows += [dict(what="plain diffusers") | measure(plain, n, a.repeats, device) for n in a.batches]

    for compiled in (False,) if a.no_compile else (False, True):
        how = dict(backend="eager") if device.type == "cpu" else dict(mode=a.compile_mode, dynamic=False)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4*len(a.batches))
        g = load_generator("sdxl-turbo", device, dtype, base=pipe, adapter=adapter, compile=how if compiled else False); g = replace(g, prompt=prompt)
        print(f"memory plan: {g.memory.why}")
        ours = lambda n: generate(g, e[:n], batch_size=n, num_inference_steps=a.steps, progress=False)
        rows += [dict(what="necomimi compiled" if compiled else "necomimi") | measure(ours, n, a.repeats, device) for n in a.batches]
    table = pd.DataFrame(rows); table["x plain"] = table["pictures/s"]/table.batch.map(table[table.what == "plain diffusers"].set_index("batch")["pictures/s"])
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    if device.type == "cpu": print("These are CPU figures of a tiny network: they show that the script runs and that batches are drawn, nothing more. compiled = traced, backend \"eager\".")
    if a.json: table.to_json(a.json, orient="records", indent=1)
    return table

if __name__ == "__main__": main()
