"Generation: the shipped generator draws what its embedding says, seeds and batches, controls, bad input."
import runpy, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from necomimi import generation
from necomimi.data import NecomimiError
from necomimi.generation import FAMILIES, GENERATORS, Adapter, GeneratorSpec, conditions, derangement, generate, load_generator, memory_plan, one_stage, picture_grid
from necomimi.mini import mini_pictures, pixels
from necomimi.vision import Embeddings, load_vision
from tiny_diffusion import SD15_FILE, SDXL_FILE, tiny_sd15, tiny_sdxl

@pytest.fixture(scope="module")
def eye(): return load_vision("mini")
@pytest.fixture(scope="module")
def brush(): return load_generator("mini")
@pytest.fixture(scope="module")
def true(eye): return eye.embed_pictures(pixels(mini_pictures("test")), progress=False)
def draw(brush, e, **kw): return generate(brush, e, progress=False, **kw)
def differ(a, b): return int(np.abs(a.astype(int)-b.astype(int)).max())

def test_pictures_of_true_embeddings_are_recognised(eye, brush, true):
    pictures = draw(brush, true, seed=11)
    found = (eye.embed_pictures(pictures, progress=False).normalized() @ true.normalized().T).argmax(1) == np.arange(200)
    assert pictures.shape == (200, 64, 64, 3) and pictures.dtype == np.uint8 and found.mean() >= .8

def test_a_picture_depends_on_its_seed_and_not_on_its_batch(brush, true):
    three = draw(brush, true[:3], seed=5)
    assert differ(draw(brush, true[:3], seed=5), three) == 0
    assert differ(draw(brush, true[:3], seed=5, batch_size=1), three) <= 2
    assert differ(draw(brush, true[1], seed=6)[0], three[1]) <= 2                # picture i starts from seed + i
    assert differ(draw(brush, true[:3], seed=77), three) > 2

def test_scale_zero_ignores_the_embedding(brush, true):
    a, b = draw(brush, true[:2], adapter_scale=0., shared_noise=True)
    assert differ(a, b) <= 1
    a, b = draw(brush, true[:2], shared_noise=True)
    assert differ(a, b) > 20

def test_guidance_and_steps_reach_the_sampler(brush, true):
    plain = draw(brush, true[:2])
    assert differ(draw(brush, true[:2], guidance_scale=3.), plain) > 2 and differ(draw(brush, true[:2], num_inference_steps=2), plain) > 2

def test_callback_sees_every_step_and_can_stop(brush, true):
    steps = []
    def count(pipe, step, t, tensors): steps.append(step); return tensors
    draw(brush, true[:2], num_inference_steps=5, callback=count)
    assert steps == list(range(5))

def test_embeddings_object_and_array_are_the_same(brush, true): assert differ(draw(brush, true[:2]), draw(brush, true.vectors[:2])) == 0

@pytest.mark.parametrize("bad, words", [(np.zeros((2, 1024)), "256-d.*1024"), (np.zeros((0, 256)), "none"), (np.full((2, 256), np.inf), "row 0"), (np.zeros((1, 2, 256)), "shape")])
def test_bad_embeddings(brush, bad, words):
    with pytest.raises(NecomimiError, match=words): draw(brush, bad)

def test_normalised_embeddings_are_refused(brush, true):
    with pytest.raises(NecomimiError, match="raw"): draw(brush, true.normalized())

def test_unknown_generator_and_missing_adapter(tmp_path):
    with pytest.raises(NecomimiError, match="sdxl-turbo"): load_generator("dall-e")
    with pytest.raises(NecomimiError, match="cannot be loaded"): load_generator(str(tmp_path))

def test_the_contract_of_sdxl_turbo():
    s = GENERATORS["sdxl-turbo"]
    assert (s.dim, s.encoder, s.num_inference_steps, s.guidance_scale, s.adapter_file) == (1024, ("ViT-H-14", "laion2b_s32b_b79k"), 4, 0., "sdxl_models/ip-adapter_sdxl_vit-h.safetensors")

def test_one_stage_has_the_length_of_pictures(true):
    e = np.random.default_rng(0).normal(size=(4, 256)).astype("float32")*40
    out = one_stage(e, true)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), true.norms.mean(), rtol=1e-4)
    np.testing.assert_allclose(out/np.linalg.norm(out, axis=1, keepdims=True), e/np.linalg.norm(e, axis=1, keepdims=True), atol=1e-5)
    assert np.array_equal(one_stage(e, true, rescale=False), e)

@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_shuffled_control_keeps_nobody_in_place(n):
    for seed in range(20): d = derangement(n, seed); assert sorted(d) == list(range(n)) and (d != np.arange(n)).all()

def test_conditions_are_what_they_are_called(true):
    class Echo:
        def sample(self, cond, **kw): self.seen = kw; return cond*2
    prior, e, train = Echo(), true.vectors[:6]+1, true.vectors[50:60]
    c = conditions(e, true[np.arange(6)], prior, train, seed=3)
    assert list(c) == ["true embedding", "one-stage", "two-stage", "shuffled EEG", "mean embedding", "nearest training picture"]
    assert np.array_equal(c["two-stage"], e*2) and np.array_equal(c["shuffled EEG"], (e*2)[derangement(6, 3)]) and np.array_equal(c["true embedding"], true.vectors[:6])
    np.testing.assert_allclose(c["mean embedding"], np.repeat(train.mean(0, keepdims=True), 6, 0), rtol=1e-6)
    assert all((row == train).all(1).any() for row in c["nearest training picture"]) and isinstance(prior.seen["generator"], torch.Generator)

def test_picture_grid_labels_every_row():
    import matplotlib; matplotlib.use("agg")
    fig = picture_grid({"a": np.zeros((3, 8, 8, 3), np.uint8), "b": np.zeros((2, 8, 8, 3), np.uint8)}, columns=list("xyz"))
    assert len(fig.axes) == 6 and fig.axes[3].get_ylabel() == "b" and fig.axes[1].get_title() == "y"

# -- the hub's models, tiny and random, in the hub's folder layout --------------------------------------------------------
@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "name -> (base folder, adapter folder), apart as on the hub."
    d = tmp_path_factory.mktemp("hub")
    return {name: (write(d/name, adapter=d/"adapter"), d/"adapter") for name, write in (("sdxl-turbo", tiny_sdxl), ("sd15", tiny_sd15))}

def load(hub, name, **kw): base, adapter = hub[name]; return load_generator(name, **(dict(base=base, adapter=adapter) | kw))

@pytest.fixture(scope="module", params=["sdxl-turbo", "sd15"])
def big(request, hub): return load(hub, request.param)
@pytest.fixture(scope="module")
def sdxl(hub): return load(hub, "sdxl-turbo")

E = np.random.default_rng(0).normal(size=(3, 1024)).astype("float32")
FAST = dict(guidance_scale=0., num_inference_steps=2)

def test_loading_lets_the_text_encoders_go_and_says_what_it_made(big):
    parts = big.pipe.components
    assert parts["text_encoder"] is None and parts.get("text_encoder_2") is None and parts["image_encoder"] is None and big.spec.size == 64 and big.spec.dim == 1024
    assert "1024-d" in repr(big) and "ViT-H-14" in repr(big) and "no GPU" in repr(big) and "ViT-H-14" in big._repr_html_()

@pytest.mark.parametrize("guidance", [0., 5.])
def test_a_picture_knows_its_own_embedding_and_seed(big, guidance):
    kw = dict(guidance_scale=guidance, num_inference_steps=2); batch = draw(big, E, **kw)
    assert batch.shape == (3, 64, 64, 3) and batch.dtype == np.uint8 and differ(draw(big, E, **kw), batch) == 0
    assert all(differ(draw(big, E[i], seed=i, **kw)[0], batch[i]) <= 2 for i in range(3)) and differ(draw(big, E, batch_size=2, **kw), batch) <= 2
    swapped = draw(big, E[[1, 0, 2]], **kw)
    assert differ(swapped[0], batch[0]) > 2 and differ(swapped[2], batch[2]) <= 2 and differ(draw(big, E, seed=9, **kw), batch) > 2
    on, off = ([draw(big, x, adapter_scale=scale, **kw) for x in (E, -E)] for scale in (1., 0.))
    assert differ(*on) > 2 and differ(*off) <= 1

@pytest.mark.parametrize("guidance", [0., 5.])
def test_one_picture_is_what_diffusers_own_call_draws(hub, big, guidance):
    "The empty prompt encoded once, our decoding and the row-by-row embeddings change nothing."
    import diffusers
    Pipeline = {"sdxl-turbo": diffusers.StableDiffusionXLPipeline, "sd15": diffusers.StableDiffusionPipeline}[big.spec.name]; base, adapter = hub[big.spec.name]
    plain = Pipeline.from_pretrained(base, use_safetensors=True); folder, file = big.spec.adapter_file.split("/")
    plain.load_ip_adapter(str(adapter), subfolder=folder, weight_name=file, image_encoder_folder=None); plain.set_progress_bar_config(disable=True)
    e = torch.from_numpy(E[:1])[None]; e = torch.cat([torch.zeros_like(e), e]) if guidance > 1 else e
    theirs = plain(prompt="", ip_adapter_image_embeds=[e], num_inference_steps=3, guidance_scale=guidance, generator=torch.Generator().manual_seed(4), output_type="pil").images[0]
    assert differ(draw(big, E[0], seed=4, num_inference_steps=3, guidance_scale=guidance)[0], np.asarray(theirs)) <= 1

def test_one_stage_and_two_stages(sdxl):
    from necomimi.prior import PriorConfig, fit_prior
    rng = np.random.default_rng(1); pictures = rng.normal(size=(40, 1024)).astype("float32"); eeg = pictures+rng.normal(size=pictures.shape).astype("float32")
    prior = fit_prior(eeg, pictures, PriorConfig(epochs=1, min_steps=2, hidden_dims=(64, 32), time_dim=32), progress=False)
    sets = conditions(eeg[:2], pictures[:2], prior, pictures, num_inference_steps=2)
    drawn = {k: draw(sdxl, v) for k, v in sets.items()}
    assert all(p.shape == (2, 64, 64, 3) for p in drawn.values()) and differ(drawn["one-stage"], drawn["two-stage"]) > 2 and differ(drawn["two-stage"][0], drawn["shuffled EEG"][0]) > 2

def test_a_folder_or_a_file_is_enough(hub, sdxl, tmp_path):
    both = tmp_path/"both"; shutil.copytree(hub["sdxl-turbo"][0], both); shutil.copytree(hub["sdxl-turbo"][1], both, dirs_exist_ok=True)
    same, want = (lambda g: differ(draw(g, E[:1]), want) == 0), draw(sdxl, E[:1])
    g = load_generator(str(both)); assert same(g) and g.spec.name == "both" and g.spec.encoder == ("ViT-H-14", "laion2b_s32b_b79k")
    assert same(load_generator("sdxl-turbo", base=both)) and same(load(hub, "sdxl-turbo", adapter=both/SDXL_FILE))
    assert load_generator("sdxl", base=both).spec.guidance_scale == 5. and load_generator(both, adapter_file=SDXL_FILE).spec.dim == 1024

def test_an_adapter_the_table_does_not_know_says_its_own_width(tmp_path):
    g = load_generator(tiny_sdxl(tmp_path, dim=48, file="ip-adapter.safetensors"))
    assert (g.spec.dim, g.spec.encoder) == (48, ()) and draw(g, E[:, :48]).shape == (3, 64, 64, 3)
    with pytest.raises(NecomimiError, match="48-d.*not known.*1024"): draw(g, E)
    shutil.copy(tmp_path/"ip-adapter.safetensors", tmp_path/"ip-adapter_sdxl_vit-h.safetensors")
    with pytest.raises(NecomimiError, match="1024-d.*48-d.*another adapter"): load_generator("sdxl-turbo", base=tmp_path, adapter=tmp_path)

def test_a_pipeline_of_your_own(hub, sdxl):
    from diffusers import StableDiffusionXLPipeline
    own = StableDiffusionXLPipeline.from_pretrained(hub["sdxl-turbo"][0])
    assert differ(draw(load(hub, "sdxl-turbo", base=own), E[:1]), draw(sdxl, E[:1])) == 0 and own.text_encoder is not None

def test_hub_names_from_the_cache_offline(hub, tmp_path, monkeypatch):
    "What a finished download leaves behind, and no network (tests/conftest.py sets HF_HUB_OFFLINE)."
    def cached(repo, folder):
        d = tmp_path/f"models--{repo.replace('/', '--')}"; (d/"refs").mkdir(parents=True); (d/"refs"/"main").write_text("0"*40)
        shutil.copytree(folder, d/"snapshots"/("0"*40))
    for name in hub: cached(GENERATORS[name].base, hub[name][0])
    cached("h94/IP-Adapter", hub["sd15"][1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in hub:
        g = load_generator(name); assert g.spec.size == 512 and str(g.spec.base) == GENERATORS[name].base
        assert differ(draw(replace(g, spec=replace(g.spec, size=64)), E[:1], **FAST), draw(load(hub, name), E[:1], **FAST)) == 0
    with pytest.raises(NecomimiError, match="HF_HUB_OFFLINE is set.*hf download stabilityai/stable-diffusion-xl-base-1.0"): load_generator("sdxl")

# -- bad files -------------------------------------------------------------------------------------------------------------
def test_missing_adapter(hub, tmp_path):
    with pytest.raises(NecomimiError, match="no adapter sdxl_models/ip-adapter_sdxl_vit-h.*hf download h94/IP-Adapter"): load(hub, "sdxl-turbo", adapter=tmp_path)
    with pytest.raises(NecomimiError, match="neither a file nor a folder"): load(hub, "sdxl-turbo", adapter=tmp_path/"nowhere")
    with pytest.raises(NecomimiError, match="not in the hub's cache.*HF_HUB_OFFLINE"): load_generator("sdxl-turbo", base=hub["sdxl-turbo"][0])
    with pytest.raises(NecomimiError, match="found models/ip-adapter_sd15.safetensors, sdxl_models"): load(hub, "sdxl-turbo", adapter_file="ip-adapter_sdxl.safetensors")

@pytest.mark.parametrize("harm, words", [(lambda b: b[:-100], "damaged"), (lambda b: b"<html>404</html>", "damaged"), (lambda b: b"", "damaged"),
    (lambda b: safetensors_bytes({"x": torch.zeros(1)}), "not an IP-Adapter.*found x"), (lambda b: safetensors_bytes({"image_proj.latents": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(1)}), "hidden tokens")])
def test_harmed_adapter(hub, tmp_path, harm, words):
    (tmp_path/"sdxl_models").mkdir(); (tmp_path/SDXL_FILE).write_bytes(harm((hub["sdxl-turbo"][1]/SDXL_FILE).read_bytes()))
    with pytest.raises(NecomimiError, match=words): load(hub, "sdxl-turbo", adapter=tmp_path)

def safetensors_bytes(tensors):
    from safetensors.torch import save
    return save(tensors)

@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_harmed_base_names_the_file(hub, tmp_path, part):
    base = tmp_path/"base"; shutil.copytree(hub["sdxl-turbo"][0], base); (base/part).write_bytes((base/part).read_bytes()[:5000])
    with pytest.raises(NecomimiError, match=f"damaged files {part}"): load(hub, "sdxl-turbo", base=base)
    (base/part).unlink()
    with pytest.raises(NecomimiError, match="cannot be loaded from"): load(hub, "sdxl-turbo", base=base)

def test_pairs_that_do_not_fit(hub, tmp_path):
    with pytest.raises(NecomimiError, match="family 'sd'.*family 'sdxl'"): load(hub, "sdxl-turbo", adapter_file=SD15_FILE)
    with pytest.raises(NecomimiError, match="takes tokens"): load(hub, "sdxl-turbo", adapter_file="sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors")
    with pytest.raises(NecomimiError, match="holds one of 'sd': use 'sd15'"): load(hub, "sdxl-turbo", base=hub["sd15"][0])
    shutil.copy(hub["sd15"][1]/SD15_FILE, tmp_path/"mine.safetensors")
    with pytest.raises(NecomimiError, match="do not fit: the adapter's tokens are 32 wide, the network's 64 wide"): load(hub, "sdxl-turbo", adapter=tmp_path/"mine.safetensors")
    (tmp_path/"mine.bin").write_bytes(b"x")
    with pytest.raises(NecomimiError, match="pickle"): load(hub, "sdxl-turbo", adapter=tmp_path/"mine.bin")

# -- the contract at the door -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim, words", [(768, "1024-d.*768-d, the width of ViT-L-14; no adapter.*load_vision\\('ViT-H-14', 'laion2b_s32b_b79k'\\)"),
    (1280, "1024-d.*1280-d, the width of ViT-bigG-14.*hidden layers.*load_generator\\('sdxl-turbo', adapter_file='sdxl_models/ip-adapter_sdxl.safetensors'\\)"), (256, "load_generator\\('mini'\\)"), (7, "no adapter")])
def test_a_wrong_width_is_told_what_it_fits(sdxl, dim, words):
    with pytest.raises(NecomimiError, match=words): draw(sdxl, np.ones((2, dim)))

@pytest.mark.parametrize("meta, words", [(dict(model="ViT-B-16", pretrained="openai"), "found embeddings of ViT-B-16 openai.*load_vision"), (dict(model="ViT-H-14", pretrained="dfn5b"), "found embeddings of ViT-H-14 dfn5b"),
    (dict(model="ViT-H-14", pretrained="laion2b_s32b_b79k", layer="block-23"), "block-23"), (dict(model="ViT-H-14", pretrained="laion2b_s32b_b79k", normalized="true"), "L2-normalised")])
def test_embeddings_of_another_origin(sdxl, meta, words):
    with pytest.raises(NecomimiError, match=words): draw(sdxl, Embeddings(E, meta))

@pytest.mark.parametrize("meta", [{}, dict(model="ViT-H-14", pretrained="laion2b_s32b_b79k", layer="final", normalized="false"), dict(model="ViT-H-14", pretrained="/models/open_clip_model.safetensors"), dict(model="/models/clip", pretrained="shipped")])
def test_embeddings_of_the_right_origin(sdxl, meta): assert differ(draw(sdxl, Embeddings(E[:1], meta)), draw(sdxl, E[:1])) == 0

# -- precision and memory -------------------------------------------------------------------------------------------------------
def test_half_precision_keeps_the_vae_of_sdxl_in_fp32(hub, sdxl, tmp_path):
    half = load(hub, "sdxl-turbo", dtype=torch.float16)
    assert half.pipe.unet.dtype == torch.float16 and half.pipe.vae.dtype == torch.float32 and differ(draw(half, E[:1], **FAST), draw(sdxl, E[:1], **FAST)) <= 12
    fixed = tmp_path/"vae"; shutil.copytree(hub["sdxl-turbo"][0]/"vae", fixed); c = fixed/"config.json"; c.write_text(c.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    assert load(hub, "sdxl-turbo", dtype=torch.float16, vae=fixed).pipe.vae.dtype == torch.float16 and load(hub, "sd15", dtype=torch.float16).pipe.vae.dtype == torch.float16
    with pytest.raises(NecomimiError, match="VAE.*cannot be loaded"): load(hub, "sdxl-turbo", vae=tmp_path/"none")

def test_fp16_files_are_used_where_there_are_any(hub, tmp_path):
    base = tmp_path/"base"; shutil.copytree(hub["sdxl-turbo"][0], base)
    for f in base.rglob("*.safetensors"): f.rename(f.with_name(f.stem+".fp16.safetensors"))
    assert load(hub, "sdxl-turbo", base=base, dtype=torch.float16).pipe.unet.dtype == torch.float16 and load(hub, "sdxl-turbo", base=base).pipe.unet.dtype == torch.float32

def test_overflow_is_said_and_not_drawn_black(hub):
    g = load(hub, "sdxl-turbo"); torch.nn.init.constant_(g.pipe.vae.decoder.conv_out.bias, torch.inf)
    with pytest.raises(NecomimiError, match="NaN or infinite pixels.*sdxl-vae-fp16-fix"): draw(g, E[:1])

def test_out_of_memory_halves_the_batch_and_goes_on(hub, sdxl):
    g, seen = load(hub, "sdxl-turbo"), []
    def full(module, args, kwargs):
        seen.append(len(args[0]))
        if len(args[0]) > 2: raise torch.OutOfMemoryError("CUDA out of memory (made up)")
    handle = g.pipe.unet.register_forward_pre_hook(full, with_kwargs=True); e = np.concatenate([E, -E])
    with pytest.warns(UserWarning, match="out of GPU memory with a batch of") as said: halved = draw(g, e, num_inference_steps=1)
    assert [str(w.message).split("memory ")[1] for w in said if w.category is UserWarning] == ["with a batch of 6; going on with 3", "with a batch of 3; going on with 1"]
    assert seen == [6, 3, 1, 1, 1, 1, 1, 1] and differ(halved, draw(sdxl, e, num_inference_steps=1)) <= 2
    handle.remove(); g.pipe.unet.register_forward_pre_hook(lambda m, a: (_ for _ in ()).throw(torch.OutOfMemoryError("made up")))
    with pytest.raises(NecomimiError, match="does not fit"): draw(g, E[:1])

@pytest.mark.parametrize("free, mode", [(None, "none"), (80e9, "none"), (20e9, "slicing"), (7e9, "offload"), (1e9, "offload")])
def test_memory_plan(free, mode):
    plan = memory_plan("auto", 6e9, 1e9, free); assert plan.mode == mode and (free is None or f"{free/1e9:.1f} GB of GPU memory free" in plan.why)
    if free: assert all((p := memory_plan(m, 6e9, 1e9, free)).mode == m and "as asked" in p.why for m in ("none", "slicing", "offload"))

def test_memory_modes_draw_the_same_pictures(hub, sdxl):
    want = draw(sdxl, E, **FAST); sliced = load(hub, "sdxl-turbo", memory="slicing")
    assert sliced.pipe.vae.use_slicing and "as asked" in repr(sliced) and differ(draw(sliced, E, **FAST), want) <= 1
    taken = load(hub, "sdxl-turbo"); generation._place(taken.pipe, taken.pipe.vae, "offload", torch.device("cpu"))     # the hooks of offloading, with the CPU as the "GPU"
    assert len(taken.pipe._all_hooks) == 2 and all(differ(draw(taken, E, **FAST), want) <= 1 for _ in range(2))
    with pytest.raises(NecomimiError, match="needs a GPU"): load(hub, "sdxl-turbo", memory="offload")
    with pytest.raises(NecomimiError, match="memory must be"): load(hub, "sdxl-turbo", memory="little")

def test_compiled_networks_draw_the_same(hub, sdxl):
    g, calls = load(hub, "sdxl-turbo", compile=dict(backend=lambda graph, inputs: (calls.append(1), graph.forward)[1])), []
    assert differ(draw(g, E[:2], **FAST), draw(sdxl, E[:2], **FAST)) <= 1 and len(calls) >= 2

# -- another family is one class and one entry -----------------------------------------------------------------------------------
def test_kandinsky_by_one_entry(tmp_path, monkeypatch):
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel
    class Kandinsky:
        pipeline, options, adapter, vae_overflows = "KandinskyV22Pipeline", {}, False, False
        def prompt(self, pipe, device): return {}
        def arguments(self, generator, c, scale, guided): return dict(image_embeds=c*scale, negative_image_embeds=torch.zeros_like(c))
        def decoder(self, pipe): return pipe.movq
        def decode(self, pipe, latents): return pipe.movq.decode(latents, force_not_quantize=True).sample
        def size(self, pipe): return 64
    torch.manual_seed(0)
    unet = UNet2DConditionModel(in_channels=4, out_channels=8, addition_embed_type="image", down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=(32, 64), layers_per_block=1, encoder_hid_dim=1280, encoder_hid_dim_type="image_proj", cross_attention_dim=32, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift", class_embed_type=None)
    movq = VQModel(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), num_vq_embeddings=12, norm_type="spatial", vq_embed_dim=4, latent_channels=4, layers_per_block=1, norm_num_groups=8)
    KandinskyV22Pipeline(unet=unet, scheduler=DDPMScheduler(beta_start=.00085, beta_end=.012), movq=movq).save_pretrained(tmp_path)
    monkeypatch.setitem(FAMILIES, "kandinsky", Kandinsky())
    monkeypatch.setitem(GENERATORS, "kandinsky-2.2", GeneratorSpec("kandinsky-2.2", "kandinsky-community/kandinsky-2-2-decoder", None, "", 64, num_inference_steps=2, guidance_scale=4., takes=Adapter("kandinsky", ("ViT-bigG-14", "laion2b_s39b_b160k"), 1280)))
    g = load_generator("kandinsky-2.2", base=tmp_path); e = np.random.default_rng(0).normal(size=(3, 1280)).astype("float32"); batch = draw(g, e)
    assert batch.shape == (3, 64, 64, 3) and differ(draw(g, e[1], seed=1)[0], batch[1]) <= 2 and differ(draw(g, e[[1, 1, 2]])[0], batch[0]) > 2 and differ(draw(g, e, adapter_scale=0.), draw(g, -e, adapter_scale=0.)) == 0
    with pytest.raises(NecomimiError, match="1280-d.*ViT-bigG-14.*1024"): draw(g, E)

# -- the benchmark scripts, tiny ---------------------------------------------------------------------------------------------------
SCRIPTS = Path(__file__).parents[1]/"scripts"

def test_bench_generation_tiny(capsys):
    bench = runpy.run_path(str(SCRIPTS/"bench_generation.py"))
    sizes = bench["full_size_parameters"]()
    assert sizes["unet"] == 2_567_463_684 and sizes["vae"] == 83_653_863                       # as on stabilityai/sdxl-turbo
    table = bench["main"](["--tiny", "--batches", "2", "--repeats", "1", "--steps", "1"]); out = capsys.readouterr().out
    assert "CPU" in out and "tiny" in out and set(table.what) == {"plain diffusers", "necomimi", "necomimi compiled"} and (table["pictures/s"] > 0).all() and set(table.batch) == {2}

def test_bench_training_tiny(capsys):
    bench = runpy.run_path(str(SCRIPTS/"bench_training.py"))
    table = bench["main"](["--tiny", "--repeats", "1", "--steps", "1", "--batch", "4"]); out = capsys.readouterr().out
    assert "CPU" in out and {"plain torch fp32", "necomimi fp32", "necomimi bf16", "necomimi fp32 compiled", "necomimi bf16 compiled", "fit fp32", "fit bf16"} <= set(table.what) and (table["samples/s"] > 0).all()

def test_the_plain_nerv_of_the_benchmark_is_nerv():
    PlainNERV = runpy.run_path(str(SCRIPTS/"bench_training.py"))["PlainNERV"]
    from necomimi.nerv import NERV
    torch.manual_seed(0); plain = PlainNERV().eval(); ours = NERV.from_reference(plain.state_dict()); x = torch.randn(3, 63, 250)
    with torch.inference_mode(): torch.testing.assert_close(ours(x), plain(x), atol=2e-4, rtol=2e-4)
