"Generation: the shipped generator draws what its embedding says, seeds and batches, controls, bad input."
import numpy as np
import pytest
import torch
from necomimi.data import NecomimiError
from necomimi.generation import GENERATORS, conditions, derangement, generate, load_generator, one_stage, picture_grid
from necomimi.mini import mini_pictures, pixels
from necomimi.vision import load_vision

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

# -- the same call drives a full SDXL: a random, tiny one in the hub's folder layout ---------------------------------------
@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    import json
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    d = tmp_path_factory.mktemp("sdxl"); torch.manual_seed(0)
    letters = [chr(c) for c in range(33, 127)]; vocab = [*letters, *(c+"</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (d/"vocab.json").write_text(json.dumps({v: i for i, v in enumerate(vocab)})); (d/"merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(d/"vocab.json"), str(d/"merges.txt"), model_max_length=77)
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=77, projection_dim=32,
                          bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    unet = UNet2DConditionModel(sample_size=32, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6*8+32, transformer_layers_per_block=1, cross_attention_dim=64, norm_num_groups=8)
    vae = AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",)*2, up_block_types=("UpDecoderBlock2D",)*2, latent_channels=4, norm_num_groups=8, sample_size=64)
    StableDiffusionXLPipeline(vae=vae, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text), tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear"), add_watermarker=False).save_pretrained(d)
    cross = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]; width = unet.config.cross_attention_dim
    adapter = {"image_proj.proj.weight": torch.randn(4*width, 1024)*.02, "image_proj.proj.bias": torch.zeros(4*width), "image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    for k, n in enumerate(cross):
        h = unet.get_submodule(n.removesuffix(".processor")).to_k.out_features
        for w in ("to_k_ip", "to_v_ip"): adapter[f"ip_adapter.{2*k+1}.{w}.weight"] = torch.randn(h, width)*.5
    save_file(adapter, d/"ip-adapter.safetensors")
    return load_generator(str(d))

@pytest.mark.parametrize("guidance", [0., 5.])
def test_a_full_sdxl_takes_one_embedding_a_picture(sdxl, guidance):
    e = np.random.default_rng(0).normal(size=(3, 1024)).astype("float32"); kw = dict(guidance_scale=guidance, num_inference_steps=2)
    batch = draw(sdxl, e, **kw)
    assert batch.shape == (3, 64, 64, 3) and sdxl.spec.size == 64
    assert all(differ(draw(sdxl, e[i], seed=i, **kw)[0], batch[i]) <= 2 for i in range(3))     # a picture knows only its own embedding
    swapped = draw(sdxl, e[[1, 0, 2]], **kw)
    assert differ(swapped[0], batch[0]) > 2 and differ(swapped[2], batch[2]) <= 2
    off = [draw(sdxl, x, adapter_scale=0., **kw) for x in (e, -e)]; assert differ(*off) <= 1
    with pytest.raises(NecomimiError, match="1024-d.*256"): draw(sdxl, e[:, :256])
