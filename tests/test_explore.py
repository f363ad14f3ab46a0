"The dashboard: which study, what it lacks, tabs built when opened; in Voila, and started by `necomimi app`."
import contextlib, json, os, re, shutil, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from necomimi.data import NecomimiError
from necomimi.study import Study
from necomimi import cli

pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
from necomimi.widgets import explore
from necomimi.widgets.explore import TABS, Desk, Explore, ExploreState, road, study_here, study_of

ROOT = Path(__file__).resolve().parents[1]
TITLES = [t.title for t in TABS]
said = lambda e, k: e.boxes[k].children[0].value

def wait(e, seconds=300):
    end = time.time() + seconds
    while e.job and e.job.running and time.time() < end: time.sleep(.05)
    assert not (e.job and e.job.running)
    return e

@pytest.fixture(scope="module", autouse=True)
def no_loop():
    "As in a plain program: Playwright keeps an event loop of its own in this thread, which turns only while a page is waited for."
    def none(): raise RuntimeError("no running event loop")
    with pytest.MonkeyPatch.context() as m: m.setattr(explore, "asyncio", type("asyncio", (), dict(get_running_loop=staticmethod(none)))); yield

@pytest.fixture(scope="module")
def made(tmp_path_factory, no_loop):
    "(a mini study made whole by the page, what the page said meanwhile): two subjects' EEG were there."
    from necomimi.study import prepare
    with pytest.MonkeyPatch.context() as m:
        m.setattr(explore, "SMALL", dict(n_exemplars=1, repetitions=(2, 4), snr=.2)); m.setattr(explore, "EPOCHS", dict(mlp=4))
        study = Study.mini(tmp_path_factory.mktemp("study")); prepare(Study.mini(study.root, **explore.SMALL), [1, 2], progress=False)
        lines, e = [], Explore(study); e.line.observe(lambda c: lines.append(c.new), "value"); e.tabs.selected_index = 1; early = said(e, 1) if 1 not in e.panels else ""
        wait(e); left = road(study)
    return study, e, lines, early, left

@pytest.fixture(scope="module")
def small(made):
    "The same with an encoder of the user's own; so nothing is left to be made."
    from necomimi.study import train
    from necomimi.training import TrainConfig
    train(made[0], 1, TrainConfig(encoder="mlp", epochs=3, batch_size=128, lr=1e-3), progress=False); return made[0]

def test_the_study_is_made_once_in_the_background(made):
    study, e, lines, early, left = made; assert "opens by itself when it is ready" in early and any("training MLP, epoch 4 of 4" in x for x in lines) and left == []
    assert e.state.left == () and e.state.error == e.message.value == "" and e.bar.layout.display == "none" and e.state.encoder == "mlp, seed 0 (quick)"
    assert list(e.panels) == [0, 1], "the tab that was waited for opened by itself"

def test_which_study(tmp_path, monkeypatch):
    monkeypatch.delenv("NECOMIMI_STUDY", raising=False); monkeypatch.setenv("NECOMIMI_CACHE", str(tmp_path/"c"))
    assert study_here() == Study.mini(tmp_path/"c") and study_here(tmp_path/"x") == Study.mini(tmp_path/"x")
    (tmp_path/"real"/"stores"/"osf-100hz").mkdir(parents=True); monkeypatch.setenv("NECOMIMI_STUDY", str(tmp_path/"real"))
    assert study_here().recipe == "osf-100hz" and not study_here().embedded and study_here(Study.mini("a")).embedded
    monkeypatch.setenv("NECOMIMI_STUDY", json.dumps(dict(root="r", recipe="mini", vision="mini", pretrained=None, device="cpu"))); assert study_here() == Study("r", "mini", "mini", None, "cpu")
    for wrong in ('{"root": 1, "colour": 2}', "{"):
        monkeypatch.setenv("NECOMIMI_STUDY", wrong)
        with pytest.raises(NecomimiError, match="NECOMIMI_STUDY"): study_here()

def test_road_says_what_is_left(tmp_path, small):
    assert [t[0] for t in road(Study.mini(tmp_path))] == ["EEG", "targets", "mlp", "prior of mlp", "nerv", "prior of nerv"]
    assert road(small) == [] and road(Study(tmp_path)) == [], "nobody's recordings and nobody's trainings are made up"

def test_tabs_wait_for_what_they_need():
    s = ExploreState(left=("mlp", "nerv")); by = {t.title: s.waits(t) for t in TABS}
    assert by == dict(Topomaps=False, Similarity=True, Training=True, Generation=True, Attention=True, Rating=True, Runs=False)
    s.error = "disk full"; assert not any(s.waits(t) for t in TABS)

@pytest.mark.parametrize("study", [Study.mini("x"), Study("x")], ids=["mini", "things-eeg2"])
def test_an_empty_study_says_what_to_run(tmp_path, study):
    from dataclasses import replace
    e = Explore(replace(study, root=tmp_path), make=False)
    for k, title in enumerate(TITLES):
        e.tabs.selected_index = k
        if title != "Runs": assert k not in e.panels and re.search("Run: necomimi (preprocess|embed|train)", said(e, k)), title
    assert ("Simulated EEG" in e.banner.value) == study.embedded and e.message.value == ""

def test_a_stage_that_fails_is_a_message(tmp_path, monkeypatch):
    (tmp_path/"s").mkdir(); (tmp_path/"s"/"stores").write_text("a file where a folder should be")
    e = wait(Explore(Study.mini(tmp_path/"s"))); assert "could not be made whole" in e.message.value and "necomimi-error" in e.message.value and "Run: necomimi preprocess" in said(e, 0)
    e.tabs.selected_index = TITLES.index("Runs"); assert TITLES.index("Runs") in e.panels, "what needs nothing still opens"

@pytest.mark.parametrize("error, part", [(NecomimiError("expected a <b>cat</b>"), "expected a &lt;b&gt;cat"), (ImportError("no", name="plotly"), "pip install"), (RuntimeError("boom"), "unexpected RuntimeError: boom")])
def test_a_tab_that_cannot_be_built_is_a_message(small, monkeypatch, error, part):
    def build(desk): raise error
    monkeypatch.setattr(explore, "TABS", (explore.Tab("Topomaps", build, "EEG", ()), *TABS[1:]))
    e = Explore(small); assert part in said(e, 0) and e.panels == {}
    monkeypatch.setattr(explore, "TABS", TABS); e.anew.click(); assert 0 in e.panels

def test_tabs_are_built_when_opened_and_anew_for_another_subject(small):
    e = Explore(small); assert list(e.panels) == [0] and "Simulated EEG" in e.banner.value and e.encoder.options == ("mlp, seed 0", "mlp, seed 0 (quick)")
    for k in (1, 6): e.tabs.selected_index = k
    assert list(e.panels) == [0, 1, 6]; runs = e.panels[6]; e.subject.value = 2
    assert set(e.panels) == {0, 6} and e.panels[6] is runs and e.desk.subject == 2 and e.encoder.options == ()
    e.tabs.selected_index = 1; assert "no trained encoder of subject 2" in said(e, 1)
    e.subject.value = 1; assert 1 in e.panels and "<img" in e.static()

def test_desk_finds_what_was_trained(small):
    d = Desk(small, 1); assert d.trained() == {"mlp, seed 0": ("mlp", 0, "default"), "mlp, seed 0 (quick)": ("mlp", 0, "explore")} and list(d.priors()) == ["mlp, seed 0 (quick)"] and d.label() == "mlp, seed 0" and d.fit("mlp, seed 0") is d.fit("mlp, seed 0")
    with pytest.raises(NecomimiError, match="no trained nerv"): d.label("nerv")

# The command

@pytest.fixture
def started(monkeypatch):
    seen = {}; monkeypatch.setattr(os, "execve", lambda path, argv, env: seen.update(argv=argv, env=env)); monkeypatch.delenv("NECOMIMI_STUDY", raising=False)
    return seen

def test_app_listens_here_only_with_a_token(started, tmp_path):
    with pytest.raises(SystemExit) as e: cli.main(["app", "--no-browser", "--port", "9001", "--root", str(tmp_path), "--mini"])
    assert e.value.code == 0 and {"--Voila.ip=127.0.0.1", "--Voila.port=9001", "--Voila.auto_token=True", "--no-browser"} <= set(started["argv"])
    assert Path(started["argv"][3]).name == "explore.ipynb" and Path(started["argv"][3]).is_file() and json.loads(started["env"]["NECOMIMI_STUDY"])["recipe"] == "mini"
    with pytest.raises(SystemExit): cli.main(["app"])
    assert "--no-browser" not in started["argv"] and "NECOMIMI_STUDY" not in started["env"]

def test_app_without_voila_or_folder_is_one_line(started, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as e: cli.main(["app", "--root", str(tmp_path/"typo")])
    assert e.value.code == 2 and "no such folder" in capsys.readouterr().err and not started and not (tmp_path/"typo").exists()
    monkeypatch.setattr("necomimi.runs.util.find_spec", lambda name: None if name == "voila" else pytest.fail(name))
    with pytest.raises(SystemExit): cli.main(["app"])
    assert "pip install 'necomimi[lab]'" in capsys.readouterr().err

def test_the_wheel_carries_the_dashboard(tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path/"lib")], cwd=ROOT, capture_output=True, text=True)
    package = tmp_path/"lib"/"necomimi"; assert (package/"_notebooks"/"explore.ipynb").is_file() and (package/"_notebooks"/"pipeline.ipynb").is_file() and (package/"_notebooks"/"train.ipynb").is_file() and (package/"_notebooks"/"grids"/"tiny.yaml").is_file() and (package/"widgets"/"explore.py").is_file(), done.stderr
    monkeypatch.setattr("necomimi.runs.package_folder", lambda: package); assert cli.explore_notebook() == package/"_notebooks"/"explore.ipynb"

# In Voila

@contextlib.contextmanager
def served(folder, **variables):
    "`necomimi app` with these environment variables: yields its address, token included."
    from browser import free_port, private_home
    home, env = private_home(); env.pop("NECOMIMI_STUDY", None); log = folder/"voila.log"
    with open(log, "w") as f: server = subprocess.Popen([sys.executable, "-c", "from necomimi.cli import main; main()", "app", "--no-browser", "--port", str(free_port())], env=env | variables, stdout=f, stderr=subprocess.STDOUT, cwd=folder)
    try:
        for _ in range(600):
            if url := re.search(r"http://127\.0\.0\.1:\d+/\?token=\w+", log.read_text()): break
            assert server.poll() is None, log.read_text(); time.sleep(.2)
        yield url[0]
    finally: server.terminate(); server.wait(30); shutil.rmtree(home, ignore_errors=True)

@pytest.fixture(scope="module")
def page(browser, small, tmp_path_factory):
    study = json.dumps(dict(root=str(small.root), recipe="mini", vision="mini", pretrained=None))
    with served(tmp_path_factory.mktemp("voila"), NECOMIMI_STUDY=study) as url:
        p = browser.new_page(viewport=dict(width=1280, height=1000)); p.goto(url, wait_until="domcontentloaded", timeout=180_000); p.wait_for_selector(".necomimi-panel [role=note]", timeout=180_000)
        yield p; p.close()

def shot(page, name):
    "A screenshot for the documentation, in 128 colours."
    from PIL import Image
    if folder := os.environ.get("NECOMIMI_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True); path = Path(folder)/f"{name}.png"; page.screenshot(path=str(path)); Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)

def tab(p, title): p.locator(".lm-TabBar-tab, .p-TabBar-tab", has_text=title).first.click()

def test_voila_shows_the_dashboard_without_code(page):
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=60_000)
    assert "Simulated EEG" in page.inner_text("[role=note]") and "import Explore" not in page.content() and "Traceback" not in page.content()
    assert [t.strip() for t in page.locator(".lm-TabBar-tabLabel").all_inner_texts()] == TITLES
    page.wait_for_selector(".necomimi-cell img[src]"); page.wait_for_timeout(1500); shot(page, "explore")

@pytest.mark.parametrize("title, there", [("Similarity", ".js-plotly-plot:visible"), ("Training", "button:visible:has-text('Start')"), ("Generation", ".necomimi-cell img[src]:visible"), ("Attention", "text=no trained nerv"), ("Rating", "text=no prior"), ("Runs", ".necomimi-runs tbody tr:visible")])
def test_voila_opens_every_tab(page, title, there):
    tab(page, title); page.wait_for_selector(there, timeout=90_000); assert "Traceback" not in page.content()

def test_voila_a_tab_works(page):
    tab(page, "Runs"); page.locator(".necomimi-runs tr[data-run*='explore/mlp/seed-0'] input").check()
    page.wait_for_function("() => [...document.querySelectorAll('.js-plotly-plot')].some(g => g.data.some(t => (t.name ?? '').includes('explore/mlp/seed-0') && [...(t.y._inputArray ?? t.y)].length == 4))")

def test_app_comes_up_on_an_empty_cache_and_asks_for_the_token(browser, tmp_path):
    with served(tmp_path, NECOMIMI_CACHE=str(tmp_path/"cache")) as url:
        answer = urllib.request.urlopen(url.split("?")[0]); assert "necomimi" not in answer.read().decode() and "login" in answer.url, "without the token there is only a login page"
        p = browser.new_page(viewport=dict(width=800, height=1000)); p.goto(url, wait_until="domcontentloaded", timeout=180_000)
        p.wait_for_selector(".necomimi-waits:visible, .js-plotly-plot .main-svg", timeout=180_000); p.wait_for_selector(".js-plotly-plot .main-svg", timeout=240_000); assert "Simulated EEG" in p.inner_text("[role=note]")
        assert (tmp_path/"cache"/"stores"/"mini"/"sub-01"/"test.json").is_file(); p.screenshot(path=str(tmp_path/"narrow.png")); p.close()

def test_the_dashboard_in_jupyterlab(lab, small):
    with lab.open(f"from necomimi.widgets.explore import Explore\nexplore = Explore({str(small.root)!r})", "explore", name="explore") as sheet:
        p = sheet.run().page; p.wait_for_selector(".js-plotly-plot .main-svg"); tab(p.locator(".jp-OutputArea"), "Runs")
        p.wait_for_selector(".necomimi-runs tbody tr:visible"); assert "Simulated EEG" in p.inner_text("[role=note]") and sheet.errors == []
        assert sheet.python("print(list(explore.panels))") == "[0, 6]"
