"""How quickly the widgets answer, in a real JupyterLab and Chromium, on the mini study (simulated EEG):

    python scripts/bench_widgets.py [--moves 60] [--json out.json]

Time from the key or mouse event in the page to the end of plotly's redraw (or to the thumbnail's arrival) in the page, kernel and back included. The plain
reference of the cursor is the same map drawn anew by mne.viz.plot_topomap and sent as a PNG, timed in the same kernel. Goals (issue 4): cursor <= 150 ms, click <= 200 ms (medians)."""
import argparse, json, os, sys, tempfile
from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"tests"))
from browser import a_browser, a_lab

CELL = """
import io, time, numpy as np
from necomimi.mini import write_mini, mini_pictures, pixels
from necomimi.vision import load_vision
from necomimi.widgets.common import PictureGrid
from necomimi.widgets.data import TopomapExplorer
from necomimi.widgets.retrieval import SimilarityExplorer
eye = load_vision("mini"); table = {s: mini_pictures(s, n_exemplars=1) for s in ("training", "test")}; seen = {s: pixels(t) for s, t in table.items()}
e = {s: eye.embed_pictures(x, progress=False).vectors for s, x in seen.items()}
store = write_mini("study", (1,), n_exemplars=1, repetitions=(2, 10), embeddings=e, progress=False).store(1, "test")
rng = np.random.default_rng(0); single = e["test"][:, None] + 16*rng.standard_normal((200, 5, 256))     # stand-ins for EEG embeddings
"""
REFERENCE = """
import mne; from matplotlib.figure import Figure; from necomimi.data import make_info
info, x, took = make_info(store.ch_names), store.average().mean(0), []
for k in range(20):
    t = time.perf_counter(); fig = Figure(figsize=(3, 3)); mne.viz.plot_topomap(x[:, 5*k % 100], info, axes=fig.add_subplot(), show=False); fig.savefig(io.BytesIO(), format="png"); took.append(time.perf_counter() - t)
print(1000*np.median(took))"""
WATCH = """([kind]) => { const d = [...document.querySelectorAll('.js-plotly-plot')].find(d => d.data[0].type === kind); window.drawn = []; window.began = [];
    d.on('plotly_afterplot', () => window.drawn.push(performance.now()));
    for (const e of ['keydown', 'mousedown']) window.addEventListener(e, () => window.began.push(performance.now()), true); }"""
GRID = """() => { window.drawn = []; window.began = []; const g = [...document.querySelectorAll('.necomimi-grid')][0];
    for (const e of ['keydown', 'mousedown']) window.addEventListener(e, () => window.began.push(performance.now()), true); }"""
AT = """([x, y]) => { const d = [...document.querySelectorAll('.js-plotly-plot')].find(d => d.data[0].type === 'heatmap'), b = d.getBoundingClientRect(), l = d._fullLayout;
    return [b.x + l.xaxis._offset + l.xaxis.l2p(x), b.y + l.yaxis._offset + l.yaxis.l2p(y)] }"""
HEAP = "() => { window.gc && window.gc(); return performance.memory.usedJSHeapSize/1e6 }"

def answered(page, act, quiet=150):
    "Milliseconds from the event `act` causes to the last redraw it causes."
    page.evaluate("() => { window.drawn.length = 0; window.began.length = 0 }"); act()
    page.wait_for_function("() => window.drawn.length", timeout=20_000); page.wait_for_timeout(quiet)
    return page.evaluate("() => window.drawn.at(-1) - window.began[0]")

def summary(times): return dict(n=len(times), median_ms=round(float(np.median(times)), 1), p95_ms=round(float(np.percentile(times, 95)), 1))

def cursor(lab, moves):
    with lab.open(CELL, "TopomapExplorer(store)", name="cursor") as sheet:
        p = sheet.run().page; p.wait_for_selector(".js-plotly-plot .heatmaplayer image"); p.wait_for_timeout(1500); p.evaluate(WATCH, ["heatmap"])
        handle = p.locator(".necomimi-panel .noUi-handle").last; handle.scroll_into_view_if_needed(); handle.focus()
        for _ in range(5): answered(p, lambda: p.keyboard.press("ArrowRight"))
        before = p.evaluate(HEAP); times = [answered(p, lambda: p.keyboard.press("ArrowRight" if (k // 40) % 2 == 0 else "ArrowLeft")) for k in range(moves)]
        for k in range(200): p.keyboard.press("ArrowRight" if (k // 40) % 2 else "ArrowLeft"); p.wait_for_timeout(60)
        p.wait_for_timeout(1500); after = p.evaluate(HEAP)
        return summary(times) | dict(heap_before_mb=round(before, 1), heap_after_200_redraws_mb=round(after, 1), plain_mne_png_ms=round(float(sheet.python(REFERENCE)), 1))

def click(lab, moves):
    make = 'SimilarityExplorer(single.mean(1), e["test"], seen["test"], table["test"].concept.tolist(), table["test"].category.tolist(), single, simulated=True)'
    with lab.open(CELL, make, name="click") as sheet:
        p = sheet.run().page; p.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 3", timeout=60_000); p.wait_for_timeout(1500)
        p.locator(".js-plotly-plot").first.scroll_into_view_if_needed(); p.evaluate(WATCH, ["heatmap"]); rng, times = np.random.default_rng(0), []
        for k in range(moves + 3):
            x, y = p.evaluate(AT, rng.integers(5, 195, 2).tolist()); p.mouse.move(x, y); p.wait_for_timeout(120)
            times.append(answered(p, lambda: p.mouse.click(x, y)))
        return summary(times[3:])

def grid(lab, jumps=20):
    make = "g = PictureGrid([seen['training'][i % 618] for i in range(5000)], height=420)\ng"
    with lab.open(CELL, make, name="grid") as sheet:
        p = sheet.run().page; p.wait_for_selector(".necomimi-cell img[src]"); rng, times = np.random.default_rng(0), []
        before = p.evaluate(HEAP)
        for _ in range(jumps):
            times.append(p.evaluate("""at => new Promise(done => { const g = document.querySelector('.necomimi-grid'), t = performance.now(); g.scrollTop = at*(g.scrollHeight - g.clientHeight);
                const look = () => { const c = [...g.querySelectorAll('.necomimi-cell')].filter(c => { const a = c.getBoundingClientRect(), b = g.getBoundingClientRect(); return a.bottom > b.top && a.top < b.bottom });
                    c.length > 20 && c.every(x => x.querySelector('img').src) ? done(performance.now() - t) : setTimeout(look, 5) }; setTimeout(look, 5) })""", float(rng.random())))
        smooth = p.evaluate("""() => new Promise(done => { const g = document.querySelector('.necomimi-grid'), gaps = []; let last = performance.now(), n = 0; g.scrollTop = 0;
            const step = now => { gaps.push(now - last); last = now; g.scrollTop += 40; ++n < 200 ? requestAnimationFrame(step) : done(gaps.slice(1)) }; requestAnimationFrame(step) })""")
        return dict(thumbnails=5000, jump=summary(times), scrolling_frame=summary(smooth), cells_in_page=p.locator(".necomimi-cell").count(), heap_before_mb=round(before, 1), heap_after_mb=round(p.evaluate(HEAP), 1))

def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); ask.add_argument("--moves", type=int, default=60); ask.add_argument("--json")
    given = ask.parse_args()
    with a_browser() as browser, tempfile.TemporaryDirectory() as root, a_lab(browser, Path(root)) as lab:
        out = dict(load_before=round(os.getloadavg()[0], 2), cursor=cursor(lab, given.moves), click=click(lab, given.moves), grid=grid(lab))
    c = out["cursor"]; print(json.dumps(out, indent=1)); print(f"cursor: {c['median_ms']} ms, plain MNE drawing alone {c['plain_mne_png_ms']} ms: ratio {c['plain_mne_png_ms']/c['median_ms']:.1f}")
    for name, goal in dict(cursor=150, click=200).items(): print(f"{name}: median {out[name]['median_ms']} ms, goal {goal} ms: {'reached' if out[name]['median_ms'] <= goal else 'MISSED'} (load before: {out['load_before']})")
    if given.json: Path(given.json).write_text(json.dumps(out, indent=1))

if __name__ == "__main__": main()
