"The encoder registry, the MLP, ridge with closed-form group-wise validation, and per-subject normalisation (simulated numbers only)."
import subprocess, sys
import numpy as np, pytest, torch
from sklearn.base import clone, is_regressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict, LeaveOneGroupOut
from necomimi.data import NecomimiError
from necomimi.encoders import ENCODERS, MLP, RidgeEncoder, left_out_errors, make_encoder, normalise_per_subject


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
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())


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
