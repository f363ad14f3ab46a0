"Report: what is collected, what is refused, what the page, the tables and the cards say. Run folders are made up in the documented formats."
import csv, io, json, os, re, shutil
import numpy as np, pandas as pd
import pytest
from necomimi import report as R
from necomimi.data import NecomimiError
from necomimi.report import collect, find_runs, missing, report, summarise
from necomimi.reproduce import our_interval, paired_tests, wilcoxon_exact

pytest.importorskip("jinja2", reason="needs necomimi[batch]")
N = 40

def folder(home, stage, cell=None, state="done", id=None, needs=(), metrics=None, data=None, error=None, commit="a"*40, torch="2.13.0", **parameters):
    "A run folder; `needs` are other such folders."
    parameters = dict(recipe="mini", vision="mini", pretrained="", name="default", tiny=False) | parameters | (cell or {})
    out = home/(id or f"{stage}-{'-'.join(map(str, (cell or {}).values()))}"); out.mkdir(parents=True)
    tasks = [dict(id=n.name, stage=n.name.split("-")[0], parameters=json.loads((n/"config.json").read_text())["parameters"], needs=[]) for n in needs]
    config = dict(notebook=stage, notebook_sha256="0", parameters=parameters | dict(out="."), data=data or {}, versions=dict(python="3.11", torch=torch), machine=dict(processor="x", cores=2, gpus=[]), git=dict(commit=commit, changed=[]),
                  id=out.name, batch=dict(tasks=tasks))
    (out/"config.json").write_text(json.dumps(config)); (out/"status.json").write_text(json.dumps(dict(name=stage, state=state, seconds=3., error=error, kind="error" if error else None)))
    if state == "done": (out/"metrics.json").write_text(json.dumps(metrics or {})); (out/f"{stage}.ipynb").write_text("{}"); (out/"report.html").write_text("x")
    return out

def values(cell, skill=.5, n=N):
    rng = np.random.default_rng([cell["subject"], cell["seed"]])
    return pd.concat([pd.DataFrame(dict(cell, measure=m, picture=np.arange(n), value=rng.random(n)**k/skill*.5)) for m, k in (("2-way top-1", .3), ("4-way top-1", .6), (f"{n}-way top-1", 2), (f"{n}-way top-5", 1))])

def one(home, cell, skill=.5, simulated=True, train=True, grid=True, **parameters):
    "train and score of a cell."
    t = folder(home, "train", cell, data=dict(encoder=f"{cell}"), **parameters) if train else None
    if t: pd.DataFrame(dict(epoch=[1, 2], loss=[3., 2.], val_loss=[3., 2.5], val_top1=[.1, .3], val_top5=[.4, .6], val_ways=[20, 20])).to_csv(t/"history.csv", index=False)
    s = folder(home, "score", cell, needs=[t] if t else [], metrics=dict(protocol=dict(split="test", gallery=N) | ({} if simulated is None else dict(simulated=simulated))), **parameters)
    values(cell, skill).to_csv(s/"hits.csv", index=False)
    pd.DataFrame([dict(cell, measure="CAT", condition=c, picture=i, value=200.*v) for c, v in (("two-stage", 2), ("shuffled EEG", 1)) for i in range(6)]).to_csv(s/"cat.csv", index=False)
    if grid:
        from PIL import Image
        Image.new("RGB", (1200, 30), (9, 90, 200)).save(s/"grid.png")
    return s

def batch(home, encoders=("nerv", "nice"), subjects=(1, 2, 3), seeds=(0, 1), **kw):
    for e in encoders:
        for s in subjects:
            for seed in seeds: one(home, dict(encoder=e, subject=s, seed=seed), dict(nerv=.5).get(e, .7), **kw)
    return home

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A store with a whole batch, a failed training, a damaged folder and another commit; and its report."
    home = tmp_path_factory.mktemp("store"); runs = batch(home/"runs")
    folder(runs, "train", dict(encoder="nice", subject=4, seed=0), state="failed", error="cell In [3] raised ValueError: <script>alert(1)</script>")
    folder(runs, "embed", commit="b"*40, torch="2.12.0"); (runs/"cut").mkdir(); (runs/"cut"/"status.json").write_text('{"name": "sc')
    return home, report(runs, home/"report", n_boot=300)

def text(page): return page.read_text(encoding="utf-8")

# collecting
def test_collect_finds_runs_at_depth_and_lists_the_damaged(made):
    home, _ = made; r = collect(home)
    assert r.counts().loc["train"].to_dict() == dict(done=12, failed=1) and [f.name for f, _ in r.damaged] == ["cut"] and "valid JSON" in r.damaged[0][1]
    assert len(r.hits) == 12*4*N and r.hits.value.max() <= 100 and set(r.cat.measure) == {"CAT", "CAT, shuffled EEG"} and r.cat.groupby("measure").value.mean().to_dict() == {"CAT": 400, "CAT, shuffled EEG": 200}
    assert len(r.grids) == 12 and r.histories.id.nunique() == 12 and list(r.tables) == ["mini"]

def test_no_run_folder_and_no_folder(tmp_path):
    with pytest.raises(NecomimiError, match="no such folder.*nowhere"): collect(tmp_path/"nowhere")
    (tmp_path/"a").mkdir()
    with pytest.raises(NecomimiError, match="no run folder in"): collect([tmp_path])
    with pytest.raises(NecomimiError, match="no run folder in nothing"): collect([])

def test_depth_is_bounded_and_attempts_are_not_runs(tmp_path):
    deep = folder(tmp_path/"1"/"2"/"3", "embed", id="embed-x"); assert find_runs(tmp_path) == [deep.resolve()]
    folder(tmp_path/"1"/"2"/"3"/"4", "embed", id="embed-y"); assert len(find_runs(tmp_path)) == 1
    folder(tmp_path/"work"/"attempts"/"t.1", "train", id="run"); (tmp_path/"work"/"attempts"/"t.1"/"alive.json").write_text("{}")
    folder(tmp_path, "train", id="train-z.old"); assert len(find_runs(tmp_path)) == 1

@pytest.mark.parametrize("file, content, why", [
    ("hits.csv", "encoder,measure,subject\nnerv,2-way top-1,1\n", "lacks the column"), ("hits.csv", "", "cannot be read"), ("hits.csv", "encoder,measure,subject,seed,value\n", "empty"),
    ("hits.csv", "encoder,measure,subject,seed,picture,value\nnerv,2-way top-1,1,0,0,nan\n", "no finite number"), ("hits.csv", "encoder,measure,subject,seed,picture,value\nnerv,2-way top-1,1,0,0,73\n", "between 0 and 1"),
    ("hits.csv", "encoder,measure,subject,seed,picture,value\nnerv,2-way top-1,2,0,0,.5\n", "another run: subject 2 for 1"), ("cat.csv", "encoder,measure,subject,seed,picture,value\n" + "nerv,CAT,1,0,0,200\n"*2, "twice"),
    ("history.csv", "epoch\n1\n", "lacks"), ("metrics.json", "[1]", "no mapping"), ("config.json", "{", "valid JSON"), ("status.json", "[]", "damaged"), ("status.json", '{"name": "score"}', "KeyError")])
def test_damage_is_listed_and_the_rest_stands(tmp_path, file, content, why):
    batch(tmp_path, encoders=("nerv",), subjects=(2,), seeds=(0,)); bad = one(tmp_path, dict(encoder="nerv", subject=1, seed=0))
    (bad/file).write_text(content); r = collect(tmp_path)
    assert [f for f, _ in r.damaged] == [bad.resolve()] and why in r.damaged[0][1] and str(bad.name) in r.damaged[0][1] + str(r.damaged[0][0]) and 2 in set(r.values.subject)
    assert file == "history.csv" or set(r.values.subject) == {2}

def test_lost_status_file_is_damage_not_absence(tmp_path):
    batch(tmp_path, encoders=("nerv",), subjects=(1,), seeds=(0,)); (tmp_path/"score-nerv-1-0"/"status.json").unlink()
    r = collect(tmp_path); assert [f.name for f, _ in r.damaged] == ["score-nerv-1-0"] and "no status.json" in r.damaged[0][1]

# one cell twice
def test_same_run_twice_is_taken_once_but_not_if_it_differs(tmp_path):
    batch(tmp_path/"a", seeds=(0,)); shutil.copytree(tmp_path/"a", tmp_path/"b")
    assert len(collect([tmp_path/"a", tmp_path/"b"]).values) == len(collect(tmp_path/"a").values) == len(collect([tmp_path/"a", tmp_path/"a"/"score-nerv-1-0"]).values)
    path = tmp_path/"b"/"score-nerv-1-0"/"hits.csv"; path.write_text(path.read_text().replace("0.", "0.0", 1))
    with pytest.raises(NecomimiError, match=r"a/score-nerv-1-0 and .*b/score-nerv-1-0 are the same run.*hits.csv differ"): collect(tmp_path)

def test_same_cell_from_other_runs_is_refused_with_both_paths(tmp_path):
    cell = dict(encoder="nerv", subject=1, seed=0)
    for k in "ab": values(cell).to_csv(folder(tmp_path, "score", cell, id=f"score-{k}")/"hits.csv", index=False)
    with pytest.raises(NecomimiError, match="two results for encoder nerv, subject 1, seed 0 .*score-a and .*score-b") as e: collect(tmp_path)
    assert "`name`" in str(e.value)

def test_settings_and_recipes_make_tables_of_their_own(tmp_path):
    one(tmp_path/"a", c := dict(encoder="nerv", subject=1, seed=0)); one(tmp_path/"b", c, recipe="osf-100hz", simulated=False)
    for f in (tmp_path/"b").iterdir():                                     # other ids, as a batch would give
        k = json.loads((f/"config.json").read_text()); k["id"] += "-b"; k["batch"]["tasks"] = [t | dict(id=t["id"] + "-b") for t in k["batch"]["tasks"]]; (f/"config.json").write_text(json.dumps(k))
    r = collect(tmp_path); assert sorted(r.tables) == ["mini", "osf-100hz"] and r.values.groupby("table").size().nunique() == 1
    page = text(report(r, tmp_path/"out", n_boot=50)); assert page.count("<h2>Results: ") == 2 and page.count("The EEG is simulated.") == 1

def test_a_sweep_of_the_learning_rate_is_told_apart_by_what_the_training_was_given(tmp_path):
    cell = dict(encoder="nerv", subject=1, seed=0)
    for lr in (.001, .01):
        t = folder(tmp_path, "train", cell, id=f"train-{lr}", lr=lr); values(cell, .5 + lr).to_csv(folder(tmp_path, "score", cell, id=f"score-{lr}", needs=[t])/"hits.csv", index=False)
    assert sorted(collect(tmp_path).tables) == ["mini, train lr 0.001", "mini, train lr 0.01"]

# missing
def test_holes_without_a_plan(made):
    lost = missing(collect(made[0]/"runs")); assert list(zip(lost.encoder, lost.subject, lost.seed)) == [("nerv", 4, 0), ("nerv", 4, 1), ("nice", 4, 0), ("nice", 4, 1)]
    assert lost.why.tolist()[0] == "no run" and lost.why.tolist()[2].startswith("train failed: cell In [3]")

def test_holes_with_the_plan_of_a_batch(tmp_path):
    runs = tmp_path/"runs"; done = one(runs, dict(encoder="nerv", subject=1, seed=0)); bad = folder(runs, "train", c := dict(encoder="nice", subject=1, seed=0), state="failed", error="boom")
    folder(runs, "train", dict(encoder="muse", subject=1, seed=0), state="queued")
    task = lambda id, cell, *needs: dict(id=id, stage=id.split("-")[0], parameters=cell, needs=list(needs))
    tasks = [task("train-nerv-1-0", {}), task(done.name, {}, "train-nerv-1-0"), task(bad.name, c), task("score-nice-1-0", c, bad.name), task("train-muse-1-0", {}), task("score-muse-1-0", dict(encoder="muse", subject=1, seed=0), "train-muse-1-0")]
    (tmp_path/"batches").mkdir(); (tmp_path/"batches"/"b.json").write_text(json.dumps(dict(tasks=tasks)))
    lost = missing(collect(tmp_path)); assert lost.run.tolist() == ["score-nice-1-0", "score-muse-1-0"] and "needs train-nice-1-0 (failed: boom)" == lost.why[0] and "queued" in lost.why[1]

# numbers
def test_summary_is_our_interval_and_csv_agrees_with_the_page(made):
    r = collect(made[0]/"runs"); s = summarise(r.values, 300).set_index(["measure", "encoder"])
    g = r.values[(r.values.measure == "4-way top-1") & (r.values.encoder == "nice")]; assert tuple(s.loc[("4-way top-1", "nice"), ["mean", "low", "high"]]) == pytest.approx(our_interval(g, 300)[:3])
    by_hand = np.mean([np.mean([values(dict(encoder="nice", subject=p, seed=q), .7).query("measure == '4-way top-1'").value.mean() for q in (0, 1)]) for p in (1, 2, 3)])
    assert s.loc[("4-way top-1", "nice"), "mean"] == pytest.approx(100*by_hand)
    saved = pd.read_csv(made[1].parent/"summary.csv").set_index(["measure", "encoder"]); assert saved["mean"].to_dict() == pytest.approx(s["mean"].to_dict()) and saved.simulated.all() and not saved.comparable.fillna(False).any()
    row = s.loc[("2-way top-1", "nerv")]; assert f"<td>{row['mean']:.1f}<small>[{row.low:.1f}, {row.high:.1f}]</small></td>" in text(made[1])
    runs = pd.read_csv(made[1].parent/"results.csv"); assert len(runs) == 12*6 and not runs.duplicated(["encoder", "subject", "seed", "measure"]).any()

def test_a_measure_that_not_all_people_have_says_so(tmp_path):
    batch(tmp_path, encoders=("nerv",), subjects=(1, 2), seeds=(0,)); (tmp_path/"score-nerv-2-0"/"cat.csv").unlink(); r = collect(tmp_path)
    rows = {row[0]: row[1] for row in R.results_grid(summarise(r.values, 50))["rows"]}; assert rows["CAT (points of 1000)"][1].endswith("of 1 people only") and "only" not in rows["2-way top-1 (%)"][1] and rows["people"] == ("2", "1 seed(s)")

def test_comparisons_are_paired_over_people(made):
    v = collect(made[0]/"runs").values; t = R.compare(v).set_index("measure"); assert (t.reference == "nerv").all() and t.n.unique().tolist() == [3]
    wide = v[v.measure == "2-way top-1"].pivot_table("value", "subject", "encoder"); assert t.loc["2-way top-1", "p"] == wilcoxon_exact(wide.nerv - wide.nice) == .25 and (t.p_holm >= t.p).all()
    assert set(t.index) == {"2-way top-1", "4-way top-1", f"{N}-way top-1", f"{N}-way top-5", "CAT"} and R.compare(v[v.encoder == "nerv"]) is None
    with pytest.raises(NecomimiError, match="reference 'muse'.*nice, nerv"): report(made[0]/"runs", made[0]/"other", reference="muse")
    assert not (made[0]/"other").exists()

def test_chance(): assert [R.chance(m) for m in ("2-way top-1", "200-way top-5")] == [50, 2.5] and np.isnan(R.chance("CAT"))

def test_paper_stands_beside_only_with_its_reasons(made, tmp_path):
    page = text(made[1]); assert "NOT COMPARABLE with the paper: our EEG is SIMULATED" in page and f"{N} pictures instead of 200." in page
    assert "NOT COMPARABLE" not in text(report(made[0]/"runs", tmp_path/"b", paper=False, n_boot=50)) and "paper" not in pd.read_csv(tmp_path/"b"/"summary.csv")
    one(tmp_path/"c", dict(encoder="nerv", subject=1, seed=0), recipe="own", simulated=None); found, why = R.beside_paper(collect(tmp_path/"c"), "own"); assert not found and "do not say whether the EEG is simulated" in why

# the page
def test_page_stands_alone_escapes_and_says_what_differs(made):
    page = text(made[1]); assert "<script" not in page and "&lt;script&gt;alert(1)" in page and not re.search(r'(src|href)="(https?:)?//', page)
    assert "Runs differ in commit" in page and "Runs differ in torch: 2.13.0 (25 runs), 2.12.0 (1 runs)." in page and "Holm over the 5 comparisons" in page and "smallest possible p is 0.25" in page
    assert page.count("data:image/png;base64,") == 2 + 12 and "12 of 12 shown" in page and "Damaged folders" in page

def test_links_lead_to_files(made):
    for href in re.findall(r'href="([^"]+)"', text(made[1])): assert (made[1].parent/href).exists(), href
    assert 'href="../runs/score-nerv-1-0/score.ipynb"' in text(made[1])

def test_names_with_html_dollars_and_spaces(tmp_path):
    one(tmp_path/"my <b>runs</b> $x_1^2$", dict(encoder="<i>$e_1", subject=1, seed=0), name="<u>&_%", tiny=True); out = report(tmp_path, tmp_path/"out", n_boot=50)
    page = text(out); assert "<i>" not in page and "<u>" not in page and "<b>runs" not in page and "&lt;i&gt;$e_1" in page
    hrefs = re.findall(r'href="(\.\./[^"]+)"', page); assert hrefs and all("<" not in h and " " not in h for h in hrefs)
    assert r"<i>\$e\_1" in text(out.parent/"table.tex") and "<i>" not in next((out.parent/"cards").iterdir()).read_text().split("# ", 1)[1].split("##")[0]

def test_only_failed_runs(tmp_path):
    folder(tmp_path/"runs", "train", dict(encoder="nerv", subject=1, seed=0), state="failed", error="over its memory limit of 1.0 GiB (reached 1.2 GiB)")
    out = report(tmp_path/"runs", tmp_path/"out"); page = text(out)
    assert "over its memory limit of 1.0 GiB" in page and "no run has finished with results" in page and len(pd.read_csv(out.parent/"results.csv")) == 0 and "no run" in text(out.parent/"table.tex") and not (out.parent/"cards").exists()

def test_a_run_alone_without_training_or_pictures(tmp_path):
    s = one(tmp_path, dict(encoder="nerv", subject=1, seed=0), train=False, grid=False); (s/"cat.csv").unlink(); (s/"report.html").unlink(); out = report(s, tmp_path/"out", n_boot=50); page = text(out)
    assert all(w in page for w in ("one encoder only", "Missing: no history.csv", "Missing: no run of this table drew pictures", "no training has finished")) and "CAT" not in pd.read_csv(out.parent/"summary.csv").measure.tolist()

def test_latex_is_booktabs_with_a_row_an_encoder(made):
    tex = text(made[1].parent/"table.tex"); assert all(w in tex for w in (r"\toprule", r"\midrule", r"\bottomrule", "Simulated EEG.", r"2-way top-1 (\%)")) and re.search(r"^NICE & .*\\\\$", tex, re.M) and re.search(r"^NERV & ", tex, re.M)
    assert tex.count("{") == tex.count("}") and len({l.count(" & ") for l in tex.splitlines() if l.endswith(r"\\")}) == 1

# cards
def test_card_has_the_runs_own_numbers(made):
    from huggingface_hub import ModelCard
    cards = sorted((made[1].parent/"cards").iterdir()); assert len(cards) == 12
    card = ModelCard(text(made[1].parent/"cards"/"train-nerv-2-1.md")); found = {e.metric_name: e.metric_value for e in card.data.eval_results}
    v = collect(made[0]/"runs").values.query("encoder == 'nerv' and subject == 2 and seed == 1"); assert found["2-way top-1 (%)"] == pytest.approx(v[v.measure == "2-way top-1"].value.mean(), abs=.001)
    assert card.data.library_name == "necomimi" and "simulated-eeg" in card.data.tags and "20-way top-1 30.0 %" in card.text and "epoch 2 of 2" in card.text and "Trained on simulated EEG" in card.text
    assert "weights this run made are not in" in card.text and card.data.license is None and "no licence" in card.text

def test_card_of_a_training_without_score_says_so(tmp_path):
    t = folder(tmp_path, "train", dict(encoder="nerv", subject=1, seed=0), recipe="own"); card = R.card(collect(tmp_path), collect(tmp_path).items[0], tmp_path)
    assert "no finished score was made" in card and "model-index" not in card and "no readable history.csv" in card and "simulated" not in card.split("##")[0] and "| missing |" in card

def test_card_points_to_the_weights_only_if_they_are_this_runs(tmp_path):
    from safetensors.numpy import save_file
    from necomimi.runs import content_hash
    t = folder(tmp_path/"runs", "train", dict(encoder="nerv", subject=1, seed=0), root="study"); home = t/"study"/"models"/"mini"/"mini"/"default"/"nerv"/"seed-0"/"sub-01"/"encoder"; home.mkdir(parents=True)
    save_file(dict(a=np.ones(3)), home/"encoder.safetensors"); (home/"fit.json").write_text(json.dumps(dict(config=dict(lr=.5), info=dict(n_chans=63, n_times=100, n_pictures=7, sfreq=100., n_repetitions=2))))
    config = json.loads((t/"config.json").read_text()); write = lambda h: (t/"config.json").write_text(json.dumps(config | dict(data=dict(encoder=h))))
    write(content_hash(home/"encoder.safetensors")); r = collect(tmp_path); card = R.card(r, r.items[0], tmp_path/"report"); where = re.search(r"FitResult.load\('(.+?)'\)", card)[1]
    assert (tmp_path/"report"/where/"encoder.safetensors").resolve() == (home/"encoder.safetensors").resolve() and "(n, 63, 100)" in card and '"lr": 0.5' in card
    write("0"*64); r = collect(tmp_path); assert "FitResult.load" not in R.card(r, r.items[0], tmp_path/"report")

# writing
def test_a_second_report_replaces_the_first_and_leaves_no_stale_card(made, tmp_path):
    out = tmp_path/"out"; report(made[0]/"runs", out, n_boot=50); report(made[0]/"runs"/"score-nerv-1-0", out, n_boot=50)
    assert not (out/"cards").exists() and {p.name for p in tmp_path.iterdir()} == {"out"}

def test_a_folder_with_other_things_is_left_alone(made, tmp_path):
    out = tmp_path/"out"; out.mkdir(); (out/"thesis.doc").write_text("years of work")
    with pytest.raises(NecomimiError, match="thesis.doc"): report(made[0]/"runs", out)
    assert (out/"thesis.doc").read_text() == "years of work" and len(list(out.iterdir())) == 1
    with pytest.raises(NecomimiError, match="holds what no report wrote"): report(made[0]/"runs", out/"thesis.doc")
    with pytest.raises(NecomimiError, match="holds what no report wrote"): report(made[0]/"runs", made[0]/"runs"/"score-nerv-1-0")

def test_failure_in_the_middle_leaves_the_earlier_report(made, tmp_path, monkeypatch):
    out = tmp_path/"out"; report(made[0]/"runs"/"score-nerv-1-0", out, n_boot=50); before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(R, "write_json", full)
    with pytest.raises(NecomimiError, match="No space left"): report(made[0]/"runs"/"score-nerv-2-0", out, n_boot=50)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before and {p.name for p in tmp_path.iterdir()} == {"out"}

# a store that is no folder
@pytest.fixture
def far(made):
    "The store of `made` at an address, with study folders in its trainings."
    fsspec = pytest.importorskip("fsspec", reason="needs necomimi[batch]"); fs = fsspec.filesystem("memory"); home, _ = made; top = "/far/mine"
    fs.put(str(home/"runs"), f"{top}/runs", recursive=True)
    for name in ("stores/sub-01/eeg.npy", "models/x/encoder/encoder.safetensors", "models/x/encoder/fit.json"): fs.pipe_file(f"{top}/runs/train-nerv-1-0/study/{name}", b"{}"*50)
    yield fs, top, f"memory:/{top}"
    fs.rm("/far", recursive=True)

def test_report_of_a_store_at_an_address(made, far, tmp_path, capsys, monkeypatch):
    from necomimi import cli
    fs, top, url = far; home, page = made; out = tmp_path/"page"; monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: cli.main(["report", url, "--out", str(out)])
    assert e.value.code == 0, capsys.readouterr().err
    same = lambda p: pd.read_csv(p/"results.csv").drop(columns="id", errors="ignore"); pd.testing.assert_frame_equal(same(out), same(page.parent))
    copy = tmp_path/"page-runs"/"far-mine"; kept = {p.name for p in (copy/"runs"/"train-nerv-1-0").rglob("*") if p.is_file()}
    assert {"encoder.safetensors", "fit.json", "history.csv", "status.json"} <= kept and "eeg.npy" not in kept
    links = [l for l in re.findall(r'href="([^"#]+)"', text(out/"index.html")) if not l.startswith("http")]; assert any(l.endswith("train.ipynb") for l in links) and all((out/l).exists() for l in links)

def test_a_second_copy_fetches_what_has_changed(far, tmp_path, monkeypatch):
    from necomimi.batch import Store
    fs, top, url = far; store = Store(url); store.copy(tmp_path/"here", progress=False); got = []
    def get(self, a, b, **kw): got.append(a); return real(self, a, b, **kw)
    real = type(fs).get_file; monkeypatch.setattr(type(fs), "get_file", get)
    store.copy(tmp_path/"here", progress=False); assert not [g for g in got if "/runs/train" in g or "/runs/score" in g], "ended runs are there already"
    store.set_status("train-nice-4-0", state="done"); store.copy(tmp_path/"here", progress=False); assert {g.split("/runs/")[1].split("/")[0] for g in got if "/runs/t" in g} == {"train-nice-4-0"}
    assert json.loads((tmp_path/"here"/"runs"/"train-nice-4-0"/"status.json").read_text())["state"] == "done"

def test_a_far_store_without_runs_or_that_breaks_off(far, tmp_path, monkeypatch):
    from necomimi.batch import Store
    fs, top, url = far
    with pytest.raises(NecomimiError, match="cannot copy the runs of the store memory://far/nothing: FileNotFoundError"): Store("memory://far/nothing").copy(tmp_path/"a")
    def broken(self, a, b, **kw): raise ConnectionResetError("gone")
    monkeypatch.setattr(type(fs), "get_file", broken)
    with pytest.raises(NecomimiError, match="gone"): Store(url).copy(tmp_path/"b", progress=False)
    assert not [p for p in (tmp_path/"b").rglob("*") if p.is_file()], "nothing half-fetched is left"
