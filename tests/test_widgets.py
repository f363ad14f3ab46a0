"What all widgets share, in a real JupyterLab: the panel, the grid, the picture that stays."
import json, threading, time
from pathlib import Path
import numpy as np, pytest
from necomimi.data import NecomimiError

pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
from necomimi.widgets.common import Job, Panel, as_html, figure

# Without a browser

class Bare(Panel):
    name = "bare"
    def __init__(self, draw=None): self.draw = draw; self.build()
    def static(self): return self.draw()

def test_handlers_of_a_panel_take_turns_and_those_of_another_do_not_wait():
    panel, other, inside, most, free = Bare(), Bare(), [], [], threading.Event()
    def handler():
        with panel.guarded():
            inside.append(1); most.append(len(inside)); time.sleep(.02)
            with panel.guarded(): pass                                  # a handler may set what calls another
            inside.pop()
    def elsewhere():
        with other.guarded(): free.set()
    with panel.guarded():
        threads = [threading.Thread(target=f, daemon=True) for f in [handler]*5 + [elsewhere]]; [t.start() for t in threads]
        assert free.wait(5) and not most, "nobody is let in before this handler ends"
    [t.join(10) for t in threads]; assert most == [1]*5 and not any(t.is_alive() for t in threads)

def test_the_end_of_a_job_waits_for_the_handler_that_started_it():
    panel, order, ended = Bare(), [], threading.Event()
    def done(result, error):
        with panel.guarded(): order.append(result); ended.set()
    with panel.guarded(): job = Job(lambda job: "job", done); time.sleep(.1); order.append("handler")
    assert ended.wait(5) and order == ["handler", "job"] and not job.wait(5).running
    def fails(result, error):
        with panel.guarded(): raise error
    Job(lambda job: 1/0, fails).wait(5); assert "unexpected ZeroDivisionError" in panel.message.value
    with panel.guarded(): order.append("alive")
    assert order[-1] == "alive", "an error leaves the lock open"

def test_a_still_picture_closes_its_own_pyplot_figure_and_no_other():
    import matplotlib.pyplot as plt
    others, mine, kept = plt.get_fignums(), plt.figure(), plt.figure()
    made = lambda: plt.subplots(figsize=(1, 1))[0]
    for draw in (made, lambda: kept, made): assert Bare(draw).still().startswith("<img")
    def fails(): raise NecomimiError("no <data>")
    assert "no picture (no &lt;data&gt;)" in Bare(fails).still() and plt.get_fignums() == [*others, mine.number, kept.number]

def test_still_pictures_have_a_palette():
    import base64, io
    from matplotlib.figure import Figure
    from PIL import Image
    fig = Figure(figsize=(4, 3)); fig.subplots().imshow(np.arange(12).reshape(3, 4), cmap="RdBu_r"); full = io.BytesIO(); fig.savefig(full, format="png", dpi=90, bbox_inches="tight")
    page = as_html(fig, 'a "b"'); small = base64.b64decode(page.split("base64,")[1].split('"')[0]); a, b = Image.open(io.BytesIO(small)), Image.open(full)
    assert a.mode == "P" and a.size == b.size and len(small) < .7*len(full.getvalue()) and 'alt="a &quot;b&quot;"' in page
    assert np.abs(np.asarray(a.convert("RGB"), int) - np.asarray(b.convert("RGB"), int)).mean() < 1

def test_a_page_that_comes_late_gets_what_is_drawn_now():
    import plotly.graph_objects as go
    fig = figure([go.Scatter(x=[], y=[])], height=200); fig.data[0].y = [1, 2]; fig.layout.title.text = "now"
    state = fig.get_state(); assert list(state["_widget_data"][0]["y"]) == [1, 2] and state["_widget_layout"]["title"]["text"] == "now" and state["_widget_layout"]["height"] == 200
    assert list(fig.get_state(["_widget_layout"])) == ["_widget_layout"], "asked for one thing, it gives one"

def test_a_panel_settles_plain_plotly_figures_too():
    import ipywidgets as w, plotly.graph_objects as go
    panel, plain, ours = Bare(), go.FigureWidget([go.Scatter(x=[], y=[])]), figure([go.Scatter(x=[], y=[])]); panel.build(w.HBox([w.VBox([plain]), ours]))
    for f in (plain, ours): f.data[0].y = [3, 4]
    assert not len(plain._widget_data[0]["y"]); panel.settle(); assert all(list(f._widget_data[0]["y"]) == [3, 4] for f in (plain, ours))

# In JupyterLab

PANEL = """
import ipywidgets as w
from necomimi.data import NecomimiError
from necomimi.widgets.common import Panel, PictureGrid
import numpy as np
class Demo(Panel):
    name = "demo"
    def __init__(self):
        rng = np.random.default_rng(0)
        self.colours = rng.integers(0, 256, (5000, 3), np.uint8)
        self.grid = PictureGrid([np.broadcast_to(c, (64, 64, 3)).copy() for c in self.colours], captions=[f"no {i}" for i in range(5000)], height=300, label="five thousand")
        self.note = w.Label("nothing"); self.button = w.Button(description="fail")
        self.on(self.grid, lambda v: setattr(self.note, "value", f"chosen {v}"), "selected"); self.on(self.button, self.fail); self.build(self.grid, self.note, self.button)
    def fail(self, _): raise NecomimiError("expected a cat, found a dog")
    def static(self): return "<p>STATIC PICTURE</p>"
demo = Demo()
"""

@pytest.fixture(scope="module")
def sheet(lab):
    with lab.open(PANEL, "demo", name="common") as s: yield s.run()

def test_grid_draws_what_is_in_view_and_sends_what_was_chosen(sheet):
    p = sheet.page; p.wait_for_selector(".necomimi-cell img[src]")
    assert p.locator(".necomimi-cell").count() < 200
    p.locator('.necomimi-cell[data-index="2"]').click(); p.wait_for_selector("text=chosen [2]")
    p.locator(".necomimi-grid").focus(); p.keyboard.press("ArrowRight"); p.keyboard.press("Space"); p.wait_for_selector("text=chosen [2, 3]")
    assert p.locator('.necomimi-cell[data-index="3"]').get_attribute("aria-selected") == "true"
    sheet.shot("grid")

def test_grid_scrolls_through_five_thousand_and_shows_the_right_ones(sheet):
    p = sheet.page; p.locator(".necomimi-grid").focus(); p.keyboard.press("End"); p.wait_for_selector('.necomimi-cell[data-index="4999"] img[src]')
    assert p.locator('.necomimi-cell[data-index="4999"] span').inner_text() == "no 4999" and p.locator(".necomimi-cell").count() < 200
    seen = p.evaluate("""async () => { const img = document.querySelector('.necomimi-cell[data-index="4999"] img'); await img.decode(); const c = document.createElement('canvas'); c.width = c.height = 1;
        const x = c.getContext('2d'); x.drawImage(img, 0, 0, 1, 1); return [...x.getImageData(0, 0, 1, 1).data].slice(0, 3) }""")
    assert np.abs(np.array(seen) - np.random.default_rng(0).integers(0, 256, (5000, 3), np.uint8)[4999]).max() < 16
    p.keyboard.press("Home"); p.wait_for_selector('.necomimi-cell[data-index="0"] img[src]')

def test_grid_lets_go_of_thumbnails_that_are_sent_again(sheet):
    p = sheet.page; p.evaluate("() => { window.alive = new Set(); const make = URL.createObjectURL, drop = URL.revokeObjectURL; URL.createObjectURL = b => { const u = make.call(URL, b); window.alive.add(u); return u }; URL.revokeObjectURL = u => { window.alive.delete(u); drop.call(URL, u) } }")
    again = "made = [demo.grid.thumb(i) for i in range(10)]\nfor k in range(5): demo.grid.send(dict(kind='thumbs', version=demo.grid.version, indices=list(range(10)), captions=[f'round {k}']*10), buffers=[b for b, _ in made])"
    sheet.python(again); p.wait_for_selector('.necomimi-cell[data-index="3"] span:has-text("round 4")'); assert p.evaluate("window.alive.size") == 10
    assert p.evaluate("document.querySelector('.necomimi-cell[data-index=\"3\"] img').src") in p.evaluate("[...window.alive]")

def test_an_error_is_a_message_and_the_controls_live_on(sheet):
    p = sheet.page; p.click("button:has-text('fail')")
    p.wait_for_selector("[role=alert]:has-text('expected a cat, found a dog')")
    p.locator('.necomimi-cell[data-index="0"]').click(); p.wait_for_selector("text=chosen [2, 3, 0]")
    assert "Traceback" not in p.inner_text(".jp-Notebook")

def test_the_static_picture_hides_while_the_widget_lives_and_no_error_reaches_the_console(sheet):
    assert not sheet.page.locator(".necomimi-static").is_visible() and sheet.errors == []

def test_a_notebook_without_its_kernel_shows_the_picture(lab, sheet):
    p = sheet.page; p.keyboard.press("Escape"); p.keyboard.press("Control+s"); path = sheet.path
    for _ in range(100):
        if "necomimi-static" in path.read_text(): break
        time.sleep(.1)
    assert "necomimi-static" in path.read_text()
    copy = path.with_name("reopened.ipynb"); nb = json.loads(path.read_text()); copy.write_text(json.dumps(nb))
    page = lab.browser.new_page(viewport=dict(width=1280, height=900))
    page.goto(lab.url(copy)); page.wait_for_selector(".necomimi-static", timeout=60_000, state="attached")
    page.wait_for_timeout(4000);
    assert page.locator(".necomimi-static").is_visible() and not page.get_by_text("model not found").first.is_visible()
    page.close()

TWO = """
import numpy as np
from necomimi.widgets.retrieval import SimilarityExplorer
rng = np.random.default_rng(0); gallery = rng.standard_normal((12, 8)); pictures = rng.integers(0, 256, (12, 1, 1, 3), np.uint8).repeat(16, 1).repeat(16, 2)
similar = SimilarityExplorer(gallery + rng.standard_normal((12, 8)), gallery, pictures, [f"thing {i}" for i in range(12)])"""

def test_a_kernel_restart_leaves_each_widget_readable(lab):
    with lab.open(PANEL, "demo", TWO, "similar", name="restart") as s:
        p = s.run().page; p.wait_for_selector(".js-plotly-plot .heatmaplayer image"); p.wait_for_selector(".necomimi-cell img[src]")
        p.keyboard.press("Escape"); p.keyboard.press("Control+s"); p.wait_for_timeout(2000)
        p.click("text=Kernel >> nth=0"); p.click('li[data-command="kernelmenu:restart"]'); p.click(".jp-Dialog button.jp-mod-accept"); p.wait_for_timeout(4000)
        def readable():
            "Of each widget: its picture that stays, or the widget as it was; never nothing, never a complaint instead of either."
            assert "model not found" not in (text := p.inner_text(".jp-Notebook")) and "Traceback" not in text
            stills, panels = p.locator(".necomimi-static"), p.locator(".necomimi-panel"); assert stills.count() == 2
            return [stills.nth(i).is_visible() or (panels.count() == 2 and panels.nth(i).is_visible()) for i in (0, 1)]
        assert readable() == [True, True]; s.shot("restarted", ".jp-Notebook")
        if p.locator(".necomimi-panel").count():                       # it is still there: what it last showed can be read, and a click does no harm
            assert p.locator(".necomimi-panel img[alt='thing 0'], .necomimi-panel figcaption").first.is_visible() and p.locator(".js-plotly-plot .heatmaplayer image").first.is_visible()
            p.locator('.necomimi-panel .necomimi-cell').first.click()
        assert s.errors == []
        p.goto(lab.url(s.path)); p.wait_for_selector(".necomimi-static", timeout=60_000, state="attached"); p.wait_for_timeout(4000)
        assert p.locator(".necomimi-panel").count() == 0 and readable() == [True, True] and p.locator(".necomimi-static img").count() == 1
        s.run(); p.wait_for_selector(".js-plotly-plot .heatmaplayer image"); assert not p.locator(".necomimi-static").first.is_visible(), "run again, the widgets are back"

LATE = """
import plotly.graph_objects as go
from necomimi.widgets.common import Fit, PlotlyCode, figure
plot = figure([go.Scatter(y=[1, 2, 3]), go.Bar(y=[0, 0])], height=240)"""

CHANGES = "plot.data[0].y = [7, 8, 9]; plot.add_scatter(y=[4, 4]); plot.update_layout(title_text='changed', height=260)"
@pytest.mark.parametrize("name,changes", [("late", CHANGES + ";"), ("late-and-shown-again", CHANGES)])
def test_a_plot_whose_code_comes_late_has_missed_nothing(lab, name, changes):
    "anywidget gives a widget two seconds; plotly's 5 MB may take longer (a busy machine), and the kernel does not wait."
    with lab.open(LATE, "plot", changes, "plot.data = [plot.data[0], plot.data[2]];", name=name) as s:
        p = s.page; p.evaluate("() => { const was = requestIdleCallback; window.requestIdleCallback = (f, how) => how?.timeout === 3000 ? setTimeout(() => f({ didTimeout: true, timeRemaining: () => 0 }), 6000) : was(f, how) }"); s.run(); assert p.locator(".js-plotly-plot").count() == 0, "the code is not there yet"
        shown = "() => { const g = document.querySelector('.js-plotly-plot'); return g?._fullLayout && [g.data.map(t => [...(t.y._inputArray ?? t.y)]), g.layout.title.text, g.layout.height] }"
        p.wait_for_selector(".js-plotly-plot .main-svg", timeout=60_000); assert p.evaluate(shown) == [[[7, 8, 9], [4, 4]], "changed", 260]
        s.python("plot.data[1].y = [5, 6]"); p.wait_for_function(f"() => ({shown})()[0][1][1] === 6")
        said = s.python("print(PlotlyCode.one() is PlotlyCode.one(), sum(len(v) for v in plot.get_state().values() if isinstance(v, (str, bytes))) < 10_000)"); assert said == "True True"
        assert s.errors == []

def test_the_code_is_carried_again_after_it_was_closed():
    from ipywidgets.embed import dependency_state
    from necomimi.widgets.common import PlotlyCode, figure
    import plotly.graph_objects as go
    first = PlotlyCode.one(); name = first.model_id; carrier = lambda: figure([go.Bar(y=[1])]).get_state()["_plotly"]["carrier"]; assert carrier() == f"IPY_MODEL_{name}" and len(first.code) > 1e6
    assert name in dependency_state([figure([go.Bar(y=[1])])]), "a page saved with its widgets has the code too"
    first.close(); again = carrier(); assert again == f"IPY_MODEL_{PlotlyCode.one().model_id}" != f"IPY_MODEL_{name}"
