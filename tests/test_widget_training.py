"TrainingMonitor: the same training as without it, pause, stop-and-keep, messages; then in a real JupyterLab."
import os, threading, time
from dataclasses import replace
import numpy as np, pytest, torch
from torch import nn

from browser import eventually
pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
from necomimi.data import NecomimiError
from necomimi.training import FitResult, TrainConfig, fit
from necomimi.widgets.training import TrainingMonitor, TrainingMonitorState, training_curves, training_readout

class Slow(nn.Module):
    "With dropout, running statistics, a count of its training steps and a chance to wait in each."
    def __init__(self, wait=0., n_outputs=12):
        super().__init__()
        with torch.random.fork_rng(): torch.manual_seed(0); self.net = nn.Sequential(nn.Flatten(), nn.Linear(60, 16), nn.BatchNorm1d(16), nn.Dropout(.3), nn.Linear(16, n_outputs))
        self.wait, self.steps = wait, []
    def __deepcopy__(self, memo): new = Slow(self.wait); new.load_state_dict(self.state_dict()); new.steps = self.steps; return new
    def forward(self, x):
        if self.training: self.steps.append(1); time.sleep(self.wait)
        return self.net(x)

def problem(width=12, seed=0, n_concepts=20, noise=1):
    n = 4*n_concepts; rng = np.random.default_rng(seed); concepts = np.repeat(np.arange(n_concepts), 4); hidden = rng.standard_normal((n, 8))
    eeg = (hidden @ rng.standard_normal((8, 60))).reshape(n, 1, 6, 10) + noise*rng.standard_normal((n, 3, 6, 10))
    return eeg.astype("float32"), (hidden @ rng.standard_normal((8, width))).astype("float32"), concepts

CONFIG = TrainConfig(encoder="mlp", epochs=4, batch_size=16, lr=3e-3, val_fraction=.2)      # 64 training pictures: 4 steps an epoch
def plain(config=CONFIG, data=None, **kw): e, t, c = data or problem(); return fit(e, t, concepts=c, config=config, progress=False, device="cpu", **(dict(encoder=Slow()) | kw))
def monitor(config=CONFIG, data=None, wait=0., **kw): e, t, c = data or problem(); return TrainingMonitor(e, t, concepts=c, config=config, device="cpu", **(dict(encoder=Slow(wait)) | kw))
def finished(m, timeout=60): m.job.wait(timeout); assert not m.job.running and not m.state.active; return m
def until(what, timeout=30):
    end = time.monotonic() + timeout
    while not what(): assert time.monotonic() < end, "waited too long"; time.sleep(.005)
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.encoder.state_dict().values(), b.encoder.state_dict().values())) and a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))

def test_on_step_sees_every_step_and_takes_no_part():
    seen, waits = [], []
    def look(at):
        t = time.time(); seen.append((len(at["history"]), at["step"], at["steps"], at["samples"], at["loss"]())); time.sleep(.02); waits.append(time.time()-t)
    t = time.time(); a = plain(on_step=look); whole = time.time()-t; assert same(a, plain())
    assert [s[:4] for s in seen] == [(e, i, 4, 16) for e in range(4) for i in range(4)]
    assert np.isnan(seen[0][4]) and min(s[4] for s in seen if s[1]) > 0
    assert a.history.seconds.sum() <= whole - sum(waits)            # waiting is not training time

def test_on_step_ends_and_the_last_whole_epoch_is_kept(tmp_path):
    a = plain(on_step=lambda at: (len(at["history"]), at["step"]) == (2, 3), folder=tmp_path)
    assert same(a, plain(callback=lambda r: r["epoch"] == 2)) and len(a.history) == 2 and a.info["epoch_kept"] == 2
    assert same(FitResult.load(tmp_path, Slow()), a) and "checkpoint.safetensors" not in os.listdir(tmp_path)
    with pytest.raises(NecomimiError, match="nothing to keep"): plain(on_step=lambda at: at["step"] == 2)

def test_out_of_memory_names_the_batch_and_frees_the_way(monkeypatch):
    def full(self, x): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    before = torch.random.get_rng_state()
    with monkeypatch.context() as m:
        m.setattr(Slow, "forward", full)
        with pytest.raises(NecomimiError, match=r"batch_size=16: take a smaller one, for example TrainConfig\(batch_size=8\).*2.00 GiB.\)$") as e: plain()
        assert e.value.__context__ is None                     # or the failed batch would stay in the GPU's memory as long as the error
        shown = monitor(); shown.start(); finished(shown)
        assert shown.state.phase == "failed" and "batch_size=16" in shown.message.value and "necomimi-error" in shown.message.value and not shown.starter.disabled
    assert len(plain().history) == 4 and torch.equal(before, torch.random.get_rng_state())

def test_embedding_halves_instead(monkeypatch):
    r, x = plain(), problem()[0].mean(1); want, through = r.embed(x), Slow.forward
    def small(self, x):
        if len(x) > 20: raise torch.OutOfMemoryError("full")
        return through(self, x)
    monkeypatch.setattr(Slow, "forward", small)
    with pytest.warns(UserWarning, match="out of GPU memory with a batch of 80"): got = r.embed(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

def test_two_trainings_at_a_time_are_refused():
    m = monitor(wait=.02); m.start(); until(lambda: m.state.steps)
    with pytest.raises(NecomimiError, match="another training is under way"): plain()
    other = monitor(); other.start(); finished(other); assert "another training" in other.message.value and other.state.phase == "failed"
    with m.guarded(): m.start()
    assert "under way" in m.message.value
    m.stop(); finished(m); assert len(plain().history) == 4

def test_paused_is_said_only_when_the_training_rests():
    m = monitor(); gate, at_step, halfway = threading.Event(), threading.Event(), Slow.forward
    def slow(self, x):
        if self.training and len(m.state.history) == 1: at_step.set(); gate.wait(10)
        return halfway(self, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slow, "forward", slow); m.start(); assert at_step.wait(30)                                # in the middle of a step, its dropout still to be drawn
        m.pause(); assert m.state.phase == "pausing" and "pausing before the next step" in m.message.value and m.pauser.description == "Go on" and m.state.active
        m.pause(); assert m.state.phase == "running" and m.pauser.description == "Pause"                        # thought better of it
        m.pause(); gate.set(); until(lambda: m.state.phase == "paused"); torch.manual_seed(1); torch.rand(99)
        assert "cells may use torch freely" in m.message.value; m.pause(); finished(m)
    assert same(m.result, plain())

def test_state_tells_speed_and_time_left():
    s = TrainingMonitorState(replace(CONFIG, epochs=10), "running"); assert np.isnan(s.seconds_left) and training_readout(s)["samples/s"] == "…"
    for i in range(4): s.note(dict(history=[], step=i, steps=4, samples=16), 50 + .25*i)
    assert s.steps_per_second == 4 and s.samples_per_second == 64 and s.seconds_left == (40-3)/4 and s.progress == 3/40
    s.rest(); s.note(dict(history=[], step=3, steps=4, samples=16), 900.); assert np.isnan(s.seconds_left)      # the pause is no speed

def test_curves_and_readout():
    r = plain(); s = TrainingMonitorState(CONFIG, "running", history=r.history.to_dict("records")[:2], step=2, steps=4, samples=16, loss=2.5); c = training_curves(s)
    assert c["loss"] == ([1, 2], r.history.loss.tolist()[:2]) and c["now"] == ([2.5], [2.5]) and c["chance5"][1] == [100., 100.]
    np.testing.assert_allclose(c["top1"][1], 100*r.history.val_top1[:2]); np.testing.assert_allclose(c["temperature"][1], 1/r.history["scale"][:2])
    assert training_readout(s)["epoch"] == "2 of 4" and training_readout(s)["validation top-1"] == f"{100*r.history.val_top1[1]:.1f} %"
    bare = TrainingMonitorState(CONFIG, history=plain(replace(CONFIG, val_fraction=0.)).history.to_dict("records")); c = training_curves(bare)
    assert c["top1"] == c["chance1"] == c["val_loss"] == ([], []) and training_readout(bare)["top-5"] == "…"
    assert all(v == ([], []) for v in training_curves(TrainingMonitorState(CONFIG)).values())

def test_the_same_as_without_it_even_when_paused_and_others_draw():
    m = monitor(wait=.01); m.start(); until(lambda: len(m.state.history) == 1); m.pause(); n = len(m.options["encoder"].steps); until(lambda: m.state.phase == "paused")
    assert (held := len(m.options["encoder"].steps)) <= n + 1                                                    # within one step
    torch.manual_seed(5); torch.rand(1000); time.sleep(.1); assert len(m.options["encoder"].steps) == held
    m.pause(); finished(m)
    assert m.state.phase == "done" and same(m.result, plain()) and m.bar.value == 1
    assert list(m.plots.data[0].y) == m.result.history.loss.tolist() and "encoder is monitor.result" in m.message.value
    m.start(); finished(m); assert same(m.result, plain())                                                      # a second start begins with the same weights

@pytest.mark.parametrize("pause", [False, True])
def test_stop_within_a_step_and_keep(tmp_path, pause):
    m = monitor(replace(CONFIG, epochs=500), wait=.01, folder=tmp_path); m.start(); until(lambda: len(m.state.history) == 2)
    if pause: m.pause(); time.sleep(.05)
    n = len(m.options["encoder"].steps); m.stop(); finished(m)
    assert len(m.options["encoder"].steps) <= n + 1 and m.state.phase == "stopped" and (k := len(m.result.history)) < 500
    assert same(m.result, plain(replace(CONFIG, epochs=500), callback=lambda r: r["epoch"] == k)) and same(FitResult.load(tmp_path, Slow()), m.result)
    assert [b.disabled for b in (m.starter, m.pauser, m.stopper)] == [False, True, True] and f"epoch {k} of 500 is kept" in m.message.value

def test_stopped_before_the_first_epoch_says_so():
    m = monitor(wait=.05); m.start(); until(lambda: m.state.steps); m.stop(); finished(m)
    assert m.state.phase == "stopped" and m.result is None and "nothing to keep" in m.message.value and not m.starter.disabled

@pytest.mark.parametrize("name,value,says", [("batch_size", 1, "a batch of two"), ("epochs", 0, "at least one epoch"), ("lr", -1., "lr must be a positive")])
def test_bad_settings_are_a_message(name, value, says):
    m = monitor(); m.settings[name].value = value; m.starter.click()
    assert says in m.message.value and m.state.phase == "ready" and not m.starter.disabled and m.job is None
    m.settings[name].value = getattr(CONFIG, name); m.starter.click(); finished(m); assert m.state.phase == "done"

def test_folders_cut_off_of_another_width_and_finished(tmp_path):
    (tmp_path/"cut").mkdir(); (tmp_path/"cut"/"checkpoint.safetensors").write_bytes(b"\x07"*50)
    plain(folder=tmp_path/"mine"); e, t, c = problem(width=8); fit(e, t, concepts=c, config=CONFIG, progress=False, folder=tmp_path/"narrow", device="cpu")
    for folder, says in (("cut", "not a readable checkpoint"), ("narrow", "belongs to another training")):
        m = monitor(folder=tmp_path/folder); m.start(); finished(m)
        assert says in m.message.value and m.state.phase == "failed" and not m.starter.disabled
        m.over.value = True; m.start(); finished(m); assert m.state.phase == "done" and same(m.result, plain())
    m = monitor(folder=tmp_path/"mine"); m.start(); finished(m)
    assert "read back" in m.message.value and len(m.plots.data[0].y) == 4 and not m.options["encoder"].steps

def test_nothing_to_train_on_is_a_message_and_static_always_draws(tmp_path):
    e, t, c = problem(); m = monitor(data=(e[:0], t[:0], c[:0])); assert "ready" in m.static()
    m.start(); finished(m); assert "not empty" in m.message.value and "failed" in m._static_html()
    m = monitor(); m.start(); finished(m); m.static().savefig(tmp_path/"a.png"); assert (tmp_path/"a.png").stat().st_size < 150_000
    with m.guarded(): m.pause()
    assert "no training to pause" in m.message.value

PANEL = """
import sys, time, pathlib
sys.path.insert(0, TESTS)
import torch
from test_widget_training import CONFIG, Slow, monitor, plain, problem, replace, same
folder = pathlib.Path("kept"); cut = pathlib.Path("cut"); cut.mkdir(exist_ok=True); (cut/"checkpoint.safetensors").write_bytes(b"7"*50)
config, data = replace(CONFIG, epochs=80, batch_size=64), problem(n_concepts=80, noise=8)
watched = monitor(config, data, wait=.04, folder=folder)
"""

@pytest.fixture(scope="module")
def sheet(lab):
    from pathlib import Path
    with lab.open(PANEL.replace("TESTS", repr(str(Path(__file__).parent))), "watched", "spoiled = monitor(CONFIG, folder=cut); spoiled", name="training") as s: yield s.run()

POINTS = "() => document.querySelector('.necomimi-panel .js-plotly-plot').data[0].y.length"
def points(p): return p.evaluate(POINTS)
def press(p, name, panel=0): p.locator(".necomimi-panel").nth(panel).get_by_role("button", name=name).click()
def read(p, label, panel=0): return p.locator(".necomimi-panel").nth(panel).locator(f'[data-readout="{label}"]').inner_text()

def test_browser_start_draws_while_the_kernel_answers(sheet):
    p = sheet.page; p.wait_for_selector(".necomimi-panel .js-plotly-plot .main-svg", timeout=60_000); assert points(p) == 0
    press(p, "Start"); p.wait_for_function(f"({POINTS})() >= 2", timeout=60_000)
    said = sheet.python("print(watched.state.phase, len(watched.state.history))").split()
    assert said[0] == "running" and int(said[1]) >= 2
    n = points(p); p.wait_for_function(f"({POINTS})() > {n}", timeout=60_000)
    assert read(p, "state") == "running" and read(p, "samples/s") != "…" and read(p, "time left") not in ("…", "–") and "%" in read(p, "validation top-1")

def test_browser_pause_holds_and_go_on_goes_on(sheet):
    p = sheet.page; p.wait_for_function(f"({POINTS})() >= 12", timeout=120_000); press(p, "Pause"); p.wait_for_selector("text=paused; everything is kept")
    held = sheet.python("n = len(watched.options['encoder'].steps); torch.manual_seed(1); torch.rand(99); time.sleep(.5); print(len(watched.options['encoder'].steps) - n, watched.state.phase)")
    assert held == "0 paused" and read(p, "state") == "paused"
    sheet.shot("TrainingMonitor")
    n = points(p); press(p, "Go on"); p.wait_for_function(f"({POINTS})() > {n}", timeout=60_000)

def test_browser_stop_and_keep(sheet):
    p = sheet.page; press(p, "Stop and keep"); p.wait_for_selector(".necomimi-done:has-text('is kept')", timeout=60_000)
    said = sheet.python("""k = len(watched.result.history)
print(k, same(watched.result, plain(config, data, callback=lambda r: r["epoch"] == k)), sorted(f.name for f in folder.iterdir()))""", timeout=120)
    eventually(p, lambda: points(p) == int(said.split()[0])); k = points(p); assert said == f"{k} True ['encoder.safetensors', 'fit.json', 'history.csv']" and 12 < k < 80
    eventually(p, lambda: f"epoch {k} of 80 is kept" in p.locator(".necomimi-done").first.inner_text() and read(p, "state") == "stopped")
    eventually(p, lambda: not p.locator(".necomimi-panel").first.get_by_role("button", name="Start").is_disabled())

def test_browser_bad_settings_and_a_cut_off_folder_are_messages(sheet):
    p = sheet.page; box = p.locator(".necomimi-panel").first.get_by_label("batch size"); box.fill("1"); box.press("Enter"); press(p, "Start")
    p.wait_for_selector("[role=alert]:has-text('a batch of two, found epochs=80, batch_size=1')")
    press(p, "Start", 1); p.wait_for_selector("[role=alert]:has-text('not a readable checkpoint')", timeout=60_000)
    p.locator(".necomimi-panel").nth(1).get_by_label("start over").check(); press(p, "Start", 1); p.wait_for_selector(".necomimi-done:has-text('epoch 4 of 4 is kept, in cut')", timeout=60_000)
    assert "Traceback" not in p.inner_text(".jp-Notebook")

def test_browser_leaves_the_last_curves_and_a_clean_console(sheet):
    p = sheet.page
    def pictures(): p.keyboard.press("Escape"); p.keyboard.press("Control+s"); p.wait_for_timeout(500); return sheet.path.read_text().count("data:image/png;base64")
    until(lambda: pictures() == 2, 60); assert "Run the notebook to train" not in sheet.path.read_text() and sheet.errors == []
    wide = "e => e.scrollWidth <= e.clientWidth + 2 && Math.abs(e.querySelector('.js-plotly-plot .main-svg').clientWidth - e.clientWidth) < 20"
    p.set_viewport_size(dict(width=800, height=1400)); panel = p.locator(".necomimi-panel").first; until(lambda: panel.evaluate(wide), 20)
    panel.scroll_into_view_if_needed(); p.wait_for_timeout(300); panel.screenshot(path=str(sheet.path.with_name("narrow.png")))
