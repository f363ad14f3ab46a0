"Grids, tasks, stores and Dask: each run once, faults harm nobody else, the second start does only what is missing."
import contextlib, json, os, random, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest, nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from necomimi.data import NecomimiError
from necomimi.runs import Run, read_json, write_json

pytest.importorskip("distributed", reason="needs necomimi[batch]")
from necomimi import batch as room
from necomimi.batch import MOST, Store, Task, again, ancestry, batch, combinations, fingerprint, gpu, link_study, missing, n_workers, number_of_bytes, open_store, perform, plan, read_grid, run_tasks, stages_of

def notebook(home, name, parameters, code):
    cell = new_code_cell(parameters, metadata=dict(tags=["parameters"]))
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {name}"), cell, new_code_cell(code)]), home/f"{name}.ipynb")
    return str(home/f"{name}.ipynb")

DRAW = "import random, pathlib, time\ntime.sleep(wait)\npathlib.Path(root).mkdir(exist_ok=True)\n(pathlib.Path(root)/f'draw-{seed}').write_text(str(random.Random(seed).random()))"
POWER = "import json, pathlib, time\ntime.sleep(wait)\nx = float((pathlib.Path(root)/f'draw-{seed}').read_text())\npathlib.Path('metrics.json').write_text(json.dumps(dict(value=x**by)))"

@pytest.fixture
def small(tmp_path):
    "A grid of 2 draws and 4 powers, of notebooks that only count."
    draw = notebook(tmp_path, "draw", "seed: int = 0  # seed\nwait: float = 0.  # s\nroot: str = 'study'  # study folder", DRAW)
    power = notebook(tmp_path, "power", "seed: int = 0  # seed\nby: int = 2  # exponent\nwait: float = 0.  # s\nroot: str = 'study'  # study folder", POWER)
    return dict(name="powers", stages=dict(draw=dict(notebook=draw), power=dict(notebook=power, needs="draw")), grid=dict(seed="0-1", by=[2, 3]))

def states(store): return {p.parent.name: read_json(p)["state"] for p in Path(store).glob("runs/*/status.json")}
def values(store): return {r.config["parameters"]["seed"]*10 + r.config["parameters"]["by"]: r.metrics["value"] for r in map(Run.open, sorted(Path(store).glob("runs/power-*")))}
EXPECTED = {10*s + b: random.Random(s).random()**b for s in (0, 1) for b in (2, 3)}
quiet = dict(progress=None)

# ---- grids

def test_bytes():
    assert [number_of_bytes(t) for t in ("4 GiB", "500MB", "1.5k", 1000, "12 B")] == [4*2**30, 500_000_000, 1500, 1000, 12]
    for wrong in ("much", "4 XB", "-1", None, "GiB"):
        with pytest.raises(NecomimiError, match="4 GiB"): number_of_bytes(wrong)

def test_stages_come_in_order_of_need_and_default_to_the_road():
    assert [s.name for s in stages_of(dict(stages=["score", "generate", "train", "prior", "preprocess", "embed"]))].index("score") == 5
    got = {s.name: s.needs for s in stages_of({})}; assert got == dict(preprocess=(), embed=(), train=("preprocess", "embed"), score=("train",))
    assert {s.name: s.needs for s in stages_of(dict(stages=["train", "prior", "generate", "score"]))}["score"] == ("train", "generate")

def test_plan_shares_what_is_equal(small):
    tasks = plan(small); by = {t.id: t for t in tasks}
    assert len(tasks) == 6 and [t.stage for t in tasks if not t.needs] == ["draw"]*2 and all(by[t.needs[0]].parameters["seed"] == t.parameters["seed"] for t in tasks if t.needs)
    assert [t.id for t in plan(small)] == [t.id for t in tasks], "the same grid gives the same ids"
    place = {t.id: k for k, t in enumerate(tasks)}; assert all(place[n] < place[t.id] for t in tasks for n in t.needs)
    wider = plan(small | dict(grid=dict(seed="0-2", by=[2, 3]))); assert {t.id for t in tasks} < {t.id for t in wider}

def test_ids_hold_what_matters_and_nothing_else(small, tmp_path):
    first = plan(small); ids = lambda tasks: {t.id for t in tasks}
    nb = nbformat.read(tmp_path/"draw.ipynb", 4); nb.cells[0].source = "# other words"; nbformat.write(nb, tmp_path/"draw.ipynb"); assert ids(plan(small)) == ids(first), "prose does not matter"
    nb.cells[2].source += "\n1+1"; nbformat.write(nb, tmp_path/"draw.ipynb"); assert not ids(plan(small)) & ids(first), "code does, all the way down"
    more = plan(small | dict(parameters=dict(wait=.5))); assert not ids(more) & ids(plan(small))
    assert ids(plan(small | dict(parameters=dict(wait=0)))) == ids(plan(small)), "a default said aloud is the default"
    assert ids(plan(small | dict(limits=dict(time=9)))) == ids(plan(small)) and all(t.limits == dict(time=9) for t in plan(small | dict(limits=dict(time=9))))

def test_the_source_is_part_of_the_id(small, tmp_path):
    a, b = tmp_path/"a", tmp_path/"b"
    for f in (a, b): (f/"image_set").mkdir(parents=True); (f/"image_set"/"x").write_text("x")
    assert fingerprint(a) == fingerprint(b) != None and {t.id for t in plan(small | dict(source=str(a)))} == {t.id for t in plan(small | dict(source=str(b)))}
    (b/"image_set"/"x").write_text("xx"); assert fingerprint(a) != fingerprint(b)
    with pytest.raises(NecomimiError, match="no such folder"): plan(small | dict(source=str(tmp_path/"c")))

def test_products_exclusions_and_additions():
    kinds = dict(subject="int", encoder="str", seed="int")
    grid = dict(grid=[dict(subject="1-3", encoder=["a", "b"]), dict(subject=9, encoder="c")], exclude=[dict(subject="1-2", encoder="b")], include=[dict(subject=7, encoder="a")])
    got = combinations(grid, kinds); assert len(got) == 6 - 2 + 1 + 1 and dict(subject=2, encoder="b") not in got and got[-1] == dict(subject=7, encoder="a") and dict(subject=9, encoder="c") in got

@pytest.mark.parametrize("change, words", [
    (dict(grid=dict(sed=[0])), "did you mean 'seed'"), (dict(grid=dict(seed=[0], by=["two"])), "expected int"), (dict(parameters=dict(wiat=1)), "did you mean 'wait'"),
    (dict(grid=dict(seed=[], by=[2])), "empty list"), (dict(grid=dict(seed="a-b")), "'a-b'"), (dict(exclude=[dict(colour=1)]), "exclude: 'colour'"), (dict(exclude=[dict(seed="0-1")]), "all excluded"),
    (dict(limits=dict(memroy="1 GiB")), "did you mean 'memory'"), (dict(limits=dict(memory="lots")), "expected a size"), (dict(limits=dict(gpus=3)), "0 or 1"), (dict(limits=dict(time="soon")), "seconds"),
    (dict(limits=dict(threads=0)), "threads"), (dict(gird={}), "did you mean 'grid'"), (dict(stages=["preproces"]), "no notebook 'preproces'"), (dict(grid="all"), "name: value"),
    (dict(grid=dict(seed=list(range(1000)), by=list(range(1000)))), "1,000,000 combinations (1000 seed × 1000 by)")])
def test_a_wrong_grid_is_refused_before_anything_starts(small, tmp_path, change, words):
    with pytest.raises(NecomimiError) as e: batch(small | change, tmp_path/"store", **quiet)
    assert words in str(e.value) and not (tmp_path/"store"/"runs").exists()

def test_circles_and_unknown_needs(small):
    s = small["stages"]; circle = dict(draw=s["draw"] | dict(needs="power"), power=s["power"])
    with pytest.raises(NecomimiError, match="in a circle: .*draw.*power|in a circle: .*power.*draw"): plan(small | dict(stages=circle))
    with pytest.raises(NecomimiError, match="did you mean 'draw'"): plan(small | dict(stages=dict(s, power=s["power"] | dict(needs="drawn"))))

def test_many_combinations_only_when_forced(small):
    big = small | dict(grid=dict(seed=list(range(2)), by=list(range(MOST//2 + 1))))
    with pytest.raises(NecomimiError, match="10,002 combinations"): plan(big)
    assert len(plan(big, force=True)) == 2 + MOST + 2

def test_grid_files(tmp_path, small):
    import yaml
    (tmp_path/"g.yaml").write_text(yaml.safe_dump({k: v for k, v in small.items() if k != "name"})); assert read_grid(tmp_path/"g.yaml")["name"] == "g" and len(plan(tmp_path/"g.yaml")) == 6
    for text, words in (("a: [", "not YAML"), ("- 1", "a mapping"), ("", "a mapping")):
        (tmp_path/"w.yaml").write_text(text)
        with pytest.raises(NecomimiError, match=words): read_grid(tmp_path/"w.yaml")
    with pytest.raises(NecomimiError, match="cannot read the grid"): read_grid(tmp_path/"none.yaml")

@pytest.mark.parametrize("name, n", [("tiny", 2 + 1 + 4 + 4), ("table2", 10 + 1 + 150 + 150)])
def test_grids_that_come_along(name, n, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); (tmp_path/"things-eeg2").mkdir(); tasks = plan(name); assert len(tasks) == n
    if name == "table2": assert {(t.stage, t.limits["gpus"]) for t in tasks} == {("preprocess", 0), ("embed", 1), ("train", 1), ("score", 0)}

def test_ancestry(small):
    tasks = plan(small); last = tasks[-1]; assert [t.id for t in ancestry(tasks, last.id)] == [last.needs[0], last.id]
    assert Task.from_dict(json.loads(json.dumps(last.to_dict()))) == last

def test_workers_by_threads_memory_and_cards():
    task = lambda **l: Task("a", "a", "a", {}, limits=l); n = lambda k, **l: n_workers([task(**l)]*k, cores=16, memory=64*2**30, gpus=2)
    assert [n(99), n(3), n(99, threads=4), n(99, memory=20*2**30), n(99, gpus=1), n(99, threads=64)] == [16, 3, 4, 2, 2, 1]
    assert n_workers([task(gpus=1)]*5 + [task()]*5, cores=16, memory=64*2**30, gpus=2) == 10, "what needs a card waits for one, the rest goes on"

def test_one_run_a_card(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with gpu(1, tmp_path) as a, gpu(1, tmp_path) as b: assert {a["CUDA_VISIBLE_DEVICES"], b["CUDA_VISIBLE_DEVICES"]} == {"3", "5"}
    with gpu(0, tmp_path) as a: assert a == dict(CUDA_VISIBLE_DEVICES="")
    import threading
    got, free = [], threading.Event()
    with gpu(1, tmp_path), gpu(1, tmp_path):
        def third():
            with gpu(1, tmp_path) as c: got.append(c)
        t = threading.Thread(target=third); t.start(); time.sleep(.5); assert got == [], "a third run waits"
    t.join(5); assert len(got) == 1

def test_links_keep_what_is_new_apart(tmp_path):
    for k, f in ((1, "a/x"), (2, "a/y"), (2, "b/z")): p = tmp_path/f"run{k}"/"study"/f; p.parent.mkdir(parents=True, exist_ok=True); p.write_text(f)
    (tmp_path/"src"/"image_set"/"d").mkdir(parents=True); (tmp_path/"src"/"stores"/"r").mkdir(parents=True); (tmp_path/"src"/"stores"/"r"/"s").write_text("s"); (tmp_path/"src"/"private").write_text("p")
    study = tmp_path/"study"; study.mkdir(); link_study(study, [tmp_path/"run1", tmp_path/"run2"], tmp_path/"src")
    assert sorted(str(p.relative_to(study)) for p in study.rglob("*") if p.is_file()) == ["a/x", "a/y", "b/z", "stores/r/s"] and (study/"image_set").is_symlink()
    (study/"a"/"new").write_text("n"); os.unlink(study/"a"/"y"); (study/"a"/"y").write_text("other"); (study/"a"/"x.lock").write_text(""); room.keep_new(study)
    assert sorted(str(p.relative_to(study)) for p in study.rglob("*")) == ["a", "a/new", "a/y"] and (tmp_path/"src"/"image_set"/"d").is_dir() and (tmp_path/"run2"/"study"/"a"/"y").read_text() == "a/y"

# ---- runs

def test_a_batch_and_its_second_start(small, tmp_path, capsys):
    result = batch(small, tmp_path/"store", n=2); lines = capsys.readouterr().out
    assert result.ok and len(result.records) == 6 and values(tmp_path/"store") == EXPECTED and lines.count("] done") == 6 and "dashboard http://127.0.0.1:" in lines and "seed=1, by=3" in lines
    assert set(states(tmp_path/"store").values()) == {"done"} and not list((tmp_path/"store"/"work"/"attempts").iterdir())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/"store"/"runs").rglob("*")}
    second = batch(small, tmp_path/"store", n=2, **quiet); assert second.ok and all(r["earlier"] for r in second.records) and before == {p: p.stat().st_mtime_ns for p in (tmp_path/"store"/"runs").rglob("*")}
    wider = batch(small | dict(grid=dict(seed="0-1", by=[2, 3, 4])), tmp_path/"store", n=1, **quiet); assert sorted(r["parameters"].get("by") for r in wider.records if not r.get("earlier")) == [4, 4]
    run = Run.open(next((tmp_path/"store"/"runs").glob("power-*"))); assert run.notebook.is_file() and run.report.is_file() and run.config["batch"]["id"] == run.folder.name and len(run.config["batch"]["tasks"]) == 2
    assert Store(str(tmp_path/"store")).batches() == ["powers"] and "6 done" in repr(result) and len(result.table) == 6

def test_the_config_alone_repeats_a_run_bit_for_bit(small, tmp_path):
    batch(small, tmp_path/"a", n=1, **quiet); run = next((tmp_path/"a"/"runs").glob("power-*")); shutil.copy(run/"config.json", tmp_path/"config.json"); shutil.move(tmp_path/"a", tmp_path/"gone")
    result = again(tmp_path/"config.json", tmp_path/"b", n=1, **quiet); assert result.ok and len(result.records) == 2
    assert (tmp_path/"b"/"runs"/run.name/"metrics.json").read_bytes() == (tmp_path/"gone"/"runs"/run.name/"metrics.json").read_bytes()
    nb = nbformat.read(tmp_path/"draw.ipynb", 4); nb.cells[2].source += "\n1"; nbformat.write(nb, tmp_path/"draw.ipynb")
    with pytest.raises(NecomimiError, match="not the one of that run any more"): again(tmp_path/"config.json", tmp_path/"c", **quiet)
    with pytest.raises(NecomimiError, match="not one of a batch"): again(dict(notebook="draw"), tmp_path/"c")

def test_a_notebook_that_raises_harms_only_what_needs_it(small, tmp_path):
    bad = notebook(tmp_path, "bad", "seed: int = 0  # seed\nroot: str = 'study'  # study folder", DRAW.replace("time.sleep(wait)", "assert seed != 1, 'seed 1 is bad'"))
    grid = small | dict(stages=dict(small["stages"], draw=dict(notebook=bad))); result = batch(grid, tmp_path/"store", n=2, **quiet)
    assert result.counts == dict(done=3, failed=1, blocked=2) and not result.ok
    failed = next(r for r in result.records if r["state"] == "failed"); assert "seed 1 is bad" in failed["error"] and failed["kind"] == "error" and "seed 1 is bad" in repr(result)
    folder = tmp_path/"store"/"runs"/failed["id"]; assert Run.open(folder).state == "failed" and "seed 1 is bad" in (folder/"bad.ipynb").read_text()
    assert failed["id"] in next(r["error"] for r in result.records if r["state"] == "blocked") and "queued" not in states(tmp_path/"store").values()
    second = batch(grid, tmp_path/"store", n=1, **quiet); assert second.counts == result.counts and [r.get("earlier") for r in second.records if r["state"] == "failed"] == [True], "its own fault: not tried again unasked"
    os.environ["NECOMIMI_TEST_FIXED"] = "1"
    third = batch(grid, tmp_path/"store", n=1, retry_failed=True, **quiet); assert third.counts == result.counts and not any(r.get("earlier") for r in third.records if r["state"] == "failed"), "tried again when asked"

def test_limits_of_time_and_memory(small, tmp_path):
    eat = notebook(tmp_path, "eat", "mib: int = 10  # memory\nwait: float = 0.  # s", "import time, os\nx = b'x'*(mib*2**20)\ntime.sleep(wait)")
    grid = dict(name="eat", stages=dict(eat=dict(notebook=eat)), limits=dict(memory="600 MiB", time=20)); grids = dict(grid=[dict(mib=[5], wait=[0]), dict(mib=[1500], wait=[15]), dict(mib=[6], wait=[300])])
    result = batch(grid | grids, tmp_path/"store", n=1, **quiet); by = {(r["parameters"]["mib"]): r for r in result.records}
    assert by[5]["state"] == "done" and by[1500]["state"] == by[6]["state"] == "failed" and by[1500]["kind"] == by[6]["kind"] == "limit"
    assert "memory limit of 0.586 GiB" in by[1500]["error"] and by[1500]["seconds"] < 15 and "time limit of 20 s" in by[6]["error"] and by[6]["seconds"] < 40

@pytest.fixture
def little_disk(tmp_path):
    home = tmp_path/"disk"; home.mkdir()
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(home)], capture_output=True).returncode: pytest.skip("cannot mount a small disk here (needs root)")
    yield home
    subprocess.run(["umount", "-l", str(home)])

def test_a_full_disk(small, tmp_path, little_disk):
    fat = notebook(tmp_path, "fat", "seed: int = 0  # seed\nmib: int = 0  # size\nroot: str = 'study'  # study folder", "import pathlib\npathlib.Path(root).mkdir(exist_ok=True)\n(pathlib.Path(root)/f'fat-{seed}').write_bytes(bytes(mib*2**20))")
    grid = dict(name="fat", stages=dict(fat=dict(notebook=fat)), grid=[dict(seed=[0], mib=[0]), dict(seed=[1], mib=[50]), dict(seed=[2], mib=[0])])
    result = batch(grid, little_disk, n=1, **quiet); by = {r["parameters"]["seed"]: r for r in result.records}
    assert by[1]["state"] == "failed" and "No space left" in by[1]["error"] and by[0]["state"] == by[2]["state"] == "done"
    assert {read_json(little_disk/"runs"/r["id"]/"status.json", {}).get("state") for r in by.values()} <= {"done", "failed"}
    subprocess.run(["mount", "-o", "remount,size=200m", str(little_disk)], check=True)
    second = batch(grid, little_disk, n=1, retry_failed=True, **quiet); assert second.ok and sum(not r.get("earlier") for r in second.records) == 1

# ---- killed in the middle

CHILD = """
import sys, json
from necomimi.batch import batch
if __name__ == "__main__":
    r = batch(json.load(open(sys.argv[1])), sys.argv[2], n=2, **json.loads(sys.argv[3]))
    print(r); sys.exit(0 if r.ok else 3)
"""
@contextlib.contextmanager
def started(grid, store, tmp_path, **options):
    "The batch in a process (group) of its own."
    (tmp_path/"child.py").write_text(CHILD); (tmp_path/"grid.json").write_text(json.dumps(grid))
    with open(tmp_path/"child.log", "a") as log:
        p = subprocess.Popen([sys.executable, str(tmp_path/"child.py"), str(tmp_path/"grid.json"), str(store), json.dumps(options)], stdout=log, stderr=log, start_new_session=True)
    try: yield p
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
        p.wait()

def until(what, seconds=90):
    end = time.time() + seconds
    while not (got := what()): assert time.time() < end, "waited in vain"; time.sleep(.05)
    return got

def attempts(store): return [(a, d["pid"]) for a in (Path(store)/"work"/"attempts").glob("*.*") if (d := read_json(a/"alive.json", {}))]
def kernels(store):
    "Processes that work in a folder of this store."
    out = []
    for p in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(p/"cwd").startswith(f"{Path(store).resolve()}/work/attempts/"): out.append(int(p.name))
    return out

def whole(store):
    "Nothing is done that is not whole."
    for folder in (Path(store)/"runs").glob("*"):
        if read_json(folder/"status.json", {}).get("state") == "done": run = Run.open(folder); assert run.config and run.notebook.is_file() and (run.name != "power" or "value" in run.metrics), folder

def test_a_worker_killed_in_the_middle_of_a_run(small, tmp_path):
    grid, store = small | dict(parameters=dict(wait=1.5)), tmp_path/"store"
    with started(grid, store, tmp_path) as p:
        worker = until(lambda: kernels(store) and attempts(store))[0][1]; os.kill(worker, signal.SIGKILL)
        assert p.wait(180) == 0, (tmp_path/"child.log").read_text()[-3000:]
    assert values(store) == EXPECTED and set(states(store).values()) == {"done"}; whole(store); until(lambda: not kernels(store), 5)

def test_ctrl_c_keeps_what_is_done_and_the_next_start_does_the_rest(small, tmp_path):
    grid, store = small | dict(parameters=dict(wait=1.5)), tmp_path/"store"
    with started(grid, store, tmp_path) as p:
        seen = set(); until(lambda: seen.update(states(store).values()) or "done" in seen and kernels(store)); os.killpg(p.pid, signal.SIGINT); assert p.wait(60) != 0
    until(lambda: not kernels(store), 5); whole(store); left = states(store)
    assert seen >= {"queued", "running", "done"} and "queued" not in left.values() and 0 < list(left.values()).count("done") < 6
    done = {i for i, s in left.items() if s == "done"}; result = batch(grid, store, n=2, **quiet)
    assert result.ok and {r["id"] for r in result.records if r.get("earlier")} == done and values(store) == EXPECTED

def test_thirty_random_kills(small, tmp_path):
    "The whole batch (every process of it) is killed at a random moment, again and again: what is done stays done and whole, and it ends."
    rng, grid, store, kept = random.Random(0), small | dict(parameters=dict(wait=.3)), tmp_path/"store", {}
    for k in range(30):
        with started(grid, store, tmp_path) as p:
            end = time.time() + rng.uniform(1, 6)
            while time.time() < end and p.poll() is None: time.sleep(.05)
            group = [int(q.name) for q in Path("/proc").glob("[0-9]*") if _session(q) == p.pid]; random.shuffle(group)
            for pid in group:
                with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
        until(lambda: not kernels(store), 5); whole(store)
        for i, s in states(store).items():
            if s == "done": stamp = (store/"runs"/i/"status.json").stat().st_mtime_ns; assert kept.setdefault(i, stamp) == stamp, "a finished run was done again"
        if len(kept) == 6 and k >= 9: break
    result = batch(grid, store, n=2, **quiet); assert result.ok and values(store) == EXPECTED and {r["id"] for r in result.records if r.get("earlier")} >= set(kept)
    assert not list((store/"work"/"attempts").iterdir()) or all(r.get("earlier") for r in result.records)

def _session(proc):
    try: return int((proc/"stat").read_text().rpartition(")")[2].split()[3])
    except (OSError, ValueError): return None

# ---- another machine

def port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]

@contextlib.contextmanager
def dask_processes(tmp_path, address, n=2, scheduler=True):
    "A Dask scheduler and workers as processes with working directories and scratch folders of their own."
    made = []
    def start(name, *command):
        home = tmp_path/name; home.mkdir(exist_ok=True); env = dict(os.environ, NECOMIMI_SCRATCH=str(home/"scratch"), PYTHONPATH=str(Path(room.__file__).parents[1]))
        made.append(subprocess.Popen([sys.executable, "-m", *command], cwd=home, env=env, stdout=open(home/"log", "a"), stderr=subprocess.STDOUT)); return made[-1]
    host, p = address.removeprefix("tcp://").split(":")
    scheduler_of = lambda: start("scheduler", "distributed.cli.dask_scheduler", "--host", host, "--port", p, "--no-dashboard")
    worker_of = lambda k: start(f"machine{k}", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--death-timeout", "60", "--local-directory", str(tmp_path/f"machine{k}"))
    try:
        if scheduler: scheduler_of()
        for k in range(n): worker_of(k)
        yield made, scheduler_of, worker_of
    finally:
        for q in made: q.terminate()
        for q in made:
            try: q.wait(10)
            except subprocess.TimeoutExpired: q.kill()

@pytest.fixture(scope="module")
def ftp(tmp_path_factory):
    "A store no process can reach but through fsspec: an FTP server on loopback. (its folder, its address)."
    pytest.importorskip("pyftpdlib", reason="needs pyftpdlib (necomimi[dev])")
    import logging, threading
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import ThreadedFTPServer
    home, allowed = tmp_path_factory.mktemp("ftp"), DummyAuthorizer(); allowed.add_user("u", "p", str(home), perm="elradfmwMT"); logging.getLogger("pyftpdlib").setLevel("ERROR")
    server = ThreadedFTPServer(("127.0.0.1", 0), type("Handler", (FTPHandler,), dict(authorizer=allowed))); threading.Thread(target=server.serve_forever, daemon=True).start()
    yield home, f"ftp://u:p@127.0.0.1:{server.socket.getsockname()[1]}/store"
    server.close_all()

def test_other_machines_and_a_store_at_an_address(small, tmp_path, ftp):
    address, (home, url) = f"tcp://127.0.0.1:{port()}", ftp
    with dask_processes(tmp_path, address): result = batch(small, url, scheduler=address, **quiet)
    assert result.ok and len({r["parameters"]["seed"] for r in result.records}) == 2 and values(home/"store") == EXPECTED and set(states(home/"store").values()) == {"done"}
    used = [m for m in ("machine0", "machine1") if list((tmp_path/m/"scratch").glob("*/locks/*"))]; assert len(used) == 2, "both machines worked, in scratch folders of their own"
    fetched = list(tmp_path.glob("machine*/scratch/*/cache/draw-*/study/draw-*")); assert fetched, "what a run needed was fetched from the store"
    second = batch(small, url, n=1, **quiet); assert all(r["earlier"] for r in second.records)

def test_the_scheduler_is_restarted_in_the_middle(small, tmp_path, capsys):
    import threading
    address, store, grid = f"tcp://127.0.0.1:{port()}", tmp_path/"store", small | dict(parameters=dict(wait=1.5))
    with dask_processes(tmp_path, address) as (made, scheduler, worker):
        def restart():
            until(lambda: "done" in states(store).values() and kernels(store)); made[0].send_signal(signal.SIGKILL); made[0].wait(); time.sleep(2); scheduler()
            time.sleep(1); [worker(k) for k in (7, 8)]
        t = threading.Thread(target=restart); t.start(); result = batch(grid, store, scheduler=address); t.join()
    assert result.ok and values(store) == EXPECTED and "the scheduler went away" in capsys.readouterr().out; whole(store)

def test_a_scheduler_that_stays_away(small, tmp_path):
    import threading
    address, store, grid = f"tcp://127.0.0.1:{port()}", tmp_path/"store", small | dict(parameters=dict(wait=1.5))
    with dask_processes(tmp_path, address) as (made, scheduler, worker):
        t = threading.Thread(target=lambda: (until(lambda: "done" in states(store).values()), made[0].send_signal(signal.SIGKILL))); t.start()
        with pytest.raises(NecomimiError, match="went away and did not come back within 3 s; [1-5] of 6 runs have ended"): batch(grid, store, scheduler=address, patience=3, **quiet)
        t.join()
    whole(store); assert "queued" not in states(store).values(); result = batch(grid, store, n=2, **quiet); assert result.ok and values(store) == EXPECTED

def test_what_ended_as_the_scheduler_went_is_told_from_the_store(small, tmp_path, monkeypatch, capsys):
    store, follow, rounds, told = tmp_path/"store", room._follow, [], []
    def deaf(client, futures, tell):
        rounds.append(len(futures)); first = len(rounds) == 1
        if first: until(lambda: "done" in states(store).values())
        return False if first else follow(client, futures, tell)
    monkeypatch.setattr(room, "_follow", deaf); result = batch(small | dict(parameters=dict(wait=.5)), store, n=1, progress=lambda r, n, total: told.append((r["id"], n)))
    assert result.ok and values(store) == EXPECTED and len(rounds) == 2 and rounds[0] == 6 > rounds[1]
    assert sorted({i for i, _ in told}) == sorted(r["id"] for r in result.records) and [n for _, n in told] == [1, 2, 3, 4, 5, 6] and not any(r.get("earlier") for r in result.records)
    assert f"went away with {6 - rounds[1]} of 6 runs ended" in capsys.readouterr().out

@pytest.mark.parametrize("status", ["finished", "error", "cancelled", "lost"])
def test_a_scheduler_lost_between_the_news_and_the_record(monkeypatch, status):
    import distributed
    class Future:
        def __init__(self, status, outcome): self.status, self.outcome = status, outcome
        def result(self):
            if isinstance(self.outcome, Exception): raise self.outcome
            return self.outcome
        def exception(self): return self.outcome if isinstance(self.outcome, ValueError) else self.result()
    from types import SimpleNamespace
    monkeypatch.setattr(distributed, "as_completed", lambda futures, loop: iter(futures)); told = []; task = room.Task("x-0", "x", "x", {})
    gone = distributed.comm.core.CommClosedError("reset by peer")
    assert room._follow(SimpleNamespace(loop=None), {Future("finished", dict(id="a")): task, Future(status, gone): task, Future("finished", dict(id="b")): task}, told.append) is False and told == [dict(id="a")]
    assert room._follow(SimpleNamespace(loop=None), {Future("finished", dict(id="a")): task, Future("error", ValueError("x")) if status == "error" else Future("finished", dict(id="c")): task}, told.append) is True and len(told) == 3

def test_an_unreachable_scheduler_and_one_without_workers(small, tmp_path, monkeypatch):
    with pytest.raises(NecomimiError, match="no Dask scheduler answers at tcp://127.0.0.1"): batch(small, tmp_path/"store", scheduler=f"tcp://127.0.0.1:{port()}", **quiet)
    assert states(tmp_path/"store") == {}

def test_a_store_that_cannot_be_reached(small):
    with pytest.raises(NecomimiError, match="store nowhere://x"): batch(small, "nowhere://x", **quiet)
    with pytest.raises(NecomimiError, match="store ftp://127.0.0.1.* cannot be reached: ConnectionRefused") as e: batch(small, f"ftp://u:secret@127.0.0.1:{port()}/s", **quiet)
    assert "secret" not in str(e.value)

def test_a_queueing_system_gets_our_job_script(tmp_path):
    pytest.importorskip("dask_jobqueue", reason="needs necomimi[cluster]")
    with room._queue("slurm", 0, dict(queue="gpu", walltime="02:00:00", cores=1, memory="8 GB")) as c: script = c.job_script()
    assert "#SBATCH -p gpu" in script and "02:00:00" in script and "dask" in script and sys.executable in script
    with pytest.raises(NecomimiError, match="slurm, pbs"): room._queue("slrum", 1, {})
    with pytest.raises(NecomimiError, match="queue slurm"): room._queue("slurm", 1, dict(colour="red"))

def test_jobs_of_a_queueing_system_do_the_runs(small, tmp_path):
    pytest.importorskip("dask_jobqueue", reason="needs necomimi[cluster]")
    result = batch(small, tmp_path/"store", queue="local", n=2, options=dict(local_directory=str(tmp_path), log_directory=str(tmp_path)), **quiet); assert result.ok and values(tmp_path/"store") == EXPECTED
