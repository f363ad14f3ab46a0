"TopomapExplorer: what it computes, without a browser; and the explorer itself in a JupyterLab."
import io
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from necomimi.data import CHANNELS, REGIONS, NecomimiError, TrialStore, create_store, make_info

from browser import eventually
pytest.importorskip("plotly", reason="needs necomimi[widgets]"); pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
CONCEPTS = ("apple", "boat", "cat", "dog")

def evoked(concept, ch_names, times):
    "A wave from the back of the head forward, another one for every concept."
    xyz = np.nan_to_num([ch["loc"][:3] for ch in make_info(ch_names)["chs"]]); rng = np.random.default_rng(concept); out = 0
    for k in range(4): out = out + rng.normal(0, 4)*np.exp(-((xyz - [rng.normal(0, .05), -.08 + .05*k, .05])**2).sum(1)/.004)[:, None] * np.exp(-((times - .1 - .08*k)/.035)**2)
    return out

def made_up(root, subject=1, split="training", repetitions=6, ch_names=CHANNELS, times=np.arange(-10, 50)/100, seed=0, spoil=None):
    "Simulated EEG: two pictures a concept; one of the last concept's picture files is missing."
    from PIL import Image
    from necomimi.mini import mini_pictures, pixels
    rng, table = np.random.default_rng(seed), pd.DataFrame(dict(concept=np.repeat(CONCEPTS, 2), file=[f"pictures/{c}_{k}.png" for c in CONCEPTS for k in "ab"]))
    (root/"pictures").mkdir(parents=True, exist_ok=True)
    drawn = mini_pictures("training", 2); drawn = pixels(drawn[drawn.concept.isin(CONCEPTS)])
    for f, picture in zip(table.file[:-1], drawn): Image.fromarray(picture).save(root/f)
    with create_store(root/f"sub-{subject:02d}", split, (8, repetitions, len(ch_names), len(times)), ch_names, times, 100, "µV", "made up", subject, table, simulated=True) as trials:
        trials[:] = .8*rng.standard_normal(trials.shape) + np.stack([evoked(i//2, ch_names, times) for i in range(8)])[:, None]
        if spoil is not None: trials[spoil] = np.nan
    return TrialStore.open(root/f"sub-{subject:02d}", split)

@pytest.fixture(scope="module")
def store(tmp_path_factory): return made_up(tmp_path_factory.mktemp("eeg"))

def plain(store, concept, repetitions=None):
    "The mean response, said in the simplest way."
    rows = [i for i, c in enumerate(store.pictures.concept) if c == concept]
    return np.mean([np.asarray(store.trials[r, k], np.float64) for r in rows for k in range(repetitions or store.trials.shape[1])], axis=0)

# what it computes

@pytest.mark.parametrize("names", [CHANNELS, REGIONS["occipital"], ("EOG1", "Oz", "Cz", "Fz", "Fp1", "T7", "T8")])
def test_the_matrix_draws_mnes_own_topomap(names):
    import matplotlib.pyplot as plt, mne
    from necomimi.widgets.data import SPHERE, head_map
    head, values = head_map(names), np.random.default_rng(3).standard_normal(len(names))
    placed = [n for n in names if n != "EOG1"]; fig, ax = plt.subplots()
    assert [names[i] for i in head.index] == placed
    theirs, _ = mne.viz.plot_topomap(values[head.index], make_info(placed), axes=ax, res=64, sphere=SPHERE, contours=0, show=False); plt.close(fig)
    np.testing.assert_allclose(np.nan_to_num(np.ma.filled(theirs.get_array(), 0)), head.image(values), atol=1e-5*np.ptp(values))
    np.testing.assert_allclose(theirs.get_extent(), [head.x[0], head.x[-1], head.y[0], head.y[-1]])
    places = dict(zip(placed, head.places)); assert places["Oz"][1] < 0 and (len(placed) < 9 or places["T7"][0] < 0 < places["T8"][0] and places["Fp1"][1] > 0)

def test_no_map_without_places():
    from necomimi.widgets.data import head_map
    with pytest.raises(NecomimiError, match="1 of 3 channels have a known place"): head_map(("E1", "E2", "Oz"))

def test_state_averages_subtracts_and_shares_one_scale(store):
    from necomimi.widgets.data import TopomapState
    s = TopomapState(1, "training", "cat", minus="apple", show="A − B", repetitions=2, time=.123)
    r, a, b = s.responses(store), plain(store, "cat", 2), plain(store, "apple", 2)
    for view, want in (("A", a), ("B", b), ("A − B", a - b)): np.testing.assert_allclose(r[view], want, atol=1e-5)
    assert s.sample(store) == 22 and s.limit(store, r) == pytest.approx(max(np.abs(x).max() for x in (a, b, a - b)), abs=1e-5)
    assert replace(s, scale="this moment").limit(store, r) == pytest.approx(np.abs(a - b)[:, 22].max(), abs=1e-5)
    assert replace(s, minus="").view == "A" and list(replace(s, minus="").responses(store)) == ["A"]
    assert replace(s, pictures=(5,)).rows(store, "cat") == [5] and replace(s, pictures=(5,)).rows(store, "apple") == [0, 1]
    assert "SIMULATED EEG" in s.title(store) and "2 and 2 pictures × 2 repetitions" in s.title(store)

def test_what_cannot_be_shown_is_said(store, tmp_path):
    from necomimi.widgets.data import TopomapState, as_stores, mean_response
    s = TopomapState(1, "training", "cat")
    for bad, said in ((replace(s, concept="catt"), "did you mean cat"), (replace(s, concept=""), "no concept chosen"), (replace(s, minus="cat"), "their difference is nothing"), (replace(s, repetitions=7), "1 to 6 repetitions")):
        with pytest.raises(NecomimiError, match=said): bad.responses(store)
    with pytest.raises(NecomimiError, match="at least one picture"): mean_response(store, [])
    with pytest.raises(NecomimiError, match="Oz"): mean_response(made_up(tmp_path, spoil=(1, 2, CHANNELS.index("Oz"), 5)), [0, 1])
    for nothing, said in (({}, "found nothing"), ({1: {}}, "found dict"), ("sub-01", "found str")):
        with pytest.raises(NecomimiError, match=said): as_stores(nothing)

def test_the_code_makes_the_figure(store, tmp_path):
    from necomimi.widgets.data import TopomapExplorer
    e = TopomapExplorer(store); e.change(concept="cat", minus="boat", show="A − B", repetitions=3); e.move(120); e.select(["Oz", "O1"])
    pasted = {}; exec(e.code(), pasted)
    def pixels(fig): out = io.BytesIO(); fig.savefig(out, format="rgba", dpi=60); return np.frombuffer(out.getvalue(), np.uint8)
    ours, theirs = pixels(e.figure()), pixels(pasted["fig"])
    assert ours.shape == theirs.shape and np.array_equal(ours, theirs) and len(np.unique(ours)) > 50
    np.testing.assert_allclose(pasted["eeg"], plain(store, "cat", 3) - plain(store, "boat", 3), atol=1e-5)
    e.move(300); assert not np.array_equal(pixels(e.figure()), theirs)
    for name, head in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")): assert e.save(tmp_path/name).read_bytes().startswith(head)
    with pytest.raises(NecomimiError, match="png, .svg or .pdf"): e.save(tmp_path/"a.gif")

def test_explorer_without_a_page(store, tmp_path):
    "Every control has its effect and its label; a dead end leaves the state alone."
    import ipywidgets as w
    from necomimi.widgets.data import TopomapExplorer
    e = TopomapExplorer({1: {"training": store}, 2: {"test": made_up(tmp_path, 2, "test", 3, CHANNELS[46:], seed=5)}}); c = e.c
    c.concept.value = "cat"; c.time.value = 200; c.repetitions.value = 2; want = plain(store, "cat", 2)
    np.testing.assert_allclose(e.map.figure.data[0].z, e.map.head.image(want[:, 30]).ravel(), atol=1e-5)
    np.testing.assert_allclose(e.lines.figure.data[-1].y, want.std(0), atol=1e-5)
    frontal = np.asarray(e.lines.figure.data[0].y).reshape(15, -1); np.testing.assert_allclose(frontal[:, :-1], want[:15], atol=1e-5); assert np.isnan(frontal[:, -1]).all()
    c.region.value = "occipital"; assert c.channels.value == REGIONS["occipital"] and [t for t in e.map.sensors.text if t] == list(REGIONS["occipital"])
    c.channels.value = ("Cz",); assert c.region.value == "own choice" and e.state.channels == ("Cz",) and np.allclose(e.lines.figure.data[-2].y[:-1], want[CHANNELS.index("Cz")], atol=1e-5)
    c.minus.value = "unicorn"; assert "no concept" in e.message.value and e.state.minus == "" and e.state.concept == "cat"
    c.minus.value = "dog"; assert c.show.value == e.state.view == "A − B" and "1 of 4 pictures are missing" in e.message.value and "dog_b.png" in e.message.value
    c.subject.value = 2; assert (e.state.split, c.split.value, c.repetitions.max, e.state.concept, e.state.minus, e.map.names) == ("test", "test", 3, "cat", "dog", CHANNELS[46:]) and e.state.channels == ()
    for x in (v for row in e.root.children for v in getattr(row, "children", [row])):
        if isinstance(x, (w.Button, w.ToggleButton, w.Dropdown, w.Combobox, w.IntSlider, w.SelectMultiple, w.ToggleButtons, w.Textarea, w.Play)): assert x.description
    assert "data:image/webp" in e.static() and len(e.static()) < 150_000

def test_channels_without_places_still_show_their_curves(tmp_path):
    from necomimi.widgets.data import TopomapExplorer
    e = TopomapExplorer(made_up(tmp_path, ch_names=("E1", "E2", "E3"))); e.move(100); e.select(["E2"])
    assert "No map" in e.message.value and len(e.lines.figure.data[5].y) == 3*61 and e.map.names == ()

def test_studies_are_opened(tmp_path):
    from necomimi.study import Study
    from necomimi.widgets.data import TopomapExplorer
    study = Study.mini(tmp_path)
    with pytest.raises(NecomimiError, match="study with finished stores"): TopomapExplorer(study)
    for split in ("training", "test"): made_up(study.stores, 3, split)
    e = TopomapExplorer(study); assert list(e.stores) == [3] and e.files([0])[0].is_file() and list(e.c.split.options) == ["training", "test"]

# in JupyterLab

@pytest.fixture(scope="module")
def sheet(lab):
    made_up(lab.root/"eeg"); made_up(lab.root/"eeg", 1, "test", 12, seed=1); made_up(lab.root/"eeg", 2, "test", 4, seed=2)
    cell = f"""
from necomimi.data import TrialStore
from necomimi.widgets.data import TopomapExplorer
import numpy as np
root = {str(lab.root/'eeg')!r}
stores = {{1: {{s: TrialStore.open(root + "/sub-01", s) for s in ("training", "test")}}, 2: {{"test": TrialStore.open(root + "/sub-02", "test")}}}}
e = TopomapExplorer(stores)"""
    with lab.open(cell, "e", name="topomap") as s: s.run(); s.page.wait_for_selector(".js-plotly-plot .heatmaplayer image"); yield s

MAP = "[...document.querySelectorAll('.js-plotly-plot')].find(d => d.data[0].type === 'heatmap')"
LINES = "[...document.querySelectorAll('.js-plotly-plot')].find(d => d.data[0].type === 'scatter')"
def drawn(sheet): return np.array(sheet.page.evaluate(f"Array.from({MAP}.data[0].z)"), np.float32)
def changed(sheet, before, timeout=20_000):
    sheet.page.wait_for_function(f"was => Math.abs(Array.from({MAP}.data[0].z).reduce((a, b, i) => a + (i + 1)*b, 0) - was) > 1e-3", arg=float((before.astype(float)*np.arange(1, len(before) + 1)).sum()), timeout=timeout)
    return drawn(sheet)
def on_page(sheet, plot, points):
    "Where data coordinates [(x, y)] lie on the page, scrolled into view."
    sheet.page.evaluate(f"{plot}.scrollIntoView({{block: 'center'}})"); sheet.page.wait_for_timeout(400)
    return sheet.page.evaluate(f"""points => {{ const d = {plot}, r = d.getBoundingClientRect(), f = d._fullLayout;
        return points.map(([x, y]) => [r.left + f.xaxis._offset + f.xaxis.l2p(x), r.top + f.yaxis._offset + f.yaxis.l2p(y)]) }}""", [[float(x), float(y)] for x, y in points])
def click_plot(sheet, plot, x, y):
    "A real mouse click at data coordinates."
    (at,) = on_page(sheet, plot, [(x, y)]); sheet.page.mouse.move(at[0] - 3, at[1]); sheet.page.mouse.move(*at); sheet.page.wait_for_timeout(300); sheet.page.mouse.click(*at)
def type_into(sheet, label, text):
    box = sheet.page.get_by_label(label); box.fill(text); box.press("Enter")
def at(sheet, text): sheet.page.wait_for_selector(f".widget-label:has-text('{text}')", timeout=20_000)

def truth(sheet, response, ms):
    from necomimi.widgets.data import head_map
    return head_map(CHANNELS).image(response[:, round((ms + 100)/10)]).ravel()

def test_slider_moves_the_map(sheet):
    store = TrialStore.open(sheet.lab.root/"eeg"/"sub-01", "training"); p = sheet.page; before = drawn(sheet)
    readout = p.locator(".widget-slider:has(label:has-text('time (ms)')) .widget-readout"); readout.click(); p.keyboard.press("Control+a"); p.keyboard.type("250"); p.keyboard.press("Enter")
    np.testing.assert_allclose(changed(sheet, before), truth(sheet, plain(store, "apple"), 250), atol=1e-4); at(sheet, "250 ms")
    handle = p.locator(".widget-slider:has(label:has-text('time (ms)')) .noUi-handle"); handle.focus(); p.keyboard.press("ArrowRight"); at(sheet, "260 ms")
    assert p.evaluate(f"{LINES}.layout.shapes[0].x0") == 260

def test_click_on_a_curve_moves_the_cursor_or_selects_its_channel(sheet):
    store = TrialStore.open(sheet.lab.root/"eeg"/"sub-01", "training"); oz = plain(store, "apple")[CHANNELS.index("Oz")]; k = int(np.abs(plain(store, "apple")).max(1).argmax())
    click_plot(sheet, LINES, 100, oz[20]); at(sheet, "100 ms:")
    np.testing.assert_allclose(drawn(sheet), truth(sheet, plain(store, "apple"), 100), atol=1e-4)
    sheet.page.locator(".widget-dropdown:has(label:has-text('a click on a curve')) select").select_option("selects the channel")
    peak = int(np.abs(plain(store, "apple")[k]).argmax()); click_plot(sheet, LINES, store.times[peak]*1e3, plain(store, "apple")[k, peak])
    sheet.page.wait_for_function(f"name => {MAP}.data.at(-1).text.includes(name)", arg=CHANNELS[k]); assert sheet.python("print(e.state.channels)") == str((CHANNELS[k],))
    sheet.page.locator(".widget-dropdown:has(label:has-text('a click on a curve')) select").select_option("moves the cursor")

def test_click_on_an_electrode_shows_its_curve_and_region_both_ways(sheet):
    from necomimi.widgets.data import head_map
    sheet.page.locator(".widget-dropdown:has(label:has-text('region')) select").select_option("none"); sheet.page.wait_for_function(f"{LINES}.data.at(-2).y.length === 0")
    click_plot(sheet, MAP, *head_map(CHANNELS).places[CHANNELS.index("Cz")])
    store = TrialStore.open(sheet.lab.root/"eeg"/"sub-01", "training"); sheet.page.wait_for_function(f"{LINES}.data.at(-2).y.length === 61")
    np.testing.assert_allclose(np.array(sheet.page.evaluate(f"Array.from({LINES}.data.at(-2).y)"))[:-1].astype(float), plain(store, "apple")[CHANNELS.index("Cz")], atol=1e-4)
    sheet.page.locator(".widget-dropdown:has(label:has-text('region')) select").select_option("occipital"); sheet.page.wait_for_function(f"{LINES}.data.at(-2).y.length === 8*61")
    assert sheet.page.evaluate(f"{MAP}.data.at(-1).text.filter(t => t)") == list(REGIONS["occipital"])

def test_a_loop_drawn_on_the_head_selects_the_electrodes_in_it(sheet):
    from necomimi.widgets.data import head_map
    places = head_map(CHANNELS).places; cz = places[CHANNELS.index("Cz")]; mouse = sheet.page.mouse
    loop = on_page(sheet, MAP, [(cz[0] + .06*np.cos(a), cz[1] + .03*np.sin(a)) for a in np.linspace(0, 2*np.pi, 24)])
    mouse.move(*loop[0]); sheet.page.wait_for_timeout(800); mouse.down(); [mouse.move(*at) for at in loop]; sheet.page.wait_for_timeout(800); mouse.up()   # at the speed of a hand
    inside = [c for c, (x, y) in zip(CHANNELS, places) if ((x - cz[0])/.06)**2 + ((y - cz[1])/.03)**2 < .9]; assert "Cz" in inside and len(inside) > 3
    sheet.page.wait_for_function("names => names.every(n => [...document.querySelectorAll('.necomimi-panel select[multiple] option:checked')].some(o => o.value === n || o.innerText === n))", arg=inside, timeout=20_000)
    chosen = sheet.page.locator(".necomimi-panel select[multiple] option:checked").all_inner_texts(); assert set(inside) <= set(chosen) and len(chosen) < 2*len(inside)
    sheet.page.locator(".widget-dropdown:has(label:has-text('region')) select").select_option("occipital"); sheet.page.wait_for_function(f"{MAP}.data.at(-1).text.filter(t => t).length === 8 && !({MAP}._fullLayout.selections || []).length")
    sheet.page.wait_for_timeout(1000); assert sheet.page.evaluate(f"{MAP}.data.at(-1).text.filter(t => t)") == list(REGIONS["occipital"]), "taking the loop away leaves the choice"

def test_double_click_on_the_head_clears_the_selection(sheet):
    assert sheet.page.evaluate(f"{MAP}.data.at(-1).text.filter(t => t).length") > 0
    (at,) = on_page(sheet, MAP, [(-.09, .095)]); sheet.page.mouse.move(*at); sheet.page.wait_for_timeout(300); sheet.page.mouse.dblclick(*at)
    sheet.page.wait_for_function(f"!{MAP}.data.at(-1).text.some(t => t) && {LINES}.data.at(-2).y.length === 0", timeout=20_000); assert sheet.python("print(e.state.channels)") == "()"
    eventually(sheet.page, lambda: sheet.page.locator(".widget-dropdown:has(label:has-text('region')) select").input_value() == "none")
    sheet.page.locator(".widget-dropdown:has(label:has-text('region')) select").select_option("occipital"); sheet.page.wait_for_function(f"{MAP}.data.at(-1).text.filter(t => t).length === 8")

def test_difference_of_two_concepts_and_the_pictures(sheet):
    store = TrialStore.open(sheet.lab.root/"eeg"/"sub-01", "training"); before = drawn(sheet); type_into(sheet, "A: concept", "cat"); before = changed(sheet, before); type_into(sheet, "B: minus", "dog")
    np.testing.assert_allclose(changed(sheet, before), truth(sheet, plain(store, "cat") - plain(store, "dog"), 100), atol=1e-4)
    sheet.page.wait_for_selector("text=cat − dog: sub-01 training"); sheet.page.wait_for_selector("text=1 of 4 pictures are missing"); sheet.page.wait_for_selector('.necomimi-cell[data-index="3"] img[src]')
    eventually(sheet.page, lambda: "cannot be read" in sheet.page.locator('.necomimi-cell[data-index="3"] span').inner_text())
    before = drawn(sheet); sheet.page.locator('.necomimi-cell[data-index="0"]').click(); one = np.asarray(store.trials[4], np.float64).mean(0)
    np.testing.assert_allclose(changed(sheet, before), truth(sheet, one - plain(store, "dog"), 100), atol=1e-4)
    sheet.page.locator('.necomimi-cell[data-index="0"]').click(); sheet.page.wait_for_selector("text=2 and 2 pictures")
    sheet.python("e.move(270)"); at(sheet, "270 ms"); sheet.page.mouse.move(5, 5); sheet.shot("TopomapExplorer"); sheet.python("e.move(100)"); at(sheet, "100 ms")

def test_an_unknown_concept_is_a_message_and_the_picture_stays(sheet):
    before = drawn(sheet); type_into(sheet, "A: concept", "catt"); sheet.page.wait_for_selector("[role=alert]:has-text('did you mean cat')")
    type_into(sheet, "A: concept", ""); sheet.page.wait_for_selector("[role=alert]:has-text('no concept chosen')")
    type_into(sheet, "A: concept", "dog"); sheet.page.wait_for_selector("[role=alert]:has-text('their difference is nothing')"); assert np.array_equal(drawn(sheet), before)
    type_into(sheet, "A: concept", "cat"); type_into(sheet, "B: minus", ""); sheet.page.wait_for_selector("text=cat: sub-01 training, 2 pictures"); assert not np.array_equal(drawn(sheet), before)

def test_repetitions_and_another_subject(sheet):
    p = sheet.page; before = drawn(sheet); p.locator(".widget-slider:has(label:has-text('repetitions')) .noUi-handle").focus(); p.keyboard.press("Home")
    np.testing.assert_allclose(changed(sheet, before), truth(sheet, plain(TrialStore.open(sheet.lab.root/"eeg"/"sub-01", "training"), "cat", 1), 100), atol=1e-4)
    before = drawn(sheet); p.locator(".widget-dropdown:has(label:has-text('subject')) select").select_option("2"); p.wait_for_selector("text=cat: sub-02 test, 2 pictures × 4 repetitions")
    np.testing.assert_allclose(changed(sheet, before), truth(sheet, plain(TrialStore.open(sheet.lab.root/"eeg"/"sub-02", "test"), "cat"), 100), atol=1e-4)

def test_play_runs_the_cursor(sheet):
    p = sheet.page; start = p.evaluate(f"{LINES}.layout.shapes[0].x0"); before = drawn(sheet); button = p.locator(".jupyter-widgets.widget-play button").first
    button.click(); p.wait_for_function(f"x => {LINES}.layout.shapes[0].x0 >= x + 40", arg=start, timeout=20_000); button.click(); assert not np.array_equal(drawn(sheet), before)
    p.wait_for_timeout(800); stopped = p.evaluate(f"{LINES}.layout.shapes[0].x0"); p.wait_for_timeout(800); assert p.evaluate(f"{LINES}.layout.shapes[0].x0") == stopped

def test_export_and_code(sheet, tmp_path):
    p = sheet.page
    for kind, head in (("PNG", b"\x89PNG"), ("SVG", b"<?xml")):
        p.locator(f"button.jupyter-button:text-is('{kind}')").click(); p.wait_for_selector(f"a[download$='.{kind.lower()}']")
        with p.expect_download() as got: p.click(f"a[download$='.{kind.lower()}']")
        assert got.value.suggested_filename.startswith("topomap_cat_"); got.value.save_as(tmp_path/"x"); assert (tmp_path/"x").read_bytes().startswith(head)
    p.locator("button.jupyter-button:text-is('code')").click(); text = p.locator(".necomimi-panel textarea"); text.wait_for(state="visible"); p.wait_for_function("() => document.querySelector('.necomimi-panel textarea').value.includes('fig')"); code = text.input_value()
    names = {}; exec(code, names); assert names["fig"].axes and "sub-02" in code
    np.testing.assert_allclose(names["eeg"], plain(TrialStore.open(sheet.lab.root/"eeg"/"sub-02", "test"), "cat"), atol=1e-5)
    p.locator("button.jupyter-button:text-is('code')").click(); text.wait_for(state="hidden")

def test_keep_this_view_renews_the_picture_that_stays(sheet):
    before = sheet.page.locator(".necomimi-static img").get_attribute("alt"); sheet.page.locator("button.jupyter-button:text-is('keep this view')").click()
    sheet.page.wait_for_function("was => document.querySelector('.necomimi-static img').alt !== was", arg=before, timeout=30_000)
    assert sheet.page.locator(".necomimi-static img").get_attribute("alt").startswith("cat: sub-02 test") and not sheet.page.locator(".necomimi-static").is_visible()

def test_narrow_page_and_no_complaint_in_the_console(sheet):
    p = sheet.page; p.set_viewport_size(dict(width=800, height=1400)); p.wait_for_timeout(800)
    assert p.evaluate("(() => { const a = document.querySelector('.necomimi-panel').getBoundingClientRect(); return [...document.querySelectorAll('.necomimi-panel .js-plotly-plot, .necomimi-panel button, .necomimi-panel select')].every(x => !x.offsetParent || x.getBoundingClientRect().right <= a.right + 2) })()")
    from os import environ
    keep = environ.pop("NECOMIMI_SCREENSHOTS", None)
    try: sheet.shot("narrow")
    finally: environ.update({"NECOMIMI_SCREENSHOTS": keep} if keep else {})
    p.set_viewport_size(dict(width=1280, height=1400)); assert "Traceback" not in p.inner_text(".jp-Notebook") and sheet.errors == []
