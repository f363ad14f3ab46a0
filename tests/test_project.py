"The project itself: what it declares agrees with what it holds."
import json, os, re, runpy, subprocess, sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if not any(q.startswith((".", "_")) for q in p.relative_to(ROOT).parts))
ROOMS = [p for p in NOTEBOOKS if re.match(r"\d\d[a-z]?_", p.name) and p.parent == ROOT/"nbs"]
RUNS = [p for p in NOTEBOOKS if p.parent == ROOT/"nbs"/"runs"]
MODULES = sorted(p.stem for p in (ROOT/"necomimi").glob("*.py") if not p.stem.startswith("_"))
HEAVY = "ipywidgets plotly anywidget diffusers transformers open_clip torchvision papermill nbconvert mne".split()
named = lambda paths: pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))

@pytest.fixture(scope="module")
def settings():
    c = ConfigParser(delimiters=["="]); c.read(ROOT/"settings.ini", encoding="utf-8"); return c["DEFAULT"]

@pytest.fixture(scope="module")
def setup():
    "What setup.py hands to setuptools."
    import setuptools
    seen, real = {}, setuptools.setup
    setuptools.setup = lambda **kw: seen.update(kw)
    try: runpy.run_path(str(ROOT/"setup.py"))
    finally: setuptools.setup = real
    return seen

def cells(path, kind=None): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if kind in (None, c["cell_type"])]
def source(cell): return "".join(cell["source"])

def test_settings_and_setup_agree(settings, setup):
    declared = {k.removesuffix("_requirements"): v.split() for k, v in settings.items() if k.endswith("_requirements")}
    assert set(declared) == {"mini", "generation", "widgets", "batch", "cluster", "lab", "dev"}
    assert {k: v for k, v in setup["extras_require"].items() if k != "all"} == declared
    assert set(setup["extras_require"]["all"]) == {r for k, v in declared.items() if k != "dev" for r in v}
    assert setup["install_requires"] == settings["requirements"].split() and setup["license"] == "Apache-2.0"

def test_one_version_everywhere(settings, setup):
    import necomimi, yaml
    citation = yaml.safe_load((ROOT/"CITATION.cff").read_text(encoding="utf-8"))
    assert setup["version"] == settings["version"] == necomimi.__version__ == citation["version"]
    assert f"## {settings['version']}" in (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")

def test_torch_is_pinned_only_for_machines_without_a_gpu(settings):
    assert not re.search(r"torch(vision)?==", (ROOT/"settings.ini").read_text()) and re.search(r"^torch==", (ROOT/"constraints-cpu.txt").read_text(), re.M)

def test_console_script_exists(settings):
    name, target = settings["console_scripts"].split("="); module, function = target.split(":")
    assert name == "necomimi" and callable(getattr(import_module(module), function))

@pytest.mark.parametrize("name, part", [("LICENSE", "Apache License"), ("NOTICE", "CC BY 4.0"), ("CITATION.cff", "2410.00712"), ("CHANGELOG.md", "Changelog"), ("README.md", "make demo"), ("_quarto.yml", "website"),
                                        (".pre-commit-config.yaml", "nbdev_clean"), (".github/workflows/test.yml", ".ci/run"), ("constraints-cpu.txt", "torchvision=="), ("Makefile", "nbdev_test")])
def test_file_is_there(name, part): assert part in (ROOT/name).read_text(encoding="utf-8")

def test_citation_names_paper_and_data():
    text = (ROOT/"CITATION.cff").read_text(encoding="utf-8")
    assert all(doi in text for doi in ("10.2196/72027", "10.1016/j.neuroimage.2022.119754", "10.1371/journal.pone.0223792", "10.1038/s41597-021-01102-7"))

def test_ci_calls_make_test():
    script = ROOT/".ci"/"run"
    assert os.access(script, os.X_OK) and script.read_text().strip().splitlines()[-1] == "exec make --no-print-directory test"

def test_quarto_settings_are_the_same_file(): assert (ROOT/"nbs"/"_quarto.yml").resolve() == ROOT/"_quarto.yml"

@named(ROOMS)
def test_room_has_a_title_and_its_module(path):
    first, export = source(cells(path)[0]), [m[1] for c in cells(path, "code") for m in [re.match(r"#\| default_exp (\S+)", source(c))] if m]
    assert re.match(r"# \S.*\n+> \S", first), "opens with `# Title` and `> subtitle`"
    assert len(export) == 1 and export[0] == {"00c_widgets": "widgets.common"}.get(path.stem, path.stem.split("_", 1)[1])
    module = ROOT/"necomimi"/f"{export[0].replace('.', '/')}.py"
    assert module.exists() and f"../nbs/{path.name}" in module.read_text(encoding="utf-8")

@pytest.mark.parametrize("module", MODULES)
def test_module_comes_from_a_notebook(module): assert any(p.stem.split("_", 1)[1] == module for p in ROOMS)

@named(NOTEBOOKS)
def test_notebook_was_executed_without_errors(path):
    code = [c for c in cells(path, "code") if source(c).strip()]
    assert not [o["evalue"] for c in code for o in c["outputs"] if o["output_type"] == "error" and "raises-exception" not in c["metadata"].get("tags", [])]
    if path in ROOMS: assert any(c["outputs"] for c in code), "a room shows what it makes: execute it"

@named(NOTEBOOKS + sorted((ROOT/"necomimi").rglob("*.py")) + sorted((ROOT/"scripts").glob("*")))
def test_no_path_of_somebodys_machine(path):
    found = re.findall(r"(?:/home/\w+|/root/|/Users/\w+|/work/|[A-Z]:\\\\Users)\S*", path.read_text(encoding="utf-8"))
    assert not found, found[:3]

def loaded(code):
    "Which of the heavy libraries (and torch) are loaded after `code`, in a fresh interpreter."
    code += f"; import sys; print(*[m for m in {HEAVY + ['torch']} if m in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())

def test_no_module_loads_a_heavy_library():
    together = loaded("import " + ", ".join(f"necomimi.{m}" for m in MODULES)) - {"torch"}
    assert not together, {m: loaded(f"import necomimi.{m}") - {"torch"} for m in MODULES}

def test_reading_data_needs_no_torch(): assert not loaded("import necomimi.data, necomimi.runs, necomimi.cli")

@named(RUNS)
def test_run_notebook_is_typed_and_documented(path):
    from necomimi.runs import Stages, parameters_of
    parameters = parameters_of(path)
    assert parameters and parameters["tiny"].type == "bool" and all(p.help and p.type != "NoneType" for p in parameters.values()), parameters
    assert Stages(path, None).total >= 2

def test_wheel_carries_the_run_notebooks(setup):
    assert "build_py" in setup["cmdclass"] and "_notebooks/*.ipynb" in setup["package_data"]["necomimi"]

@pytest.mark.skipif(not (ROOT/".git").exists(), reason="no git checkout")
def test_git_ignores_results_but_not_notebooks():
    ignored = lambda p: subprocess.run(["git", "check-ignore", "-q", p], cwd=ROOT).returncode == 0
    assert ignored("runs/demo/report.html") and ignored(".venv/x") and not ignored("nbs/runs/pipeline.ipynb")

def test_export_check_finds_an_edited_module(tmp_path):
    "scripts/check_sync.py on a small project: in step, then with a module edited by hand."
    (tmp_path/"settings.ini").write_text((ROOT/"settings.ini").read_text()); (tmp_path/"nbs").mkdir(); (tmp_path/"necomimi").mkdir()
    nb = dict(cells=[dict(cell_type="code", source=s, metadata={}, outputs=[], execution_count=None, id=str(i)) for i, s in enumerate(["#| default_exp a", "#| export\ndef f(): return 1", "#| export widgets.a\ndef g(): return 3"])],
              metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")), nbformat=4, nbformat_minor=5)
    (tmp_path/"nbs"/"00_a.ipynb").write_text(json.dumps(nb))
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    run = lambda *a: subprocess.run([sys.executable, *map(str, a)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    for _ in range(2): assert (made := run(ROOT/"scripts"/"sync.py", tmp_path)).returncode == 0, made.stderr
    assert (tmp_path/"necomimi"/"widgets"/"a.py").read_text().count("def g") == 1, "a second export begins the widget module anew"
    check = ROOT/"scripts"/"check_sync.py"
    assert (good := run(check, tmp_path)).returncode == 0, good.stdout + good.stderr
    module = tmp_path/"necomimi"/"a.py"; module.write_text(module.read_text().replace("return 1", "return 2"))
    bad = run(check, tmp_path); assert bad.returncode == 1 and "necomimi/a.py" in bad.stdout and "make sync" in bad.stderr
