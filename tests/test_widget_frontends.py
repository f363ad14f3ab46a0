"Widgets in Voila and in Notebook 7, each in a cell of its own: what was drawn after a figure was made is there, as the kernel has it, and an event goes both ways."
import contextlib, json
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook

from browser import eventually
pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
HERE = Path(__file__).resolve().parent
CELLS = [f"""
import json, sys; sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
import numpy as np, plotly.graph_objects as go, test_widget_cat, test_widget_nerv, test_widget_retrieval, test_widget_runs, test_widget_training
from IPython.display import HTML
from necomimi.widgets.cat import CATRater
from necomimi.widgets.data import TopomapExplorer
from necomimi.widgets.nerv import EncoderLens
from necomimi.widgets.retrieval import SimilarityExplorer
from necomimi.widgets.runs import RunBrowser
here = Path.cwd(); store, fit = test_widget_nerv.prepare(here)""",
"topomap = TopomapExplorer(store, here); topomap.move(350); topomap",
"similar = SimilarityExplorer(**test_widget_retrieval.problem()); similar.choose(5); similar",
"monitor = test_widget_training.monitor(); monitor.start(); monitor.job.wait(60); monitor",
"lens = EncoderLens(fit, store, here); lens.change(row=2); lens",
"test_widget_runs.make(here/'runs'); runs = RunBrowser(here/'runs', ['models/seed-0/sub-01', 'models/seed-1/sub-01']); runs",
"rater = CATRater(test_widget_cat.pictures, test_widget_cat.tags, here/'task', 'Ada'); rater",
"""
def figures(part): return [part] if isinstance(part, go.FigureWidget) else [f for c in getattr(part, "children", ()) for f in figures(c)]
def total(trace): return float(np.nansum(np.asarray(getattr(trace, "z", None) if trace.type == "heatmap" else trace.y if trace.y is not None else [], float)))
HTML(f"<pre id='truth'>{json.dumps([[[total(t) for t in f.data] for f in figures(x.root)] for x in (topomap, similar, monitor, lens, runs, rater)])}</pre>")"""]
TOTALS = """() => { const flat = a => a == null ? [] : a._inputArray ? flat(a._inputArray) : typeof a === 'number' ? [a] : ArrayBuffer.isView(a) ? [...a] : Array.isArray(a) ? a.flatMap(flat) : [];
    const total = t => flat(t.type === 'heatmap' ? t.z : t.y).filter(Number.isFinite).reduce((a, b) => a + b, 0);
    return [...document.querySelectorAll('.necomimi-panel')].map(p => [...p.querySelectorAll('.js-plotly-plot')].map(d => d.data.map(total))) }"""

@pytest.fixture(scope="module", params=["voila", "notebook"])
def page(request, browser, tmp_path_factory):
    from browser import a_lab, a_voila
    folder = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        if request.param == "notebook":
            pytest.importorskip("notebook", reason="needs notebook (necomimi[dev])"); lab = stack.enter_context(a_lab(browser, folder, "notebook"))
            sheet = stack.enter_context(lab.open(*CELLS, name="widgets", height=6000)); p = sheet.run().page
        else:
            nbformat.write(new_notebook(cells=[new_code_cell(c) for c in CELLS], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))), folder/"widgets.ipynb")
            p = stack.enter_context(a_voila(browser, folder/"widgets.ipynb"))
        p.wait_for_selector("#truth", timeout=180_000, state="attached"); p.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 11*3", timeout=90_000); yield p

def test_every_figure_shows_what_the_kernel_has(page):
    want = json.loads(page.inner_text("#truth")); assert [len(x) for x in want] == [2, 3, 1, 3, 2, 0]
    assert all(any(abs(t) > 0 for t in f) for x in want for f in x), "there is something to show in each"
    page.wait_for_function(f"want => ({TOTALS})().flat(2).every((x, i) => Math.abs(x - want[i]) <= 1e-3*(1 + Math.abs(want[i])))", arg=[t for x in want for f in x for t in f], timeout=30_000)
    got = page.evaluate(TOTALS); assert [[len(f) for f in x] for x in got] == [[len(f) for f in x] for x in want]
    marks = page.evaluate("() => [...document.querySelectorAll('.necomimi-panel .js-plotly-plot')].map(d => d.querySelectorAll('.heatmaplayer image, .scatterlayer path, .barlayer path').length)")
    assert len(marks) == 11 and min(marks) > 0, "and it is drawn"

def test_the_pictures_and_the_rating_card_are_there(page):
    page.wait_for_selector(".necomimi-card img[src]"); eventually(page, lambda: page.locator(".necomimi-cell img[src]").count() > 20 and page.locator(".necomimi-runs tbody tr").count() == 6)
    assert "Traceback" not in page.content() and not page.locator(".necomimi-static").first.is_visible()

def test_an_event_goes_to_the_kernel_and_back(page):
    heat = "[...document.querySelectorAll('.js-plotly-plot')].find(d => d.data[0].type === 'heatmap')"; before = page.evaluate(f"Array.from({heat}.data[0].z)")
    handle = page.locator(".widget-slider:has(label:has-text('time (ms)')) .noUi-handle"); handle.focus(); page.keyboard.press("ArrowLeft"); page.wait_for_selector(".widget-label:has-text('340 ms')")
    page.wait_for_function(f"was => Array.from({heat}.data[0].z).some((z, i) => Math.abs(z - was[i]) > 1e-3)", arg=before, timeout=60_000)

def test_plain_keys_are_the_widgets_and_the_others_jupyters(page):
    "In command mode B makes a new cell and the arrows leave for the next one, unless a control of ours has the focus."
    cells = page.locator(".jp-Notebook .jp-Cell").count(); grid = page.locator(".necomimi-grid").first; grid.focus()
    for key in ("b", "ArrowDown", "Home", "ArrowRight"): page.keyboard.press(key)
    page.wait_for_function("() => document.querySelector('.necomimi-cell.here')?.dataset.index !== undefined && document.activeElement.className === 'necomimi-grid'"); page.wait_for_timeout(300)
    kept = lambda: grid.get_attribute("data-lm-suppress-shortcuts") is not None
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells and kept()
    page.keyboard.press("Control+s"); page.wait_for_timeout(300); assert not kept()
