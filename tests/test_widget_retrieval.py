"SimilarityExplorer: its numbers without a browser, then in a real JupyterLab."
import re
from types import SimpleNamespace
import numpy as np, pytest
from PIL import Image

from browser import eventually
pytest.importorskip("anywidget", reason="needs necomimi[widgets]"); pytest.importorskip("plotly")
from necomimi.data import NecomimiError
from necomimi.retrieval import retrieve
from necomimi.widgets.common import CATEGORIES
from necomimi.widgets.retrieval import RankedGrid, SimilarityExplorer, SimilarityExplorerState as State, View, arrange, counted, in_words, look, make_pairs, place_counts, planar, ranked

N, DIM, R = 24, 16, 3
def problem(seed=0):
    "24 pictures of three categories; decoded vectors with noise, and three noisier repetitions."
    rng = np.random.default_rng(seed); gallery = rng.standard_normal((N, DIM))
    single = gallery[:, None] + 1.5*rng.standard_normal((N, R, DIM))
    pictures = rng.integers(0, 256, (N, 1, 1, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    return dict(eeg_embeddings=single.mean(1), gallery=gallery, pictures=pictures, concepts=[f"thing {i}" for i in range(N)], categories=np.array(["animal", "food", "tool"])[np.arange(N) % 3], repetitions=single)

unit = lambda x: x/np.linalg.norm(x, axis=1, keepdims=True)
@pytest.fixture
def data(): return problem()
@pytest.fixture
def pairs(data): return make_pairs(**data)

def test_places_are_those_of_retrieve(data, pairs):
    for state, eeg in [(State("averaged"), data["eeg_embeddings"]), (State("real", 2), data["repetitions"][:, 2])]:
        want = retrieve(eeg, data["gallery"], split="s", gallery_name="g", repetitions=1, n_boot=10, n_shuffles=10); view = look(pairs, state)
        np.testing.assert_array_equal(view.places, want.ranks)
        first = in_words(view, np.ones(N, bool)); assert f"first {100*want[N].accuracy:.1f} %" in first and f"median place {np.median(want.ranks):g} of {N} (chance 12.5)" in first

def test_a_shuffle_keeps_the_vectors_and_moves_their_pictures(pairs):
    real, shuffled, other = look(pairs, State("averaged")), look(pairs, State("shuffled")), look(pairs, State("shuffled", seed=1))
    np.testing.assert_array_equal(real.scores, shuffled.scores)
    assert sorted(shuffled.truth) == list(range(N)) and (shuffled.truth != real.truth).sum() > N/2 and (shuffled.truth != other.truth).any()
    np.testing.assert_array_equal(look(pairs, State("shuffled")).truth, shuffled.truth)
    assert np.mean([np.mean(look(pairs, State("shuffled", seed=s)).places) for s in range(60)]) == pytest.approx((N+1)/2, abs=.7)

def test_ranked_gallery_is_the_sorted_row_and_keeps_the_right_picture(data, pairs):
    view = look(pairs, State("averaged")); cosines = unit(data["eeg_embeddings"]) @ unit(data["gallery"]).T
    worst = int(view.places.argmax()); assert view.places[worst] > 3
    table = ranked(pairs, view, worst, 3); order = np.argsort(-cosines[worst])
    assert table.picture.tolist() == [*order[:3], worst] and table.right.tolist() == [False]*3 + [True] and table.place.iloc[-1] == view.places[worst]
    np.testing.assert_allclose(table.cosine, cosines[worst, table.picture], atol=1e-8); assert table.concept.iloc[-1] == f"thing {worst}"
    assert len(ranked(pairs, view, worst)) == N

def test_several_trials_of_a_picture_and_ties():
    gallery = np.eye(4); pairs = make_pairs(np.r_[gallery[[1, 1]], np.ones((1, 4))], gallery, [None]*4, truth=[1, 0, 2])
    assert look(pairs, State()).places.tolist() == [1, 3, 2.5]
    rows, cols = arrange(pairs, look(pairs, State()), "given"); assert rows.tolist() == [1, 0, 2] and cols.tolist() == [0, 1, 2, 3]

def test_orders_keep_the_right_pictures_on_the_diagonal(pairs):
    view = look(pairs, State("averaged"))
    for by in ("category", "given", "place"):
        rows, cols = arrange(pairs, view, by); np.testing.assert_array_equal(view.truth[rows], cols)
    assert (np.diff(view.places[rows]) >= 0).all()
    rows, cols = arrange(pairs, view, "category", most=7); assert len(rows) == len(cols) == 7
    assert arrange(pairs, view, "category")[1].tolist() == sorted(range(N), key=lambda i: (i % 3, i))

def test_counts_and_chance():
    places = np.array([1, 1, 2, 5.5, 10, 47])
    edges, n, chance = place_counts(places, 47)
    assert n.sum() == 6 and n[0] == 3 and n[-1] == 1 and (edges[0], edges[-1]) == (.5, 47.5) and len(n) <= 20 and chance.sum() == pytest.approx(6)
    assert len(np.unique(np.diff(edges)[:-1])) == 1

def test_which_trials_count(pairs):
    view = look(pairs, State("averaged"))
    assert np.flatnonzero(counted(pairs, view, State(category="food"))).tolist() == list(range(1, N, 3))
    assert np.flatnonzero(counted(pairs, view, State(category="food", subset=(2, 5)))).tolist() == [2, 5]
    with pytest.raises(NecomimiError, match="no trial is chosen on the map"): counted(pairs, view, State(subset=()))
    with pytest.raises(NecomimiError, match="none belongs to 'plant'"): counted(pairs, view, State(category="plant"))

def test_maps(pairs):
    from sklearn.decomposition import PCA
    view = look(pairs, State("averaged")); e, g = planar(view.vectors, pairs.gallery)
    centred = unit(pairs.gallery - pairs.gallery.mean(0)); np.testing.assert_allclose(np.abs(g), np.abs(PCA(2).fit_transform(centred)), atol=1e-6); assert e.std() == pytest.approx(g.std())
    other = planar(look(pairs, State("real", 1)).vectors, pairs.gallery); np.testing.assert_array_equal(g, other[1]); assert np.abs(e - other[0]).max() > .1
    e, g = planar(view.vectors, pairs.gallery, "t-SNE"); assert e.shape == g.shape == (N, 2) and np.isfinite(e).all()
    near = np.linalg.norm(e - g, axis=1).mean(); far = np.linalg.norm(e[:, None] - g, axis=2).mean(); assert near < .7*far
    assert planar(np.ones((3, 1)) + np.arange(3)[:, None], np.arange(4.)[:, None])[1].shape == (4, 2)
    with pytest.raises(NecomimiError, match="UMAP"): planar(view.vectors, pairs.gallery, "UMAP")

@pytest.mark.parametrize("change,says", [
    (dict(eeg_embeddings=np.ones((N, 8))), "width 8, the gallery 16"), (dict(eeg_embeddings=np.ones((0, DIM))), "non-empty"), (dict(eeg_embeddings=np.full((N, DIM), np.nan)), "NaN"),
    (dict(pictures=[None]*3), "the 24 pictures of the gallery, found 3"), (dict(concepts=["a"]), "concepts must name the 24"), (dict(categories=["a"]), "categories must name"),
    (dict(repetitions=np.ones((N, DIM))), r"\(24, n_repetitions, 16\)"), (dict(eeg_embeddings=np.ones((3, DIM)), repetitions=None), "3 queries but 24"), (dict(truth=[99]*N), "truth must lie in")])
def test_bad_input_is_a_message_in_the_panel(data, change, says):
    with pytest.raises(NecomimiError, match=says): make_pairs(**data | change)
    x = SimilarityExplorer(**data | change)
    assert re.search(says, x.message.value) and "necomimi-error" in x.message.value and re.search(says, x._static_html())

def test_states_that_do_not_exist(data, pairs):
    with pytest.raises(NecomimiError, match="averaged needs repetitions"): look(make_pairs(**data | dict(repetitions=None)), State("averaged"))
    for bad in (State("real", R), State("averaged", query=N), State("dreamt")):
        with pytest.raises(NecomimiError): look(pairs, bad)

def test_controls_change_what_is_drawn(data):
    x = SimilarityExplorer(**data, simulated=True); c = x.controls
    assert x.state.condition == "averaged" and c["repetition"].layout.display == "none"
    z = x.matrix.data[0].z.copy(); np.testing.assert_allclose(z, x.view.scores[np.ix_(x.rows, x.cols)], atol=1e-6)
    c["condition"].value = "real"; c["repetition"].value = 3
    np.testing.assert_allclose(x.view.vectors, unit(data["repetitions"][:, 2])); assert np.abs(x.matrix.data[0].z - z).max() > .1 and c["repetition"].layout.display == ""
    c["category"].value = "tool"; assert sum(x.places.data[1].y) == 8 and np.flatnonzero(np.array(x.map.data[1].marker.color) != '#d9d9d9').tolist() == list(range(2, N, 3)) and "8 trials" in x.message.value
    c["category"].value = "all"; assert list(x.map.data[1].marker.color) == x.pairs.colours.tolist() and sum(x.places.data[1].y) == N
    c["concept"].value = "thing 7"; assert x.state.query == 7 and x.grid.order[0] == x.view.scores[7].argmax() and "thing 7" in x.seen.value
    c["concept"].value = "no such"; assert "no trial of a picture called &#x27;no such&#x27;" in x.message.value and x.state.query == 7
    at = x.rows.tolist().index(7); c["next"].click(); assert x.state.query == x.rows[at+1]
    c["order"].value = "place"; assert x.matrix.layout.shapes[0].y0 == x.rows.tolist().index(x.state.query) - .5
    x.grid.selected = [4]; assert x.state.picture == 4 and "cosine with thing 4" in x.message.value and list(x.map.data[3].x) == [x._plane["PCA", 2][1][4, 0]]

def test_a_page_that_comes_later_gets_what_is_drawn(data):
    x = SimilarityExplorer(**data); x.choose(5)
    state = x.matrix.get_state()
    np.testing.assert_allclose(state["_widget_data"][0]["z"], x.view.scores[np.ix_(x.rows, x.cols)], atol=1e-6); assert state["_widget_layout"]["shapes"][0]["y0"] == x.rows.tolist().index(5) - .5

def test_tsne_runs_beside_and_ends_on_the_map(data):
    x = SimilarityExplorer(**data); pca = np.array(x.map.data[0].x); job = None
    x.controls["map"].value = "t-SNE"; job = x._job; x.controls["condition"].value = "shuffled"      # the same vectors: nothing to compute again
    if job: job.wait(120)
    assert "t-SNE" in x.map.layout.title.text and np.abs(np.array(x.map.data[0].x) - pca).max() > .1
    x.controls["map"].value = "PCA"; np.testing.assert_allclose(x.map.data[0].x, pca)

def test_a_missing_picture_is_said_and_the_rest_lives_on(data, tmp_path):
    pictures = list(data["pictures"]); pictures[2] = tmp_path/"gone.png"; x = SimilarityExplorer(**data | dict(pictures=pictures))
    x.choose(2); assert "necomimi-error" in x.message.value and "gone.png" in x.message.value and "cannot be read" in x.grid.thumb(2)[1]
    x.choose(3); assert "necomimi-error" not in x.message.value and "<img" in x._static_html()

def test_ranked_grid_sends_the_pictures_of_the_ranking_and_keeps_thumbnails(data, pairs):
    grid = RankedGrid(data["pictures"], pairs.concepts); sent = []; grid.send = lambda content, buffers=None: sent.append((content, buffers)); view = look(pairs, State("averaged"))
    for q in (0, 1): grid.rank(ranked(pairs, view, q, 5))
    (first, pictures), (second, again) = sent; best = int(view.scores[0].argmax())
    assert first["indices"][0] == best and len(pictures) == len(first["captions"]) == len(first["indices"]) and f"1: {view.scores[0, best]:.2f} thing {best}" in first["captions"][0]
    shared = set(first["indices"]) & set(second["indices"]); assert shared and all(pictures[first["indices"].index(i)] is again[second["indices"].index(i)] for i in shared)
    assert grid.order == second["indices"] and grid.marks == {"1": "#009E73"} and second["captions"][second["indices"].index(1)].startswith("✓ ")
    before = grid.version
    for q in range(50): grid.rank(ranked(pairs, view, q % N, 5))
    assert grid.version == before + 1 and all(c["version"] == grid.version for c, _ in sent[-3:])

def test_of_fit_embeds_the_mean_and_each_repetition(data, tmp_path):
    from necomimi.data import create_store
    trials = np.random.default_rng(0).standard_normal((N, R, 2, 8)).astype("float32")
    with create_store(tmp_path, "test", trials.shape, ["Oz", "O1"], np.arange(8)/100, 100., "µV", "r", 1, dtype="float32", simulated=True) as out: out[:] = trials
    from necomimi.data import TrialStore
    store, fit = TrialStore.open(tmp_path, "test"), SimpleNamespace(embed=lambda s: s.average().reshape(len(s), -1))
    x = SimilarityExplorer.of_fit(fit, store, data["gallery"], data["pictures"], most=2)
    np.testing.assert_allclose(x.pairs.single, trials[:, :2].reshape(N, 2, 16).astype("float32"), atol=1e-6); assert x.about == "simulated EEG"
    np.testing.assert_allclose(x.pairs.eeg, unit(trials.mean(1).reshape(N, 16)), atol=1e-6)
    assert "width 16, the gallery 8" in SimilarityExplorer.of_fit(fit, store, data["gallery"][:, :8], data["pictures"]).message.value

def test_counting_what_is_not_there_is_a_message_and_changes_nothing(data):
    x = SimilarityExplorer(**data | dict(eeg_embeddings=data["eeg_embeddings"][:2], repetitions=None, truth=[0, 1])); c = x.controls
    c["category"].value = "tool"; assert "none belongs to &#x27;tool&#x27;" in x.message.value and c["category"].value == "all" and x.state.category == "all"
    c["category"].value = "(map)"; assert "drag around dots" in x.message.value and c["category"].value == "all"
    x._count(subset=(1,)); assert c["category"].value == "(map)" and x.state.subset == (1,) and sum(x.places.data[1].y) == 1
    c["category"].value = "animal"; assert x.state.subset is None and "1 trial:" in x.message.value

# ---- in JupyterLab
SETUP = """
import numpy as np
from necomimi.mini import mini_pictures, pixels
listed = mini_pictures("test").iloc[::4].reset_index(drop=True); shown = pixels(listed); rng = np.random.default_rng(0)
gallery = shown.reshape(50, 8, 8, 8, 8, 3).mean((2, 4)).reshape(50, -1); gallery -= gallery.mean(0); gallery /= gallery.std()
single = gallery[:, None] + 14*rng.standard_normal((50, 4, 192)); concepts, categories = listed.concept.tolist(), listed.category.tolist()
pictures = [*shown]; pictures[7] = "/no/such/picture.png"
"""
CELL = SETUP + """
from necomimi.widgets.retrieval import SimilarityExplorer
explorer = SimilarityExplorer(single.mean(1), gallery, pictures, concepts, categories, single, simulated=True, about="mini")
explorer
"""
BAD = "bad = SimilarityExplorer(single.mean(1)[:, :8], gallery, pictures)\nbad"
AT = """([plot, x, y]) => { const el = document.querySelectorAll('.js-plotly-plot')[plot], b = el.getBoundingClientRect(), l = el._fullLayout;
    return [b.x + l.xaxis._offset + l.xaxis.l2p(x), b.y + l.yaxis._offset + l.yaxis.l2p(y)] }"""
DIAGONAL = "(() => { const z = document.querySelectorAll('.js-plotly-plot')[0]._fullData[0].z; return z.reduce((sum, row, i) => sum + row[i], 0) })()"

@pytest.fixture(scope="module")
def sheet(lab):
    with lab.open(CELL, BAD, name="similarity", height=1700) as s:
        s.run().page.wait_for_function("() => { const e = [...document.querySelectorAll('.js-plotly-plot')]; return e.length === 3 && e.every(x => x._fullLayout && x._fullLayout.width <= x.parentElement.clientWidth + 1) }", timeout=60_000)
        d = {}; exec(SETUP, d); s.concepts = d["concepts"]
        s.pairs = make_pairs(d["single"].mean(1), d["gallery"], d["pictures"], d["concepts"], d["categories"], d["single"]); s.view = look(s.pairs, State("averaged"))
        s.rows, s.cols = arrange(s.pairs, s.view, "category"); yield s

def smaller(path):
    "The screenshot with 256 colours, those of the categories among them."
    image, palette = Image.open(path).convert("RGB"), Image.new("P", (1, 1))
    palette.putpalette(image.quantize(248).getpalette()[:3*248] + [int(c[k:k+2], 16) for c in CATEGORIES for k in (1, 3, 5)])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)

def said(sheet, text): sheet.page.wait_for_selector(f".necomimi-panel [role=status]:has-text('{text}')")
def first(sheet, i): sheet.page.wait_for_function("i => { const c = document.querySelector('.necomimi-cell[style*=\"left: 2px; top: 2px\"]'); return c && +c.dataset.index === i && c.querySelector('img').src }", arg=int(i))

def test_click_on_a_cell_ranks_the_gallery(sheet):
    p, v = sheet.page, sheet.view
    row = next(k for k, q in enumerate(sheet.rows) if k > 20 and 1 < v.places[q] < 10 and 7 not in ranked(sheet.pairs, v, q, 6).picture.tolist()); query, other = int(sheet.rows[row]), sheet.cols[40]
    p.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
    p.mouse.click(*p.evaluate(AT, [0, 40, row])); said(sheet, f"Trial {query}, seen {sheet.concepts[query]}: "); said(sheet, f"cosine with {sheet.concepts[other]} {v.scores[query, other]:.3f}")
    best = int(v.scores[query].argmax()); first(sheet, best)
    eventually(p, lambda: p.locator(f'.necomimi-cell[data-index="{best}"] span').inner_text() == f"1: {v.scores[query, best]:.2f} {sheet.concepts[best]}")
    eventually(p, lambda: p.locator(f'.necomimi-cell[data-index="{query}"] span').inner_text().startswith(f"✓ {v.places[query]:g}: "))
    eventually(p, lambda: p.evaluate("() => { const s = document.querySelectorAll('.js-plotly-plot')[0]._fullLayout.shapes[0]; return [s.y0, s.y1, s.visible] }") == [row-.5, row+.5, True])
    p.mouse.move(5, 5); smaller(sheet.shot("SimilarityExplorer"))

def test_click_on_the_map_chooses_the_trial_and_the_line_follows(sheet):
    p = sheet.page; e, g = planar(sheet.view.vectors, sheet.pairs.gallery); everything = np.r_[e, g]
    lonely = int(np.argmax([np.sort(np.linalg.norm(everything - x, axis=1))[1] for x in e]))
    p.mouse.click(*p.evaluate(AT, [1, *e[lonely].tolist()])); said(sheet, f"Trial {lonely}, seen {sheet.concepts[lonely]}: "); first(sheet, sheet.view.scores[lonely].argmax())
    p.wait_for_function("x => Math.abs(document.querySelectorAll('.js-plotly-plot')[1]._fullData[2].x[0] - x) < 1e-6", arg=float(e[lonely, 0]))

COUNTS = "() => [...document.querySelectorAll('.js-plotly-plot')[2]._fullData[1].y].reduce((a, b) => a + b)"

def lasso(p):
    "Draws a lasso round the left half of the map: (how many trials lie in it, a corner of the map)."
    x0, y0, x1, y1 = p.evaluate("""() => { const el = document.querySelectorAll('.js-plotly-plot')[1], b = el.getBoundingClientRect(), l = el._fullLayout;
        return [b.x + l.xaxis._offset + 3, b.y + l.yaxis._offset + 3, b.x + l.xaxis._offset + l.xaxis._length*.5, b.y + l.yaxis._offset + l.yaxis._length - 3] }""")
    p.mouse.move(x0, y0); p.mouse.down()
    for x, y in ((x1, y0), (x1, y1), (x0, y1), (x0, y0)): p.mouse.move(x, y, steps=6)
    p.mouse.up(); inside = p.evaluate("() => { const el = document.querySelectorAll('.js-plotly-plot')[1], l = el._fullLayout; return [...el._fullData[1].x].filter(x => l.xaxis.l2p(x) < l.xaxis._length*.5).length }")
    return inside, (x0 + 1, y0 + 1)

def test_a_lasso_counts_its_trials_and_the_control_resets_it(sheet):
    p = sheet.page; inside, _ = lasso(p)
    assert 0 < inside < 50; said(sheet, f"{inside} trials: median place"); p.wait_for_function(f"n => ({COUNTS})() === n", arg=inside)
    bright = "n => { const e = document.querySelectorAll('.js-plotly-plot')[1], d = e._fullData[1]; return !(e.layout.selections || []).length && [...d.marker.color].filter(x => x !== '#d9d9d9').length === n }"
    p.wait_for_function(bright, arg=inside)
    p.get_by_label("count trials of").select_option("all"); said(sheet, "50 trials: median place"); p.wait_for_function(f"n => ({COUNTS})() === n", arg=50); p.wait_for_function(bright, arg=50)

def test_a_double_click_on_the_map_counts_all_again(sheet):
    p = sheet.page; inside, corner = lasso(p); said(sheet, f"{inside} trials: median place"); p.wait_for_timeout(600); p.mouse.dblclick(*corner)
    said(sheet, "50 trials: median place"); p.wait_for_function(f"n => ({COUNTS})() === n", arg=50)

def test_the_conditions_change_the_matrix(sheet):
    p = sheet.page
    def want(state): v = look(sheet.pairs, state); return v.scores[arrange(sheet.pairs, v)].sum()
    drawn = lambda state: p.wait_for_function(f"d => Math.abs({DIAGONAL} - d) < 1e-3", arg=float(want(state)))
    drawn(State("averaged")); p.click("button:has-text('shuffled')"); drawn(State("shuffled")); p.wait_for_selector("figcaption:has-text('paired with')")
    assert p.get_by_text("shuffle number").is_visible() and not p.get_by_text("repetition", exact=True).is_visible()
    p.click("button:has-text('real (one')"); drawn(State("real")); assert p.get_by_text("repetition", exact=True).is_visible()
    p.locator(".widget-slider .noUi-handle").first.focus(); p.keyboard.press("ArrowRight"); drawn(State("real", 1))
    p.click("button:has-text('averaged')"); drawn(State("averaged"))

def test_tsne_arrives_while_the_panel_stays_alive(sheet):
    p = sheet.page; seen = p.locator(".necomimi-panel figcaption").first; before = seen.inner_text()
    p.get_by_label("map by").select_option("t-SNE"); p.click("button:has-text('next')"); p.wait_for_function("was => document.querySelector('.necomimi-panel figcaption').innerText !== was", arg=before)
    p.wait_for_function("() => document.querySelectorAll('.js-plotly-plot')[1]._fullLayout.title.text.startsWith('Map by t-SNE')", timeout=120_000)
    assert np.abs(p.evaluate("() => [...document.querySelectorAll('.js-plotly-plot')[1]._fullData[0].x]") - planar(sheet.view.vectors, sheet.pairs.gallery)[1][:, 0]).max() > .5
    p.get_by_label("map by").select_option("PCA"); p.wait_for_function("() => document.querySelectorAll('.js-plotly-plot')[1]._fullLayout.title.text.startsWith('Map by PCA')")

def test_the_keyboard_walks_the_gallery(sheet):
    p = sheet.page; p.locator(".necomimi-grid").focus(); p.keyboard.press("ArrowRight"); p.keyboard.press("Space")
    second = int(p.locator('.necomimi-cell[aria-selected="true"]').get_attribute("data-index")); said(sheet, f"cosine with {sheet.concepts[second]} ")

def test_bad_input_is_a_message_and_the_controls_live_on(sheet):
    p = sheet.page; box, alert = p.get_by_placeholder("name of a picture"), ".necomimi-panel [role=alert]"
    box.fill("unicorn"); box.press("Enter"); p.wait_for_selector(f"{alert}:has-text(\"no trial of a picture called 'unicorn'\")")
    box.fill(sheet.concepts[7]); box.press("Enter"); p.wait_for_selector(f"{alert}:has-text('picture.png')")
    box.fill(sheet.concepts[4]); box.press("Enter"); said(sheet, f"Trial 4, seen {sheet.concepts[4]}: "); first(sheet, sheet.view.scores[4].argmax())
    assert p.locator(f"{alert}:has-text('width 8, the gallery 192')").is_visible() and "Traceback" not in p.inner_text(".jp-Notebook")

def test_it_fits_a_narrow_page(sheet):
    p = sheet.page; p.set_viewport_size(dict(width=800, height=1700))
    p.wait_for_function("""() => { const panel = document.querySelector('.necomimi-panel').getBoundingClientRect();
        return [...document.querySelectorAll('.necomimi-panel .js-plotly-plot')].every(e => e.getBoundingClientRect().right <= panel.right + 1 && e._fullLayout.width <= e.parentElement.clientWidth + 1) }""", timeout=20_000)
    p.locator(".necomimi-panel").first.screenshot(path=str(sheet.path.with_name("800.png"))); p.set_viewport_size(dict(width=1280, height=1700))

def test_no_error_reaches_the_console(sheet): assert sheet.errors == []
