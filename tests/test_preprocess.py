"Raw sessions to whitened trials: golden numbers of the reference, a plain MNE + scikit-learn road beside ours, resume, and everything that can be wrong with the files."
import json, os, pickle, shutil, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path

import mne, numpy as np, pandas as pd, pytest, scipy.linalg, sklearn.covariance
from sklearn.discriminant_analysis import _cov
from sklearn.utils import shuffle

import necomimi.preprocess as P
from necomimi.data import CHANNELS, NecomimiError
from necomimi.preprocess import RECIPES, Recipe, choose_presentations, epoch_matrix, estimate, ledoit_wolf, preprocess, preprocess_all, raw_path, read_raw, simulate_raw, whitener

FEW = ("Oz", "POz", "P7", "Cz", "Fp1")
SMALL = Recipe("small", FEW, n_repetitions={"training": 2, "test": 3})

def responses(n_training=6, n_test=2, seed=0):
    rng = np.random.default_rng(seed)
    return {"training": 3*rng.standard_normal((n_training, len(FEW), 50)), "test": 3*rng.standard_normal((n_test, len(FEW), 50))}

def simulate(root, subject=1, n_sessions=2, seed=0, **k):
    return simulate_raw(root, subject, responses(**k), n_sessions=n_sessions, presentations={"training": 3, "test": 4}, seed=seed, ch_names=FEW)

@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("Raw_data")
    simulate(root); simulate(root, 2)
    return root

@pytest.fixture
def mine(raw, tmp_path):
    "A copy to be damaged."
    shutil.copytree(raw/"sub-01", tmp_path/"raw"/"sub-01")
    return tmp_path/"raw"

def content(path): return np.load(path, allow_pickle=True).item()          # our own file
def rewrite(path, **changes):
    d = content(path) | changes
    np.save(path, np.array({k: v for k, v in d.items() if v is not None}, dtype=object), allow_pickle=True)

def plain(root, subject, recipe, n_sessions):
    "The same road, an epoch and a picture at a time."
    cut = {}
    for split in P.SPLITS:
        cut[split] = []
        for s in range(1, n_sessions + 1):
            d = content(raw_path(root, subject, s, split))
            session = mne.io.RawArray(d["raw_eeg_data"], mne.create_info(d["ch_names"], d["sfreq"], d["ch_types"]), verbose="error")
            events = mne.find_events(session, stim_channel="stim", verbose="error")
            events = events[events[:, 2] != 99999]
            epochs = mne.Epochs(session.pick(list(recipe.ch_names), verbose="error"), events, tmin=recipe.tmin, tmax=recipe.tmax, baseline=recipe.baseline, preload=True, verbose="error").resample(recipe.sfreq, verbose="error")
            x, codes = epochs.get_data()*1e6, epochs.events[:, 2]
            if recipe.start is not None: x = x[..., epochs.times >= recipe.start - 1e-9]
            cut[split].append((np.unique(codes), np.stack([x[shuffle(np.flatnonzero(codes == c), random_state=recipe.seed, n_samples=recipe.n_repetitions[split])] for c in np.unique(codes)])))
    white = []
    for _, x in cut["training"]:
        if recipe.whiten == "epochs": sigma = np.mean([[_cov(e.T, shrinkage="auto") for e in p] for p in x], axis=(0, 1))
        if recipe.whiten == "time": sigma = np.mean([[_cov(p[..., t], shrinkage="auto") for t in range(p.shape[-1])] for p in x], axis=(0, 1))
        white.append(np.real(scipy.linalg.fractional_matrix_power(sigma, -.5)) if recipe.whiten else np.eye(x.shape[2]))
    out = {}
    for split, sessions in cut.items():
        merged = [np.concatenate([(w @ x)[list(ids).index(p)] for (ids, x), w in zip(sessions, white) if p in ids]) for p in range(1, 1 + max(ids.max() for ids, _ in sessions))]
        out[split] = np.stack(merged)[:, shuffle(np.arange(len(merged[0])), random_state=recipe.seed)]
    return out

# --- the numbers

def test_golden(shared, tmp_path):
    z = np.load(shared/"golden"/"preprocessing_seed11.npz")
    for s in (1, 2):
        for split in P.SPLITS:
            eeg = np.vstack([z[f"ses{s}_{split}_int16"]*float(z["scale_volts"]), z[f"ses{s}_{split}_stim"]])
            path = raw_path(tmp_path, 7, s, split); path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.array(dict(raw_eeg_data=eeg, ch_names=[str(c) for c in z["raw_ch_names"]], ch_types=["eeg"]*63 + ["stim"], sfreq=1000), dtype=object), allow_pickle=True)
    stores = preprocess(tmp_path, tmp_path/"out", 7, n_sessions=2, progress=False)
    assert stores["training"].trials.shape == (6, 4, 63, 250) and stores["test"].trials.shape == (2, 40, 63, 250)
    assert np.abs(stores["training"].trials - z["training"]).max() <= 2e-6
    assert np.abs(stores["test"].trials[:, ::4] - z["test"]).max() <= 2e-6
    assert stores["test"].ch_names == tuple(z["ch_names"]) == CHANNELS
    np.testing.assert_allclose(stores["test"].times, z["times"][50:], atol=1e-9)
    assert not stores["test"].simulated and stores["test"].recipe.startswith("necomimi-250hz")

@pytest.mark.parametrize("recipe", [SMALL, replace(SMALL, seed=3, n_repetitions={"training": 3, "test": 4}), replace(SMALL, whiten="time", sfreq=100., tmax=.8, start=None),
                                    replace(SMALL, whiten=None, baseline=None, tmin=-.1), replace(SMALL, ch_names=FEW[2:0:-1], baseline=(None, None), n_repetitions={"training": 1, "test": 1})], ids=str)
def test_same_as_the_plain_road(raw, tmp_path, recipe):
    stores, expected = preprocess(raw, tmp_path, 1, recipe, n_sessions=2, progress=False), plain(raw, 1, recipe, 2)
    for split in P.SPLITS:
        assert stores[split].trials.shape == expected[split].shape
        np.testing.assert_allclose(stores[split].trials, expected[split], rtol=1e-5, atol=1e-5*np.abs(expected[split]).max())
        assert stores[split].ch_names == recipe.ch_names and stores[split].units == recipe.units and stores[split].recipe == str(recipe) and stores[split].simulated

def test_four_sessions_two_a_picture(tmp_path):
    simulate(tmp_path, n_sessions=4)
    stores, expected = preprocess(tmp_path, tmp_path/"o", 1, SMALL, progress=False), plain(tmp_path, 1, SMALL, 4)
    assert stores["training"].trials.shape[:2] == (6, 4) and stores["test"].trials.shape[:2] == (2, 12)
    for split in P.SPLITS: np.testing.assert_allclose(stores[split].trials, expected[split], atol=2e-5)

@pytest.mark.parametrize("sfreq, recipe", [(1000., Recipe("a")), (1000., RECIPES["osf-100hz"]), (500., Recipe("b", baseline=None, start=None)), (250., Recipe("c")), (1024., Recipe("d", tmin=-.1, tmax=.5, baseline=(-.05, 0)))])
def test_matrix_is_mnes_resampling(sfreq, recipe):
    x = np.random.default_rng(0).standard_normal((2, round(3*sfreq)))*1e-5 + 1e-3
    info = mne.create_info(2, sfreq, "eeg")
    epochs = mne.Epochs(mne.io.RawArray(x, info, verbose="error"), [[round(sfreq), 0, 1]], tmin=recipe.tmin, tmax=recipe.tmax, baseline=recipe.baseline, preload=True, verbose="error").resample(recipe.sfreq, verbose="error")
    matrix, times = epoch_matrix(recipe, sfreq)
    first = round(sfreq) + round(recipe.tmin*sfreq)
    mine, theirs = x[:, first:first+len(matrix)] @ matrix, epochs.get_data()[0][:, -len(times):]
    np.testing.assert_allclose(mine, theirs, atol=1e-14)
    np.testing.assert_allclose(times, epochs.times[-len(times):], atol=1e-8)
    assert times[0] >= (recipe.tmin - 1e-3 if recipe.start is None else -1e-9)

@pytest.mark.parametrize("n, p", [(250, 63), (20, 63), (2, 5), (7, 1), (1000, 3)])
def test_ledoit_wolf_of_all_epochs(n, p):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((2, 3, n, p)) @ rng.standard_normal((p, p))*10 + 5
    np.testing.assert_allclose(ledoit_wolf(x), [[sklearn.covariance.ledoit_wolf(e)[0] for e in row] for row in x], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ledoit_wolf(x, standardize=True), [[_cov(e, shrinkage="auto") for e in row] for row in x], rtol=1e-9, atol=1e-9)

def test_ledoit_wolf_of_a_constant_channel():
    x = np.random.default_rng(0).standard_normal((50, 4)); x[:, 2] = 3.
    np.testing.assert_allclose(ledoit_wolf(x), sklearn.covariance.ledoit_wolf(x)[0], rtol=1e-9)
    np.testing.assert_allclose(ledoit_wolf(x, standardize=True), _cov(x, shrinkage="auto"), rtol=1e-9)
    assert (ledoit_wolf(np.zeros((5, 3))) == 0).all()

def test_presentations_are_the_references():
    codes = np.random.default_rng(0).permutation(np.repeat([4, 1, 9, 2], [5, 3, 2, 7]))
    pictures, index = choose_presentations(codes, 2, seed=11)
    assert pictures.tolist() == [1, 2, 4, 9]
    for p, i in zip(pictures, index): assert i.tolist() == shuffle(np.flatnonzero(codes == p), random_state=11, n_samples=2).tolist()

def test_whitener():
    x = np.random.default_rng(0).standard_normal((100, 6)) @ np.diag([1, 2, 3, 4, 5, .01])
    w = whitener(np.cov(x.T))
    np.testing.assert_allclose(w @ np.cov(x.T) @ w, np.eye(6), atol=1e-9)
    np.testing.assert_allclose(w, scipy.linalg.fractional_matrix_power(np.cov(x.T), -.5), rtol=1e-8, atol=1e-8)

def test_test_trials_do_not_shape_the_whitening(raw, mine, tmp_path):
    one = preprocess(raw, tmp_path/"a", 1, SMALL, n_sessions=2, progress=False)
    for s in (1, 2):
        path = raw_path(mine, 1, s, "test"); eeg = content(path)["raw_eeg_data"].copy()
        eeg[:-1] = eeg[:-1][::-1]*7
        rewrite(path, raw_eeg_data=eeg)
    two = preprocess(mine, tmp_path/"b", 1, SMALL, n_sessions=2, progress=False)
    assert one["training"].hash == two["training"].hash and one["test"].hash != two["test"].hash

def test_the_response_comes_back(tmp_path):
    t = np.arange(100)/250
    wave = np.exp(-.5*((t - .15)/.02)**2)*np.arange(1, 3)[:, None, None]*np.arange(1, 6)[:, None]       # pictures, channels, samples
    simulate_raw(tmp_path, 1, {"training": wave, "test": wave}, n_sessions=1, presentations={"test": 3}, noise_uv=0., soa_s=1.5, ch_names=FEW)
    store = preprocess(tmp_path, tmp_path/"o", 1, replace(RECIPES["erp-250hz"], ch_names=FEW, n_repetitions={"training": 2, "test": 3}), n_sessions=1, progress=False)["test"]
    assert store.units == "µV" and np.isclose(store.times[0], -.2)
    early = (.001*np.gradient(wave, 1/250, axis=-1))                         # MNE's rounding of its padding puts every sample 1 ms early
    np.testing.assert_allclose(store.average()[..., 50:150], wave + early, atol=.06)
    np.testing.assert_allclose(store.average()[..., :45], 0, atol=.02)

def test_float16_and_picture_tables(raw, tmp_path):
    tables = {"training": pd.DataFrame(dict(concept=list("abcdef"))), "test": pd.DataFrame(dict(concept=["x", "y"]))}
    full = preprocess(raw, tmp_path/"32", 1, SMALL, n_sessions=2, progress=False)
    half = preprocess(raw, tmp_path/"16", 1, SMALL, n_sessions=2, progress=False, dtype="float16", pictures=tables)
    assert half["test"].trials.dtype == np.float16 and full["test"].pictures is None
    np.testing.assert_allclose(half["test"].trials, full["test"].trials, atol=5e-3)
    assert half["training"].pictures.concept.tolist() == list("abcdef")

# --- raw files

def test_published_layout(raw):
    d = content(raw_path(raw, 1, 2, "training"))
    assert d["raw_eeg_data"].dtype == np.float64 and d["raw_eeg_data"].shape[0] == len(FEW) + 1 == len(d["ch_types"]) and d["sfreq"] == 1000 and d["simulated"]
    assert d["ch_names"] == [*sorted(FEW), "stim"] and d["ch_types"][-1] == "stim"
    assert 1e-6 < d["raw_eeg_data"][:-1].std() < 1e-4                       # volts
    held = np.diff(np.flatnonzero(np.diff(d["raw_eeg_data"][-1])))[::2]
    assert (held == 10).all()

def test_each_training_picture_in_two_of_four_sessions(tmp_path):
    files = simulate(tmp_path, n_sessions=4)
    assert len(files) == 8 and all(f.is_file() for f in files)
    shown = {split: [read_raw(raw_path(tmp_path, 1, s, split)).events()[1] for s in range(1, 5)] for split in P.SPLITS}
    assert all((np.bincount(np.concatenate(shown["training"]), minlength=7)[1:] == 2*3).tolist())
    assert all(sum(p in s for s in shown["training"]) == 2 for p in range(1, 7))
    assert all(np.bincount(s).tolist() == [0, 4, 4] for s in shown["test"])

def test_simulation_follows_its_seed(tmp_path):
    a, b, c = (simulate(tmp_path/str(i), seed=s)[0] for i, s in enumerate((0, 0, 1)))
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()

@pytest.mark.parametrize("bad", [{"training": np.zeros((3, 4, 50))}, {"validation": np.zeros((3, 5, 50))}, {"test": np.zeros((0, 5, 50))}, {"test": np.zeros((5, 50))}])
def test_simulation_refuses(tmp_path, bad):
    with pytest.raises(NecomimiError, match="expected 'training' or 'test'"): simulate_raw(tmp_path, 1, bad, ch_names=FEW)
    assert not list(tmp_path.rglob("*.npy"))

def test_read_raw_maps_and_finds_events_as_mne(raw):
    s = read_raw(raw_path(raw, 1, 1, "training"))
    assert isinstance(s.data, np.memmap) and s.data.shape[0] == 5 and not s.data.flags.writeable and s.sfreq == 1000 and "SIMULATED" in repr(s)
    found = mne.find_events(s.to_mne(), stim_channel="stim", verbose="error")
    assert (found[:, [0, 2]] == np.c_[s.events(targets=True)]).all()
    assert P.TARGET not in s.events()[1] and P.TARGET in s.events(targets=True)[1]

def test_events_that_rise_in_steps_or_lie_at_the_edges(raw, mine):
    path = raw_path(mine, 1, 1, "training"); eeg = content(path)["raw_eeg_data"].copy()
    eeg[-1] = 0; eeg[-1, :20] = 5; eeg[-1, 100:110] = 3; eeg[-1, 110:120] = 6; eeg[-1, 120:130] = 2; eeg[-1, 200:210] = P.TARGET; eeg[-1, -5:] = 4
    rewrite(path, raw_eeg_data=eeg)
    s = read_raw(path)
    found = mne.find_events(s.to_mne(), stim_channel="stim", verbose="error")
    assert (found[:, [0, 2]] == np.c_[s.events(targets=True)]).all() and len(found) == 4

@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stim_anywhere_and_either_memory_order(raw, mine, tmp_path, place, order):
    for s in (1, 2):
        for split in P.SPLITS:
            path = raw_path(mine, 1, s, split); d = content(path)
            rows = list(range(5)); rows.insert(place, 5)
            rewrite(path, raw_eeg_data=np.asarray(d["raw_eeg_data"][rows], order=order), ch_names=np.array([d["ch_names"][i] for i in rows]))
    a, b = (preprocess(r, tmp_path/n, 1, SMALL, n_sessions=2, progress=False) for r, n in ((raw, "a"), (mine, "b")))
    assert a["training"].hash == b["training"].hash and a["test"].hash == b["test"].hash

class Evil:
    def __reduce__(self): return os.system, ("true",)

@pytest.mark.parametrize("change, message", [
    (dict(ch_names=["Oz", "POz", "P7", "Cz", "Fp1", "trigger"]), "event channel called 'stim', found 0"),
    (dict(ch_names=["Oz", "stim", "P7", "Cz", "Fp1", "stim"]), "found 2"),
    (dict(ch_names=["Oz", "stim"]), "a name for each channel"),
    (dict(raw_eeg_data=np.zeros((6, 10), int)), "floating-point"),
    (dict(sfreq=None), "sfreq not there"),
    (dict(preprocessed_eeg_data=np.zeros(1)), "read_published"),
    (dict(extra=Evil()), "refused")])
def test_read_raw_refuses(mine, change, message):
    path = raw_path(mine, 1, 1, "test"); rewrite(path, **change)
    with pytest.raises(NecomimiError, match=message) as e: read_raw(path)
    assert str(path) in str(e.value)

def test_read_raw_refuses_cut_and_missing_files(mine):
    path = raw_path(mine, 1, 1, "test"); size = path.stat().st_size
    os.truncate(path, size//2)
    with pytest.raises(NecomimiError, match="truncated"): read_raw(path)
    path.unlink()
    with pytest.raises(NecomimiError, match="no such file"): read_raw(path)

# --- half a subject, and worse

def refused(root, out, match, recipe=SMALL, n_sessions=2, **k):
    with pytest.raises(NecomimiError, match=match) as e: preprocess(root, out, 1, recipe, n_sessions=n_sessions, progress=False, **k)
    assert not list(Path(out).glob("sub-*/*.json")) and not list(Path(out).rglob("*.partial"))
    return str(e.value)

def test_a_missing_session(mine, tmp_path):
    raw_path(mine, 1, 2, "test").unlink()
    said = refused(mine, tmp_path/"o", "1 missing")
    assert "ses-02/raw_eeg_test.npy" in said and "ses-01" not in said
    said = refused(mine, tmp_path/"o", "5 missing", n_sessions=4)
    shutil.rmtree(mine/"sub-01")
    refused(mine, tmp_path/"o", "Subjects in .*: none")

def test_half_a_session(mine, tmp_path):
    path = raw_path(mine, 1, 2, "training"); eeg = content(path)["raw_eeg_data"]
    rewrite(path, raw_eeg_data=eeg[:, :eeg.shape[1]//2].copy())
    assert "picture" in refused(mine, tmp_path/"o", "must be shown 2 times")

def test_no_event_at_all(mine, tmp_path):
    path = raw_path(mine, 1, 2, "training"); eeg = content(path)["raw_eeg_data"].copy(); eeg[-1] = 0
    rewrite(path, raw_eeg_data=eeg)
    assert str(path) in refused(mine, tmp_path/"o", "no pictures were shown")

def test_other_channels(mine, tmp_path):
    path = raw_path(mine, 1, 1, "training")
    rewrite(path, ch_names=["Oz", "POz", "P7", "Cz", "Iz", "stim"])
    assert "Fp1" in refused(mine, tmp_path/"o", "wrong channels")
    assert "AF7" in refused(mine, tmp_path/"o", "wrong channels", recipe="necomimi-250hz")

def test_a_picture_list_of_another_length(raw, tmp_path):
    said = refused(raw, tmp_path/"o", "the picture list has 7 rows", pictures={"training": pd.DataFrame(dict(concept=range(7)))})
    assert "number 6" in said

def test_pictures_missing_or_in_unequal_sessions(mine, tmp_path):
    path = raw_path(mine, 1, 1, "training"); eeg = content(path)["raw_eeg_data"].copy()
    eeg[-1][eeg[-1] == 3] = 0
    rewrite(path, raw_eeg_data=eeg)
    refused(mine, tmp_path/"o", "picture 3 in 1")
    eeg[-1][eeg[-1] == 5] = 8
    rewrite(path, raw_eeg_data=eeg)
    refused(mine, tmp_path/"o", "picture 7 in none")

def test_nan_and_a_dead_channel(mine, tmp_path):
    path = raw_path(mine, 1, 2, "training"); eeg = content(path)["raw_eeg_data"].copy()
    bad = eeg.copy(); bad[sorted(FEW).index("P7"), 2600] = np.nan
    rewrite(path, raw_eeg_data=bad)
    assert str(path) in refused(mine, tmp_path/"o", "channel P7 around [12].. s")
    bad = eeg.copy(); bad[sorted(FEW).index("Cz")] = .123
    rewrite(path, raw_eeg_data=bad)
    assert str(path) in refused(mine, tmp_path/"o", "no variance in channel Cz")

def test_too_little_disk(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(P.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 1000))
    refused(raw, tmp_path/"o", "are needed, 0 MB are free")

def test_recipes_refuse():
    with pytest.raises(NecomimiError, match="there are necomimi-250hz"): P._recipe("250")
    for bad in (dict(whiten="trial"), dict(tmin=2.), dict(n_repetitions={"training": 2}), dict(ch_names=()), dict(whiten="time", n_repetitions={"training": 1, "test": 1})):
        with pytest.raises(NecomimiError, match="recipe x"): Recipe("x", **bad)
    with pytest.raises(NecomimiError, match="cannot be brought"): epoch_matrix(Recipe("x"), 100.)
    with pytest.raises(NecomimiError, match="baseline"): epoch_matrix(Recipe("x", baseline=(-1., -.5)))

# --- estimate, resume, many subjects

def test_estimate_is_what_is_written(raw, tmp_path, capsys):
    plan = estimate(raw, 1, SMALL, n_sessions=2, dtype="float16")
    stores = preprocess(raw, tmp_path, 1, SMALL, n_sessions=2, dtype="float16", keep_parts=True)
    assert str(plan).splitlines()[0] in capsys.readouterr().out
    assert plan.store_bytes == sum(s.trials.nbytes for s in stores.values())
    parts = sum(np.load(p, mmap_mode="r").nbytes for p in (tmp_path/"sub-01"/"parts").rglob("t*.npy"))
    assert plan.disk_bytes == plan.store_bytes + parts and plan.free_disk > 0
    assert plan.sessions.kept.sum() == 2*(6*2 + 2*3) and plan.sessions.shown.sum() == 2*(6*3 + 2*4) and "sub-01" in plan._repr_html_()

KILLED = """
import os, signal, necomimi.preprocess as P
cut, calls = P._cut, []
def dying(*a, **k):
    calls.append(1)
    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)
    return cut(*a, **k)
P._cut = dying
P.preprocess({raw!r}, {out!r}, 1, P.Recipe("small", {few!r}, n_repetitions={{"training": 2, "test": 3}}), n_sessions=2, progress=False)
"""

def test_killed_in_the_second_session_goes_on_there(raw, tmp_path, monkeypatch):
    whole = preprocess(raw, tmp_path/"whole", 1, SMALL, n_sessions=2, progress=False)
    died = subprocess.run([sys.executable, "-c", KILLED.format(raw=str(raw), out=str(tmp_path/"o"), few=FEW)])
    assert died.returncode == -signal.SIGKILL
    parts = tmp_path/"o"/"sub-01"/"parts"
    assert [p.name for p in parts.glob("ses*")] == ["ses-01"] and list(parts.glob(".ses-02*"))
    cut, calls = P._cut, []
    monkeypatch.setattr(P, "_cut", lambda raw, *a, **k: (calls.append(raw.path.parent.name), cut(raw, *a, **k)))
    again = preprocess(raw, tmp_path/"o", 1, SMALL, n_sessions=2, progress=False)
    assert calls == ["ses-02", "ses-02"]
    assert all(again[s].hash == whole[s].hash for s in P.SPLITS) and not parts.exists()

def test_parts_of_another_recipe_or_other_files_are_not_used(mine, tmp_path, monkeypatch):
    preprocess(mine, tmp_path/"o", 1, SMALL, n_sessions=2, progress=False, keep_parts=True)
    cut, calls = P._cut, []
    monkeypatch.setattr(P, "_cut", lambda raw, *a, **k: (calls.append(raw.path.parent.name), cut(raw, *a, **k)))
    os.utime(raw_path(mine, 1, 2, "test"), (1, 1))
    preprocess(mine, tmp_path/"o", 1, SMALL, n_sessions=2, progress=False, keep_parts=True)
    assert calls == ["ses-02"]*2
    preprocess(mine, tmp_path/"o", 1, replace(SMALL, seed=1), n_sessions=2, progress=False, keep_parts=True)
    assert calls[2:] == ["ses-01"]*2 + ["ses-02"]*2

def test_a_finished_subject_is_returned_at_once(mine, tmp_path, monkeypatch):
    go = lambda **k: preprocess(mine, tmp_path/"o", 1, **dict(recipe=SMALL, n_sessions=2, progress=False) | k)
    first = go()
    calls, whole = [], P.estimate
    monkeypatch.setattr(P, "estimate", lambda *a, **k: (calls.append(1), whole(*a, **k))[1])
    assert go()["test"].hash == first["test"].hash and not calls
    go(dtype="float16"); go(pictures={"test": pd.DataFrame(dict(concept=["x", "y"]))}); go(recipe=replace(SMALL, sfreq=125.))
    assert len(calls) == 3
    os.truncate(tmp_path/"o"/"sub-01"/"test.npy", 500)
    last = go(recipe=replace(SMALL, sfreq=125.))
    assert len(calls) == 4
    shutil.rmtree(mine)                                                     # the raw files may go once the work is done
    assert go(recipe=replace(SMALL, sfreq=125.))["test"].hash == last["test"].hash and len(calls) == 4

def test_sessions_and_subjects_side_by_side(raw, tmp_path):
    one = preprocess(raw, tmp_path/"a", 1, SMALL, n_sessions=2, progress=False)
    two = preprocess(raw, tmp_path/"b", 1, SMALL, n_sessions=2, progress=False, jobs=2)
    both = preprocess_all(raw, tmp_path/"c", [1, 2], SMALL, n_sessions=2, progress=False, jobs=2)
    assert one["training"].hash == two["training"].hash == both[1]["training"].hash != both[2]["training"].hash
    assert both[2]["test"].subject == 2

def test_one_bad_subject_does_not_stop_the_others(raw, tmp_path, capsys):
    with pytest.raises(NecomimiError, match="1 of 3 subjects failed") as e: preprocess_all(raw, tmp_path, [9, 1, 2], SMALL, n_sessions=2)
    assert "3 subjects, 1 at a time" in capsys.readouterr().out
    assert "sub-09" in str(e.value) and (tmp_path/"sub-02"/"test.json").is_file()
    assert json.loads((tmp_path/"sub-02"/"preprocess.json").read_text())["n_sessions"] == 2
