"NERV: the reference's numbers, a plain float64 form of the same network, shapes, dead weights, bad input, saving, import cost."
import json, math, subprocess, sys, zlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from necomimi.data import NecomimiError
from necomimi.nerv import NERV, FeedForward, PooledConv, keep_mask, padded_linear, position_code, reference_names, standardise_sample

EEG = np.random.default_rng(0).standard_normal((4, 63, 250)).astype(np.float32)


# -- reference weights from a seed (the rule of shared/README.md) -------------------------------------------------------
def reference_weights(shapes, seed):
    return {k: reference_tensor(k, tuple(s), seed) for k, s in shapes.items()}

def reference_tensor(key, shape, seed):
    if key.endswith(".pe"): return plain_code(*shape)
    if key.endswith("num_batches_tracked"): return np.float64(1)
    if key == "logit_scale": return np.float64(math.log(1 / .07))
    r = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode())).standard_normal(shape)
    if key.endswith("running_var"): return 1 + .2*np.abs(r)
    if r.ndim >= 2: return r / np.sqrt(np.prod(shape[1:]))
    return 1 + .1*r if key.endswith("weight") else .1*r

def plain_code(n, d):
    "Position code, entry by entry."
    return np.array([[math.sin(t / 10000**(j/d)) if j % 2 == 0 else math.cos(t / 10000**((j - 1)/d)) for j in range(d)] for t in range(n)])


# -- NERV in plain float64, from the spec, sharing nothing with necomimi.nerv --------------------------------------------
def plain_nerv(w, eeg, heads=(1, 5, 8), pool=(51, 5)):
    "The network on the reference's tensor names: convolution and pooling as two steps, attention spelled out. Returns its stops."
    w = {k: torch.as_tensor(np.asarray(v), dtype=torch.float64) for k, v in w.items()}
    lin = lambda x, k: x @ w[k + ".weight"].T + w[k + ".bias"]
    def norm(x, k, eps=1e-5):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + eps)
        return x * w[k + ".weight"] + w[k + ".bias"]
    def batchnorm(x, k):
        s = lambda n: w[f"{k}.{n}"].view(1, -1, 1, 1)
        return (x - s("running_mean")) / torch.sqrt(s("running_var") + 1e-5) * s("weight") + s("bias")
    def attend(x, k, h):
        q, k_, v = (x @ w[k + ".in_proj_weight"].T + w[k + ".in_proj_bias"]).chunk(3, -1)
        d, out = q.shape[-1] // h, []
        for i in range(h):
            a = slice(i*d, (i + 1)*d)
            out.append(torch.softmax(q[..., a] @ k_[..., a].transpose(1, 2) / math.sqrt(d), -1) @ v[..., a])
        return lin(torch.cat(out, -1), k + ".out_proj")
    x = torch.as_tensor(eeg, dtype=torch.float64).transpose(1, 2)
    L = "attention_model.transformer_encoder.layers.0."
    x = x + torch.as_tensor(plain_code(x.shape[1], x.shape[2]))
    x = norm(x + attend(x, L + "self_attn", heads[0]), L + "norm1")
    x = norm(x + lin(torch.relu(lin(x, L + "linear1")), L + "linear2"), L + "norm2").transpose(1, 2)
    stops = {"nerv_after_attention": x}
    x = lin(x, "subject_wise_linear.0")
    flat = x.flatten(1); x = ((x - flat.mean(1)[:, None, None]) / torch.sqrt(flat.var(1, correction=0)[:, None, None] + 1e-5))[:, None]
    conv = lambda x, k: F.conv2d(x, w[f"enc_eeg.{k}.weight"], w[f"enc_eeg.{k}.bias"])
    elu = lambda x: torch.where(x > 0, x, torch.expm1(x))
    t = elu(batchnorm(F.avg_pool2d(conv(x, "tsconv.0"), (1, pool[0]), (1, pool[1])), "enc_eeg.tsconv.2"))
    t = elu(batchnorm(conv(t, "tsconv.4"), "enc_eeg.tsconv.5")).flatten(2).transpose(1, 2)
    s = elu(batchnorm(conv(x, "stconv.0"), "enc_eeg.stconv.1"))
    s = elu(batchnorm(F.avg_pool2d(conv(s, "stconv.3"), (1, pool[0]), (1, pool[1])), "enc_eeg.stconv.5")).flatten(2).transpose(1, 2)
    t, s = norm(t + attend(t, "enc_eeg.self_attn_ts", heads[1]), "enc_eeg.norm1"), norm(s + attend(s, "enc_eeg.self_attn_st", heads[1]), "enc_eeg.norm2")
    x = torch.cat([t, s], 1)
    x = norm(x + attend(x, "enc_eeg.cross_attn", heads[2]), "enc_eeg.norm3").flatten(1)
    stops["nerv_core"] = x = lin(torch.relu(lin(x, "enc_eeg.feed_forward.1")), "enc_eeg.feed_forward.4")
    h = lin(x, "proj_eeg.0")
    stops["nerv"] = norm(h + lin(h * .5 * (1 + torch.erf(h / math.sqrt(2))), "proj_eeg.1.fn.1"), "proj_eeg.2")
    return stops

def our_stops(model, eeg):
    with torch.no_grad():
        x = torch.as_tensor(eeg)
        return {"nerv_after_attention": model.time_attention(x), "nerv_core": model.core(x), "nerv": model(x)}

@pytest.fixture(scope="module")
def shapes(shared): return json.loads((shared/"golden/reference_state_keys.json").read_text())["nerv"]


# -- golden ---------------------------------------------------------------------------------------------------------------
def test_matches_reference_outputs(shared, shapes):
    golden = np.load(shared/"golden/reference_outputs_seed7.npz")
    weights = {k: v.astype(np.float32) for k, v in reference_weights(shapes, 7).items()}
    ours, plain = our_stops(NERV.from_reference(weights), golden["eeg"]), plain_nerv(weights, golden["eeg"])
    for stop in ours:
        assert np.abs(ours[stop].numpy() - golden[stop]).max() <= 2e-4, stop
        assert np.abs(plain[stop].numpy() - golden[stop]).max() <= 2e-4, f"the test's own plain form, {stop}"

def test_matches_plain_form_for_another_seed(shapes):
    weights = reference_weights(shapes, 11)
    ours, plain = our_stops(NERV.from_reference(weights), EEG), plain_nerv(weights, EEG)
    for stop in ours: assert np.abs(ours[stop].numpy() - plain[stop].numpy()).max() <= 2e-4, stop

def as_reference(model):
    "`model`'s weights under the reference's names and shapes."
    out = {theirs: model.state_dict()[ours].numpy() for theirs, ours in reference_names(model).items()}
    n, c = len(out["enc_eeg.stconv.0.bias"]), model.n_chans
    for k in ("tsconv.0", "stconv.3"): out[f"enc_eeg.{k}.weight"] = out[f"enc_eeg.{k}.weight"][:, :, None]
    out["enc_eeg.stconv.0.weight"] = out["enc_eeg.stconv.0.weight"].reshape(n, 1, c, 1)
    out["enc_eeg.tsconv.4.weight"] = out["enc_eeg.tsconv.4.weight"].reshape(n, c, n, 1).transpose(0, 2, 1, 3)
    return out | {"logit_scale": np.float32(2.5)}

@pytest.mark.parametrize("n_chans, n_times, n_outputs", [(63, 100, 256), (16, 91, 32), (7, 75, 8)])
def test_matches_plain_form_at_other_shapes(n_chans, n_times, n_outputs):
    torch.manual_seed(1); model = NERV(n_chans, n_times, n_outputs, sfreq=100.)
    x = torch.randn(32, n_chans, n_times)
    model(x); model.eval()                                            # moves the running statistics off their start
    plain, ours = plain_nerv(as_reference(model), x[:5].numpy()), our_stops(model, x[:5])
    for stop in ours: assert np.abs(ours[stop].numpy() - plain[stop].numpy()).max() <= 2e-4, stop

def test_gradients_match_plain_two_step_form():
    torch.manual_seed(2)
    conv, x = PooledConv(3, 5, 7, 4, 2).double(), torch.randn(6, 3, 40, dtype=torch.float64, requires_grad=True)
    weight, bias = (p.detach().clone().requires_grad_() for p in (conv.weight, conv.bias))
    plain = F.avg_pool1d(F.conv1d(x, weight, bias), 4, 2); plain_grad, = torch.autograd.grad(plain.square().sum(), x, retain_graph=True); plain.square().sum().backward()
    x.grad = None; ours = conv(x)[:, :, 0].transpose(1, 2); ours.square().sum().backward()
    torch.testing.assert_close(ours, plain); torch.testing.assert_close(x.grad, plain_grad)
    torch.testing.assert_close(conv.weight.grad, weight.grad); torch.testing.assert_close(conv.bias.grad, bias.grad)

def test_wide_layer_is_the_plain_one_with_its_dropout():
    torch.manual_seed(3)
    ff, x = FeedForward(13, 50, .3).double(), torch.randn(7, 13, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(4); mask = keep_mask(torch.empty(7, 50, dtype=torch.float64), .3)
    plain = F.linear(F.relu(F.linear(x, ff.linear1.weight, ff.linear1.bias)) * mask / .7, ff.linear2.weight, ff.linear2.bias)
    expected = torch.autograd.grad(plain.square().sum(), [x, *ff.parameters()])
    torch.manual_seed(4); ours = ff(x)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours.square().sum(), [x, *ff.parameters()]), expected): torch.testing.assert_close(a, b)

@pytest.mark.parametrize("p", [.1, .5, .75])
def test_dropout_rate(p):
    torch.manual_seed(5); mask = keep_mask(torch.empty(999, 1001), p)
    assert set(mask.unique().tolist()) == {0., 1.} and abs((mask == 0).double().mean() - p) < 5 * math.sqrt(p*(1 - p) / mask.numel())

def test_padded_linear_is_linear():
    x, layer = torch.randn(2, 5, 33), torch.nn.Linear(33, 47)
    torch.testing.assert_close(padded_linear(x, layer.weight, layer.bias), layer(x))

def test_position_code():
    for d in (63, 64, 1): np.testing.assert_allclose(position_code(250, d).numpy(), plain_code(250, d), atol=1e-6)


# -- properties --------------------------------------------------------------------------------------------------------
def test_parameter_count():
    assert sum(p.numel() for p in NERV().parameters()) == 11_882_090 - 1     # the reference counts its logit scale too; ours lives in training

def test_no_dead_weights():
    torch.manual_seed(0); model = NERV(63, 100, 256)
    (model(torch.randn(16, 63, 100)) * torch.randn(16, 256)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    # (a bias right before a batch norm, and the bias of attention's keys, move nothing: their gradient is rounding only. Weights must all be felt.)
    assert [n for n, p in model.named_parameters() if p.ndim > 1 and not (p.grad.abs().sum(1) > 0).any()] == []

def test_samples_do_not_see_each_other_in_evaluation():
    model, x = NERV(16, 100, 32).eval(), torch.randn(6, 16, 100)
    with torch.no_grad(): torch.testing.assert_close(model(x)[3:4], model(x[3:4]), atol=1e-5, rtol=1e-4)

def test_rescaling_removes_loudness_and_offset():
    x = torch.randn(3, 16, 100)
    torch.testing.assert_close(standardise_sample(x * 7 + 2), standardise_sample(x), atol=1e-4, rtol=1e-4)

def test_save_and_load(tmp_path):
    model = NERV(17, 90, 24, sfreq=100., hidden_dim=64, core_dim=48, reference_logit_scale=2.5).eval()
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"} and not list(tmp_path.glob("*.part"))
    back, x = NERV.from_pretrained(tmp_path).eval(), torch.randn(3, 17, 90)
    assert back.reference_logit_scale == 2.5 and back.sfreq == 100.
    with torch.no_grad(): assert torch.equal(model(x), back(x))


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kwargs, words", [(dict(n_times=74), ("75", "74", "pool_time_length")), (dict(n_heads=2), ("n_heads", "63")), (dict(n_filters=42), ("n_filters", "42"))])
def test_impossible_sizes(kwargs, words):
    with pytest.raises(NecomimiError) as e: NERV(**kwargs)
    assert all(w in str(e.value) for w in words)

@pytest.mark.parametrize("shape", [(2, 17, 99), (2, 16, 100), (17, 100), (2, 1, 17, 100)])
def test_wrong_input_shape(shape):
    with pytest.raises(NecomimiError, match="17 channels, 100 time points"): NERV(17, 100, 8)(torch.zeros(shape))

@pytest.fixture(scope="module")
def small_reference(): torch.manual_seed(6); return as_reference(NERV(9, 80, 16, hidden_dim=32, core_dim=24, ff_dim=40))

def test_reference_sizes_are_read_off_the_shapes(small_reference):
    model = NERV.from_reference({k: torch.as_tensor(v) for k, v in small_reference.items()} | {"attention_model.encoder_layer.norm1.weight": torch.ones(9)})
    assert (model.n_chans, model.n_times, model.n_outputs, model.reference_logit_scale) == (9, 80, 16, 2.5)
    assert not model.training and "encoder_layer" not in " ".join(model.state_dict())

@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("enc_eeg.norm3.bias"), ("missing", "enc_eeg.norm3.bias")),
    (lambda s: s.update(surprise=np.ones(2)), ("unknown", "surprise")),
    (lambda s: s.update({"enc_eeg.norm1.weight": np.ones(41)}), ("another shape", "enc_eeg.norm1.weight")),
    (lambda s: s.update({"attention_model.pos_encoder.pe": np.zeros((5000, 9))}), ("position code",)),
    (lambda s: s.clear(), ("sizes",)),
], ids=["missing", "unknown", "shape", "code", "empty"])
def test_not_a_reference_checkpoint(small_reference, change, words):
    state = dict(small_reference); change(state)
    with pytest.raises(NecomimiError) as e: NERV.from_reference(state)
    assert all(w in str(e.value) for w in words)


# -- import ------------------------------------------------------------------------------------------------------------
def test_import_is_lean():
    code = "import sys, necomimi.nerv; print(*[m for m in ('ipywidgets','plotly','diffusers','transformers','torchvision','open_clip','mne','sklearn','matplotlib','accelerate') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
