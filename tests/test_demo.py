"End to end: the demo as a user runs it, and the notebook that trained the shipped models."
import json, re, subprocess, sys
from pathlib import Path
import pytest
from necomimi.runs import read_json, run_notebook

def necomimi(*args, **kw): return subprocess.run([str(Path(sys.executable).with_name("necomimi")), *args], capture_output=True, text=True, **kw)

@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "The full demo: a few minutes on two cores."
    out = tmp_path_factory.mktemp("demo")/"demo"
    done = necomimi("demo", "--out", str(out), "--threads", "2"); assert done.returncode == 0, done.stdout+done.stderr
    return out, done.stdout

@pytest.fixture(scope="module")
def metrics(demo): return read_json(demo[0]/"metrics.json")

def row(metrics, k, top): return next(r for r in metrics["retrieval"]["table"] if (r["k"], r["top"]) == (k, top))

@pytest.mark.timeout(1500)
def test_nerv_finds_pictures_of_concepts_it_never_saw(metrics):
    r = row(metrics, 200, 1)
    assert .2 <= r["accuracy"] <= .6 and r["low"] > r["shuffled_high"] and abs(r["chance"]-1/200) < 1e-12

def test_two_stage_pictures_beat_those_of_shuffled_eeg(metrics):
    d = metrics["cat_two_stage_minus_shuffled"]
    assert d["interval"][0] > 0 and d["n"] == 200 and d["protocol"]["simulated"]

def test_ceiling_and_control_frame_the_score(metrics):
    total = {k: v["total"] for k, v in metrics["cat"].items()}
    assert total["true embedding"] > total["two-stage"] > total["shuffled EEG"]

def test_run_folder_is_complete(demo):
    out, said = demo
    assert {"pipeline.ipynb", "report.html", "metrics.json", "config.json", "status.json", "encoder", "prior", "embeddings", "pictures", "figures", "data"} <= {p.name for p in out.iterdir()}
    assert {p.stem for p in (out/"figures").glob("*.png")} >= {"evoked", "training", "retrieval", "similarity", "grid"}
    assert all(len(list((out/"pictures"/k).glob("*.png"))) == 200 for k in ("true-embedding", "one-stage", "two-stage", "shuffled-EEG"))
    assert re.findall(r"\[(\d)/8\]", said) == list("12345678") and "report.html" in said

def test_report_says_simulated_and_needs_no_network(demo):
    html = (demo[0]/"report.html").read_text(encoding="utf-8")
    assert "simulated" in html and html.count("data:image/png;base64") >= 6 and "<details" in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']https?://", html)

def test_metrics_say_how_they_came_about(metrics):
    p = metrics["protocol"]
    assert p["simulated"] is True and "disjoint" in p["split"] and p["repetitions_averaged_at_test"] == 20 and "simulated" in metrics["retrieval"]["protocol"]

def test_checkpoints_open_again(demo):
    import numpy as np
    from necomimi.data import TrialStore
    from necomimi.prior import Prior
    from necomimi.training import FitResult
    out = demo[0]; test = TrialStore.open(out/"data"/"sub-01", "test"); assert test.simulated
    e = FitResult.load(out/"encoder").embed(test.average()[:3]); p = Prior.load(out/"prior").sample(e)
    assert e.shape == p.shape == (3, 256) and np.isfinite(p).all()

@pytest.mark.timeout(900)
def test_the_notebook_that_trained_the_mini_models_runs(tmp_path):
    run = run_notebook("train_mini", tmp_path/"train", dict(tiny=True, bf16=False), progress=None, threads=2, html=False)
    log = json.loads((run.folder/"train_mini.json").read_text())
    assert run.state == "done" and set(log) == {"encoder", "autoencoder", "decoder"}
    assert {p.name for p in (run.folder/"mini-generator").iterdir()} >= {"unet", "vae", "scheduler", "model_index.json", "ip-adapter_mini.safetensors"}
    from necomimi.vision import load_vision
    assert load_vision(str(run.folder/"mini-clip")).dim == 256

def test_wrong_parameter_is_refused_before_anything_starts(tmp_path):
    done = necomimi("demo", "--out", str(tmp_path/"x"), "-p", "epoch=3")
    assert done.returncode == 2 and "epochs" in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path/"x").exists()
