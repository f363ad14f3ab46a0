"The encoders of the paper's tables against the reference's numbers and plain float64 forms, the registry, the MLP, ridge with closed-form group-wise validation, per-subject normalisation."
import json, math, subprocess, sys, types
import numpy as np, pytest, torch
import torch.nn.functional as F
from sklearn.base import clone, is_regressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict, LeaveOneGroupOut
from necomimi.data import NecomimiError
from necomimi.encoders import ATMS, ENCODERS, MLP, MUSE, NICE, Nervformer, RidgeEncoder, left_out_errors, make_encoder, normalise_per_subject, ridge_weights, window_options
from necomimi.nerv import NERV, reference_names
from test_nerv import EEG, plain_code, reference_weights


def world(n=60, n_chans=4, n_times=6, dim=3, seed=0, noise=.5):
    rng = np.random.default_rng(seed)
    eeg = rng.standard_normal((n, n_chans, n_times)).astype("float32")
    targets = 5 + eeg.reshape(n, -1) @ rng.standard_normal((n_chans*n_times, dim)) + noise*rng.standard_normal((n, dim))
    return eeg, targets.astype("float32"), np.arange(n) % 12


# ---- registry and MLP
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_encoder_maps_trials_to_embeddings(name):
    torch.manual_seed(0)
    m = make_encoder(name, n_chans=17, n_times=100, n_outputs=32, sfreq=100.).eval()
    x = torch.randn(3, 17, 100); y = m(x)
    assert y.shape == (3, 32) and torch.isfinite(y).all()
    torch.testing.assert_close(m(x[1:2]), y[1:2], atol=1e-4, rtol=1e-4)   # one trial does not depend on its neighbours
    y.square().sum().backward()
    assert all(p.grad is not None for p in m.parameters()) and any(p.grad.abs().sum() > 0 for p in m.parameters())


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(NecomimiError, match="mlp.*nerv"): make_encoder("convnet", 63, 250, 1024, 250.)


def test_mlp_is_what_it_says():
    m = MLP(3, 4, 5, drop_prob=.5).double().eval(); x = torch.randn(2, 3, 4, dtype=torch.float64)
    p = dict(m.named_parameters()); h = x.reshape(2, 12) @ p["first.weight"].T + p["first.bias"]
    h = h + torch.nn.functional.gelu(h) @ p["second.1.weight"].T + p["second.1.bias"]
    h = (h-h.mean(1, keepdim=True))/torch.sqrt(h.var(1, unbiased=False, keepdim=True)+1e-5)
    torch.testing.assert_close(m(x), h)


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 3, 5), (3, 4)])
def test_mlp_refuses_other_shapes(shape):
    with pytest.raises(NecomimiError, match=r"batch, 3, 4"): MLP(3, 4, 5)(torch.zeros(shape))


def test_mlp_comes_back_from_disk(tmp_path):
    m = MLP(3, 4, 5, 100., drop_prob=.1).eval(); m.save_pretrained(tmp_path); again = MLP.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 3, 4)
    assert torch.equal(m(x), again(x)) and again.sfreq == 100. and (tmp_path/"model.safetensors").exists()


def test_import_stays_light():
    heavy = "sklearn mne diffusers open_clip ipywidgets plotly matplotlib".split()
    code = f"import sys, necomimi.encoders; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- the encoders of the paper's tables: reference weights from a seed, and plain float64 forms that share nothing with necomimi
TABLES = {"nervformer": Nervformer, "nice": NICE, "muse": MUSE, "atm_s": ATMS}
COUNTS = {"nervformer": 11_542_801, "nice": 2_630_913, "muse": 2_571_633, "atm_s": 2_970_202}      # spec 4, with the logit scale
SMALL = {"nervformer": dict(hidden_dim=32, core_dim=24), "nerv": dict(hidden_dim=32, core_dim=24, ff_dim=40), "atm_s": dict(ff_dim=40)}

def plain_form(name, w, eeg, heads=(5, 8), pool=(51, 5)):
    "The network `name` on the reference's tensor names: convolution and pooling as two steps, attention by explicit heads."
    w = {k: torch.as_tensor(np.asarray(v), dtype=torch.float64) for k, v in w.items()}
    lin = lambda x, k: x @ w[k + ".weight"].T + w[k + ".bias"]
    def norm(x, k):
        m = x.mean(-1, keepdim=True); v = ((x - m)**2).mean(-1, keepdim=True)
        return (x - m) / torch.sqrt(v + 1e-5) * w[k + ".weight"] + w[k + ".bias"]
    def batchnorm(x, k):
        mean, var, weight, bias = (w[f"{k}.{n}"][:, None, None] for n in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
    def attend(x, k, n_heads):
        q, key, v = (h.unflatten(-1, (n_heads, -1)).transpose(1, 2) for h in (x @ w[k + ".in_proj_weight"].T + w[k + ".in_proj_bias"]).chunk(3, -1))
        a = torch.einsum("bhid,bhjd->bhij", q, key) / math.sqrt(q.shape[-1])
        return lin(torch.einsum("bhij,bhjd->bihd", torch.softmax(a, -1), v).flatten(2), k + ".out_proj")
    conv = lambda x, k: F.conv2d(x, w[k + ".weight"], w[k + ".bias"])
    pooled = lambda x: F.avg_pool2d(x, (1, pool[0]), (1, pool[1]))
    elu = lambda x: torch.where(x > 0, x, torch.expm1(x))
    time_first = lambda x, p: elu(batchnorm(conv(elu(batchnorm(pooled(conv(x, p + "tsconv.0")), p + "tsconv.2")), p + "tsconv.4"), p + "tsconv.5"))
    chans_first = lambda x, p: elu(batchnorm(pooled(conv(elu(batchnorm(conv(x, p + "stconv.0"), p + "stconv.1")), p + "stconv.3")), p + "stconv.5"))
    tokens = lambda x: x[:, :, 0].transpose(1, 2)
    x = torch.as_tensor(eeg, dtype=torch.float64)
    if name == "atm_s":
        L = "attention_model.transformer_encoder.layers.0."
        x = x.transpose(1, 2) + torch.as_tensor(plain_code(x.shape[2], x.shape[1]))
        x = norm(x + attend(x, L + "self_attn", 1), L + "norm1")
        x = lin(norm(x + lin(torch.relu(lin(x, L + "linear1")), L + "linear2"), L + "norm2").transpose(1, 2), "subject_wise_linear.0")
    x = x[:, None]
    if name == "nervformer":
        e = "enc_eeg."
        m = x.mean((1, 2, 3), keepdim=True); x = (x - m) / torch.sqrt(((x - m)**2).mean((1, 2, 3), keepdim=True) + 1e-5)
        t, s = tokens(time_first(x, e)), tokens(chans_first(x, e))
        t, s = norm(t + attend(t, e + "self_attn_ts", heads[0]), e + "norm1"), norm(s + attend(s, e + "self_attn_st", heads[0]), e + "norm2")
        x = torch.cat([t, s], 1); x = norm(x + attend(x, e + "cross_attn", heads[1]), e + "norm3").flatten(1)
        x = lin(torch.relu(lin(x, e + "feed_forward.1")), e + "feed_forward.4")
    else:
        e = "enc_eeg." if name == "muse" else "enc_eeg.0."
        x = tokens(conv((chans_first if name == "muse" else time_first)(x, e), e + "projection.0")).flatten(1)
    h = lin(x, "proj_eeg.0")
    return norm(h + lin(h * .5 * (1 + torch.erf(h / math.sqrt(2))), "proj_eeg.1.fn.1"), "proj_eeg.2")

def as_reference(model):
    "`model`'s weights under the reference's names and in its shapes."
    out, c = {theirs: model.state_dict()[ours].numpy() for theirs, ours in reference_names(model, model._reference).items()}, model.n_chans
    for k, v in out.items():
        if k.endswith(("tsconv.0.weight", "stconv.3.weight")): out[k] = v[:, :, None]
        if k.endswith("stconv.0.weight"): out[k] = v.reshape(-1, 1, c, 1)
        if k.endswith("tsconv.4.weight"): out[k] = v.reshape(len(v), c, -1, 1).transpose(0, 2, 1, 3)
        if k.endswith("projection.0.weight"): out[k] = v[:, :, None, None]
    return out | {"logit_scale": np.float32(2.5)}

def run(model, eeg):
    with torch.no_grad(): return model(torch.as_tensor(eeg)).numpy()

@pytest.fixture(scope="module")
def shapes(shared): return json.loads((shared/"golden/reference_state_keys.json").read_text())


@pytest.mark.parametrize("name", TABLES)
def test_matches_reference_outputs(shared, shapes, name):
    golden = np.load(shared/"golden/reference_outputs_seed7.npz")
    weights = {k: v.astype(np.float32) for k, v in reference_weights(shapes[name], 7).items()}
    model = TABLES[name].from_reference(weights)
    assert (model.n_chans, model.n_times, model.n_outputs, model.training) == (63, 250, 1024, False)
    assert model.reference_logit_scale == pytest.approx(math.log(1/.07))
    assert np.abs(run(model, golden["eeg"]) - golden[name]).max() <= 2e-4
    assert np.abs(plain_form(name, weights, golden["eeg"]).numpy() - golden[name]).max() <= 2e-4, "the test's own plain form"

@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("seed", [11, 2024])
def test_matches_plain_form_for_other_seeds(shapes, name, seed):
    weights = reference_weights(shapes[name], seed)
    assert np.abs(run(TABLES[name].from_reference(weights), EEG) - plain_form(name, weights, EEG).numpy()).max() <= 2e-4

@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("n_chans, n_times", [(63, 100), (16, 91), (7, 25), (8, 12)])
def test_matches_plain_form_at_other_shapes(name, n_chans, n_times):
    torch.manual_seed(1); options = window_options(n_times, 100.)
    model, x = TABLES[name](n_chans, n_times, 16, 100., **options, **SMALL.get(name, {})), torch.randn(32, n_chans, n_times)
    model(x); model.eval()                                            # moves the running statistics off their start
    plain = plain_form(name, as_reference(model), x[:5], pool=(options["pool_time_length"], options["pool_time_stride"]))
    assert np.abs(run(model, x[:5]) - plain.numpy()).max() <= 2e-4

@pytest.mark.parametrize("name", TABLES)
def test_parameter_counts_are_the_live_ones(name):
    assert sum(p.numel() for p in TABLES[name]().parameters()) == COUNTS[name] - 1     # the reference counts its logit scale too; ours lives in training

@pytest.mark.parametrize("name", TABLES)
def test_nothing_but_dead_weights_was_dropped(shapes, name):
    buffers = ("running_mean", "running_var", "num_batches_tracked", ".pe")
    sizes = {k: int(np.prod(s)) for k, s in shapes[name].items() if not k.endswith(buffers)}
    assert sum(n for k, n in sizes.items() if "attention_model.encoder_layer" not in k) == COUNTS[name]
    assert sum(sizes.values()) - COUNTS[name] == (276_539 if name == "atm_s" else 0)

@pytest.mark.parametrize("name", TABLES)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0); model = TABLES[name](17, 100, 32, 100.)
    (model(torch.randn(16, 17, 100)) * torch.randn(16, 32)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    # (a bias right before a batch norm, and the bias of attention's keys, move nothing: their gradient is rounding only. Weights must all be felt.)
    assert [n for n, p in model.named_parameters() if p.ndim > 1 and not (p.grad.abs().sum(1) > 0).any()] == []

def test_nervformer_is_nerv_without_its_first_two_layers():
    torch.manual_seed(0); nerv = NERV(17, 100, 32).eval(); model = Nervformer(17, 100, 32).eval()
    rest = {k: v for k, v in nerv.state_dict().items() if not k.startswith(("time_attention", "subject"))}
    model.load_state_dict(rest); nerv.time_attention = torch.nn.Identity(); nerv.subject = torch.nn.Identity()
    np.testing.assert_array_equal(run(model, torch.ones(2, 17, 100).cumsum(2)), run(nerv, torch.ones(2, 17, 100).cumsum(2)))

@pytest.mark.parametrize("name", TABLES)
def test_comes_back_from_disk(tmp_path, name):
    model = TABLES[name](9, 40, 16, 100., **window_options(40, 100.), reference_logit_scale=2.5, **SMALL.get(name, {})).eval()
    model.save_pretrained(tmp_path); back = TABLES[name].from_pretrained(tmp_path).eval()
    assert {f.name for f in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert (back.n_times, back.sfreq, back.reference_logit_scale) == (40, 100., 2.5)
    assert torch.equal(model(torch.ones(2, 9, 40)), back(torch.ones(2, 9, 40)))

def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    import safetensors.torch
    model = NICE(3, 12, 4, **window_options(12)); model.save_pretrained(tmp_path); before = (tmp_path/"model.safetensors").read_bytes()
    def full(model, path): open(path, "wb").write(b"half"); raise OSError(28, "No space left on device")
    monkeypatch.setattr(safetensors.torch, "save_model", full)
    with pytest.raises(NecomimiError, match="No space left"): model.save_pretrained(tmp_path)
    assert (tmp_path/"model.safetensors").read_bytes() == before and not [f for f in tmp_path.iterdir() if "partial" in f.name]


# ---- a checkpoint that is not one
@pytest.fixture(scope="module")
def small_references():
    torch.manual_seed(6)
    return {name: as_reference(cls(9, 80, 16, **SMALL.get(name, {}))) for name, cls in TABLES.items()}

@pytest.mark.parametrize("name", TABLES)
def test_sizes_are_read_off_the_shapes(small_references, name):
    model = TABLES[name].from_reference({k: torch.as_tensor(v) for k, v in small_references[name].items()})
    assert (model.n_chans, model.n_times, model.n_outputs, model.reference_logit_scale) == (9, 80, 16, 2.5)
    assert np.abs(run(model, EEG[:, :9, :80]) - plain_form(name, small_references[name], EEG[:, :9, :80]).numpy()).max() <= 2e-4

@pytest.mark.parametrize("name", ["nervformer", "nice", "muse"])
def test_window_length_and_pool_can_be_said(name):
    torch.manual_seed(0); options = dict(filter_time_length=5, pool_time_length=17, pool_time_stride=5)      # spec 6.3's short design
    state = as_reference(TABLES[name](9, 29, 8, **options, **SMALL.get(name, {})))
    rest = dict(pool_time_length=17, pool_time_stride=5)
    assert TABLES[name].from_reference(state, **rest).n_times == 26                                         # the shortest with as many tokens
    assert TABLES[name].from_reference(state, n_times=29, **rest)(torch.zeros(2, 9, 29)).shape == (2, 8)

@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("proj_eeg.2.bias"), ("missing", "proj_eeg.2.bias")),
    (lambda s: s.update(surprise=np.ones(2)), ("unknown", "surprise")),
    (lambda s: s.update({"proj_eeg.0.bias": np.ones(41)}), ("another shape", "proj_eeg.0.bias")),
    (lambda s: s.clear(), ("sizes",)),
], ids=["missing", "unknown", "shape", "empty"])
def test_not_a_reference_checkpoint(small_references, name, change, words):
    state = dict(small_references[name]); change(state)
    with pytest.raises(NecomimiError) as e: TABLES[name].from_reference(state)
    assert all(w in str(e.value) for w in words)

def test_position_code_is_checked_and_dead_layers_are_for_atm_s_only(small_references):
    dead = {"attention_model.encoder_layer.norm1.weight": np.ones(9), "attention_model.pos_encoder.pe": plain_code(5000, 9)}
    ATMS.from_reference(small_references["atm_s"] | dead)
    with pytest.raises(NecomimiError, match="position code"): ATMS.from_reference(small_references["atm_s"] | {"attention_model.pos_encoder.pe": np.zeros((5000, 9))})
    with pytest.raises(NecomimiError, match="unknown.*attention_model"): NICE.from_reference(small_references["nice"] | dead)

@pytest.mark.parametrize("name", TABLES)
def test_another_encoders_checkpoint_is_refused(small_references, name):
    for other in set(TABLES) - {name}:
        with pytest.raises(NecomimiError): TABLES[name].from_reference(small_references[other])


# ---- one rule for every window, and every channel in the spatial kernel
CONVOLUTIONAL = {"nerv": NERV} | TABLES

def test_the_rule_is_the_full_network_at_one_second():
    full = dict(filter_time_length=25, pool_time_length=51, pool_time_stride=5)
    assert window_options(250) == window_options(250, 250.) == window_options(276, 250.) == window_options(500, 250) == full
    assert all(type(v) is int for v in window_options(np.int64(100), 250.).values()) and json.dumps(window_options(np.int64(100)))

def test_the_rule_grows_smoothly_with_the_window():
    rule = np.array([list(window_options(n).values()) for n in range(12, 251)])
    assert (np.diff(rule, axis=0) >= 0).all() and (np.diff(rule, axis=0) <= 1).all()        # no jump anywhere, whichever the offset
    n = np.arange(12, 251)[:, None]
    assert (np.abs(rule - n*[25, 51, 5]/250)[n[:, 0] >= 25] <= .5).all()                    # shares of the window, to the nearest sample
    assert (rule[:, 2] <= rule[:, 1]).all()                                                 # tokens overlap: no sample between two of them is lost

@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("n_times", [12, 13, 25, 37, 50, 62, 74, 75, 112, 250])
def test_every_encoder_takes_every_window(name, n_times):
    options = window_options(n_times, 250.)
    model = make_encoder(name, 7, n_times, 8, 250., **options, **SMALL.get(name, {}))
    n_tokens = (n_times - options["filter_time_length"] - options["pool_time_length"] + 1)//options["pool_time_stride"] + 1
    y = model(torch.randn(3, 7, n_times))
    assert model.n_tokens == n_tokens and y.shape == (3, 8) and torch.isfinite(y).all()

@pytest.mark.parametrize("name", TABLES)
def test_regions_differ_in_their_spatial_kernel_only(name):
    sizes = lambda c: {k: tuple(p.shape) for k, p in TABLES[name](c, 100, 8, **window_options(100), **SMALL.get(name, {})).named_parameters()}
    parietal, central = sizes(16), sizes(14)                                                # spec 6.5: the reference's parietal head is three times as wide
    same = {k for k in parietal if parietal[k] == central[k]}
    assert {k for k in parietal if k.startswith(("head", "fusion", "mix"))} <= same
    assert {k.split(".")[0] for k in set(parietal) - same} <= {"branch", "temporal", "spatial", "time_attention"}

@pytest.mark.parametrize("name", TABLES)
def test_a_change_in_any_channel_is_noticed(name):
    model = TABLES[name](16, 50, 8, **window_options(50), **SMALL.get(name, {})).eval(); x = torch.randn(1, 16, 50)
    with torch.no_grad(): assert all((model(x + 5*torch.eye(16)[c][None, :, None]) - model(x)).abs().max() > 1e-6 for c in range(16))

@pytest.mark.parametrize("name", TABLES)
def test_short_windows_and_wrong_heads_say_what_to_do(name):
    with pytest.raises(NecomimiError, match=r"75 samples, n_times is 50.*window_options"): TABLES[name](n_times=50)
    with pytest.raises(NecomimiError, match="at least 3"): window_options(2)
    with pytest.raises(NecomimiError, match="positive"): window_options(50, 0.)
    if name == "atm_s":
        with pytest.raises(NecomimiError, match="2 heads for 63"): ATMS(n_heads=2)
    if name == "nervformer":
        with pytest.raises(NecomimiError, match="5 and 8 for 42"): Nervformer(n_filters=42)

@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("shape", [(2, 7, 49), (2, 8, 50), (7, 50), (2, 1, 7, 50)])
def test_other_shapes_are_refused(name, shape):
    with pytest.raises(NecomimiError, match=r"batch, 7, 50"): TABLES[name](7, 50, 4, **window_options(50), **SMALL.get(name, {}))(torch.zeros(shape))


# ---- braindecode by name (it is not installed here: a stand-in module has its manners)
class Pooled(torch.nn.Module):
    "A stand-in with braindecode's argument names."
    def __init__(self, n_chans=None, n_outputs=None, n_times=None, chs_info=None, input_window_seconds=None, sfreq=None, width=3, add_log_softmax=True):
        super().__init__(); self.seen = dict(sfreq=sfreq, width=width)
        if n_times < 5: raise ValueError("kernel size can't be greater than input size")
        self.out = torch.nn.Linear(n_chans, n_outputs); self.softmax = torch.nn.LogSoftmax(1) if add_log_softmax else torch.nn.Identity()
    def forward(self, x): return self.softmax(self.out(x.mean(2)))

class Dense(Pooled):
    "One output a time point, as sleep stagers give."
    def __init__(self, n_chans, n_outputs, n_times, sfreq): super().__init__(n_chans, n_outputs, n_times, sfreq=sfreq)
    def forward(self, x): return self.out(x.transpose(1, 2)).transpose(1, 2)

@pytest.fixture
def braindecode(monkeypatch):
    package, models = types.ModuleType("braindecode"), types.ModuleType("braindecode.models")
    package.models, models.EEGNetv4, models.Dense, models.helper = models, Pooled, Dense, len
    monkeypatch.setitem(sys.modules, "braindecode", package); monkeypatch.setitem(sys.modules, "braindecode.models", models)

def test_braindecode_models_come_by_name(braindecode):
    model = make_encoder("braindecode:EEGNetv4", 7, 50, 4, 100., width=9); y = model(torch.randn(6, 7, 50))
    assert isinstance(model, Pooled) and model.training and model.seen == dict(sfreq=100., width=9)
    assert y.shape == (6, 4) and (y > 0).any()                                              # raw outputs: log-probabilities are never positive
    y.sum().backward(); assert model.out.weight.grad.any()

@pytest.mark.parametrize("name, n_times, words", [("EEGNetv3", 50, "nearest.*EEGNetv4"), ("helper", 50, "no model 'helper'"), ("EEGNetv4", 4, "cannot be built.*kernel size"),
                                                  ("Dense", 50, r"\(2, 4, 50\).*\(2, 4\)")], ids=["unknown", "not a model", "too short", "dense"])
def test_braindecode_models_that_cannot_serve(braindecode, name, n_times, words):
    with pytest.raises(NecomimiError, match=words): make_encoder("braindecode:" + name, 7, n_times, 4, 100.)

def test_without_braindecode_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    with pytest.raises(NecomimiError, match="pip install braindecode"): make_encoder("braindecode:EEGNetv4", 63, 250, 8, 250.)

def test_unknown_options_are_named():
    with pytest.raises(NecomimiError, match="'nice'.*n_layers"): make_encoder("nice", 63, 250, 8, 250., n_layers=3)


# ---- ridge
@pytest.mark.parametrize("n", [20, 60], ids=["wide", "tall"])
def test_ridge_equals_scikit_learn(n):
    eeg, y, _ = world(n); new = world(9, seed=1)[0]
    r = RidgeEncoder(alphas=(.05,)).fit(eeg, y)
    z = lambda a: (a.reshape(len(a), -1)-eeg.reshape(n, -1).mean(0))/eeg.reshape(n, -1).std(0)
    assert r.alpha_ == pytest.approx(.05*n*24)
    np.testing.assert_allclose(r.predict(new), Ridge(alpha=r.alpha_).fit(z(eeg), y).predict(z(new)), atol=2e-4)


@pytest.mark.parametrize("groups", [np.arange(60), np.arange(60) % 12, np.arange(60) % 2], ids=["singles", "twelve", "two"])
def test_left_out_errors_are_exact(groups):
    eeg, y, _ = world(); x = eeg.reshape(60, -1)
    slow = [np.mean((y - cross_val_predict(Ridge(alpha=a), x, y, groups=groups, cv=LeaveOneGroupOut()))**2) for a in (.1, 10., 1e4)]
    np.testing.assert_allclose(left_out_errors(x, y, groups, [.1, 10., 1e4]), slow, rtol=1e-3)


def test_penalty_follows_the_noise():
    weak, strong = (RidgeEncoder().fit(*world(noise=s)[:2]).alpha_ for s in (.01, 30.))
    assert strong > 100*weak


def test_groups_change_the_choice_when_twins_exist():
    rng = np.random.default_rng(0); eeg = np.repeat(rng.standard_normal((15, 4, 10)), 6, 0); eeg += .3*rng.standard_normal(eeg.shape)
    y, groups = np.repeat(rng.standard_normal((15, 2)), 6, 0), np.repeat(np.arange(15), 6)        # nothing to learn but the pictures by heart
    alone, grouped = RidgeEncoder().fit(eeg, y), RidgeEncoder().fit(eeg, y, groups)
    assert grouped.alpha_ > 100*alone.alpha_ and grouped.errors_.min() > 3*alone.errors_.min()


def test_many_responses_choose_on_a_part():
    eeg, y, groups = world(400); a, b = RidgeEncoder().fit(eeg, y, groups), RidgeEncoder(n_cv=100).fit(eeg, y, groups)
    assert .1 <= b.alpha_/a.alpha_ <= 10 and np.abs(a.predict(eeg)-b.predict(eeg)).max() < .2


def test_prediction_uses_training_statistics_only():
    eeg, y, groups = world(); r = RidgeEncoder().fit(eeg, y, groups); new = world(9, seed=1)[0]
    np.testing.assert_allclose(r.predict(new)[:1], r.predict(new[:1]), atol=1e-5)
    assert r.score(eeg, y) > .8 and r.predict(new).dtype == np.float32


@pytest.mark.parametrize("n, p", [(12, 30), (30, 12)])
def test_ridge_weights_solve_the_normal_equations(n, p):
    rng = np.random.default_rng(0); x, y = rng.standard_normal((n, p)), rng.standard_normal((n, 3))
    np.testing.assert_allclose(ridge_weights(x, y, 2.), np.linalg.inv(x.T @ x + 2*np.eye(p)) @ x.T @ y, atol=1e-5)


def test_a_silent_channel_does_no_harm():
    eeg, y, _ = world(); eeg[:, 2] = 7.
    assert np.isfinite(RidgeEncoder().fit(eeg, y).predict(eeg)).all()


def test_ridge_has_scikit_learn_manners():
    r = RidgeEncoder(n_cv=50); c = clone(r)
    assert c is not r and c.get_params() == r.get_params() and is_regressor(r) and r.set_params(n_cv=3) is r and r.n_cv == 3
    eeg, y, groups = world(); guess = cross_val_predict(c, eeg, y, groups=groups, cv=GroupKFold(4), params=dict(groups=groups))
    assert guess.shape == y.shape and np.corrcoef(guess.ravel(), y.ravel())[0, 1] > .8
    with pytest.raises(NecomimiError, match="alphas and n_cv"): r.set_params(depth=3)


def test_ridge_comes_back_from_disk(tmp_path):
    eeg, y, groups = world(); r = RidgeEncoder().fit(eeg, y, groups); again = RidgeEncoder.load(r.save(tmp_path/"r.safetensors"))
    np.testing.assert_array_equal(again.predict(eeg), r.predict(eeg))
    assert again.alpha_ == r.alpha_ and [f.name for f in tmp_path.iterdir()] == ["r.safetensors"]


def test_a_ridge_that_cannot_be_written_says_so(tmp_path):
    eeg, y, _ = world(); r = RidgeEncoder().fit(eeg, y); (tmp_path/"x").write_text("a file, no folder")
    with pytest.raises(NecomimiError, match="cannot write the ridge encoder"): r.save(tmp_path/"x"/"r.safetensors")
    with pytest.raises(NecomimiError, match="not fitted"): RidgeEncoder().save(tmp_path/"r.safetensors")
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\x08\0\0\0\0\0\0\0{}      "], ids=["empty", "pickle", "foreign"])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path/"x").write_bytes(content)
    with pytest.raises(NecomimiError, match="not a saved RidgeEncoder"): RidgeEncoder.load(tmp_path/"x")


def test_bad_input_is_named():
    eeg, y, groups = world(); r = RidgeEncoder().fit(eeg, y, groups)
    with pytest.raises(NecomimiError, match="not fitted"): RidgeEncoder().predict(eeg)
    with pytest.raises(NecomimiError, match="channels"): r.predict(eeg[:, :3])
    with pytest.raises(NecomimiError, match="samples"): r.predict(eeg[:, :, :3])
    with pytest.raises(NecomimiError, match="59 groups"): RidgeEncoder().fit(eeg, y, groups[:59])
    with pytest.raises(NecomimiError, match="targets"): RidgeEncoder().fit(eeg, y[:, 0])
    with pytest.raises(NecomimiError, match="two groups"): RidgeEncoder().fit(eeg, y, np.zeros(60))
    bad = eeg.copy(); bad[7, 2, 3] = np.nan
    with pytest.raises(NecomimiError, match=r"number 2\b.*\b7\b"): RidgeEncoder().fit(bad, y, groups)


def test_pattern_finds_the_source_not_the_noise_canceller():
    rng = np.random.default_rng(0); s, common = rng.standard_normal((2, 500, 1, 1))
    eeg = np.concatenate([s+common, common, rng.standard_normal((500, 1, 1))], 1) + .1*rng.standard_normal((500, 3, 1))
    r = RidgeEncoder().fit(eeg, s[:, 0]); w, a = np.abs(r.coef_[:, 0]), np.abs(r.pattern(eeg, [1.])[:, 0])
    assert w[1] > .5*w[0]            # the second channel holds no signal, yet a large weight: it cancels the common noise
    assert a[1] < .2*a[0] and a[2] < .2*a[0]


# ---- per-subject normalisation
def test_normalisation_removes_gain_and_offset():
    eeg, _, subjects = world(48, seed=2); rng = np.random.default_rng(0)
    gain, offset = rng.uniform(.1, 9, (12, 4, 1))[subjects], rng.standard_normal((12, 4, 6))[subjects]
    clean = normalise_per_subject(eeg, subjects)
    np.testing.assert_allclose(normalise_per_subject(gain*eeg+offset, subjects), clean, atol=1e-4)
    for s in range(12):
        np.testing.assert_allclose(clean[subjects == s].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(clean[subjects == s].std((0, 2)), 1, atol=1e-4)


def test_normalisation_keeps_subjects_apart():
    eeg, _, subjects = world(48); other = eeg.copy(); other[subjects == 0] *= 100
    for w in (None, .3):
        a, b = (normalise_per_subject(e, subjects, whiten=w) for e in (eeg, other))
        np.testing.assert_array_equal(a[subjects > 0], b[subjects > 0])


def test_whitening_decorrelates():
    rng = np.random.default_rng(0); eeg = np.einsum("cd,ndt->nct", rng.standard_normal((5, 5)), rng.standard_normal((40, 5, 50)))
    x = normalise_per_subject(eeg, np.repeat([0, 1], 20), whiten=0.)[:20]
    np.testing.assert_allclose(np.einsum("nct,ndt->cd", x, x)/(20*50), np.eye(5), atol=1e-3)


def test_normalisation_refuses_what_it_cannot_do():
    eeg = world(4)[0]
    with pytest.raises(NecomimiError, match="one response"): normalise_per_subject(eeg, [0, 0, 0, 1])
    with pytest.raises(NecomimiError, match="labels"): normalise_per_subject(eeg, [0, 0, 1])
    with pytest.raises(NecomimiError, match="NaN"): normalise_per_subject(np.full_like(eeg, np.nan), [0, 0, 1, 1])
