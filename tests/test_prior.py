"The prior: the reference's numbers, fitting, guidance, the sampling process against exact answers, saving, bad input."
import json, subprocess, sys, zlib
from dataclasses import replace
import numpy as np
import pytest
import torch
from torch import nn
from necomimi.data import NecomimiError
from necomimi.prior import DiffusionPriorUNet, Prior, PriorConfig, build_network, fit_prior, keep_condition, moments, noise_process, timestep_code

gen = lambda seed=0: torch.Generator().manual_seed(seed)
cosine = lambda a, b: (a*b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# -- golden ---------------------------------------------------------------------------------------------------------------
def reference_weights(shared, seed):
    "The rule of shared/README.md."
    out = {}
    for key, shape in json.loads((shared/"golden/reference_state_keys.json").read_text())["prior"].items():
        r = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode())).standard_normal(shape)
        out[key] = r / np.sqrt(np.prod(shape[1:])) if r.ndim >= 2 else (1 + .1*r if key.endswith("weight") else .1*r)
    return out

def plain_prior(w, x, t, c=None):
    "The network in float64 NumPy on the reference's tensor names, from the spec."
    lin = lambda v, k: v @ w[k + ".weight"].T + w[k + ".bias"]
    silu = lambda v: v / (1 + np.exp(-v))
    norm = lambda v, k: (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) * w[k + ".weight"] + w[k + ".bias"]
    angle = t[:, None] * 10000.**(-np.arange(256)/256)
    code, skips = np.concatenate([np.cos(angle), np.sin(angle)], 1), []
    def level(v, way, i):
        v = v + lin(silu(lin(code, f"{way}_time_embedding.{i}.linear_1")), f"{way}_time_embedding.{i}.linear_2")
        if c is not None: v = v + lin(c, f"{way}_cond_embedding.{i}")
        return silu(norm(lin(v, f"{way}_layers.{i}.0"), f"{way}_layers.{i}.1"))
    v = silu(norm(lin(x, "input_layer.0"), "input_layer.1"))
    for i in range(4): skips.append(v); v = level(v, "encode", i)
    for i in range(4): v = level(v, "decode", i) + skips[3 - i]
    return lin(v, "output_layer")

@torch.no_grad()
def ours(weights, x, t, c):
    net = DiffusionPriorUNet.from_reference(weights)
    return [net(*map(torch.as_tensor, a)).numpy() for a in ((x, t, c), (x, t))]

def test_matches_reference_outputs(shared):
    g = np.load(shared/"golden/reference_outputs_seed7.npz")
    weights = {k: v.astype(np.float32) for k, v in reference_weights(shared, 7).items()}
    for out, name in zip(ours(weights, g["prior_x"], g["prior_t"], g["prior_c"]), ("prior_cond", "prior_uncond")): assert np.abs(out - g[name]).max() <= 2e-4, name

def test_matches_plain_form_for_another_seed(shared):
    rng, weights = np.random.default_rng(0), reference_weights(shared, 11)
    x, c, t = rng.standard_normal((5, 1024)).astype("f4"), rng.standard_normal((5, 1024)).astype("f4"), np.array([3, 90, 500, 750, 998])
    cond, uncond = ours(weights, x, t, c)
    assert np.abs(cond - plain_prior(weights, x, t, c)).max() <= 2e-4 and np.abs(uncond - plain_prior(weights, x, t)).max() <= 2e-4

def test_parameter_count(): assert sum(p.numel() for p in DiffusionPriorUNet().parameters()) == 9_675_648

def test_timestep_code_is_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding
    t = torch.tensor([0, 1, 421, 999])
    torch.testing.assert_close(timestep_code(t, 512), get_timestep_embedding(t, 512, flip_sin_to_cos=True, downscale_freq_shift=0), atol=1e-4, rtol=1e-4)


# -- network ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def net(): torch.manual_seed(0); return DiffusionPriorUNet(6, 5, (16, 8, 4), 32)

def test_a_dropped_row_is_a_row_without_condition(net):
    x, c, t, keep = torch.randn(4, 6), torch.randn(4, 5), torch.tensor([1, 5, 9, 99]), torch.tensor([True, False, True, False])
    mixed, with_c, without = net.eval()(x, t, c, keep), net(x, t, c), net(x, t)
    torch.testing.assert_close(mixed[keep], with_c[keep]); torch.testing.assert_close(mixed[~keep], without[~keep])
    assert not torch.allclose(with_c, without)

def test_every_weight_learns(net):
    net(torch.randn(8, 6), torch.arange(8), torch.randn(8, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())

def test_widths_follow_the_embedding():
    assert build_network(PriorConfig(), 256, 256).hidden_dims == (512, 256, 128)
    assert build_network(PriorConfig(), 1024, 1024).hidden_dims == build_network(PriorConfig.reference(), 1024, 1024).hidden_dims == (1024, 512, 256, 128, 64)
    assert build_network(PriorConfig(), 16, 16).hidden_dims == (256, 128, 64)
    assert build_network(PriorConfig(hidden_dims=[8, 4]), 16, 3).hidden_dims == (8, 4)


# -- process against exact answers ----------------------------------------------------------------------------------------
class Exact(nn.Module):
    "The perfect network where targets are Gaussian with mean `mu` (plus the condition, where given) and sd `sd`."
    def __init__(self, mu, sd, predict, process): super().__init__(); self.mu, self.sd, self.predict, self.a = mu, sd, predict, process.alphas_cumprod
    def forward(self, x, t, c=None):
        a, mu = self.a[t].double(), self.mu + (c if c is not None else 0)
        x0 = mu + a.sqrt()*self.sd**2 / (a*self.sd**2 + 1 - a) * (x - a.sqrt()*mu)
        eps = (x - a.sqrt()*x0) / (1 - a).sqrt()
        return {"sample": x0, "epsilon": eps, "v_prediction": a.sqrt()*eps - (1 - a).sqrt()*x0}[self.predict].float()

def exact_prior(predict="sample", mu=(2., -1., 0.), sd=(.5, 1., 2.), **kw):
    config = PriorConfig(predict=predict, **kw); mu, sd = torch.tensor(mu), torch.tensor(sd)
    one, zero = torch.ones(len(mu)), torch.zeros(len(mu))
    return Prior(Exact(mu, sd, predict, noise_process(config)), config, dict(target_mean=zero, target_scale=one, cond_mean=zero, cond_scale=one))

@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
@pytest.mark.parametrize("predict", ["sample", "epsilon", "v_prediction"])
def test_samples_follow_the_true_distribution(scheduler, predict):
    v = exact_prior(predict).sample(np.tile([1., 0., -1.], (4000, 1)), 200, 1., gen(), scheduler=scheduler)
    np.testing.assert_allclose(v.mean(0), [3, -1, -1], atol=.12)
    np.testing.assert_allclose(np.cov(v.T), np.diag([.25, 1, 4]), atol=.35)

def test_guidance_moves_along_the_condition():
    prior, cond = exact_prior(sd=(1e-3,)*3), np.tile([1., 2., -3.], (10, 1))
    for s in (0., 1., 2.5): np.testing.assert_allclose(prior.sample(cond, 50, s, gen()).mean(0), np.array([2, -1, 0]) + s*np.array([1, 2, -3]), atol=.02)
    assert np.array_equal(prior.sample(cond, 10, None, gen()), prior.sample(cond, 10, prior.config.guidance_scale, gen()))

def test_clipping_only_where_asked():
    far = dict(mu=(3.,)*3, sd=(.1,)*3); none = np.zeros((50, 3))
    assert exact_prior(**far).sample(none, 50, 1., gen()).mean() == pytest.approx(3, abs=.1)
    assert exact_prior("epsilon", **far, targets="raw", clip_sample=True).sample(none, 50, 1., gen()).max() <= 1.001

def test_all_conditions_are_one_batch_and_order_free():
    prior, sizes = exact_prior(), []
    prior.network.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    prior.sample(np.zeros((200, 3)), 5, 1., gen())
    assert sizes == [200]*5


# -- fitting -----------------------------------------------------------------------------------------------------------
def toy(n, seed, dim=16, clusters=12):
    "Clustered targets with an offset and an own scale; conditions: a crooked, noisy view of them."
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centres, crooked = world.standard_normal((clusters, dim)), np.eye(dim) + .5*world.standard_normal((dim, dim))/np.sqrt(dim)
    z = centres[rng.integers(clusters, size=n)] + .3*rng.standard_normal((n, dim))
    return (5*(z @ crooked + .8*rng.standard_normal((n, dim))) + 3).astype("f4"), (.2*z + 1).astype("f4")

SMALL = PriorConfig(epochs=25, min_steps=0, batch_size=128)

@pytest.fixture(scope="module")
def fitted(): return fit_prior(*toy(2000, 1), SMALL, progress=False)

def test_prior_beats_the_condition_itself(fitted):
    cond, truth = toy(300, 2); train_cond, train = toy(2000, 1)
    before = cosine(cond - train_cond.mean(0), truth - train.mean(0)).mean()
    after = cosine(fitted.sample(cond, generator=gen(), guidance_scale=1.) - train.mean(0), truth - train.mean(0)).mean()
    shuffled = cosine(fitted.sample(cond[::-1], generator=gen(), guidance_scale=1.) - train.mean(0), truth - train.mean(0)).mean()
    assert after > before + .05 and abs(shuffled) < .15
    np.testing.assert_allclose(fitted.sample(cond, generator=gen()).mean(0), truth.mean(0), atol=.1)   # raw units: offset 1, spread 0.2

def test_loss_falls(fitted): assert len(fitted.history) == 25 and fitted.history.loss.iloc[-1] < .7 * fitted.history.loss.iloc[0] and fitted.history.lr.iloc[-1] < 1e-4

@pytest.mark.parametrize("config", [replace(SMALL, epochs=2, predict="epsilon", cond_drop_per="batch"), PriorConfig.reference(epochs=2, batch_size=128, hidden_dims=(32, 16), time_dim=32)])
def test_other_forms_run(config):
    cond, targets = toy(300, 1); targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    prior = fit_prior(cond, targets, config, progress=False)
    if config.targets == "raw": assert torch.equal(prior.stats["target_scale"], torch.ones(16)) and not prior.stats["cond_mean"].any()
    assert prior.sample(cond[:4], 5, generator=gen()).shape == (4, 16)

def test_same_seed_same_prior_and_global_generator_untouched():
    pairs, config = toy(200, 1), replace(SMALL, epochs=2)
    torch.manual_seed(5); before = torch.get_rng_state()
    a = fit_prior(*pairs, config, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6); b, other = fit_prior(*pairs, config, progress=False), fit_prior(*pairs, replace(config, seed=1), progress=False)
    assert a.history.equals(b.history) and not a.history.equals(other.history)
    sample = lambda p, s: p.sample(pairs[0][:9], 10, generator=gen(s))
    assert np.array_equal(sample(a, 3), sample(b, 3)) and not np.array_equal(sample(a, 3), sample(a, 4))

@pytest.mark.parametrize("per", ["sample", "batch"])
def test_condition_dropout_rate(per):
    torch.manual_seed(0); config = PriorConfig(cond_drop_prob=.25, cond_drop_per=per)
    dropped = np.array([1 - keep_condition(50, config).double().mean() for _ in range(4000)])
    assert abs(dropped.mean() - .25) < .03
    assert set(dropped) == {0., 1.} if per == "batch" else abs(dropped.std() - np.sqrt(.25*.75/50)) < .005

def test_training_drops_conditions_at_that_rate(monkeypatch):
    seen = []
    forward = DiffusionPriorUNet.forward
    monkeypatch.setattr(DiffusionPriorUNet, "forward", lambda self, x, t, c=None, keep=None: (seen.append(keep), forward(self, x, t, c, keep))[1])
    fit_prior(*toy(1000, 1), PriorConfig(epochs=4, min_steps=0, cond_drop_prob=.3, hidden_dims=(8, 4)), progress=False)
    kept = torch.cat(seen).double(); assert len(kept) == 4000 and abs(kept.mean() - .7) < .04

def test_few_pairs_are_gone_through_more_often():
    tiny = dict(epochs=2, batch_size=50, hidden_dims=(8, 4))
    steps = lambda **kw: 2 * len(fit_prior(*toy(100, 1), PriorConfig(**tiny, **kw), progress=False).history)
    assert (steps(min_steps=0), steps(min_steps=31), steps(min_steps=3)) == (4, 32, 4)

def test_moments():
    x = torch.tensor([[1., 5., 7.], [3., 5., -7.]])
    mean, scale = moments(x, "standardised"); assert mean.tolist() == [2, 5, 0] and scale.tolist() == [1, 1, 7]
    assert moments(x, "raw")[0].tolist() == [0]*3 and moments(x, "raw")[1].tolist() == [1]*3


# -- keeping it ----------------------------------------------------------------------------------------------------------
def test_save_and_load(fitted, tmp_path):
    fitted.save(tmp_path/"a"); back, cond = Prior.load(tmp_path/"a"), toy(7, 3)[0]
    assert {p.name for p in (tmp_path/"a").iterdir()} == {"prior.safetensors", "prior.json"}
    assert back.config == fitted.config and back.meta == fitted.meta and back.history.equals(fitted.history)
    assert np.array_equal(back.sample(cond, 10, generator=gen()), fitted.sample(cond, 10, generator=gen()))

def test_fit_saves_and_keeps_provenance(tmp_path):
    fit_prior(*toy(60, 1), PriorConfig(epochs=1, min_steps=0, hidden_dims=(8, 4)), tmp_path, progress=False, meta=dict(encoder="nerv", subject=3))
    assert json.loads((tmp_path/"prior.json").read_text())["meta"] == dict(n_pairs=60, encoder="nerv", subject=3) and Prior.load(tmp_path).network.hidden_dims == (8, 4)

def test_interrupted_save_leaves_the_old_one(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path); old = (tmp_path/"prior.safetensors").read_bytes()
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(NecomimiError, match="No space left"): fitted.save(tmp_path)
    assert (tmp_path/"prior.safetensors").read_bytes() == old and not list(tmp_path.glob("*.part"))

def test_load_refuses_what_is_not_a_prior(tmp_path):
    from safetensors.numpy import save_file
    with pytest.raises(NecomimiError, match="expected a prior"): Prior.load(tmp_path)
    save_file({"x": np.ones(3)}, tmp_path/"prior.safetensors")
    with pytest.raises(NecomimiError, match="expected a prior"): Prior.load(tmp_path)
    (tmp_path/"prior.safetensors").write_bytes(b"\x08")
    with pytest.raises(NecomimiError, match="expected a prior"): Prior.load(tmp_path)


# -- bad input ---------------------------------------------------------------------------------------------------------
def with_nan(a, row): a = a.copy(); a[row, 0] = np.nan; return a

@pytest.mark.parametrize("change, words", [
    (lambda c, x: (c[:-1], x), "pair up row by row"), (lambda c, x: (c[:0], x[:0]), "non-empty"), (lambda c, x: (with_nan(c, 17), x), "row 17"),
    (lambda c, x: (c, with_nan(x, 5)), "targets must be finite; row 5"), (lambda c, x: (c[:, 0], x), "shape")], ids=["unequal", "empty", "nan-cond", "nan-target", "1-d"])
def test_fit_refuses(change, words):
    with pytest.raises(NecomimiError, match=words): fit_prior(*change(*toy(60, 1)), SMALL, progress=False)

def test_clipping_refuses_targets_beyond_one():
    with pytest.raises(NecomimiError, match="clip_sample"): fit_prior(*toy(60, 1), PriorConfig.reference(), progress=False)

@pytest.mark.parametrize("bad, words", [(np.zeros((3, 15)), "width 16"), (np.full((3, 16), np.nan), "row 0"), (np.zeros((0, 16)), "non-empty")])
def test_sample_refuses(fitted, bad, words):
    with pytest.raises(NecomimiError, match=words): fitted.sample(bad)

@pytest.mark.parametrize("kw", [dict(targets="unit"), dict(predict="x0"), dict(cond_drop_per="row"), dict(clip_sample=True), dict(epochs=0)])
def test_config_refuses(kw):
    with pytest.raises(NecomimiError): PriorConfig(**kw)

def test_unknown_scheduler(fitted):
    with pytest.raises(NecomimiError, match="ddim"): fitted.sample(np.zeros((1, 16)), scheduler="euler")

def test_not_a_reference_checkpoint():
    with pytest.raises(NecomimiError, match="reference diffusion prior"): DiffusionPriorUNet.from_reference({"a": torch.ones(2)})

def test_import_loads_no_diffusers():
    code = "import sys, necomimi.prior; print(*[m for m in ('diffusers','ipywidgets','plotly','transformers','matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
