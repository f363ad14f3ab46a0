"Runs: parameters, run folders, failures, limits, threads, report. The notebook is a toy; what `pipeline` does is tested where its rooms are."
import json, os, re, signal, subprocess, sys, time
import numpy as np
import pytest
from necomimi import runs
from necomimi.data import NecomimiError
from necomimi.runs import (Record, Run, cast, check_parameters, content_hash, explain_notebook, headline, notebook_hash, notebook_path, parameters_of, read_json, record_data, report, rerun_parameters,
                           run_notebook, set_status, write_json)

pytest.importorskip("papermill", reason="needs necomimi[batch]")
PARAMETERS = "epochs: int = 3  # passes over the data\nrate = 0.1  # type: float step size\nout: str = 'somewhere'  # folder\nlimit: Optional[int] = None  # none or a number"
END = "import json, os, pathlib\npathlib.Path(out, 'metrics.json').write_text(json.dumps(dict(loss=rate**epochs, threads=os.environ['OMP_NUM_THREADS'], malloc=os.environ['MALLOC_TRIM_THRESHOLD_'], python=__import__('sys').prefix)))"

def cell(source, *tags): return dict(cell_type="code", source=source, metadata=dict(tags=list(tags)), outputs=[], execution_count=None)
def text(source): return dict(cell_type="markdown", source=source, metadata={})

def notebook(path, *cells, parameters=PARAMETERS):
    "Without a kernelspec, on purpose: the kernel is this interpreter, whatever is registered."
    path.write_text(json.dumps(dict(cells=[text("# Toy"), cell("from typing import Optional"), cell(parameters, "parameters"), *cells], metadata={}, nbformat=4, nbformat_minor=4)))
    return path

@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "A finished run, shared by the tests that only look."
    folder = tmp_path_factory.mktemp("good")
    show = "import base64, sys\nfrom IPython.display import HTML, display\nprint('10%\\r100%'); print('a warning', file=sys.stderr)\n" \
           "display(HTML('<b>table</b><script src=\"https://example.org/x.js\"></script>'))\n" \
           "display({'application/vnd.jupyter.widget-view+json': {'model_id': 'x', 'version_major': 2}, 'text/plain': 'a bar'}, raw=True)"
    nb = notebook(folder/"toy.ipynb", text("## Look"), cell(show), text("## End"), cell(END)); told = []
    run = run_notebook(nb, folder/"run", dict(epochs="2", rate=1), threads=1, progress=lambda *a: told.append(a))
    return run, told

def test_stages_are_told_in_order(good):
    told = good[1]
    assert [t[:3] for t in told if len(t) == 5 and t[3] is None] == [(1, 2, "Look"), (2, 2, "End")]
    assert [t[:3] + (t[4],) for t in told if t[3] is not None] == [(1, 2, "Look", True), (2, 2, "End", True)]

def test_run_folder_says_what_ran(good):
    run = good[0]; config = read_json(run.folder/"config.json")
    assert run.state == "done" and run.metrics["loss"] == 1. and run.seconds > 0
    assert config["parameters"] == dict(epochs=2, rate=1., out=".", limit=None) and config["given"] == dict(epochs=2, rate=1., out=".")
    assert config["versions"]["python"] and config["machine"]["cores"] >= 1 and len(config["notebook_sha256"]) == 64
    assert {p.name for p in run.folder.iterdir()} == {"toy.ipynb", "report.html", "config.json", "metrics.json", "status.json", "run.log"}
    assert "a warning" in (run.folder/"run.log").read_text()

def test_kernel_is_this_python_with_its_settings(good):
    m = good[0].metrics
    assert m["python"] == sys.prefix and m["threads"] == "1" and m["malloc"] == os.environ.get("MALLOC_TRIM_THRESHOLD_", runs.MEMORY["MALLOC_TRIM_THRESHOLD_"])

def test_report_stands_alone_and_folds_code(good):
    page = good[0].report.read_text(encoding="utf-8")
    assert "<summary>code</summary>" in page and "<summary>messages</summary>" in page and "epochs=2" in page
    outside = re.sub(r"<details>.*?</details>", "", page, flags=re.S)
    assert "<b>table</b>" in outside and "<pre>100%" in outside and "10%" not in outside and "a bar" not in outside
    assert "pathlib" in page and "pathlib" not in outside
    assert not re.search(r'<(script|link|img|iframe)[^>]*(src|href)="?(https?:)?//', page) and "@import" not in page

def test_failing_cell_is_one_sentence_and_the_earlier_run_stays(good, tmp_path):
    out = tmp_path/"run"; nb = notebook(tmp_path/"toy.ipynb", text("## Train"), cell("# why\nraise KeyError('nerv')\n1"), cell(END))
    with pytest.raises(NecomimiError, match=r"stage 'Train', cell In \[4\] `raise KeyError\('nerv'\)` raised KeyError: 'nerv'") as e: run_notebook(nb, out, progress=None, threads=1)
    failed = Run.open(out)
    assert "\n" not in str(e.value) and failed.state == "failed" and "KeyError" in failed.error and failed.notebook.exists()
    assert failed.kind == "error"
    assert "KeyError" in report(failed).read_text(encoding="utf-8")
    set_status(out, state="done"); (out/"keep").touch()                          # as if it had finished: the next failure must not touch it
    with pytest.raises(NecomimiError, match="untouched"): run_notebook(nb, out, progress=None, threads=1)
    assert (out/"keep").exists() and Run.open(out).state == "done" and Run.open(tmp_path/"run.new").state == "failed"

def test_new_run_replaces_a_finished_one_only_at_its_end(tmp_path):
    out = tmp_path/"run"; out.mkdir(); set_status(out, name="toy", state="done"); (out/"old").touch()
    nb = notebook(tmp_path/"toy.ipynb", text("## End"), cell(f"import pathlib\nassert pathlib.Path({str(out)!r}, 'old').exists()"), cell(END))
    run = run_notebook(nb, out, progress=None, threads=1, html=False)
    assert run.folder == out and run.state == "done" and not (out/"old").exists() and {p.name for p in tmp_path.iterdir()} == {"run", "toy.ipynb"}

def test_killed_run_is_not_done_and_starts_again(tmp_path):
    nb = notebook(tmp_path/"toy.ipynb", text("## Wait"), cell("import time\ntime.sleep(600 if epochs else 0)"), cell(END))
    code = f"from necomimi.runs import run_notebook; run_notebook({str(nb)!r}, {str(tmp_path/'run')!r}, threads=1)"
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.read(5) == "[1/1]"                                            # the stage has begun
    assert Run.open(tmp_path/"run").state == "running"
    with pytest.raises(NecomimiError, match="a run is going on"): run_notebook(nb, tmp_path/"run")
    p.send_signal(signal.SIGKILL); p.wait(300)
    assert Run.open(tmp_path/"run").state == "failed" and "killed" in Run.open(tmp_path/"run").error and Run.open(tmp_path/"run").kind == "lost"
    assert run_notebook(nb, tmp_path/"run", dict(epochs=0), progress=None, threads=1, html=False).state == "done"

def test_dead_kernel_is_named(tmp_path):
    nb = notebook(tmp_path/"toy.ipynb", text("## Die"), cell("import os\nos._exit(1)"))
    with pytest.raises(NecomimiError, match="stage 'Die', the kernel died"): run_notebook(nb, tmp_path/"run", progress=None, threads=1)
    assert Run.open(tmp_path/"run").state == "failed"

@pytest.mark.parametrize("given, message", [(dict(epoch=2), "no parameter 'epoch'.*did you mean 'epochs'"), (dict(epochs="two"), "expected int .passes over the data., found 'two'"),
                                            (dict(epochs=2.5), "expected int"), (dict(rate="x"), "expected float"), (dict(limit="x"), r"expected Optional\[int\]")])
def test_wrong_parameters_are_refused_before_anything_starts(tmp_path, given, message):
    nb = notebook(tmp_path/"toy.ipynb", cell(END))
    with pytest.raises(NecomimiError, match=message): run_notebook(nb, tmp_path/"run", given)
    assert not (tmp_path/"run").exists()

def test_parameters_are_typed_and_documented(tmp_path):
    p = parameters_of(notebook(tmp_path/"toy.ipynb"))
    assert [(q.name, q.type, q.default, q.help) for q in p.values()] == [("epochs", "int", 3, "passes over the data"), ("rate", "float", .1, "step size"),
                                                                         ("out", "str", "somewhere", "folder"), ("limit", "Optional[int]", None, "none or a number")]
    with pytest.raises(NecomimiError, match="cannot read.*Optional"): parameters_of(notebook(tmp_path/"odd.ipynb", parameters="n: int | None = 3"))

@pytest.mark.parametrize("value, kind, expected", [("3", "int", 3), (np.int64(3), "int", 3), (3, "float", 3.), ("1e-3", "float", 1e-3), ("true", "bool", True), ("0", "bool", False), ("a=b", "str", "a=b"),
                                                   ("0,1", "list[int]", [0, 1]), ("[0, 1]", "list[int]", [0, 1]), ("7", "list[int]", [7]), ("a, b", "list[str]", ["a", "b"]), ("(1, 2)", "tuple", (1, 2)),
                                                   ("{'a': 1}", "dict", {"a": 1}), ("none", "Optional[float]", None), ("2", "Optional[float]", 2.)])
def test_cast(value, kind, expected):
    got = cast(value, kind); assert got == expected and type(got) is type(expected)

@pytest.mark.parametrize("value, kind", [("3.5", "int"), (True, "int"), (1, "bool"), ("perhaps", "bool"), ("nerv", "float"), (3, "str"), ("1,a", "list[int]"), ("__import__('os')", "dict"), ("", "int")])
def test_cast_refuses(value, kind):
    with pytest.raises((ValueError, TypeError, KeyError, SyntaxError)): cast(value, kind)

def test_folder_that_is_no_run_is_left_alone(tmp_path):
    nb = notebook(tmp_path/"toy.ipynb", cell(END)); (tmp_path/"thesis").mkdir(); (tmp_path/"thesis"/"chapter.tex").touch()
    with pytest.raises(NecomimiError, match="not a run folder"): run_notebook(nb, tmp_path/"thesis")
    assert (tmp_path/"thesis"/"chapter.tex").exists()

def test_notebook_path_names_what_there_is(tmp_path):
    with pytest.raises(NecomimiError, match="no notebook 'nothing'"): notebook_path("nothing")
    assert notebook_path(notebook(tmp_path/"a.ipynb")) == (tmp_path/"a.ipynb").resolve()

def test_json_is_whole_or_absent(tmp_path, monkeypatch):
    write_json(tmp_path/"a.json", dict(x=np.float32(.5), nan=float("nan"), a=np.eye(2), where=tmp_path))
    assert read_json(tmp_path/"a.json") == dict(x=.5, nan=None, a=[[1, 0], [0, 1]], where=str(tmp_path))
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(NecomimiError, match="No space left"): write_json(tmp_path/"a.json", dict(x=1))
    assert read_json(tmp_path/"a.json")["x"] == .5 and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path/"a.json").write_text('{"x": ')
    with pytest.raises(NecomimiError, match="not valid JSON"): read_json(tmp_path/"a.json")

def test_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    nb = notebook(tmp_path/"toy.ipynb", cell(END))
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(runs, "_execute", full)
    with pytest.raises(NecomimiError, match="No space left on device"): run_notebook(nb, tmp_path/"run", progress=None)
    assert Run.open(tmp_path/"run").state == "failed"

def test_headline_reads_as_a_table():
    rows = [dict(name="top-1", value=.4123456, low=.36, high=.47, chance=.005), dict(name="points", value=1000)]
    assert headline(dict(headline=rows)).splitlines() == ["top-1   0.4123  [0.36, 0.47]  chance 0.005", "points   1,000"]
    assert headline(dict(a=dict(b=1.5), ok=True)) == "a.b  1.5" and headline({}) == ""

# --- limits, kernels that must not stay behind, threads

WAIT = "import os, pathlib, subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\npathlib.Path('pids').write_text(f'{os.getpid()} {child.pid}')\n"

def gone(pids, seconds=2.):
    "Whether these processes end within that time."
    import psutil
    def dead(p):
        try: return psutil.Process(p).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess: return True
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(map(dead, pids)): time.sleep(.05)
    return all(map(dead, pids))

def pids(folder, seconds=120):
    "The process ids the notebook wrote, once it has."
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (folder/"pids").exists(): time.sleep(.05)
    time.sleep(.1); return [int(p) for p in (folder/"pids").read_text().split()]

def test_time_limit_ends_the_run_and_its_children(tmp_path):
    nb = notebook(tmp_path/"toy.ipynb", text("## Wait"), cell(WAIT + "time.sleep(600)"), cell(END))
    with pytest.raises(NecomimiError, match=r"over its time limit of 9 s\. What"): run_notebook(nb, tmp_path/"run", progress=None, threads=1, time_limit=9)
    run = Run.open(tmp_path/"run"); assert (run.state, run.kind) == ("failed", "limit") and run.notebook.exists()
    assert gone(pids(run.folder, 0)) if (run.folder/"pids").exists() else True          # on a busy machine the kernel may not have come so far

def test_memory_limit_counts_the_whole_tree(tmp_path):
    nb = notebook(tmp_path/"toy.ipynb", text("## Eat"), cell(WAIT + "eater = subprocess.Popen([sys.executable, '-c', 'x = bytearray(700*2**20); import time; time.sleep(600)'])\neater.wait()"), cell(END))
    with pytest.raises(NecomimiError, match=r"over its memory limit of 0\.488 GiB \(reached \d\.\d+ GiB\)"): run_notebook(nb, tmp_path/"run", progress=None, threads=1, memory_limit=500*2**20)
    assert Run.open(tmp_path/"run").kind == "limit" and gone(pids(tmp_path/"run"))

@pytest.mark.parametrize("limit", [dict(time_limit=0), dict(time_limit="60"), dict(memory_limit=-1), dict(memory_limit=True), dict(time_limit=float("nan"))])
def test_limits_must_be_positive_numbers(tmp_path, limit):
    with pytest.raises(NecomimiError, match="must be a positive number"): run_notebook(notebook(tmp_path/"toy.ipynb", cell(END)), tmp_path/"run", **limit)
    assert not (tmp_path/"run").exists()

def start(tmp_path, source, **popen):
    "A process that runs a waiting notebook; returns it and the kernel's pid once the cell runs."
    nb = notebook(tmp_path/"toy.ipynb", text("## Wait"), cell(source), cell(END))
    p = subprocess.Popen([sys.executable, "-c", f"from necomimi.runs import run_notebook; run_notebook({str(nb)!r}, {str(tmp_path/'run')!r}, progress=None, threads=1)"], stderr=subprocess.PIPE, text=True, **popen)
    return p, pids(tmp_path/"run")

@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
def test_kernel_dies_with_a_killed_parent_even_in_a_call_that_lets_no_thread_run(tmp_path):
    p, (kernel,) = start(tmp_path, "import ctypes, os, pathlib\npathlib.Path('pids').write_text(str(os.getpid()))\nctypes.PyDLL(None).sleep(600)")
    p.send_signal(signal.SIGKILL); p.wait(30)
    assert gone([kernel], 2.) and Run.open(tmp_path/"run").kind == "lost"

def test_interrupt_ends_the_kernel_and_is_said(tmp_path):
    p, both = start(tmp_path, WAIT + "time.sleep(600)", start_new_session=True)
    p.send_signal(signal.SIGINT); assert p.wait(60) != 0 and "KeyboardInterrupt" in p.stderr.read()
    run = Run.open(tmp_path/"run"); assert (run.state, run.kind, run.error) == ("failed", "interrupted", "stage 'Wait', interrupted") and gone(both)

def test_threads_of_one_process_run_side_by_side(tmp_path, capfd):
    "As Dask's workers do; each kernel has its own folder, environment and parameters, and nothing is left of it."
    from concurrent.futures import ThreadPoolExecutor
    nb = notebook(tmp_path/"toy.ipynb", text("## End"), cell("import os, time; time.sleep(.3); print(os.environ['WHO'])"), cell(END)); before = set(os.listdir("/proc/self/fd"))
    def go(k): return run_notebook(nb, tmp_path/f"run{k}", dict(epochs=k), progress=None, threads=1, html=False, env=dict(WHO=f"number {k}"), about=dict(id=f"id-{k}", needs=[]))
    with ThreadPoolExecutor(3) as pool: done = list(pool.map(go, range(1, 4)))
    assert [r.metrics["loss"] for r in done] == [.1, .1**2, .1**3] and [r.config["id"] for r in done] == ["id-1", "id-2", "id-3"] and all(r.state == "done" for r in done)
    logs = [(r.folder/"run.log").read_text() for r in done]                 # a kernel that is told to end may say so below
    assert [x.splitlines()[0] for x in logs] == ["number 1", "number 2", "number 3"] and all(x.count("number") == 1 for x in logs)
    assert capfd.readouterr().out == "" and os.getcwd() == os.path.abspath(".") and len(set(os.listdir("/proc/self/fd")) - before) < 6

def test_a_run_this_process_knows_nothing_of_is_lost(tmp_path):
    import socket
    set_status(tmp_path, name="toy", state="running", pid=os.getpid(), host=socket.gethostname()); assert Run.open(tmp_path).kind == "lost"
    set_status(tmp_path, pid=os.getppid(), born=1.0); assert Run.open(tmp_path).kind == "lost", "another process has that number now"
    set_status(tmp_path, born=runs._born(os.getppid())); assert Run.open(tmp_path).state == "running"

def test_full_disk_at_the_end_is_still_said(tmp_path, monkeypatch):
    nb = notebook(tmp_path/"toy.ipynb", cell(END)); write = runs.write_json
    def full(*a): monkeypatch.setattr(runs, "write_json", refuse); raise OSError(28, "No space left on device")
    def refuse(path, *a): raise NecomimiError(f"cannot write {path}: No space left on device")
    monkeypatch.setattr(runs, "_execute", full)
    with pytest.raises(NecomimiError, match="run of toy failed: OSError.*No space left"): run_notebook(nb, tmp_path/"run", progress=None)
    monkeypatch.setattr(runs, "write_json", write); assert Run.open(tmp_path/"run").state == "failed" and "No space" in Run.open(tmp_path/"run").error

# --- what is kept of a run

def test_hashes_the_notebook_leaves_come_into_the_config(tmp_path):
    leave = "from necomimi.runs import Record\nr = Record(out); r.data(eeg='ab'); r.data(weights='cd'); r.line('loss', .5, note='toy'); r.lap('all'); r.save(dict(seed=1), more=[1])"
    run = run_notebook(notebook(tmp_path/"toy.ipynb", text("## End"), cell(leave)), tmp_path/"run", progress=None, threads=1, html=False)
    assert run.config["data"] == dict(eeg="ab", weights="cd") and not (run.folder/"data.json").exists() and run.config["threads"] == 1
    assert run.metrics == dict(headline=[dict(name="loss", value=.5, low=None, high=None, chance=None, note="toy")], protocol=dict(seed=1), more=[1]) and set(read_json(run.folder/"timing.json")) == {"seconds", "total"}
    name, parameters = rerun_parameters(run.folder); assert parameters == dict(epochs=3, rate=.1, limit=None) and notebook_path(name) == tmp_path/"toy.ipynb"
    notebook(tmp_path/"toy.ipynb", text("## End"), cell("another"))
    with pytest.raises(NecomimiError, match="toy.ipynb is not the notebook that was run"): rerun_parameters(run.config)
    assert rerun_parameters(run.config, force=True)[1] == parameters
    with pytest.raises(NecomimiError, match="lacks notebook_sha256"): rerun_parameters(dict(notebook="toy", parameters={}))

def test_notebook_hash_is_of_the_cells_alone(tmp_path):
    a, b = notebook(tmp_path/"a.ipynb", cell("1 + 1")), notebook(tmp_path/"b.ipynb", cell("1 + 1")); d = read_json(b)
    d["cells"][-1] |= dict(outputs=[dict(output_type="stream", name="stdout", text="2")], execution_count=7, source=["1 + ", "1"]); write_json(b, d)
    assert notebook_hash(a) == notebook_hash(b) != notebook_hash(notebook(tmp_path/"c.ipynb", cell("1 + 2")))

def test_content_hash_sees_tensors_not_remarks(tmp_path):
    from safetensors.numpy import save_file
    def made(name, x, **meta): save_file(dict(w=x), tmp_path/name, metadata=meta); return content_hash(tmp_path/name)
    assert made("a.safetensors", np.eye(2), seconds="1") == made("b.safetensors", np.eye(2), seconds="2") != made("c.safetensors", np.ones((2, 2)), seconds="1")
    assert made("d.safetensors", np.eye(2).reshape(4)) != content_hash(tmp_path/"a.safetensors"), "the shape counts"
    whole = (tmp_path/"a.safetensors").read_bytes()
    for k, damage in enumerate((b"{}"*50, whole[:20], b"", whole[:8] + b"[" + whole[9:])):
        (bad := tmp_path/f"bad{k}.safetensors").write_bytes(damage)
        with pytest.raises(NecomimiError, match=f"bad{k}.safetensors is damaged"): content_hash(bad)
    record_data(tmp_path, a="1"); record_data(tmp_path, b="2"); assert read_json(tmp_path/"data.json") == dict(a="1", b="2")

def test_explain_notebook_reads_as_a_list(tmp_path):
    said = explain_notebook(notebook(tmp_path/"toy.ipynb")); lines = said.splitlines()
    assert lines[0] == "toy: Toy" and str(tmp_path) in lines[1] and re.search(r"^  epochs +int +3 +passes over the data$", said, re.M) and re.search(r"^  limit +Optional\[int\] +null +none or a number$", said, re.M)
    assert "(no parameters)" in explain_notebook(notebook(tmp_path/"bare.ipynb", parameters=""))
