"Training: loss values, no test data, exact resume, repetitions, round trips, bad input. All data synthetic, with a known answer."
import json, os
from dataclasses import replace
import numpy as np, pytest, torch
from torch import nn
from necomimi.data import NecomimiError, create_store, TrialStore
from necomimi.training import (Batches, Contrast, FitResult, TrainConfig, channel_moments, channel_scale, epoch_plan, fit, info_nce, learning_rate, validation_scores)

class Tiny(nn.Module):
    "With dropout and running statistics, so that resuming has something to get wrong."
    def __init__(self, n_chans=6, n_times=10, n_outputs=12):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(n_chans*n_times, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(.2), nn.Linear(32, n_outputs))
    def forward(self, x): return self.net(x)

def tiny(seed=0):
    with torch.random.fork_rng(): torch.manual_seed(seed); return Tiny()

def problem(n_concepts=30, n_exemplars=5, R=4, noise=2., seed=0):
    rng = np.random.default_rng(seed); mix, rotate = rng.standard_normal((8, 60))/3, np.linalg.qr(rng.standard_normal((12, 8)))[0].T
    concepts = np.repeat(np.arange(n_concepts), n_exemplars)
    hidden = np.repeat(rng.standard_normal((n_concepts, 8)), n_exemplars, 0) + .8*rng.standard_normal((len(concepts), 8))
    eeg = (hidden @ mix).reshape(-1, 1, 6, 10) + noise*rng.standard_normal((len(concepts), R, 6, 10))
    return (eeg*np.array([1e-6, 1e-3, 1, 10, 100, 1e3])[:, None]).astype("float32"), (hidden @ rotate).astype("float32"), concepts

CONFIG = TrainConfig(epochs=6, batch_size=32, lr=3e-3, val_fraction=.2)
def train(config=CONFIG, data=None, **kw):
    eeg, targets, concepts = data or problem()
    return fit(eeg, targets, concepts=concepts, config=config, progress=False, device="cpu", **(dict(encoder=tiny()) | kw))
def same_weights(a, b): return all(torch.equal(x, y) for x, y in zip(a.encoder.state_dict().values(), b.encoder.state_dict().values()))

def test_info_nce_against_a_plain_form():
    logits = torch.randn(7, 7, generator=torch.manual_seed(1)).double(); p = logits.numpy()
    want = -np.mean([p[i, i] - np.log(np.exp(p[i]).sum()) + p[i, i] - np.log(np.exp(p[:, i]).sum()) for i in range(7)])/2
    np.testing.assert_allclose(info_nce(logits), want)
    np.testing.assert_allclose(info_nce(torch.zeros(9, 9)), np.log(9), rtol=1e-6)

def test_twins_are_masked_or_positive():
    logits = torch.randn(6, 6, generator=torch.manual_seed(2)).double(); ids = torch.tensor([0, 0, 1, 2, 2, 2]); p, d = logits.numpy(), ids.numpy()
    row = lambda m: np.mean([-m[i, i] + np.log(sum(np.exp(m[i, j]) for j in range(6) if j == i or d[j] != d[i])) for i in range(6)])
    np.testing.assert_allclose(info_nce(logits, ids), (row(p) + row(p.T))/2)
    soft = lambda m: np.mean([np.mean([-m[i, j] + np.log(np.exp(m[i]).sum()) for j in range(6) if d[j] == d[i]]) for i in range(6)])
    np.testing.assert_allclose(info_nce(logits, ids, True), (soft(p) + soft(p.T))/2)
    np.testing.assert_allclose(info_nce(logits, torch.arange(6)), info_nce(logits)); np.testing.assert_allclose(info_nce(logits, torch.arange(6), True), info_nce(logits))

def test_temperature_forms():
    e, t = torch.randn(5, 12, generator=torch.manual_seed(0)), torch.randn(5, 12, generator=torch.manual_seed(1))
    cos = nn.functional.normalize(e) @ nn.functional.normalize(t).T
    np.testing.assert_allclose(Contrast().logits(e, t).detach(), cos/.07, rtol=1e-4)
    np.testing.assert_allclose(Contrast("reference").logits(e, t).detach(), np.log(1/.07)*e.norm(dim=1, keepdim=True)*cos, rtol=1e-4)
    c = Contrast(); c.log_scale.data.fill_(9.); c.clamp_(); np.testing.assert_allclose(c.scale, 100, rtol=1e-5)
    c = Contrast("reference"); c.log_scale.data.fill_(9.); c.clamp_(); assert c.scale == 9

def test_config_round_trip_and_named_settings():
    for c in (TrainConfig(), TrainConfig.paper(), TrainConfig.reference(), TrainConfig(encoder_options=dict(n_layers=2), average=None, patience=3)):
        assert TrainConfig.from_json(c.to_json()) == c
    p, r = TrainConfig.paper(), TrainConfig.reference()
    assert (p.lr, p.betas, p.batch_size, p.epochs, p.text_weight) == (2e-4, (.5, .999), 1024, 200, 0) and p.average is None and p.schedule is None
    assert (r.lr, r.betas, r.temperature, r.text_weight) == (3e-4, (.9, .999), "reference", .01)
    for bad in (dict(temperature="x"), dict(average="half"), dict(epochs=0), dict(text_weight=2), dict(patience=3, val_fraction=0.)):
        with pytest.raises(NecomimiError): TrainConfig(**bad)
    with pytest.raises(NecomimiError, match="colour"): TrainConfig.from_dict(dict(colour=1))

@pytest.mark.parametrize("average", ["random", "all", None])
def test_epoch_plan(average):
    pictures, weights = epoch_plan(50, 4, average, 0, 1)
    assert np.array_equal(pictures, epoch_plan(50, 4, average, 0, 1)[0]) and not np.array_equal(pictures, epoch_plan(50, 4, average, 0, 2)[0])
    if average is None: assert sorted(zip(pictures, weights)) == [(p, r) for p in range(50) for r in range(4)]
    else:
        assert sorted(pictures) == list(range(50)); np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
        assert set((weights > 0).sum(1)) == ({4} if average == "all" else {1, 2, 3, 4})
        if average == "random": np.testing.assert_allclose((epoch_plan(9000, 4, average, 0, 1)[1]).mean(0), .25, atol=.01)

def test_batches_from_a_float16_map(tmp_path):
    eeg = np.random.default_rng(0).standard_normal((20, 4, 3, 5)).astype("float16"); np.save(tmp_path/"training.npy", eeg)
    m = np.load(tmp_path/"training.npy", mmap_mode="r"); scale = channel_scale(*channel_moments(m))
    np.testing.assert_allclose(scale, eeg.astype("float64").std((0, 1, 3)), rtol=1e-3)
    w = np.random.default_rng(1).random((6, 4)).astype("float32"); p = np.array([3, 1, 19, 0, 7, 7])
    np.testing.assert_allclose(Batches(m, scale)(p, w), np.einsum("nr,nrct->nct", w, eeg[p].astype("float32"))/scale[:, None], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Batches(m, scale)(p, np.array([0, 3, 1, 2, 0, 1])), eeg[p, [0, 3, 1, 2, 0, 1]].astype("float32")/scale[:, None], rtol=1e-5)

def test_scale_survives_offsets_and_dead_channels():
    eeg = np.random.default_rng(0).standard_normal((20, 2, 3, 50)).astype("float32")*[[1e-6], [1], [0]] + [[0], [5000], [7]]
    np.testing.assert_allclose(channel_scale(*channel_moments(eeg.astype("float32"))), [1e-6, 1, 1], rtol=.05)

def test_learning_rate():
    c = TrainConfig(lr=1., warmup=.1); lr = [learning_rate(s, 100, c) for s in range(100)]
    assert lr[0] == .1 and max(lr) == lr[9] == 1 and lr[-1] < .001 and all(np.diff(lr[10:]) < 0)
    assert {learning_rate(s, 100, replace(c, schedule=None)) for s in range(100)} == {1.}

def test_validation_is_one_picture_a_concept():
    t = torch.eye(6).repeat_interleave(2, 0); concepts = np.repeat(list("abcdef"), 2)
    v = validation_scores(Contrast(), t, t, concepts)
    assert v["val_ways"] == 6 and v["val_top1"] == v["val_top5"] == 1
    assert validation_scores(Contrast(), torch.ones(12, 6), t, concepts)["val_top1"] == 0    # ties go against the encoder
    swapped = validation_scores(Contrast(), t[[2, 3, 0, 1, *range(4, 12)]], t, concepts)
    np.testing.assert_allclose(swapped["val_top1"], 4/6, rtol=1e-6)

def test_learns_the_known_map_whatever_the_units():
    data = problem(); r = train(replace(CONFIG, epochs=15), data)
    h = r.history
    assert h.loss.iloc[-1] < h.loss.iloc[0] and h.val_top1.iloc[-1] > 4/h.val_ways[0] and r.embed(data[0].mean(1)).shape == (150, 12)
    assert len(r.info["val_concepts"]) == 6 and r.info["n_pictures"] == 120 and "held-out training concepts" in repr(r)
    other = train(replace(CONFIG, epochs=15), (data[0]*2**10, *data[1:]), encoder=tiny())
    np.testing.assert_allclose(other.history.loss, h.loss, rtol=1e-4); np.testing.assert_allclose(other.scale, r.scale*2**10, rtol=1e-5)

@pytest.mark.parametrize("change", [dict(average="all"), dict(average=None), dict(average=None, multi_positive=True), dict(same="concept"), dict(same="concept", multi_positive=True),
                                    dict(amp=True), dict(temperature="reference", decay_all=True, schedule=None), dict(text_weight=.3)])
def test_every_setting_learns(change):
    data = problem(); c = replace(CONFIG, epochs=8, **change)
    h = train(c, data, text_targets=data[1] if "text_weight" in change else None).history
    assert h.loss.iloc[-1] < h.loss.iloc[0] and h.val_top1.iloc[-1] > 2/h.val_ways[0]

class Kill(Exception): pass
def kill_at(n):
    def callback(record):
        if record["epoch"] == n: raise Kill
    return callback

@pytest.mark.parametrize("change", [dict(), dict(average=None), dict(patience=20)])
def test_resume_is_exact(tmp_path, change):
    c = replace(CONFIG, **change); straight = train(c)
    with pytest.raises(Kill): train(c, folder=tmp_path, checkpoint_seconds=0, callback=kill_at(3))
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"]
    seen = []
    resumed = train(c, folder=tmp_path, encoder=tiny(99), callback=lambda r: seen.append(r["epoch"]))    # other starting weights: all must come from the file
    assert seen == [4, 5, 6] and same_weights(straight, resumed) and straight.info["logit_scale"] == resumed.info["logit_scale"]
    assert straight.history.drop(columns="seconds").equals(resumed.history.drop(columns="seconds"))
    assert sorted(os.listdir(tmp_path)) == ["encoder.safetensors", "fit.json", "history.csv"]

def test_seeds_and_global_state():
    before = torch.random.get_rng_state(); a = train(); assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5); assert same_weights(a, train()) and not same_weights(a, train(replace(CONFIG, seed=1)))

def test_finished_folder_is_read_back_and_others_refused(tmp_path):
    a = train(folder=tmp_path); calls = []
    b = train(folder=tmp_path, callback=calls.append)
    assert not calls and same_weights(a, b)
    with pytest.raises(NecomimiError, match="lr: 0.003 there, 0.1 now"): train(replace(CONFIG, lr=.1), folder=tmp_path)
    with pytest.raises(NecomimiError, match="the data"): train(data=problem(seed=1), folder=tmp_path)
    c = train(replace(CONFIG, seed=1), folder=tmp_path, resume=False); assert not same_weights(a, c)

def test_save_load_with_a_named_encoder(tmp_path):
    r = train(replace(CONFIG, encoder="mlp", epochs=2), encoder=None)
    r.save(tmp_path/"deep"/"folder"); s = FitResult.load(tmp_path/"deep"/"folder")
    x = problem()[0].mean(1)
    np.testing.assert_array_equal(r.embed(x), s.embed(x)); np.testing.assert_allclose(r.embed(x, batch_size=7), r.embed(x), rtol=1e-4, atol=1e-5)
    assert s.config == r.config and s.history.equals(r.history) and json.loads((tmp_path/"deep"/"folder"/"fit.json").read_text())["info"]["n_chans"] == 6
    with pytest.raises(NecomimiError, match="does not fit"): FitResult.load(tmp_path/"deep"/"folder", encoder=tiny())
    with pytest.raises(NecomimiError, match="no trained encoder"): FitResult.load(tmp_path/"nothing")

def test_early_stopping_keeps_the_best_epoch():
    c = replace(CONFIG, epochs=40, patience=2, lr=.02, schedule=None); r = train(c); h = r.history
    best = r.info["epoch_kept"]
    assert len(h) < 40 and len(h) == best + 2 and h.val_top1[best-1] == h.val_top1.max()
    again = train(replace(c, patience=None, epochs=best)); assert same_weights(r, again)

def test_callback_ends_training():
    assert len(train(callback=lambda r: r["epoch"] == 2).history) == 2

def test_store_in_and_channels_by_name(tmp_path):
    eeg, targets, concepts = problem(); names = list("abcdef")
    for split in ("training", "test"):
        with create_store(tmp_path, split, eeg.shape, names, np.arange(10)/100, 100., "µV", "synthetic", 1, dtype="float32", simulated=True) as out: out[:] = eeg
    r = train(data=(TrialStore.open(tmp_path, "training"), targets, concepts))
    assert same_weights(r, train(data=(eeg, targets, concepts))) and r.info["simulated"] and r.info["sfreq"] == 100 and r.info["ch_names"] == names and "simulated" in repr(r)
    test = TrialStore.open(tmp_path, "test")
    np.testing.assert_allclose(r.embed(test), r.embed(eeg.mean(1)), rtol=1e-3, atol=1e-4)
    back = tmp_path/"back"
    with create_store(back, "test", eeg.shape, names[::-1], np.arange(10)/100, 100., "µV", "synthetic", 1, dtype="float32") as out: out[:] = eeg[:, :, ::-1]
    np.testing.assert_allclose(r.embed(TrialStore.open(back, "test")), r.embed(test), rtol=1e-3, atol=1e-4)
    with pytest.raises(NecomimiError, match="takes no test data"): train(data=(test, targets, concepts))
    with pytest.raises(NecomimiError, match="takes no test data"): train(data=(test.trials, targets, concepts))

def with_nan(x, at): x = x.copy(); x[at] = np.nan; return x

@pytest.mark.parametrize("change,says", [
    (lambda e, t, c: (with_nan(e, (7, 2, 5, 3)), t, c), "picture 7, repetition 2, channel number 5"), (lambda e, t, c: (e, with_nan(t, (4, 0)), c), "first row 4"),
    (lambda e, t, c: (e[:9], t, c), "targets must be"), (lambda e, t, c: (e, t, c[:9]), "concepts must name"), (lambda e, t, c: (e[:0], t[:0], c[:0]), "not empty"),
    (lambda e, t, c: (e[0, 0], t, c), "n_pictures, n_repetitions"), (lambda e, t, c: (e, t, np.minimum(c, 2)), "too few")])
def test_bad_input_is_one_clear_error(change, says, tmp_path):
    with pytest.raises(NecomimiError, match=says): train(data=change(*problem()), folder=tmp_path/"out")
    assert not (tmp_path/"out").exists()

def test_missing_text_targets_and_bad_eeg_for_embed():
    with pytest.raises(NecomimiError, match="text_targets"): train(replace(CONFIG, text_weight=.01))
    r, x = train(replace(CONFIG, epochs=1)), problem()[0].mean(1)
    for bad, says in ((x[:, :5], r"\(n, 6, 10\)"), (x[:0], "n > 0"), (with_nan(x, (3, 1, 2)), "trial 3, channel number 1")):
        with pytest.raises(NecomimiError, match=says): r.embed(bad)

def test_damaged_checkpoint_and_unwritable_folder(tmp_path):
    (tmp_path/"checkpoint.safetensors").write_bytes(b"\x00"*40)
    with pytest.raises(NecomimiError, match="not a readable checkpoint"): train(folder=tmp_path)
    (tmp_path/"file").write_text("")
    with pytest.raises(NecomimiError, match="cannot write"): train(folder=tmp_path/"file")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.safetensors", "file"]

def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Kill): train(folder=tmp_path, checkpoint_seconds=0, callback=kill_at(2))
    old = (tmp_path/"checkpoint.safetensors").read_bytes()
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr("necomimi.data.os.replace", full)
    with pytest.raises(NecomimiError, match="No space left"): train(folder=tmp_path, checkpoint_seconds=0)
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"] and (tmp_path/"checkpoint.safetensors").read_bytes() == old
