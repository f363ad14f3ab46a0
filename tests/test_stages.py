"The six stage notebooks, tiny, through papermill: one road on simulated EEG, the same numbers twice, and what they refuse."
import json, os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pandas as pd
import pytest
from necomimi.data import NecomimiError
from necomimi.runs import notebooks_folder, parameters_of, read_json, rerun_parameters, run_notebook

pytest.importorskip("papermill", reason="needs necomimi[batch]")
ROOT, STAGES = Path(__file__).parents[1], ("preprocess", "embed", "train", "prior", "generate", "score")

def lay(*needs):
    "Links every file of the study roots of these runs into the study root of a new one, as a batch does."
    def before(folder):
        for source in (run.folder/"study" for run in needs):
            for f in (p for p in source.rglob("*") if p.is_file()):
                to = folder/"study"/f.relative_to(source); to.parent.mkdir(parents=True, exist_ok=True)
                if not to.exists(): to.symlink_to(f)
    return before

def go(home, label, *needs, **given):
    return run_notebook(label.split("-")[0], home/label, dict(tiny=True) | given, progress=None, threads=1, html=label == "generate", before=lay(*needs))

@pytest.fixture(scope="module")
def road(tmp_path_factory):
    "{label: Run}, a study root each; the encoder is trained and scored twice, two at a time in threads."
    home, cell, done = tmp_path_factory.mktemp("stages"), dict(subject=1, encoder="mlp"), {}
    def two(*calls):
        with ThreadPoolExecutor(2) as pool: done.update(zip([c[0] for c in calls], pool.map(lambda c: go(home, c[0], *[done[n] for n in c[1]], **c[2]), calls)))
    two(("preprocess", [], dict(subject=1)), ("embed", [], {}))
    two(*((t, ["preprocess", "embed"], cell) for t in ("train-1", "train-2")))
    two(("prior", ["preprocess", "embed", "train-1"], cell), ("score-2", ["preprocess", "embed", "train-2"], cell))
    two(("generate", ["preprocess", "embed", "train-1", "prior"], cell), ("score-1", ["preprocess", "embed", "train-1"], cell))
    two(("score-pictures", ["preprocess", "embed", "train-1", "generate"], cell))
    return done

pytestmark = pytest.mark.timeout(1500)

def test_every_stage_ends_with_figures_protocol_and_times(road):
    for label, run in road.items():
        stage, files = label.split("-")[0], {p.name for p in run.folder.iterdir()}
        assert run.state == "done" and run.name == stage and {f"{stage}.ipynb", "config.json", "metrics.json", "timing.json", "status.json", "run.log", "study"} <= files and "data.json" not in files
        assert run.metrics["headline"] and all(set(r) == {"name", "value", "low", "high", "chance", "note"} for r in run.metrics["headline"]) and run.metrics["protocol"]["stage"] == stage
        text = (run.folder/"metrics.json").read_text(); assert str(run.folder) not in text and "/tmp" not in text and "seconds" not in text
        assert all(re.fullmatch("[0-9a-f]{12,64}", v) for v in run.config["data"].values()) and run.config["data"] and run.config["threads"] == 1
        if stage != "embed": assert run.metrics["protocol"]["simulated"] is True and "simulated EEG" in json.dumps(run.metrics["headline"])

def test_same_seeds_same_figures_byte_for_byte(road):
    for stage in ("train", "score"):
        a, b = (road[f"{stage}-{k}"] for k in "12")
        assert (a.folder/"metrics.json").read_bytes() == (b.folder/"metrics.json").read_bytes() and a.config["data"] == b.config["data"]
    assert (road["score-1"].folder/"hits.csv").read_bytes() == (road["score-2"].folder/"hits.csv").read_bytes()

def test_hashes_join_the_stages(road):
    data = {label: run.config["data"] for label, run in road.items()}
    assert data["train-1"]["eeg_training"] == data["preprocess"]["eeg_training"] and data["train-1"]["embeddings_training"] == data["embed"]["embeddings_training"]
    assert data["score-1"]["encoder"] == data["train-1"]["encoder"] == data["prior"]["encoder"] == data["generate"]["encoder"] and data["generate"]["prior"] == data["prior"]["prior"]

def test_nothing_is_written_through_a_link(road):
    "What a run was given stays as it was: its folder alone changed."
    own = lambda run: {p.relative_to(run.folder/"study").as_posix() for p in (run.folder/"study").rglob("*") if p.is_file() and not p.is_symlink()}
    where = "models/mini/mini/default/mlp/seed-0/sub-01"
    assert own(road["prior"]) == {f"{where}/prior/prior.safetensors", f"{where}/prior/prior.json"} and own(road["score-1"]) == {f"{where}/retrieval.json"}
    assert own(road["score-pictures"]) == {f"{where}/retrieval.json", f"{where}/pictures-mini/cat.json"}

def test_embed_needs_no_eeg(road):
    study = road["embed"].folder/"study"
    assert not list(study.rglob("*.npy")) and len(list(study.rglob("*.png"))) == 818 and (study/"stores"/"mini"/"ATTRIBUTION.txt").is_file()
    there = lambda label: {p.relative_to(road[label].folder).as_posix(): p.read_bytes() for p in (road[label].folder/"study").rglob("*.png")}
    assert there("embed") == there("preprocess"), "both write the same pictures"

def test_tables_of_score(road):
    hits = pd.read_csv(road["score-1"].folder/"hits.csv"); assert list(hits) == ["encoder", "measure", "subject", "seed", "picture", "value"]
    top = hits[hits.measure == "200-way top-1"]; assert len(top) == 200 and set(top.picture) == set(range(200)) and set(hits.encoder) == {"mlp"}
    said = next(r for r in road["score-1"].metrics["headline"] if r["name"] == "retrieval, 200-way top-1 (%)"); assert abs(100*top.value.mean() - said["value"]) < .01 and said["chance"] == .5
    assert not (road["score-1"].folder/"cat.csv").exists() and "No pictures by mini" in road["score-1"].metrics["protocol"]["no_score_because"]

def test_cat_table_is_points_of_a_thousand(road):
    run = road["score-pictures"]; cat = pd.read_csv(run.folder/"cat.csv")
    assert {"encoder", "measure", "subject", "seed", "picture", "value", "condition"} == set(cat) and set(cat.condition) == {"true embedding", "one-stage", "two-stage", "shuffled EEG"} and len(cat) == 4*8
    assert set(cat[cat.condition == "two-stage"].measure) == {"CAT"} and "CAT, shuffled EEG" in set(cat.measure)
    for k, c in run.metrics["cat"].items(): assert abs(cat[cat.condition == k].value.mean() - 200*c["points"]/8) < 1e-6 and c["of"] == 40

def test_history_and_grid(road):
    from PIL import Image
    history = pd.read_csv(road["train-1"].folder/"history.csv"); assert list(history.epoch) == [1, 2] and {"loss", "val_top1"} <= set(history)
    folder = road["generate"].folder; grid = read_json(folder/"grid.json")
    assert (folder/"grid.png").stat().st_size < 300_000 and min(Image.open(folder/"grid.png").size) > 300 and grid["conditions"] == ["truth", "true embedding", "one-stage", "two-stage", "shuffled EEG"]
    assert len(grid["files"]) == 8 and all((folder/"study"/"stores"/"mini"/f).is_file() for f in grid["files"]) and grid["simulated"] is True
    page = (folder/"report.html").read_text(encoding="utf-8"); assert "data:image/png;base64" in page and "simulated EEG" in page

def test_config_alone_runs_it_again(road, tmp_path):
    run = road["score-1"]; name, given = rerun_parameters(run.folder/"config.json")
    again = run_notebook(name, tmp_path/"again", given, progress=None, threads=1, html=False, before=lay(run))
    assert (again.folder/"metrics.json").read_bytes() == (run.folder/"metrics.json").read_bytes()

# --- without a kernel

def test_parameters_mean_the_same_everywhere():
    "One name, one type, one default: a batch hands a value to every stage that declares the name. Only `batch_size` has two meanings, and says so."
    seen = {}
    for stage in STAGES:
        for p in parameters_of(stage).values():
            assert p.help and seen.setdefault(p.name, (p.type, p.default))[0] == p.type
            if p.name != "batch_size": assert seen[p.name][1] == p.default, (stage, p)
    assert {"root", "recipe", "tiny", "out"} <= set.intersection(*(set(parameters_of(s)) for s in STAGES)) and "encoder" not in parameters_of("embed") and "vision" not in parameters_of("preprocess")

def run_cells(stage, folder, **given):
    "The notebook's code in this process, in `folder`."
    cells = [c for c in read_json(notebooks_folder()/f"{stage}.ipynb")["cells"] if c["cell_type"] == "code"]; space = {}
    for c in cells:
        exec("".join(c["source"]), space)
        if "parameters" in c["metadata"].get("tags", []): space.update(given | dict(out=str(folder), root=str(folder/"study")))

@pytest.mark.parametrize("stage, given, message", [("train", {}, "no embeddings"), ("prior", dict(prior_settings=dict(epoch=3)), "no setting called epoch"), ("preprocess", dict(recipe="fast"), "no recipe 'fast'"),
    ("preprocess", dict(eeg=dict(snr=-1)), "snr must be a positive"), ("embed", dict(recipe="necomimi-250hz"), "image_set"), ("score", {}, "no embeddings")])
def test_what_is_missing_is_said(stage, given, message, tmp_path):
    with pytest.raises(NecomimiError, match=message): run_cells(stage, tmp_path, **given)

@pytest.mark.parametrize("given, message", [(dict(preset="best"), "preset 'best': expected one of default, paper, reference"), (dict(settings=dict(seed=3)), "must not hold seed"), (dict(settings=dict(epoch=3)), "epoch"), (dict(encoder="nervous"), "nervous")])
def test_train_refuses_settings(road, given, message, tmp_path):
    lay(road["preprocess"], road["embed"])(tmp_path)
    with pytest.raises(NecomimiError, match=message): run_cells("train", tmp_path, **given)

def test_installed_package_runs_a_stage_without_the_source_tree(tmp_path):
    "What a wheel holds, as setup.py lays it out, in a folder of its own; run from elsewhere."
    made = subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path/"lib")], cwd=ROOT, capture_output=True, text=True); assert made.returncode == 0, made.stderr
    assert {f"{s}.ipynb" for s in STAGES} <= {p.name for p in (tmp_path/"lib"/"necomimi"/"_notebooks").iterdir()}
    code = "from necomimi.runs import notebooks_folder, run_notebook; print(notebooks_folder()); r = run_notebook('embed', 'run', dict(tiny=True), progress=None, threads=1, html=False); print(r.state, r.config['git'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(tmp_path/"lib")))
    assert done.stdout.splitlines() == [str(tmp_path/"lib"/"necomimi"/"_notebooks"), "done {}"], done.stderr
    assert "necomimi/_notebooks/embed" not in done.stderr and (tmp_path/"run"/"study"/"embeddings"/"mini"/"test.safetensors").is_file()
