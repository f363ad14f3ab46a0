"Experiments: views without copies, designs with a known answer, resume, no test data in training, control sets, paired statistics. All EEG here is synthetic."
import json, pickle, tracemalloc
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from torch import nn
from necomimi import experiments as ex
from necomimi.data import CHANNELS, REGIONS, NecomimiError, TrialStore, create_store
from necomimi.encoders import window_options
from necomimi.experiments import (VISUAL, Experiment, Lazy, Subject, compare_encoders, compare_regions, compare_stages, compare_windows, control_sets, crossfit, load_fits, perturb, perturb_channels,
                                  random_sets, view, windows)
from necomimi.training import FitResult, TrainConfig, fit

N, M, R, T, DIM = 160, 20, (2, 3), 20, 12                # training and test pictures, repetitions, samples (100 Hz), width of the embedding
CONFIG = TrainConfig(encoder="mlp", epochs=6, batch_size=20, lr=3e-3, average="all", val_fraction=.1)
FAST = dict(n_boot=200, n_shuffles=50, progress=False)
TRAIN = FAST | dict(device="cpu")

def make_subject(folder, number, channels=VISUAL, window=(.05, .1), gain=3., seed=0):
    "Pictures whose embedding is in the EEG of some channels and samples, and nowhere else."
    rng, places = np.random.default_rng(seed), np.random.default_rng([seed, number])
    e = {s: rng.standard_normal((n, DIM)).astype("float32")*3 for s, n in (("training", N), ("test", M))}
    names = {"training": [f"t{i//2}" for i in range(N)], "test": [f"v{i}" for i in range(M)]}
    picks, t = [CHANNELS.index(c) for c in channels], slice(round(window[0]*100), round(window[1]*100))
    mix = places.standard_normal((DIM, len(picks), t.stop-t.start))/3
    for s, n, r in (("training", N, R[0]), ("test", M, R[1])):
        with create_store(folder/f"sub-{number:02d}", s, (n, r, 63, T), CHANNELS, np.arange(T)/100, 100., "µV", "synthetic", number, pd.DataFrame(dict(concept=names[s])), "float32", True) as x:
            x[:] = places.standard_normal(x.shape)
            x[:, :, picks, t] += gain*np.einsum("nd,dct->nct", e[s], mix)[:, None]
    return Subject(number, *(TrialStore.open(folder/f"sub-{number:02d}", s) for s in ("training", "test")), e["training"], e["test"])

@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eeg"); return [make_subject(folder, n) for n in (1, 2)]

@pytest.fixture(scope="module")
def fits(subjects, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return folder, compare_encoders(subjects, "mlp", seeds=(0, 1), config=CONFIG, folder=folder, **TRAIN)

def top1(e): return e.mean().query("measure == '20-way top-1'").set_index("condition")["mean"]

# --- views ---
@pytest.mark.parametrize("channels, window, pictures", [("occipital", None, None), ("temporal", (.05, .1), None), (("Oz", "Fp1", "Cz"), None, [5, 2, 9]), (None, (0, .2), None), (None, None, range(0, N, 3)), ("Oz", (.03, .04), [7])])
def test_a_view_is_the_part_it_says(subjects, channels, window, pictures):
    store = subjects[0].training; v = view(store, channels, window, pictures)
    names = list(store.ch_names) if channels is None else list(REGIONS.get(channels, (channels,)) if isinstance(channels, str) else channels)
    rows, t = np.arange(N) if pictures is None else np.array(pictures), slice(0, T) if window is None else slice(round(window[0]*100), round(window[1]*100))
    want = np.array(store.trials)[rows][:, :, [store.ch_names.index(c) for c in names], t]
    assert isinstance(v, TrialStore) and v.trials.shape == want.shape and v.ch_names == tuple(names) and np.array_equal(v.times, store.times[t]) and v.trials.nbytes == want.nbytes
    for got in (v, pickle.loads(pickle.dumps(v))):
        assert np.array_equal(got.trials[:], want) and np.array_equal(got.trials[len(want)-1], want[-1]) and np.array_equal(np.array([x for x in got.trials]), want)
        np.testing.assert_array_equal(got.average(), want.mean(1, dtype="float32")); assert got.hash == v.hash
        assert list(got.pictures.concept) == list(store.pictures.concept.iloc[rows])
    again = view(view(store, channels, window), pictures=pictures); assert np.array_equal(again.trials[:], want) and np.array_equal(pickle.loads(pickle.dumps(again)).trials[:], want)
    lazy = Lazy(store.trials[..., t], rows, [store.ch_names.index(c) for c in names])                  # whatever view chose, the lazy form agrees
    p, r = np.array([0, len(rows)-1]), np.array([1, 0])
    assert np.array_equal(lazy[p, r], want[p, r]) and np.array_equal(lazy[:, :1][:], want[:, :1]) and np.array_equal(lazy[p], want[p])

def test_evenly_spaced_channels_stay_a_plain_memory_map(subjects):
    store = subjects[0].training
    for part in ("occipital", "frontal", ("Fp1", "AF7", "AFz"), None): assert isinstance(view(store, part, (0, .1)).trials, np.memmap) and np.shares_memory(view(store, part, (0, .1)).trials, store.trials)
    assert isinstance(view(store, "temporal").trials, Lazy) and view(store) is store

def test_a_subject_of_gigabytes_is_not_read(tmp_path, subjects):
    big = np.lib.format.open_memmap(tmp_path/"training.npy", "w+", "float32", (16540, 4, 63, 250))         # 4.2 GB, sparse
    small = subjects[0].training; store = TrialStore(small.folder, "training", 1, big, CHANNELS, np.arange(250)/250, 250., "µV", "none", True, "0")
    tracemalloc.start()
    part = view(store, "parietal", (.1, .3), range(0, 16540, 2)); x = part.trials[np.arange(0, 8000, 100)]
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert x.shape == (80, 4, 16, 50) and peak < 20e6

@pytest.mark.parametrize("average", ["all", "random", None])
def test_training_on_a_view_is_training_on_the_copy(subjects, average):
    s, config = subjects[0], replace(CONFIG, average=average, epochs=2); v = s.view("temporal", (.05, .1))
    copy = np.ascontiguousarray(np.array(s.training.trials)[:, :, [CHANNELS.index(c) for c in REGIONS["temporal"]], 5:10])
    a, b = (fit(x, s.targets, concepts=s.concepts, config=config, progress=False, device="cpu", sfreq=100., ch_names=REGIONS["temporal"]) for x in (v.training, copy))
    assert a.history.loss.tolist() == b.history.loss.tolist() and a.info["data"] == b.info["data"] and np.array_equal(a.embed(v.test), b.embed(v.test.average()))
    assert a.info["simulated"] and a.info["subject"] == 1

@pytest.mark.parametrize("bad, says", [(dict(channels="tail"), "tail"), (dict(channels=["Oz", "Oz"]), "different"), (dict(window=(.1, .3)), "not inside"), (dict(window=(-.1, .1)), "not inside"), (dict(window=(.101, .102)), "not inside"),
                                       (dict(pictures=[N]), "rows"), (dict(pictures=[]), "rows"), (dict(channels=[]), "at least one")])
def test_views_of_what_is_not_there(subjects, bad, says):
    with pytest.raises(NecomimiError, match=says): view(subjects[0].training, **bad)

# --- subjects ---
def test_what_does_not_fit_together_is_refused(subjects, tmp_path):
    s, other = subjects[0], make_subject(tmp_path, 3)
    leak = np.array([*s.concepts[:-1], "v3"], object)
    for change, says in ((dict(training=s.test, targets=s.gallery, concepts=None), "no test data"), (dict(targets=s.targets[:-1]), "targets"), (dict(gallery=s.gallery[:5]), "gallery"), (dict(gallery=s.gallery[:, :5]), "wide"),
                         (dict(concepts=s.concepts[:-1]), "concepts"), (dict(concepts=leak), "v3"), (dict(test=view(s.test, "occipital")), "differ in channels"), (dict(test=view(s.test, None, (0, .1))), "differ in channels")):
        with pytest.raises(NecomimiError, match=says): replace(s, **change)
    with pytest.raises(NecomimiError, match="different subjects"): compare_encoders([s, s], "mlp", config=CONFIG, **TRAIN)
    with pytest.raises(NecomimiError, match="number of test pictures"): compare_encoders([s, other.only_test(range(10))], "mlp", config=CONFIG, **TRAIN)
    with pytest.raises(NecomimiError, match="at least one"): compare_encoders([], "mlp", config=CONFIG, **TRAIN)

def test_the_trainer_never_meets_the_test_split(subjects, monkeypatch):
    import necomimi.training as tr
    met = []
    real = tr.fit
    monkeypatch.setattr(tr, "fit", lambda eeg, targets, *, concepts, **kw: met.append((eeg.split, set(map(str, concepts)), len(targets))) or real(eeg, targets, concepts=concepts, **kw))
    compare_regions(subjects[:1], ("occipital", "all"), config=CONFIG, **TRAIN); crossfit(subjects[0], CONFIG, 2, progress=False, device="cpu")
    assert len(met) == 4 and {split for split, *_ in met} == {"training"} and all(not c & set(subjects[0].test.pictures.concept) for _, c, _ in met)

# --- designs with a known answer ---
def test_encoders_table(subjects, fits):
    folder, e = fits
    assert list(e.table.columns[:9]) == ["subject", "condition", "seed", "draw", "measure", "value", "low", "high", "n"] and len(e.table) == 2*2*len(e.measures) and e.simulated and "SIMULATED" in repr(e)
    assert top1(e)["mlp"] > .5 and set(e.table.chance) == {1/2, 1/4, 1/10, 1/20, 5/20} and "last epoch kept" in e.protocol
    by = e.items.groupby(["subject", "condition", "seed", "draw"])[e.measures].mean().stack()                        # a value is the mean of its items
    np.testing.assert_allclose(e.table.set_index(["subject", "condition", "seed", "draw", "measure"]).value.sort_index(), by.sort_index(), atol=1e-8)
    np.testing.assert_allclose(e.tidy().groupby(["subject", "encoder", "seed", "measure"]).value.mean(), by.droplevel("draw").sort_index(), atol=1e-8)
    assert not np.array_equal(*(e.table[e.table.seed == s].value.to_numpy() for s in (0, 1)))
    found = load_fits(folder, "mlp", (0, 1)); assert [f.config.seed for f in found[2]] == [0, 1] and found[2][0].info["subject"] == 2 and found[1][0].info["store_hash"] == subjects[0].training.hash
    with pytest.raises(NecomimiError, match="keep_fits"): load_fits(folder, "nerv")

def test_windows_find_when(subjects):
    e = compare_windows(subjects, "sliding", config=CONFIG, width=.05, **TRAIN); t = top1(e)
    assert e.conditions == ["0-50 ms", "50-100 ms", "100-150 ms", "150-200 ms"] and t.idxmax() == "50-100 ms" and t["50-100 ms"] > .5 > .3 > t.drop("50-100 ms").max()
    assert np.allclose(e.settings["axis"]["x"], [25, 75, 125, 175]) and all(c["encoder_options"] == {} for c in e.settings["configs"].values())
    g = compare_windows(subjects[:1], "growing", config=CONFIG, width=.05, step=.15, **TRAIN); assert g.conditions == ["0-50 ms", "0-200 ms"] and top1(g).idxmax() == "0-200 ms"

def test_regions_find_where(tmp_path):
    s = make_subject(tmp_path, 1, channels=REGIONS["temporal"]); e = compare_regions(s, config=CONFIG, n_random=2, **TRAIN); t = top1(e)
    assert e.conditions == ["frontal", "central", "parietal", "temporal", "occipital", "all", "8 random", "10 random", "14 random", "15 random", "16 random"]
    assert t["temporal"] > .5 and t[["frontal", "central", "parietal", "occipital"]].max() < .3 and e.table.groupby("condition").draw.nunique()["8 random"] == 2
    with pytest.raises(NecomimiError, match="tail"): compare_regions(s, ("tail",), config=CONFIG, **TRAIN)
    assert compare_regions(s, {"mine": ("Oz", "T7")}, config=CONFIG, **TRAIN).settings["channels"]["mine"] == [["Oz", "T7"]]

def test_the_windows_of_the_spec():
    assert windows("sliding", 0, 1) == [(round(i/10, 1), round(i/10+.1, 1)) for i in range(10)] and windows("growing", 0, 1) == [(0, round(i/10+.1, 1)) for i in range(10)]
    assert windows("growing", 0, 1, .05, .1)[:5] == [(0, .05), (0, .15), (0, .25), (0, .35), (0, .45)]
    for bad in (("falling", 0, 1), ("sliding", 0, 1, 0), ("sliding", 0, 1, 2)):
        with pytest.raises(NecomimiError, match="sliding"): windows(*bad)

@pytest.mark.parametrize("encoder", ["nerv", "nervformer", "nice", "muse", "atm_s"])
def test_one_architecture_rule_and_a_kernel_as_high_as_the_region(subjects, encoder):
    conditions = {f"{r} {w}": dict(encoder=encoder, options=dict(drop_prob=.1), window=w, channels=[r]) for r in ("parietal", "occipital", None) for w in ((0, .1), (.03, .15), None)}
    configs, sizes = ex._planned(subjects, conditions, CONFIG, (0,))
    for label, c in conditions.items():
        n = T if c["window"] is None else round(100*(c["window"][1]-c["window"][0]))
        assert configs[label].encoder_options == window_options(n, 100.) | dict(drop_prob=.1)
    assert ex._architecture(encoder, 250, 250.) == dict(filter_time_length=25, pool_time_length=51, pool_time_stride=5)
    assert sizes["parietal None"] - sizes["occipital None"] == (sizes["None None"] - sizes["occipital None"])*8/55 or encoder in ("nerv", "atm_s")   # linear in the channels, without attention over them
    assert ex._architecture("mlp", 50, 250.) == {}

def test_convolutional_encoders_train_through_the_design(subjects):
    e = compare_windows(subjects[:1], [(0, .1)], config=replace(CONFIG, encoder="nice", epochs=1), **TRAIN); assert e.conditions == ["0-100 ms"] and "nice" in e.name and e.table.value.between(0, 1).all()

# --- resume ---
def test_a_cut_design_goes_on_and_is_the_same(subjects, tmp_path, monkeypatch):
    import necomimi.training as tr
    real, calls = tr.fit, []
    def counted(*a, **kw):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return real(*a, **kw)
    whole = compare_regions(subjects, ("occipital", "temporal"), config=CONFIG, **TRAIN)
    monkeypatch.setattr(tr, "fit", counted)
    with pytest.raises(KeyboardInterrupt): compare_regions(subjects, ("occipital", "temporal"), config=CONFIG, folder=tmp_path, **TRAIN)
    assert sorted(p.name for p in (tmp_path/"cells").iterdir()) == ["sub-01_occipital_seed-0.json", "sub-01_temporal_seed-0.json"]
    e = compare_regions(subjects, ("occipital", "temporal"), config=CONFIG, folder=tmp_path, **TRAIN); assert len(calls) == 5
    pd.testing.assert_frame_equal(e.table, whole.table); pd.testing.assert_frame_equal(e.items, whole.items); assert not list((tmp_path/"fits").glob("*"))
    more = compare_regions(subjects, ("occipital", "temporal"), seeds=(0, 1), config=CONFIG, folder=tmp_path, **TRAIN); assert len(calls) == 9 and more.table.seed.nunique() == 2
    pd.testing.assert_frame_equal(more.table[more.table.seed == 0].reset_index(drop=True), whole.table)

def test_a_training_cut_inside_a_cell_goes_on_there(subjects, tmp_path, monkeypatch):
    import necomimi.training as tr
    real = tr.fit
    class Cut(Exception): pass
    def cut(record):
        if record["epoch"] == 4: raise Cut
    monkeypatch.setattr(tr, "fit", lambda *a, **kw: real(*a, callback=cut, checkpoint_seconds=0, **kw))
    with pytest.raises(Cut): compare_encoders(subjects[:1], "mlp", config=CONFIG, folder=tmp_path, **TRAIN)
    epochs = []
    monkeypatch.setattr(tr, "fit", lambda *a, **kw: real(*a, callback=lambda r: epochs.append(r["epoch"]), **kw))
    e = compare_encoders(subjects[:1], "mlp", config=CONFIG, folder=tmp_path, **TRAIN); assert epochs == [5, 6]
    monkeypatch.undo(); assert e.table.value.tolist() == compare_encoders(subjects[:1], "mlp", config=CONFIG, **TRAIN).table.value.tolist()

def test_a_folder_of_another_experiment_is_refused(subjects, fits, tmp_path):
    folder, _ = fits
    for change, says in ((dict(config=replace(CONFIG, lr=1e-3)), "config.lr: 0.003 there, 0.001 now"), (dict(n_boot=100), "score.n_boot"), (dict(subjects=[replace(subjects[0], targets=subjects[0].targets*2)]), "targets")):
        with pytest.raises(NecomimiError, match=says): compare_encoders(**(dict(subjects=subjects, encoders="mlp", config=CONFIG, folder=folder) | TRAIN | change))
    (tmp_path/"cells").mkdir(); (tmp_path/"cells"/"sub-01_mlp_seed-0.json").write_text('{"facts"')
    with pytest.raises(NecomimiError, match="delete it"): compare_encoders(subjects, "mlp", config=CONFIG, folder=tmp_path, **TRAIN)
    with pytest.raises(NecomimiError, match="nerf"): compare_encoders(subjects, ("mlp", "nerf"), config=CONFIG, folder=tmp_path/"new", **TRAIN)
    assert not (tmp_path/"new").exists()                                                                    # refused before anything was trained

# --- perturbation ---
def test_noise_keeps_mean_and_spread_and_nothing_else():
    eeg = (np.random.default_rng(0).standard_normal((40, 5, 4000))*[[1], [2], [3], [4], [5]] + 7).astype("float32"); out = perturb(eeg, [1, 3], np.random.default_rng(1))
    assert np.array_equal(out[:, [0, 2, 4]], eeg[:, [0, 2, 4]]) and abs(out[:, [1, 3]].mean(-1)-eeg[:, [1, 3]].mean(-1)).max() < .3 and abs(out[:, [1, 3]].std(-1)/eeg[:, [1, 3]].std(-1)-1).max() < .06
    assert abs(np.corrcoef(out[0, 1], eeg[0, 1])[0, 1]) < .08 and np.array_equal(out, perturb(eeg, [1, 3], np.random.default_rng(1))) and not np.array_equal(out, perturb(eeg, [1, 3], np.random.default_rng(2)))
    assert np.array_equal(np.concatenate([perturb(x, [1, 3], r) for r in [np.random.default_rng(1)] for x in (eeg[:7], eeg[7:])]), out)     # blocks do not matter

@pytest.mark.parametrize("kind", ["scattered", "patch"])
def test_control_sets_lie_elsewhere(kind):
    sets = control_sets(CHANNELS, VISUAL, 6, 3, kind)
    assert all(len(set(c)) == len(VISUAL) and not set(c) & set(VISUAL) and [*c] == sorted(c, key=CHANNELS.index) for c in sets) and len({tuple(c) for c in sets}) == 6
    assert control_sets(CHANNELS, VISUAL, 2, 3, kind) == sets[:2] and control_sets(CHANNELS, VISUAL, 6, 4, kind) != sets
    with pytest.raises(NecomimiError): control_sets(CHANNELS, CHANNELS[:40], 1, 0, kind)
    with pytest.raises(NecomimiError, match="patch"): control_sets(CHANNELS, VISUAL, 1, 0, "anywhere")

class Reader(nn.Module):
    "Reads some channels and samples with a fixed matrix, and nothing else."
    def __init__(self, s, picks, t):
        super().__init__(); self.picks, self.t = picks, t
        x = torch.from_numpy(s.training.average()[:, picks, t].reshape(N, -1)); self.w = nn.Parameter(torch.linalg.lstsq(x, torch.from_numpy(s.targets)).solution)
    def forward(self, x): return x[:, self.picks, self.t].flatten(1) @ self.w

def reader(s, seed=0): return FitResult(Reader(s, [CHANNELS.index(c) for c in VISUAL], slice(5, 10)), np.ones(63, "float32"), replace(CONFIG, seed=seed), pd.DataFrame(), None, dict(ch_names=list(CHANNELS), n_chans=63, n_times=T, subject=s.subject, data="known", simulated=True))

@pytest.mark.parametrize("level, control", [("response", "scattered"), ("trial", "patch")])
def test_a_network_that_reads_seven_channels(subjects, level, control):
    e = perturb_channels(subjects, {s.subject: reader(s) for s in subjects}, control=control, n_draws=3, level=level, **FAST); t = top1(e)
    assert e.conditions == ["intact", "visual", "control"] and t["intact"] > .7 and t["visual"] < .3 and t["control"] == t["intact"]      # noise elsewhere changes not one rank
    assert e.table.groupby("condition").draw.nunique().to_dict() == dict(intact=1, visual=3, control=3) and e.settings["channels"]["control"] == control_sets(CHANNELS, VISUAL, 3, 0, control)
    d = e.difference("visual", "control").set_index("measure").loc["20-way top-1"]; assert d.high < 0 and np.isclose(d.difference, t["visual"]-t["control"])
    again = perturb_channels(subjects, [reader(s) for s in subjects], control=control, n_draws=3, level=level, **FAST); pd.testing.assert_frame_equal(again.table, e.table)
    other = perturb_channels(subjects, [reader(s) for s in subjects], control=control, n_draws=3, level=level, seed=1, **FAST); assert not other.table.value.equals(e.table.value)

def test_perturbation_uses_the_networks_as_they_are(subjects, fits, tmp_path):
    folder, e = fits; found = load_fits(folder, "mlp", (0, 1)); before = [p.clone() for p in found[1][0].encoder.parameters()]
    p = perturb_channels(subjects, found, "occipital", n_draws=1, folder=tmp_path, **FAST)
    assert all(torch.equal(a, b) for a, b in zip(before, found[1][0].encoder.parameters())) and p.table.seed.nunique() == 2
    np.testing.assert_allclose(p.table[p.table.condition == "intact"].value.to_numpy(), e.table.value.to_numpy())
    assert len(list((tmp_path/"cells").iterdir())) == 2*2*3; pd.testing.assert_frame_equal(perturb_channels(subjects, found, "occipital", n_draws=1, folder=tmp_path, **FAST).table, p.table)
    with torch.no_grad(): next(found[1][0].encoder.parameters()).add_(1)
    with pytest.raises(NecomimiError, match="weights"): perturb_channels(subjects, found, "occipital", n_draws=1, folder=tmp_path, **FAST)

def test_fits_that_do_not_fit(subjects):
    a, b = map(reader, subjects)
    for fits, kw, says in (({1: a}, {}, "no trained encoder of subject 2"), ({1: b, 2: a}, {}, "trained on subject 2"), ({1: [a, a], 2: b}, {}, "same seed"), ([a, b], dict(channels=["Oz", "tail"]), "tail"), ([a, b], dict(level="epoch"), "level")):
        with pytest.raises(NecomimiError, match=says): perturb_channels(subjects, fits, n_draws=1, **FAST, **kw)
    with pytest.raises(NecomimiError, match="63 channels x 20 samples"): perturb_channels([s.view("occipital") for s in subjects], [a, b], **FAST)

# --- statistics ---
def toy(n_subjects=4, n=30, seeds=(0, 1), effect=.5, seed=0):
    rng, items = np.random.default_rng(seed), []
    for s in range(n_subjects):
        base = rng.standard_normal((n, 1)) + rng.standard_normal()
        for c, plus in (("a", 0.), ("b", effect)):
            for k in seeds: items.append(pd.DataFrame(dict(x=base[:, 0] + plus + .1*rng.standard_normal(n), subject=s, condition=c, seed=k, draw=0, picture=range(n))))
    items = pd.concat(items, ignore_index=True); table = items.groupby(["subject", "condition", "seed", "draw"], as_index=False).x.mean().rename(columns=dict(x="value")).assign(measure="x", low=0, high=0, n=n, chance=.5)
    return Experiment("toy", table, "SIMULATED numbers", dict(conditions=["b", "a"]), True, items)

def test_means_and_intervals():
    e = toy(); m = e.mean("t").set_index("condition"); v = e.table[e.table.condition == "a"].groupby("subject").value.mean()
    low, high = stats.t.interval(.95, 3, v.mean(), stats.sem(v)); np.testing.assert_allclose(m.loc["a", ["mean", "low", "high"]].astype(float), [v.mean(), low, high])
    assert list(e.mean().condition) == ["b", "a"] and (m.n_subjects == 4).all() and (m.n_seeds == 2).all() and (m.chance == .5).all()
    c = e.mean().set_index("condition").loc["a"]; np.testing.assert_allclose(c["mean"], v.mean()); assert c.low < v.mean() < c.high and e.mean(seed=0).equals(e.mean(seed=0))
    d = e.difference("b", "a").iloc[0]; assert .4 < d.low < d.difference < d.high < .6 and d.high-d.low < (c.high-c.low)/3          # paired: what subjects and pictures share is gone
    one = toy(1); assert one.mean().high.iloc[0] > one.mean().low.iloc[0]
    with pytest.raises(NecomimiError, match="two subjects"): one.mean("t")
    with pytest.raises(NecomimiError, match="crossed"): e.mean("sem")
    with pytest.raises(NecomimiError, match="no condition 'c'"): e.difference("a", "c")
    broken = replace(e, items=e.items[(e.items.condition == "a") | (e.items.subject > 0)])
    with pytest.raises(NecomimiError, match="paired"): broken.difference("a", "b")

def test_an_experiment_reads_writes_and_draws(fits, tmp_path):
    _, e = fits; back = Experiment.load(e.save(tmp_path)); pd.testing.assert_frame_equal(back.table, e.table); pd.testing.assert_frame_equal(back.mean(), e.mean())
    assert (back.protocol, back.settings, back.simulated, repr(back)) == (e.protocol, json.loads(json.dumps(e.settings)), True, repr(e)) and "<table" in e._repr_html_()
    ax = toy().plot(); assert [t.get_text() for t in ax.get_xticklabels()] == ["b", "a"] and "SIMULATED" in ax.get_title() and any(l.get_label() == "shuffled labels" for l in ax.collections)
    assert any(l.get_label() == "chance" for l in e.plot().collections) and e.headline == "20-way top-1"
    with pytest.raises(NecomimiError, match="no measure"): e.plot("3-way")
    (tmp_path/"table.csv").unlink()
    with pytest.raises(NecomimiError, match="no readable experiment"): Experiment.load(tmp_path)

# --- one stage or two ---
def test_crossfit_never_embeds_with_an_encoder_that_saw_the_concept(subjects, monkeypatch, tmp_path):
    import necomimi.training as tr
    s, log = subjects[0], []
    class Stub:
        def __init__(self, concepts): self.concepts = set(concepts)
        def embed(self, store): log.append(self.concepts & set(store.pictures.concept)); return store.average().mean(-1)[:, :DIM]
    monkeypatch.setattr(tr, "fit", lambda eeg, targets, *, concepts, **kw: Stub(concepts)); out = crossfit(s, CONFIG, 4, progress=False)
    assert log == [set()]*4 and np.array_equal(out, s.training.average().mean(-1)[:, :DIM])                  # every picture once, in its own row
    monkeypatch.undo(); a = crossfit(s, CONFIG, 2, tmp_path, progress=False, device="cpu"); assert np.array_equal(a, crossfit(s, CONFIG, 2, progress=False, device="cpu")) and len(list(tmp_path.glob("fold-*/encoder.safetensors"))) == 2
    with pytest.raises(NecomimiError, match="n_folds"): crossfit(s, CONFIG, 1)

class Judge:
    "The point is earned in every slot when the picture's first pixel is the number of the row."
    def __call__(self, pictures, tags):
        from necomimi.cat import Judgement
        return Judgement(np.repeat((pictures[:, 0, 0, 0][:, None] == np.arange(len(tags))[None])[..., None], 5, -1).astype(np.int8), "first pixel")
    def __repr__(self): return "first pixel"

@pytest.fixture
def stages(subjects, monkeypatch, tmp_path):
    "`compare_stages` with a generator that writes the number of the nearest test embedding into the picture."
    from necomimi import generation
    from necomimi.cat import SLOTS, TagTable
    from necomimi.prior import PriorConfig
    unit, seeds = lambda x: x/np.linalg.norm(x, axis=1, keepdims=True), []
    def generate(brush, e, *, seed, progress, **options):
        seeds.append(seed); near = (unit(e) @ unit(subjects[0].gallery).T).argmax(1)
        return np.broadcast_to(near[:, None, None, None], (len(e), 4, 4, 3)).astype(np.uint8)
    monkeypatch.setattr(generation, "generate", generate); monkeypatch.setattr(generation, "check_embeddings", lambda g, e: e)
    tags = TagTable.from_frame(pd.DataFrame({s: [f"{s} {i}" for i in range(M)] for s in SLOTS}, index=[f"p{i}" for i in range(M)]))
    go = lambda fits, **kw: compare_stages(subjects, fits, SimpleNamespace(spec=SimpleNamespace(name="stub")), Judge(), tags, **(dict(folder=tmp_path, n_folds=2, num_inference_steps=5, progress=False, device="cpu",
                                                                                                  prior_config=PriorConfig(epochs=2, min_steps=40, hidden_dims=(32, 16), time_dim=16)) | kw))
    return SimpleNamespace(go=go, seeds=seeds, folder=tmp_path, tags=tags)

def test_stages(subjects, fits, stages, monkeypatch):
    found = load_fits(fits[0], "mlp"); e = stages.go(found, seeds=(0, 5)); m = e.mean().query("measure == 'CAT-style (of 1000)'").set_index("condition")
    assert e.conditions == list(ex.STAGES) and m.loc["true embedding", "mean"] == 1000 and m.loc["one-stage", "mean"] > 400 > m.loc["shuffled EEG", "mean"] and e.headline == "CAT-style (of 1000)"
    assert np.isclose(m.loc["one-stage", "mean"], 1000*fits[1].table.query("seed == 0 and measure == '20-way top-1'").value.mean())      # one stage draws what retrieval finds
    assert sorted(set(stages.seeds)) == [0, 5] and len(stages.seeds) == 2*4*2 and (e.table.n == M).all()                      # D24: the same seeds and as many pictures for everybody
    assert "cross-fitted in 2 folds" in e.protocol and "SIMULATED" in e.protocol and len(list((stages.folder/"pictures").glob("*/draw-5/*.png"))) == 2*4*M
    priors = sorted(p.name for p in (stages.folder/"priors").iterdir()); assert priors == ["sub-01_seed-0", "sub-02_seed-0"] and not list((stages.folder/"priors").glob("*/folds"))      # D22: one a subject
    import necomimi.prior as pr
    monkeypatch.setattr(pr, "fit_prior", lambda *a, **k: pytest.fail("fitted again")); (stages.folder/"cells"/"sub-02_two-stage_seed-0.json").unlink()
    pd.testing.assert_frame_equal(stages.go(found, seeds=(0, 5)).table, e.table)
    with pytest.raises(NecomimiError, match="guidance"): stages.go(found, seeds=(0, 5), guidance_scale=3.)

def test_stages_on_own_embeddings_say_so(fits, stages):
    found = load_fits(fits[0], "mlp"); e = stages.go(found, n_folds=0, folder=None, conditions=("two-stage",)); assert "D23" in e.protocol and e.conditions == ["two-stage"]
    with pytest.raises(NecomimiError, match="no condition"): stages.go(found, n_folds=0, folder=None, conditions=("three-stage",))

def test_stages_want_a_tag_a_picture(subjects, fits, stages):
    with pytest.raises(NecomimiError, match="the tag table has 20 pictures, the test split 5"): compare_stages([s.only_test(range(5)) for s in subjects], load_fits(fits[0], "mlp"), None, Judge(), stages.tags)

@pytest.mark.parametrize("encoder", ["nerv", "nervformer", "nice", "muse", "atm_s"])
def test_every_convolutional_encoder_gets_the_rule(encoder):
    "Python 3.11.2 and 3.11.7 disagree about the signature of a class that inherits its constructor."
    from necomimi.experiments import _architecture
    assert _architecture(encoder, 25, 250.) == dict(filter_time_length=3, pool_time_length=5, pool_time_stride=1)
