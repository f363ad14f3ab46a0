"The command: what it prints, how it fails, what it does not import. A toy notebook stands for the pipeline."
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest
from necomimi import cli
from test_runs import cell, notebook, text

pytest.importorskip("papermill", reason="needs necomimi[batch]")
METRICS = "import json, pathlib\npathlib.Path('metrics.json').write_text(json.dumps(dict(headline=[dict(name='top-1', value=1/n, low=0, high=1, note='tiny' if tiny else 'full')])))"

@pytest.fixture
def toy(tmp_path):
    return notebook(tmp_path/"toy.ipynb", text("## Count"), cell(METRICS), parameters="n: int = 2  # a number\ntiny: bool = False  # quick")

@pytest.fixture
def command(capsys):
    def run(*argv):
        with pytest.raises(SystemExit) as e: cli.main([*map(str, argv)])
        out = capsys.readouterr(); return e.value.code, out.out, out.err
    return run

def test_demo_runs_and_says_where_to_look(toy, tmp_path, command):
    code, out, err = command("demo", "--notebook", toy, "--out", tmp_path/"run", "--tiny", "-p", "n=4", "--threads", 1)
    assert code == 0 and err == "" and re.search(r"^\[1/1\] Count \.\.\. \d+ s$", out, re.M) and "top-1  0.25  [0, 1]  tiny" in out and str(tmp_path/"run"/"report.html") in out
    assert (tmp_path/"run"/"report.html").exists() and json.loads((tmp_path/"run"/"status.json").read_text())["state"] == "done"

def test_failed_run_is_one_line(toy, tmp_path, command):
    code, out, err = command("demo", "--notebook", toy, "--out", tmp_path/"run", "-p", "n=0", "--threads", 1)
    assert code == 2 and err.count("\n") == 1 and "ZeroDivisionError" in err and "stage 'Count'" in err and "failed after" in out

@pytest.mark.parametrize("argv, message", [(["-p", "m=1"], "no parameter 'm'"), (["-p", "n=x"], "expected int"), (["-p", "n"], "expected name=value"), (["--fast"], "--fast"), (["--threads", "x"], "--threads")])
def test_wrong_use_is_one_line_and_writes_nothing(toy, tmp_path, command, argv, message):
    code, out, err = command("demo", "--notebook", toy, "--out", tmp_path/"run", *argv)
    assert code == 2 and err.count("\n") == 1 and message in err and err.startswith("necomimi: ") and not (tmp_path/"run").exists()

def test_debug_shows_the_trace_wherever_it_stands(toy, tmp_path):
    from necomimi.data import NecomimiError
    for argv in (["--debug", "demo", "-p", "m=1"], ["demo", "-p", "m=1", "--debug"]):
        with pytest.raises(NecomimiError, match="no parameter"): cli.main([*argv, "--notebook", str(toy)])

@pytest.mark.parametrize("error, code, part", [(KeyboardInterrupt(), 130, "interrupted"), (ModuleNotFoundError("No module named 'papermill'", name="papermill"), 2, "pip install 'necomimi[batch]'"),
                                               (PermissionError(13, "Permission denied", "/x"), 2, "Permission denied: /x"), (KeyError("a\nb"), 1, "--debug")])
def test_every_error_is_one_line_and_a_code(monkeypatch, command, error, code, part):
    monkeypatch.setattr("necomimi.runs.run_notebook", lambda *a, **k: (_ for _ in ()).throw(error))
    got, out, err = command("demo")
    assert got == code and err.count("\n") == 1 and part in err

def test_a_missing_library_names_its_extra(monkeypatch, toy, tmp_path, command):
    monkeypatch.setattr("necomimi.runs.util.find_spec", lambda name: None if name == "papermill" else pytest.fail(name))
    code, out, err = command("demo", "--notebook", toy, "--out", tmp_path/"run")
    assert code == 2 and "pip install 'necomimi[batch]'" in err

def test_help_and_version_of_nothing(command):
    code, out, err = command("--help")
    assert code == 0 and all(verb in out for verb in ("demo", "lab", "info"))
    assert command("dmeo")[0] == 2

def test_info_names_device_extras_and_places(command):
    code, out, err = command("info")
    assert code == 0 and all(f"[{e}]" in out for e in ("mini", "generation", "widgets", "batch", "lab")) and "device" in out and "notebooks" in out

def test_info_says_what_is_missing(monkeypatch, command):
    monkeypatch.setattr(cli, "extras", lambda: dict(widgets=[("plotly", None), ("ipywidgets", "8")]))
    assert "ipywidgets 8; missing: plotly (pip install 'necomimi[widgets]')" in command("info")[1]

def test_lab_listens_here_only_with_a_token(monkeypatch, command):
    seen = {}
    monkeypatch.setattr(os, "execve", lambda path, argv, env: seen.update(argv=argv, env=env))
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    assert command("lab", "--no-browser")[0] == 0
    assert "--ServerApp.ip=127.0.0.1" in seen["argv"] and len(seen["env"]["JUPYTER_TOKEN"]) == 48 and not any(seen["env"]["JUPYTER_TOKEN"] in a for a in seen["argv"])

def test_installed_package_gets_copies_to_work_on(monkeypatch, tmp_path):
    packaged = tmp_path/"necomimi"/"_notebooks"; packaged.mkdir(parents=True); notebook(packaged/"pipeline.ipynb")
    monkeypatch.setattr("necomimi.runs.notebooks_folder", lambda: packaged)
    folder = cli.lab_folder(tmp_path); assert (folder/"pipeline.ipynb").exists()
    (folder/"pipeline.ipynb").write_text("mine"); assert (cli.lab_folder(tmp_path)/"pipeline.ipynb").read_text() == "mine"

def test_command_starts_light():
    code = "import sys, necomimi.cli; print(sorted({'numpy', 'pandas', 'torch', 'papermill', 'nbconvert', 'mne', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

def test_ctrl_c_ends_run_and_kernel(toy, tmp_path):
    nb = notebook(tmp_path/"wait.ipynb", text("## Wait"), cell("import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)"), parameters="n: int = 1  # x")
    p = subprocess.Popen([str(Path(sys.executable).with_name("necomimi")), "demo", "--notebook", str(nb), "--out", str(tmp_path/"run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.read(5) == "[1/1]"
    for _ in range(3000):
        if (tmp_path/"run"/"pid").exists(): break
        time.sleep(.1)
    p.send_signal(signal.SIGINT); out, err = p.communicate(timeout=300)
    status = json.loads((tmp_path/"run"/"status.json").read_text())
    assert p.returncode == 130 and err == "necomimi: interrupted\n" and status["state"] == "failed" and "interrupted" in status["error"]
    kernel = int((tmp_path/"run"/"pid").read_text())
    for _ in range(3000):
        try: os.kill(kernel, 0); time.sleep(.1)
        except ProcessLookupError: break
    else: pytest.fail("the kernel is still alive")
