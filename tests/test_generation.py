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
