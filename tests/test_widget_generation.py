"GenerationStudio: its logic without a browser, then the studio itself in a real JupyterLab."
import json, shutil, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest

from browser import eventually
pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
MAKE = """
from dataclasses import replace
from pathlib import Path
import numpy as np
from necomimi.data import create_store, TrialStore
from necomimi.generation import load_generator
from necomimi.mini import mini_pictures, pixels
from necomimi.prior import PriorConfig, fit_prior
from necomimi.training import TrainConfig, fit
from necomimi.vision import load_vision
from necomimi.widgets.generation import GenerationStudio, GenerationStudioState, Material, load_drawing, save_drawing

def write_store(folder, split, vectors, table, noise):
    "Simulated EEG of 8 channels and 30 samples: a fixed mixture of the embeddings, and noise."
    mix, rng = np.random.default_rng(0).normal(size=(vectors.shape[1], 240)).astype("float32"), np.random.default_rng(1)
    clean = ((vectors-vectors.mean())/vectors.std() @ mix/16).reshape(len(vectors), 1, 8, 30)
    with create_store(folder, split, (len(vectors), 3, 8, 30), [f"c{i}" for i in range(8)], np.arange(30)/100, 100., "a.u.", "made up", 1, table, simulated=True) as trials:
        trials[:] = clean + noise*rng.normal(size=(len(vectors), 3, 8, 30))
    return TrialStore.open(folder, split)

def make(home, n=8):
    eye, generator = load_vision("mini"), load_generator("mini"); home = Path(home)
    test, training = mini_pictures("test").iloc[:n].reset_index(drop=True), mini_pictures("training", n_exemplars=1).iloc[:60].reset_index(drop=True)
    truth, gallery, targets = pixels(test), *(eye.embed_pictures(pixels(t), progress=False) for t in (test, training))
    store, train = (write_store(home/"store", s, e.vectors, t.drop(columns="scene"), .5) for s, e, t in (("test", gallery, test), ("training", targets, training)))
    config = TrainConfig(encoder="mlp", epochs=2, batch_size=20, val_fraction=0.)
    good, narrow = (fit(train, x, concepts=training.concept, config=config, progress=False) for x in (targets.vectors, targets.vectors[:, :128]))
    prior = fit_prior(good.embed(train), targets, PriorConfig(epochs=1, min_steps=10), progress=False)
    return dict(test_store=store, fits={"mlp": good, "narrow": narrow, "lone": good}, priors={"mlp": prior}, gallery=gallery, training_targets=targets, pictures=list(truth), generator=generator, folder=home/"drawn")
"""
exec(MAKE)
from necomimi.data import NecomimiError
from necomimi.generation import check_embeddings, decode_latents, derangement, generate
from necomimi.widgets.common import Stopped
from necomimi.widgets.generation import Drawing, Pace

@pytest.fixture(scope="module")
def things(tmp_path_factory): return make(tmp_path_factory.mktemp("studio"))
@pytest.fixture(scope="module")
def material(things): return Material(*[v for k, v in things.items() if k != "folder"])
def state(**k): return GenerationStudioState(**(dict(trials=[2, 5], encoder="mlp", prior_steps=3, steps=3) | k))
@pytest.fixture(scope="module")
def drawing(material): return material.draw(state(seeds=[0, 4]))
@pytest.fixture
def studio(things, tmp_path):
    s = GenerationStudio(**things | dict(folder=tmp_path/"drawn"))
    yield s
    for job in (s.job, s.measuring): job and (job.stop(), job.wait(30))

# --- what is drawn

def test_the_columns_are_the_conditions_asked_for(material):
    sets = material.embeddings(state())
    assert list(sets) == ["ceiling", "one-stage", "two-stage", "shuffled EEG"] and all(e.shape == (2, 256) for e in sets.values())
    np.testing.assert_array_equal(sets["ceiling"], material.gallery[[2, 5]])
    assert list(material.embeddings(state(stages="one-stage", control="mean embedding"))) == ["ceiling", "one-stage", "mean embedding"]

def test_one_trial_alone_has_a_control_which_is_another_trial(material):
    other = int(derangement(8, 0)[2])
    alone, partner = material.embeddings(state(trials=[2], stages="one-stage")), material.embeddings(state(trials=[other], stages="one-stage"))
    assert other != 2; np.testing.assert_allclose(alone["shuffled EEG"], partner["one-stage"], rtol=1e-4, atol=1e-5)

def test_fewer_repetitions_are_other_eeg(material):
    a, b = (material.embeddings(state(repetitions=r, stages="one-stage"))["one-stage"] for r in (1, None))
    assert np.abs(a-b).max() > 1e-3
    direct = material.fits["mlp"].embed(material.store.average(1)[[2, 5]])
    unit = lambda x: x/np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(unit(a), unit(direct), atol=1e-5)

def test_a_picture_depends_on_trial_and_seed_only(material, drawing):
    again = generate(material.generator, material.gallery[[5]], seed=4, shared_noise=True, num_inference_steps=3, progress=False)[0]
    assert np.abs(drawing.pictures["ceiling", 4][1].astype(int)-again).max() <= 1
    assert np.abs(drawing.pictures["ceiling", 0][1].astype(int)-again).max() > 1

def test_cells_are_numbered_row_by_row_truth_first(drawing, material):
    assert len(drawing) == 2*2*5 and drawing.complete
    assert [drawing.cell(i) for i in (0, 1, 5, 12)] == [("truth", 0, 0), ("ceiling", 0, 0), ("truth", 4, 0), ("one-stage", 0, 1)]
    assert (drawing.picture(10) == material.pictures[5]).all() and (drawing.picture(12) == drawing.pictures["one-stage", 0][1]).all()
    assert drawing.file(12) == "pictures/one-stage/trial-00005_seed-0.png"

def test_kept_latents_become_the_pictures_on_the_way(drawing, material):
    z = drawing.steps(1); assert len(z) == 3 and drawing.steps(0) is None
    last, first = (decode_latents(material.generator, z[k:k+1].astype("float32"))[0].astype(int) for k in (2, 0))
    assert np.abs(last-drawing.picture(1)).mean() < 1 < np.abs(first-drawing.picture(1)).mean()

def test_adapter_scale_zero_makes_all_columns_alike(material):
    d = material.draw(state(adapter_scale=0., stages="one-stage"))
    assert np.abs(d.pictures["ceiling", 0].astype(int)-d.pictures["one-stage", 0]).max() <= 1

@pytest.mark.parametrize("where", ["generator", "prior"])
def test_stopping_takes_one_step(material, where):
    "`step` raises on its third call of the kind; nothing is asked again, and no column is finished."
    calls = []
    def step(n):
        if (n > 0) == (where == "generator"): calls.append(n)
        if len(calls) == 3: raise Stopped
    with pytest.raises(Stopped): material.draw(state(prior_steps=20, steps=20), step)
    assert len(calls) == 3 and not material.get("priors", "mlp").network._forward_pre_hooks
    shown = []
    with pytest.raises(Stopped): material.draw(state(steps=4), lambda n: (_ for _ in ()).throw(Stopped()) if shown and len(shown[-1].pictures) == 1 and n else None, shown.append)
    assert list(shown[-1].pictures) == [("ceiling", 0)] and not shown[-1].complete and shown[-1].picture(2).shape == (8, 8, 3)

# --- what is refused

@pytest.mark.parametrize("change, words", [
    (dict(trials=[]), "no trial is chosen"), (dict(trials=[99]), "no trial 99"), (dict(seeds=[]), "no seed"), (dict(encoder="gone"), "no encoder for 'gone'"),
    (dict(encoder="narrow"), r"'narrow' gives 128-d embeddings, but mini takes raw 256-d"), (dict(encoder="lone"), "no prior for 'lone'.*one-stage")])
def test_what_cannot_be_drawn_is_said(material, change, words):
    with pytest.raises(NecomimiError, match=words): material.check(state(**change))

def test_one_stage_needs_no_prior(material): assert len(material.check(state(encoder="lone", stages="one-stage"))) == 2

def test_a_missing_picture_is_named(things, tmp_path):
    m = Material(*[v for k, v in (things | dict(pictures=[*things["pictures"][:5], tmp_path/"gone.png", *things["pictures"][6:]])).items() if k != "folder"])
    with pytest.raises(NecomimiError, match="gone.png does not exist"): m.check(state())
    assert len(m.check(state(trials=[2]))) == 1

@pytest.mark.parametrize("change, words", [(dict(fits={}), "at least one trained encoder"), (dict(pictures=[]), "8 embeddings and 0 pictures"), (dict(gallery=np.zeros((8, 1024), "float32")), "1024-d")])
def test_pieces_that_do_not_fit_are_refused_at_the_door(things, change, words):
    with pytest.raises(NecomimiError, match=words): GenerationStudio(**things | change)

def test_fits_and_priors_may_be_folders(things, tmp_path):
    things["fits"]["mlp"].save(tmp_path/"fit"); things["priors"]["mlp"].save(tmp_path/"prior")
    m = Material(*[v for k, v in (things | dict(fits={"mlp": tmp_path/"fit", "bad": tmp_path/"nowhere"}, priors={"mlp": str(tmp_path/"prior")})).items() if k != "folder"])
    assert len(m.check(state())) == 2
    with pytest.raises(NecomimiError, match="no trained encoder"): m.check(state(encoder="bad"))

# --- the estimate

def test_the_estimate_follows_the_settings(material):
    p = Pace(.1, 1., .01)
    assert p.seconds(state(stages="one-stage")) == pytest.approx(2*3*(1+.1*3)) and p.seconds(state(stages="one-stage", guidance=5.)) == pytest.approx(2*3*(1+.2*3))
    assert p.seconds(state(seeds=[0, 1])) == pytest.approx(2*2*4*1.3 + 2*3*.01)
    found = material.measure(state()); assert found.step > 0 and found.rest >= 0 and found.prior > 0

# --- run folders

def test_a_run_folder_gives_everything_back(drawing, tmp_path):
    from necomimi.runs import Run
    folder = save_drawing(drawing, tmp_path/"a", favourites={3, 11}, seconds=1.5); back, favourites = load_drawing(folder)
    assert favourites == {3, 11} and back.state == drawing.state and back.concepts == drawing.concepts and back.origin == json.loads(json.dumps(drawing.origin, default=list))
    assert all((back.pictures[k] == v).all() for k, v in drawing.pictures.items()) and all((back.latents[k] == v).all() for k, v in drawing.latents.items())
    assert all((a == b).all() for a, b in zip(back.truth, drawing.truth))
    run = Run.open(folder); assert run.state == "done" and run.seconds == 1.5 and run.metrics["pictures"] == 16 and run.config["store"]["simulated"]

def test_a_stopped_drawing_keeps_its_columns(drawing, tmp_path):
    part = Drawing(drawing.state, drawing.origin, drawing.truth, drawing.concepts, {k: v for k, v in list(drawing.pictures.items())[:3]}, {})
    back, _ = load_drawing(save_drawing(part, tmp_path/"a"))
    assert list(back.pictures) == list(part.pictures) and not back.complete and back.steps(1) is None

@pytest.mark.parametrize("name", ["config.json", "latents.safetensors", "pictures/truth/trial-00002.png", "pictures/two-stage/trial-00005_seed-4.png"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_folder_cut_off_midway_is_named(drawing, tmp_path, name, how):
    folder = save_drawing(drawing, tmp_path/"a"); f = folder/name
    f.unlink() if how == "gone" else f.write_bytes(f.read_bytes()[:40])
    with pytest.raises(NecomimiError, match=Path(name).name): load_drawing(folder)

@pytest.mark.parametrize("text, words", [('{"notebook": "pipeline"}', "run of pipeline"), ('{"format": "necomimi drawing 1"}', "not one of this version")])
def test_other_folders_are_refused(tmp_path, text, words):
    (tmp_path/"config.json").write_text(text)
    with pytest.raises(NecomimiError, match=words): load_drawing(tmp_path)

def test_a_full_disk_leaves_no_run_folder(drawing, tmp_path, monkeypatch):
    import safetensors.numpy
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(NecomimiError, match="No space left"): save_drawing(drawing, tmp_path/"a")
    assert list(tmp_path.iterdir()) == []

# --- the panel, without a page

def test_the_controls_make_the_state(studio):
    studio.trials.selected = [1, 6]; c = studio.settings
    c["stages"].value, c["steps"].value, c["adapter_scale"].value, c["seeds"].value, c["repetitions"].value = "one-stage", 7, .5, "0-1, 9", 2
    assert studio.state == GenerationStudioState([1, 6], "mlp", "one-stage", repetitions=2, steps=7, adapter_scale=.5, seeds=[0, 1, 9])
    studio.measuring.wait(60); assert "18 pictures to draw: about" in studio.clock.value and "measured on one picture" in studio.clock.value
    c["seeds"].value = "many"; assert "expected numbers" in studio.message.value and studio.state.seeds == [0, 1, 9]
    studio.draw_button.click(); assert "expected numbers" in studio.message.value and studio.job is None
    studio.find.value = "zebra with hat"; assert "no concept here" in studio.message.value

def test_draw_look_favour_save_load(studio):
    studio.trials.selected = [1, 6]; studio.settings["prior_steps"].value = 3; studio.draw_button.click(); studio.job.wait(60)
    assert "done" in studio.message.value and len(studio.results.pictures) == 10 and studio.results.selected == [3]
    studio.results.selected = [2]; close = studio.close.value; studio.scrub.value = 1
    assert studio.scrub.max == 4 and studio.close.value != close and "step 1 of 4" in studio.close.value
    studio.favourite.value = True; assert studio.favourites == {2} and list(studio.results.marks) == ["2"]
    studio.only.value = True; assert studio.results.order == [0, 1, 2, 3, 4]
    studio.only.value = False; studio.called.value = "one"; studio.save_button.click(); assert "saved in" in studio.message.value
    (studio.folder/"half").mkdir(); studio.again.click(); studio.runs.value = "half"; studio.load_button.click(); assert "cut off midway" in studio.message.value
    studio.trials.selected = [0]; studio.settings["prior_steps"].value = 9
    studio.runs.value = "one"; studio.load_button.click()
    assert studio.state.trials == [1, 6] and studio.state.prior_steps == 3 and studio.favourites == {2} and studio.trials.selected == [1, 6]

def test_a_folder_that_is_no_drawing_is_not_overwritten(studio):
    studio.trials.selected = [1]; studio.settings["stages"].value = "one-stage"; studio.draw_button.click(); studio.job.wait(60)
    (studio.folder/"mine").mkdir(parents=True); (studio.folder/"mine"/"thesis.txt").write_text("x")
    for name, words in (("mine", "is no drawing"), ("../up", "no name for a folder"), ("", "no name for a folder")):
        studio.called.value = name; studio.save_button.click(); assert words in studio.message.value
    assert (studio.folder/"mine"/"thesis.txt").exists()

def test_every_control_is_labelled(studio):
    import ipywidgets as w
    def walk(x):
        yield x
        for c in getattr(x, "children", ()): yield from walk(c)
    bare = [x for x in walk(studio.root) if isinstance(x, (w.Button, w.ToggleButton, w.Dropdown, w.Text, w.BoundedIntText, w.BoundedFloatText, w.IntSlider, w.Checkbox)) and not (x.description or x.tooltip)]
    assert not bare

# --- the studio in JupyterLab

STUDIO = MAKE + """
import tempfile
things = make(tempfile.mkdtemp(dir="."))
things["pictures"][7] = Path("/no/such/picture.png")
studio = GenerationStudio(**things)
"""
@pytest.fixture(scope="module")
def sheet(lab):
    with lab.open(STUDIO, "studio", name="generation") as s: yield s.run()

def field(p, label): return p.locator(".necomimi-panel .widget-inline-hbox", has=p.locator(f"label:text-is('{label}')")).locator("input, select").first
def trial(p, i): return p.locator(f'.necomimi-grid[aria-label^="test pictures"] .necomimi-cell[data-index="{i}"]')
def drawn(p, i): return p.locator(f'.necomimi-grid[aria-label^="drawn"] .necomimi-cell[data-index="{i}"]')
def press(p, text): p.locator(".necomimi-panel button", has_text=text).first.click()
def colour(p, i): return p.evaluate("""async i => { const img = document.querySelector(`.necomimi-grid[aria-label^="drawn"] .necomimi-cell[data-index="${i}"] img`); await img.decode(); const c = document.createElement('canvas'); c.width = c.height = 8;
    const x = c.getContext('2d'); x.drawImage(img, 0, 0, 8, 8); return [...x.getImageData(0, 0, 8, 8).data] }""", i)
def fill(p, label, text): field(p, label).fill(str(text)); field(p, label).press("Tab")

def test_lab_nothing_chosen_is_a_message(sheet):
    p = sheet.page; p.wait_for_selector(".necomimi-panel .necomimi-cell img[src]"); press(p, "Draw"); p.wait_for_selector("[role=alert]:has-text('no trial is chosen')")

def test_lab_choose_estimate_draw_and_the_pictures_appear(sheet):
    p = sheet.page; stays = p.locator(".necomimi-static img").get_attribute("src"); trial(p, 1).click(); trial(p, 4).click()
    p.wait_for_selector("text=2 trials chosen"); p.wait_for_selector("text=/8 pictures to draw: about .* .measured on one picture/", timeout=60_000)
    fill(p, "prior steps", 5); p.wait_for_timeout(300); press(p, "Draw"); p.wait_for_selector(".necomimi-done:has-text('done')", timeout=90_000); p.wait_for_selector("text=/8 pictures drawn in/")
    p.wait_for_function("was => document.querySelector('.necomimi-static img').src !== was", arg=stays)                        # the picture that stays is renewed from the thread
    for i in range(10): drawn(p, i).locator("img[src]").wait_for()
    got = json.loads(sheet.python("import json; from necomimi.widgets.common import thumbnail; from PIL import Image; import io\n"
                                  "print(json.dumps([np.asarray(Image.open(io.BytesIO(thumbnail(studio.drawing.picture(i), 160))).convert('RGB')).mean((0, 1)).tolist() for i in (1, 3)]))"))
    for i, mean in zip((1, 3), got): assert np.abs(np.array(colour(p, i)).reshape(-1, 4)[:, :3].mean(0)-mean).max() < 12
    assert colour(p, 1) != colour(p, 6)

def test_lab_look_scrub_and_keep_a_favourite(sheet):
    p = sheet.page; drawn(p, 7).click(); p.wait_for_selector(".necomimi-panel figure:has-text('one-stage, seed 0, step 4 of 4')")
    look = lambda: p.locator(".necomimi-panel figure img").nth(1).get_attribute("src")
    end = look(); handle = p.locator(".necomimi-panel .widget-slider", has=p.locator("label:text-is('denoising step')")).locator(".noUi-handle")
    handle.focus(); p.keyboard.press("ArrowLeft"); p.wait_for_selector("figure:has-text('step 3 of 4')"); assert look() != end
    p.keyboard.press("ArrowRight"); p.wait_for_selector("figure:has-text('step 4 of 4')"); assert look() == end
    press(p, "favourite"); p.wait_for_function("""() => document.querySelector('.necomimi-grid[aria-label^="drawn"] .necomimi-cell[data-index="7"]').style.outline.includes('solid')""")
    sheet.shot("GenerationStudio")

def test_lab_save_then_reload(sheet):
    p = sheet.page; fill(p, "save as", "kept"); p.wait_for_timeout(300); press(p, "Save"); p.wait_for_selector(".necomimi-done:has-text('saved in')")
    folder = next(sheet.path.parent.glob("*/drawn/kept")); card = json.loads((folder/"config.json").read_text())
    assert card["parameters"]["trials"] == [1, 4] and card["parameters"]["prior_steps"] == 5 and card["favourites"] == ["pictures/one-stage/trial-00004_seed-0.png"] and len(list(folder.glob("pictures/*/*.png"))) == 10
    cut = folder.with_name("cut"); shutil.copytree(folder, cut); (cut/"pictures/ceiling/trial-00001_seed-0.png").unlink()
    trial(p, 1).click(); fill(p, "prior steps", 8); p.wait_for_selector("text=1 trial chosen"); press(p, "List again")
    field(p, "run folder").select_option("cut"); p.wait_for_timeout(300); press(p, "Load"); p.wait_for_selector("[role=alert]:has-text('cut off midway: 1 file missing, first pictures/ceiling/trial-00001_seed-0.png')")
    field(p, "run folder").select_option("kept"); p.wait_for_timeout(300); press(p, "Load"); p.wait_for_selector(".necomimi-done:has-text('kept: loaded')"); p.wait_for_selector("text=2 trials chosen")
    eventually(p, lambda: field(p, "prior steps").input_value() == "5")

def test_lab_cancel_stops_within_a_step(sheet):
    p = sheet.page; fill(p, "generator steps", 900); p.wait_for_selector(r"text=/8 pictures to draw: about (\d\d+ s|\d+ min)/"); press(p, "Draw"); p.wait_for_selector("text=/of 7200 picture steps, .* left/", timeout=60_000)
    press(p, "Cancel"); p.wait_for_selector("text=/cancelled after .* of 7200/", timeout=20_000)
    before = sheet.python("print(studio.busy, studio.done, studio.draw_button.disabled)"); time.sleep(1)
    assert before.startswith("False") and before.endswith("False") and sheet.python("print(studio.busy, studio.done, studio.draw_button.disabled)") == before and 0 < int(before.split()[1]) < 1800

def test_lab_a_checkpoint_of_another_width_and_a_missing_picture_are_messages(sheet):
    p = sheet.page; fill(p, "generator steps", 2); p.wait_for_selector(r"text=/8 pictures to draw: about \d[.]\d s/"); field(p, "encoder").select_option("narrow"); p.wait_for_timeout(300); press(p, "Draw"); p.wait_for_selector("[role=alert]:has-text(\"encoder 'narrow' gives 128-d embeddings\")")
    field(p, "encoder").select_option("mlp"); trial(p, 7).click(); p.wait_for_selector("text=3 trials chosen"); press(p, "Draw"); p.wait_for_selector("[role=alert]:has-text('/no/such/picture.png does not exist')")
    trial(p, 7).click(); p.wait_for_selector("text=2 trials chosen"); press(p, "Draw"); p.wait_for_selector("text=/8 pictures drawn in/", timeout=60_000)

def test_lab_800_pixels_wide_without_errors(sheet):
    p = sheet.page; p.set_viewport_size(dict(width=800, height=1400)); p.wait_for_timeout(500)
    box = p.locator(".necomimi-panel").first.bounding_box(); wide = p.evaluate("document.querySelector('.necomimi-panel').scrollWidth")
    drawn(p, 4).scroll_into_view_if_needed(); cell = drawn(p, 4).bounding_box()
    assert wide <= box["width"]+2 and box["x"] <= cell["x"] and cell["x"]+cell["width"] <= box["x"]+box["width"]+2
    p.locator(".necomimi-panel").first.screenshot(path=str(sheet.path.parent/"GenerationStudio-800.png")); p.set_viewport_size(dict(width=1280, height=1400))
    assert "Traceback" not in p.inner_text(".jp-Notebook") and not p.locator(".necomimi-static").is_visible() and sheet.errors == []
