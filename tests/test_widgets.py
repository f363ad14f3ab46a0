"What all widgets share, in a real JupyterLab: the panel, the grid, the picture that stays."
import json, time
from pathlib import Path
import numpy as np, pytest

pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
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
    page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/{copy.name}?reset&token={lab.token}"); page.wait_for_selector(".necomimi-static", timeout=60_000, state="attached")
    page.wait_for_timeout(4000);
    assert page.locator(".necomimi-static").is_visible() and not page.get_by_text("model not found").first.is_visible()
    page.close()
