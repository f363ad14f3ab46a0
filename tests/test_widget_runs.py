"RunBrowser: what it reads from run folders, whole and damaged, and what a click changes, in JupyterLab."
import json, os, socket, subprocess, sys
import numpy as np, pytest
from necomimi.data import NecomimiError
from necomimi.runs import set_status, write_json

from browser import eventually
pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
from necomimi.widgets.runs import MOST, RunBrowser, RunBrowserState, compare, find_runs, overview, page_of

HEADLINE = dict(headline=[dict(name="retrieval, 200-way top-1 (%)", value=12., low=8., high=17., chance=.5), dict(name="CAT two-stage (of 120)", value=40)])

def dead_pid():
    p = subprocess.Popen([sys.executable, "-c", ""]); p.wait(); return p.pid

def training(folder, lr=.1, epochs=4, top1=.4, simulated=True):
    "A trained encoder's folder as `necomimi.study` leaves it, without weights."
    (folder/"encoder").mkdir(parents=True); (folder/"encoder"/"encoder.safetensors").write_bytes(b"x")
    write_json(folder/"encoder"/"fit.json", dict(config=dict(encoder="mlp", epochs=epochs, lr=lr, seed=0), info=dict(simulated=simulated)))
    rows = "".join(f"{i+1},{4/(i+1)*(1+lr)},{i/10},0.5\n" for i in range(epochs))
    (folder/"encoder"/"history.csv").write_text("epoch,loss,val_top1,seconds\n" + rows)
    write_json(folder/"retrieval.json", dict(table=[dict(k=k, top=1, accuracy=a, low=a - .1, high=a + .1, chance=1/k) for k, a in ((2, .9), (200, top1))]))
    return folder

def notebook_run(folder, state="done", report="<h1>REPORT OF THE RUN</h1>", **status):
    folder.mkdir(parents=True); set_status(folder, **dict(name="toy", state=state, started="2026-01-02T03:04:05+00:00", seconds=61.5, pid=os.getpid(), host=socket.gethostname()) | status)
    write_json(folder/"config.json", dict(parameters=dict(encoder="nerv", epochs=3))); write_json(folder/"metrics.json", HEADLINE)
    if report: (folder/"report.html").write_text(report)
    return folder

def make(root):
    "Six folders, whole and damaged, and data that are none."
    training(root/"models"/"seed-0"/"sub-01", lr=.1, top1=.4); training(root/"models"/"seed-1"/"sub-01", lr=.2, top1=.6)
    notebook_run(root/"runs"/"good"); notebook_run(root/"runs"/"killed", state="running", report=None, pid=dead_pid(), stage="3/9 training NERV")
    notebook_run(root/"runs"/"broken", state="failed", report=None, error="cell In [3] raised ValueError"); (root/"runs"/"broken"/"run.log").write_text("last words")
    (root/"runs"/"torn").mkdir(); (root/"runs"/"torn"/"status.json").write_text('{"name": "toy", "sta')
    (root/"stores"/"mini"/"sub-01").mkdir(parents=True); (root/"stores"/"mini"/"sub-01"/"fit.json").write_text("{}")
    return root

@pytest.fixture
def root(tmp_path): return make(tmp_path)

@pytest.fixture
def found(root): return {e.name: e for e in find_runs(root)}

def test_everything_is_found_and_data_are_not(found):
    assert {n: (e.kind, e.state) for n, e in found.items()} == {
        "models/seed-0/sub-01": ("training", "done"), "models/seed-1/sub-01": ("training", "done"), "runs/good": ("notebook", "done"),
        "runs/killed": ("notebook", "cut off"), "runs/broken": ("notebook", "failed"), "runs/torn": ("notebook", "unreadable")}

def test_a_training_is_read(found):
    e = found["models/seed-0/sub-01"]; epochs, loss = e.curves["loss"]
    assert list(epochs) == [1, 2, 3, 4] and np.allclose(loss, 4.4/np.arange(1, 5)) and e.settings["lr"] == .1 and e.simulated is True and e.seconds == 2.
    assert e.figures["retrieval, 200-way top-1 (%)"] == dict(value=40., low=30., high=50., chance=.5) and overview([e]).iloc[0]["top-1 %"] == 40.

def test_a_notebook_run_is_read(found):
    e = found["runs/good"]; assert e.figures["retrieval, 200-way top-1 (%)"]["high"] == 17. and e.seconds == 61.5 and e.started == "2026-01-02 03:04" and e.report.name == "report.html"

def test_what_was_cut_off_says_where(found):
    assert "3/9 training NERV" in found["runs/killed"].note and "ValueError" in found["runs/broken"].note and "status.json is damaged" in found["runs/torn"].note

@pytest.mark.parametrize("damage, state, note", [
    (lambda f: (f/"history.csv").write_bytes(b"epoch,loss\n1,2.0\n2,1"), "done", ""), (lambda f: (f/"history.csv").write_bytes(b""), "done", "history.csv is damaged"),
    (lambda f: (f/"fit.json").write_text('{"config": {'), "unfinished", "fit.json is damaged"), (lambda f: (f/"history.csv").unlink(), "unfinished", "epoch 0"),
    (lambda f: [p.unlink() for p in f.iterdir()], "unfinished", "epoch 0"), (lambda f: (f/"fit.json").write_text("[1, 2]"), "unfinished", "damaged"),
    (lambda f: (f.parent/"retrieval.json").write_text('{"table": [{"k": 2}, 7]}'), "done", ""), (lambda f: (f.parent/"retrieval.json").write_bytes(b"\xff\xfe"), "done", "retrieval.json is damaged")])
def test_a_folder_cut_off_midway_is_shown_as_such(tmp_path, damage, state, note):
    damage(training(tmp_path/"t")/"encoder"); entry, = find_runs(tmp_path)
    assert entry.state == state and note in entry.note and len(overview([entry])) == 1 and compare([entry, entry]).shape[1] == 2 and "<table>" in page_of(entry)

def test_a_checkpoint_gives_its_curve(tmp_path):
    from safetensors.numpy import save_file
    (tmp_path/"encoder").mkdir(); history = [dict(epoch=i + 1, loss=3. - i) for i in range(2)]
    save_file({"a": np.zeros(1)}, tmp_path/"encoder"/"checkpoint.safetensors", {"necomimi": json.dumps(dict(history=history, config=dict(epochs=9, encoder="nerv")))})
    entry, = find_runs(tmp_path); assert entry.state == "unfinished" and "epoch 2 of 9" in entry.note and list(entry.curves["loss"][1]) == [3, 2]
    (tmp_path/"encoder"/"checkpoint.safetensors").write_bytes(b"half"); assert find_runs(tmp_path)[0].curves == {}

@pytest.mark.parametrize("status", [dict(state="running"), dict(state="running", pid="x", host=socket.gethostname()), {}, dict(state="done", name=7)])
def test_odd_status_files_are_read(tmp_path, status):
    write_json(tmp_path/"r"/"status.json", status); assert len(overview(find_runs(tmp_path))) == 1

def test_a_real_training_is_read(tmp_path):
    from necomimi.training import TrainConfig, fit
    rng = np.random.default_rng(0); common = dict(concepts=np.repeat(np.arange(10), 2), ch_names=list("abcd"), sfreq=10., progress=False)
    fit(rng.normal(size=(20, 1, 4, 10)), rng.normal(size=(20, 8)).astype("float32"), config=TrainConfig(encoder="mlp", epochs=2, batch_size=8, val_fraction=.2), folder=tmp_path/"encoder", **common)
    entry, = find_runs(tmp_path); assert entry.state == "done" and len(entry.curves["loss"][0]) == 2 and entry.note == "" and {"loss", "val_top1", "scale"} <= set(entry.curves)

def test_table_and_comparison(root):
    s = RunBrowserState(root); s.refresh(); t = overview(s.entries).set_index("run")
    assert t.loc["models/seed-1/sub-01", "top-1 %"] == 60. and t.loc["models/seed-1/sub-01", "EEG"] == "simulated" and t.loc["models/seed-0/sub-01", "val top-1"] == .3
    s.chosen = ("models/seed-1/sub-01", "models/seed-0/sub-01"); c = compare(s.picked())
    assert list(c.columns) == list(s.chosen) and list(c.loc[("setting", "lr")]) == ["0.2", "0.1"] and ("setting", "epochs") not in c.index
    assert c.loc[("figure", "retrieval, 200-way top-1 (%)"), "models/seed-1/sub-01"] == "60 [50, 70], chance 0.5" and s.curves()[0] == "loss" and s.measures()[0] == "retrieval, 200-way top-1 (%)"

def test_filters(root):
    s = RunBrowserState(root); s.refresh(); assert len(s.visible()) == 6
    s.state = "cut off"; assert [e.name for e in s.visible()] == ["runs/killed"]
    s.state, s.text = "all", "MLP seed-1"; assert [e.name for e in s.visible()] == ["models/seed-1/sub-01"]

def test_a_folder_that_is_none(tmp_path):
    for wrong in (tmp_path/"nowhere", __file__):
        with pytest.raises(NecomimiError, match="not a folder"): RunBrowser(wrong)
    b = RunBrowser(tmp_path); assert "No runs here yet" in b.message.value and "<table" in b.static()

def test_bad_input_is_a_message_and_changes_nothing(root):
    b = RunBrowser(root, chosen=["runs/good"]); b.folder.value = str(root/"nowhere")
    assert "not a folder" in b.message.value and len(b.table.rows) == 6 and b.state.chosen == ("runs/good",)
    b.text.value = "nosuchthing"; assert b.table.rows == [] and "No run fits" in b.message.value
    b.text.value = ""; assert len(b.table.rows) == 6 and "No run fits" not in b.message.value
    import shutil; shutil.rmtree(root/"runs"/"good"); b._open("runs/good"); assert "is gone" in b.message.value
    b.again.click(); assert len(b.table.rows) == 5 and b.state.chosen == () and list(b.table.selected) == []

def test_eight_at_most(tmp_path):
    for i in range(MOST + 1): training(tmp_path/f"t{i}")
    b = RunBrowser(tmp_path); b.table.selected = [f"t{i}" for i in range(MOST + 1)]
    assert len(b.table.selected) == MOST and "at most" in b.message.value and all(t.visible for t in b.plot.data)
    traces = [id(t) for t in b.plot.data]; b.table.selected = []
    assert not any(t.visible for t in b.plot.data) and [id(t) for t in b.plot.data] == traces, "drawn in place"

def test_a_stranger_s_text_is_not_markup(tmp_path):
    training(tmp_path/"<img src=x onerror=alert(1)>"); b = RunBrowser(tmp_path, chosen=["<img src=x onerror=alert(1)>"]); b._open("<img src=x onerror=alert(1)>")
    assert "<img src=x" not in b.beside.value + b.static() + b.page.html

def test_what_the_studio_saved_opens_with_its_pictures(tmp_path):
    from PIL import Image
    (tmp_path/"d"/"two-stage").mkdir(parents=True); Image.new("RGB", (8, 8)).save(tmp_path/"d"/"two-stage"/"cat.png"); (tmp_path/"d"/"torn.png").write_bytes(b"no picture")
    write_json(tmp_path/"d"/"status.json", dict(name="GenerationStudio", state="done", saved="2026-01-02T03:04:05+00:00", seconds=3.)); write_json(tmp_path/"d"/"config.json", dict(parameters=dict(steps=4)))
    entry, = find_runs(tmp_path); assert (entry.kind, entry.state, entry.started, entry.note) == ("pictures", "done", "2026-01-02 03:04", "")
    assert page_of(entry).count("<figure") == 2 and "two-stage/cat.png" in page_of(entry) and "base64,UklGR" in page_of(entry)

# In the browser

@pytest.fixture(scope="module")
def sheet(lab):
    make(lab.root/"somewhere")
    with lab.open("from necomimi.widgets.runs import RunBrowser\nbrowser = RunBrowser('somewhere')", "browser", name="runs") as s: yield s.run()

def row(p, name): return p.locator(f'.necomimi-runs tr[data-run="{name}"]')
CURVES = "() => [...document.querySelector('.necomimi-panel .js-plotly-plot').data].filter(t => t.visible === true).map(t => [t.name, [...(t.y._inputArray ?? t.y)]])"

def test_the_table_shows_states(sheet):
    p = sheet.page; p.wait_for_selector(".necomimi-runs tbody tr"); assert p.locator(".necomimi-runs tbody tr").count() == 6
    assert row(p, "runs/killed").locator("td").nth(2).inner_text() == "cut off" and "3/9 training NERV" in row(p, "runs/killed").inner_text()

def test_ticking_two_overlays_their_curves_and_compares_them(sheet):
    p = sheet.page
    for n in ("models/seed-0/sub-01", "models/seed-1/sub-01"): row(p, n).locator("input").check()
    p.wait_for_function(f"() => ({CURVES})().length == 2"); curves = dict(p.evaluate(CURVES))
    assert np.allclose(curves["models/seed-0/sub-01"], 4.4/np.arange(1, 5)) and np.allclose(curves["models/seed-1/sub-01"], 4.8/np.arange(1, 5))
    p.wait_for_selector("td:has-text('60 [50, 70], chance 0.5')"); eventually(p, lambda: p.locator(".necomimi-panel .jupyter-widgets tr:has-text('setting')").inner_text().split() == ["setting", "lr", "0.1", "0.2"])
    eventually(p, lambda: p.evaluate("() => [...[...document.querySelectorAll('.necomimi-panel .js-plotly-plot')][1].data[0].y]") == [40, 60])
    sheet.shot("RunBrowser"); p.get_by_label("curve", exact=True).select_option("val_top1")
    p.wait_for_function(f"() => ({CURVES})()[0][1][3] === 0.3")

def test_sorting_filtering_and_unticking(sheet):
    p = sheet.page; p.click(".necomimi-runs th button:has-text('top-1 %')"); p.click(".necomimi-runs th button:has-text('top-1 %')")
    values = lambda: [t for t in p.locator(".necomimi-runs tbody tr td:nth-child(11)").all_inner_texts() if t]; eventually(p, lambda: values() == sorted(values(), key=float, reverse=True) and values()[0] == "60")
    row(p, "models/seed-0/sub-01").locator("input").focus(); p.keyboard.press("Space"); p.wait_for_function(f"() => ({CURVES})().length == 1")
    p.get_by_label("state", exact=True).select_option("failed"); p.wait_for_function("() => document.querySelectorAll('.necomimi-runs tbody tr').length == 1")
    p.get_by_label("state", exact=True).select_option("all"); p.wait_for_function("() => document.querySelectorAll('.necomimi-runs tbody tr').length == 6")

def test_the_report_opens_without_scripts_and_in_a_tab(sheet):
    p = sheet.page; row(p, "runs/good").locator("button.open").click()
    p.frame_locator(".necomimi-panel iframe").locator("text=REPORT OF THE RUN").wait_for(); assert p.locator(".necomimi-panel iframe").get_attribute("sandbox") == ""
    with p.context.expect_page() as other: p.click("a:has-text('in a tab of its own')")
    other.value.frame_locator("iframe").locator("text=REPORT OF THE RUN").wait_for(); other.value.close()
    row(p, "runs/broken").locator("button.open").click(); p.frame_locator(".necomimi-panel iframe").locator("text=last words").wait_for(); p.wait_for_selector("text=has no report")

def test_a_wrong_folder_is_a_message_in_the_page(sheet):
    p = sheet.page; box = p.get_by_label("folder", exact=True); box.fill("nowhere/at/all"); box.press("Enter")
    p.wait_for_selector("[role=alert]:has-text('not a folder')"); assert p.locator(".necomimi-runs tbody tr").count() == 6 and "Traceback" not in p.inner_text(".jp-Notebook")

def test_narrow_and_no_complaint_in_the_console(sheet):
    p = sheet.page; p.set_viewport_size(dict(width=800, height=1200)); p.wait_for_timeout(500); panel = p.locator(".necomimi-panel").first
    assert panel.evaluate("e => e.scrollWidth <= e.clientWidth + 2"), "nothing sticks out"
    panel.screenshot(path=str(sheet.path.parent/"RunBrowser_800.png")); assert sheet.errors == []
