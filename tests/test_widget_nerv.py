"EncoderLens: attention, windows, influence and maps against plain computations; then the page itself."
import os
import numpy as np, pandas as pd, pytest, torch

from browser import eventually
pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
from necomimi.data import CHANNELS, NecomimiError, TrialStore, create_store
from necomimi.mini import mini_pictures, pixels
from necomimi.nerv import NERV
from necomimi.training import FitResult, TrainConfig, fit
from necomimi.widgets import nerv as lens
from necomimi.widgets.nerv import MAPS, STAGES, EncoderLens, EncoderLensState, attended, influence, look_inside, open_fit, picture_row, token_names, token_spans, token_windows, trials_for

SIZES = dict(filter_time_length=10, pool_time_length=21, pool_time_stride=2, n_filters=16, n_branch_heads=4, n_fusion_heads=2, ff_dim=64, hidden_dim=64, core_dim=32, att_drop_prob=.1, drop_prob=.1)

def write_store(folder, n=24, n_times=100, seed=0, ch_names=CHANNELS):
    "Made-up evoked responses: two bumps over the back of the head, their size by picture, and noise."
    rng = np.random.default_rng(seed); t = np.arange(n_times)/100; at = np.linspace(-1, 1, len(ch_names))
    with create_store(folder, "test", (n, 4, len(ch_names), n_times), ch_names, t, 100., "µV", "made up", 1, pd.DataFrame(dict(concept=[f"thing {i}" for i in range(n)], file=[f"t{i}.png" for i in range(n)])), simulated=True) as a:
        size = rng.normal(size=(n, 2)); bump = [np.exp(-((t-m)/.04)**2) for m in (.12, .35)]
        for i in range(n): a[i] = rng.normal(size=a.shape[1:])*2 + 6*sum(s*np.outer(np.roll(np.maximum(0, at), 7*k), b) for k, (s, b) in enumerate(zip(size[i], bump)))
    return TrialStore.open(folder, "test"), size

def train(folder, store, targets, **more):
    eeg = np.asarray(store.trials, np.float32)
    return fit(eeg, np.c_[targets, targets**2, np.ones(len(targets))].astype("float32"), concepts=[str(i) for i in range(len(targets))], ch_names=list(store.ch_names), sfreq=store.sfreq, folder=folder, progress=False,
               config=TrainConfig(epochs=6, batch_size=12, lr=3e-3, val_fraction=0., **dict(encoder_options=SIZES) | more))

def prepare(root):
    "Everything the tests look at, in `root`; picture 3 is missing."
    from PIL import Image
    for i, x in enumerate(pixels(mini_pictures("test").iloc[:24])):
        if i != 3: Image.fromarray(x).save(root/f"t{i}.png")
    store, size = write_store(root/"eeg"); train(root/"good", store, size)
    narrow, s = write_store(root/"narrow-eeg", n_times=60, seed=1); train(root/"narrow", narrow, s)
    (root/"cut").mkdir(); whole = (root/"good"/"encoder.safetensors").read_bytes(); (root/"cut"/"encoder.safetensors").write_bytes(whole[:len(whole)//2])
    return store, FitResult.load(root/"good")

@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lens"); prepare(root); return root
@pytest.fixture(scope="module")
def store(root): return TrialStore.open(root/"eeg", "test")
@pytest.fixture(scope="module")
def good(root): return FitResult.load(root/"good")

def by_hand(block, x):
    "(n_heads, n, n) attention weights in float64, from the weights."
    a = block.attention; x, w, b = (v.detach().double() for v in (x, a.in_proj_weight, a.in_proj_bias)); n, d = x.shape
    q, k = ((x@w[i*d:(i+1)*d].T+b[i*d:(i+1)*d]).reshape(n, a.num_heads, -1).transpose(0, 1) for i in (0, 1))
    return (q@k.transpose(1, 2)/q.shape[-1]**.5).softmax(-1).numpy()

def test_attention_is_that_of_the_forward_pass(good, store):
    e, x = good.encoder, torch.from_numpy(trials_for(good, store, [3])); e.train(); got = look_inside(e, x[0]); assert e.training; e.eval()
    with torch.no_grad():
        z = torch.from_numpy(lens.layer_input(e, x))
        t, s = e.temporal(z), e.spatial(z); joint = torch.cat([e.fusion.temporal(t), e.fusion.spatial(s)], 1)
        inputs = dict(zip(STAGES, (x[0].T+e.time_attention.code, t[0], s[0], joint[0])))
        assert torch.allclose(e.head(e.fusion.mlp(e.fusion.joint(joint))), e(x), atol=1e-5)
    for stage, block in lens.attention_blocks(e).items(): np.testing.assert_allclose(got[stage], by_hand(block, inputs[stage]), atol=1e-5)
    np.testing.assert_allclose(got["filters"], np.einsum("fc,ct->ft", e.spatial[0].weight.detach()[:, :, 0], z[0]) + e.spatial[0].bias.detach().numpy()[:, None], atol=1e-4)
    assert not any(b._forward_pre_hooks for b in lens.attention_blocks(e).values()) and not e.spatial[0]._forward_hooks

@pytest.mark.parametrize("branch", ["temporal", "spatial"])
def test_a_token_sees_its_span_and_nothing_else(good, branch):
    e = good.encoder; module = getattr(e, branch).eval(); rng = np.random.default_rng(0); z = torch.from_numpy(rng.normal(size=(1, e.n_chans, e.n_times)).astype("float32")); spans, windows = token_spans(e, f"{branch} branch"), token_windows(e)
    with torch.no_grad():
        base = module(z)
        for k in (0, 7, e.n_tokens-1):
            a, b = spans[k]; outside, inside = z.clone(), z.clone(); outside[:, :, [t for t in range(e.n_times) if not a <= t < b]] += 5
            assert torch.allclose(module(outside)[0, k], base[0, k], atol=1e-5)
            for edge in (a, b-1): inside = z.clone(); inside[:, :, edge] += 5; assert (module(inside)[0, k]-base[0, k]).abs().max() > 1e-6
            assert np.flatnonzero(windows[k]).tolist() == list(range(a, b))
    np.testing.assert_allclose(windows.sum(1), 1)

def test_even_attention_is_one_everywhere_a_window_reaches():
    e = NERV(4, 41, 8, filter_time_length=5, pool_time_length=6, pool_time_stride=4, hidden_dim=8, core_dim=8, ff_dim=8, n_filters=8, n_branch_heads=2, n_fusion_heads=2); n = e.n_tokens
    curve = attended(np.full((n, n), 1/n), token_windows(e)); last = token_spans(e, "temporal branch")[-1, 1]
    assert last == 38 and np.allclose(curve[:38], 1) and np.isnan(curve[38:]).all()                  # the last three samples are seen by no window
    np.testing.assert_allclose(attended(np.full((41, 41), 1/41)), 1)

def test_the_fusions_two_curves_share_its_attention(good, store):
    e, inside = good.encoder, look_inside(good.encoder, trials_for(good, store, [0])[0]); even = token_windows(e).mean(0)
    for query in (-1, 5):
        c = EncoderLensState("x", stage="fusion", query=query).curves(inside, e); both = (c["fusion, temporal tokens"]+c["fusion, spatial tokens"])/2
        assert abs(np.nansum(even*both)-1) < 1e-5 and list(c) == list(lens.LINES)
    one = EncoderLensState("x", stage="temporal branch", head=2, query=4).curves(inside, e)["temporal branch"]
    np.testing.assert_allclose(one*even, inside["temporal branch"][2, 4]@token_windows(e), atol=1e-6)

def test_influence_is_the_norm_of_the_derivative(good, store):
    e, x = good.encoder, trials_for(good, store, [2])[0]; exact = torch.autograd.functional.jacobian(lambda v: e(v[None])[0], torch.from_numpy(x)).norm(dim=0).numpy()
    many = influence(e, x, n=300); assert np.corrcoef(many.ravel(), exact.ravel())[0, 1] > .97 and abs(many.mean()/exact.mean()-1) < .1
    assert np.array_equal(influence(e, x, seed=4), influence(e, x, seed=4)) and not np.array_equal(influence(e, x, seed=4), influence(e, x, seed=5)) and all(p.grad is None for p in e.parameters())

def test_influence_is_zero_where_the_network_cannot_look():
    torch.manual_seed(0); e = NERV(6, 60, 8, filter_time_length=5, pool_time_length=11, hidden_dim=32, core_dim=16, ff_dim=32, n_filters=8, n_branch_heads=2, n_fusion_heads=2)
    with torch.no_grad(): e.time_attention.attend.attention.out_proj.weight.zero_(); e.subject.weight[:, 30:] = 0
    got = influence(e, np.random.default_rng(0).normal(size=(6, 60))); assert (got[:, 30:] == 0).all() and (got[:, :30] > 0).all()

def test_a_pattern_shows_the_source_where_weights_show_the_noise(monkeypatch):
    rng = np.random.default_rng(0); e = NERV(8, 80, 8, hidden_dim=8, core_dim=8, ff_dim=8, n_filters=8, n_branch_heads=2, n_fusion_heads=2, n_heads=1)
    source, noise = rng.normal(size=8), rng.normal(size=8); x = np.outer(source, rng.normal(size=4000)) + 5*np.outer(noise, rng.normal(size=4000)) + .1*rng.normal(size=(8, 4000))
    best = np.linalg.solve(np.cov(x), source)
    with torch.no_grad(): e.spatial[0].weight.zero_(); e.spatial[0].weight[0, :, 0] = torch.from_numpy(best/np.abs(best).max())
    monkeypatch.setattr(lens, "layer_input", lambda *_: x[None]); like = lambda v: abs(np.corrcoef(v, source)[0, 1])
    assert like(lens.filter_maps(e, MAPS[0], None)[0]) > .98 > .9 > like(lens.filter_maps(e, MAPS[1])[0])

def test_the_temporal_branchs_map_is_the_size_of_its_mixing_weights(good):
    e = good.encoder; w = e.temporal[4].weight.detach().numpy(); got = lens.filter_maps(e, MAPS[2]); n = SIZES["n_filters"]
    assert got.shape == (n, 63) and np.isclose(got[3, 10], np.sqrt((w[3, 10*n:11*n]**2).mean()))

def test_what_does_not_fit_is_refused(root, store, good):
    with pytest.raises(NecomimiError, match="63 channels x 60 time points, the store has 63 x 100"): open_fit(root/"narrow", store)
    with pytest.raises(NecomimiError, match="not a readable checkpoint"): open_fit(root/"cut", store)
    with pytest.raises(NecomimiError, match="no trained encoder"): open_fit(root/"nowhere", store)
    with pytest.raises(NecomimiError, match="expected the FitResult of a NERV, found Linear"): open_fit(FitResult(torch.nn.Linear(2, 2), good.scale, good.config, good.history, None, good.info), store)
    with pytest.raises(NecomimiError, match="found str"): open_fit(good, "eeg")
    few, _ = write_store(root/"few", ch_names=CHANNELS[40:])
    with pytest.raises(NecomimiError, match="needs the channels .'Fp1'"): open_fit(good, few)

def test_trials_come_in_the_encoders_channel_order_and_scale(root, good, store):
    mixed, _ = write_store(root/"mixed", ch_names=CHANNELS[::-1]); index = [mixed.ch_names.index(c) for c in CHANNELS]
    np.testing.assert_allclose(trials_for(good, mixed, [4], 2)[0], np.asarray(mixed.trials[4, :2], np.float32).mean(0)[index]/good.scale[:, None], rtol=1e-5)

def test_pictures_by_number_and_name(store):
    assert [picture_row(t, store) for t in ("7", "7: thing 7", "thing 3", 5)] == [7, 7, 3, 5]
    with pytest.raises(NecomimiError, match="did you mean thing"): picture_row("thign 3", store)
    with pytest.raises(NecomimiError, match="no picture '99'"): picture_row("99", store)
    assert token_names(NERV(), "fusion", np.arange(250)/250)[0] == "t 148 ms"

def test_a_panel_keeps_what_it_shows_when_the_next_cannot_be_shown(root, good, store):
    p = EncoderLens({"good": good, "narrow": root/"narrow", "cut": root/"cut"}, store); p.change(stage="spatial branch", head=1, query=3); before = p.state
    for name, said in (("narrow", "x 60 time points"), ("cut", "not a readable checkpoint")):
        p.c.encoder.value = name; assert said in p.message.value and p.state == before and p.c.encoder.value == "good"
    p.c.picture.value = "what"; assert "no picture" in p.message.value and p.state == before and p.c.picture.value == "what"         # to be corrected
    p.c.repetitions.value = 2; assert p.state.repetitions == 2 and p.state.query == 3 and p.c.head.value == 1
    p.c.stage.value = "time points"; assert (p.state.head, p.state.query) == (-1, -1) and p.square.data[0].z.shape == (100, 100) and len(p.c.query.options) == 101
    for m in MAPS: p.c.maps.value = m; assert np.array_equal(p.head.figure.data[0].z, p.head.head.image(p.map_values[0]).ravel())
    assert len(p.map_values) == 10 and p.static().axes and "<img" in p.c.shown.value; p.change(row=3); assert "t3.png" in p.c.shown.value

def test_nothing_to_look_at_is_a_message(root, store):
    for fits, said in (({}, "no encoder given"), (root/"narrow", "time points"), (root/"nowhere", "no trained encoder")):
        p = EncoderLens(fits, store); assert said in p.message.value and said in p.static()
        p.c.stage.value = "time points"; assert "no encoder is open" in p.message.value

def test_a_store_without_known_places_has_no_maps_but_the_rest(tmp_path):
    odd, size = write_store(tmp_path/"odd", n=12, ch_names=[f"x{i}" for i in range(8)]); f = train(tmp_path/"f", odd, size)
    p = EncoderLens(f, odd); p.c.grid.selected = [2]; assert p.state.chosen == 2 and p.state.encoder == "encoder" and p.static().axes

# ------------------------------------------------------------------------------------------------ in JupyterLab
@pytest.fixture(scope="module")
def sheet(lab):
    prepare(lab.root); cell = """
from necomimi.data import TrialStore
from necomimi.widgets.nerv import EncoderLens
lens = EncoderLens({n: n for n in ("good", "narrow", "cut")}, TrialStore.open("eeg", "test"))"""
    with lab.open(cell, "lens", name="lens") as s:
        s.page.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'", timeout=120_000)
        s.page.wait_for_timeout(2500); s.run()                       # JupyterLab says idle a moment before a kernel just started takes work
        s.page.wait_for_function("() => document.querySelectorAll('.necomimi-panel .js-plotly-plot .main-svg').length >= 3", timeout=60_000); yield s

PLOT = "document.querySelectorAll('.necomimi-panel .js-plotly-plot')"
def traces(sheet, plot=0): return [np.array(y, float) for y in sheet.page.evaluate(f"() => [...{PLOT}[{plot}].data].map(t => [...(t.{'z' if plot else 'y'}?._inputArray ?? t.{'z' if plot else 'y'} ?? [])].map(v => v?.length ? [...v] : v))") if len(y)]

def shows(sheet, state, timeout=15_000):
    "Waits until the time plot shows `state`, computed here."
    fitted, store = FitResult.load(sheet.lab.root/"good"), TrialStore.open(sheet.lab.root/"eeg", "test")
    want = list(state.curves(look_inside(fitted.encoder, trials_for(fitted, store, [state.row], state.repetitions)[0]), fitted.encoder).values())
    for _ in range(timeout//200):
        got = traces(sheet)
        if len(got) >= 6 and all(g.shape == v.shape and np.allclose(np.nan_to_num(g), np.nan_to_num(v), atol=1e-4) for g, v in zip(got[1:6], want)): return got
        sheet.page.wait_for_timeout(200)
    pytest.fail(f"the page never showed {state}")

def small(png):
    "The same picture with fewer colours: pages that show it load faster."
    from PIL import Image
    Image.open(png).convert("RGB").quantize(256, dither=0).save(png, optimize=True); assert png.stat().st_size < 200_000

def at(sheet, plot, x, y):
    "The place on the page of a point of a plot."
    box = sheet.page.locator(".necomimi-panel .js-plotly-plot").nth(plot); box.scroll_into_view_if_needed()
    return sheet.page.evaluate(f"([x, y]) => {{ const g = {PLOT}[{plot}], l = g._fullLayout, r = g.getBoundingClientRect(); return [r.left + l.xaxis._offset + l.xaxis.l2p(x), r.top + l.yaxis._offset + l.yaxis.l2p(y)] }}", [x, y])

def choose(sheet, label, value):
    sheet.page.locator(".necomimi-panel .widget-dropdown", has_text=label).locator("select").select_option(label=value)

def test_a_click_on_a_row_of_the_matrix_shows_what_that_token_looks_at(sheet):
    shows(sheet, EncoderLensState("good")); x, y = at(sheet, 1, 12, 40); p = sheet.page; p.mouse.move(x, y); p.wait_for_timeout(200); p.mouse.click(x, y)
    shows(sheet, EncoderLensState("good", query=40)); e = FitResult.load(sheet.lab.root/"good").encoder; a, b = token_spans(e, "fusion")[40]
    band = lambda: p.evaluate(f"() => {{ const s = {PLOT}[0].layout.shapes[0]; return [s.visible, s.x0, s.x1] }}"); eventually(p, lambda: band()[0] and np.allclose(band()[1:], [10*a-5, 10*b-5]))
    eventually(p, lambda: token_names(e, "fusion", np.arange(100)/100)[40] in p.inner_text(".necomimi-panel .widget-hslider:has-text('who looks')"))

def test_another_stage_head_and_picture(sheet):
    p = sheet.page; choose(sheet, "attention", "temporal branch"); shows(sheet, EncoderLensState("good", stage="temporal branch")); eventually(p, lambda: traces(sheet, 1)[0].shape == (36, 36))
    choose(sheet, "head", "3"); shows(sheet, EncoderLensState("good", stage="temporal branch", head=2)); before = traces(sheet)[0]
    box = p.locator(".necomimi-panel .widget-text input").first; box.fill("7"); box.press("Enter"); got = shows(sheet, EncoderLensState("good", row=7, stage="temporal branch", head=2))
    store = TrialStore.open(sheet.lab.root/"eeg", "test"); np.testing.assert_allclose(got[0], store.average()[7].std(0), rtol=1e-3); assert not np.allclose(got[0], before)

def test_a_click_on_a_map_draws_it_large(sheet):
    p = sheet.page; choose(sheet, "maps", MAPS[1]); p.wait_for_selector(".necomimi-cell img[src]"); p.locator('.necomimi-cell[data-index="5"]').click()
    p.wait_for_function(f"() => {PLOT}[2].layout.title?.text?.includes('filter 5')"); fitted = FitResult.load(sheet.lab.root/"good")
    want = lens.head_map(tuple(CHANNELS)).image(lens.filter_maps(fitted.encoder, MAPS[1])[5]).ravel()
    eventually(p, lambda: np.allclose(traces(sheet, 2)[0].ravel(), want, atol=1e-4))

def test_bad_input_is_a_message_and_the_lens_goes_on(sheet):
    p = sheet.page
    for name, said in (("narrow", "63 channels x 60 time points, the store has 63 x 100"), ("cut", "not a readable checkpoint")):
        choose(sheet, "encoder", name); p.wait_for_selector(f"[role=alert]:has-text('{said}')"); p.wait_for_function("() => document.querySelector('.necomimi-panel select').selectedOptions[0].text == 'good'")
    box = p.locator(".necomimi-panel .widget-text input").first; box.fill("thign 3"); box.press("Enter"); p.wait_for_selector("[role=alert]:has-text('did you mean')")
    box.fill("thing 3"); box.press("Enter"); shows(sheet, EncoderLensState("good", row=3, stage="temporal branch", head=2)); eventually(p, lambda: "no picture file t3.png" in p.inner_text(".necomimi-panel"))

def test_screenshot_console_and_narrow_page(sheet):
    p = sheet.page; choose(sheet, "attention", "fusion"); choose(sheet, "maps", MAPS[0]); p.locator(".necomimi-panel .widget-text input").first.fill("thing 5"); p.keyboard.press("Enter"); shows(sheet, EncoderLensState("good", row=5)); x, y = at(sheet, 1, 30, 50); p.mouse.move(x, y); p.wait_for_timeout(200); p.mouse.click(x, y)
    shows(sheet, EncoderLensState("good", row=5, query=50)); p.mouse.move(5, 5); p.wait_for_timeout(800); p.locator(".necomimi-panel").first.evaluate("c => c.scrollIntoView()"); small(sheet.shot("EncoderLens"))
    assert "Traceback" not in p.inner_text(".jp-Notebook") and sheet.errors == []
    p.set_viewport_size(dict(width=800, height=1700)); p.wait_for_timeout(1500)
    if "NECOMIMI_NARROW" in os.environ: sheet.shot("EncoderLens-800")
    over = p.evaluate("() => { const c = document.querySelector('.necomimi-panel'); return [c.scrollWidth - c.clientWidth, c.getBoundingClientRect().right - innerWidth] }"); assert over[0] <= 1 and over[1] <= 0
