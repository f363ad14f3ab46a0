"""A real JupyterLab and a real browser for the widget tests: one server and one Chromium a session, one notebook a test.

`NECOMIMI_CHROMIUM` names the browser (default: the system's Chromium, else Playwright's own). `NECOMIMI_SCREENSHOTS=folder` keeps the pictures the tests take
(`nbs/images/widgets` holds those of the documentation)."""
import contextlib, json, os, shutil, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook

HERE = Path(__file__).resolve().parent
BENIGN = ("favicon", "ResizeObserver loop", "fontawesome", "WebSocket is already in CLOSING", "Could not find a translation bundle", "preloaded using link preload")
ARGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --js-flags=--expose-gc".split()

def chromium():
    "Path of a Chromium, or None for Playwright's own."
    return os.environ.get("NECOMIMI_CHROMIUM") or next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)

def eventually(page, check, timeout=30):
    "Waits until `check()` is true: parts of a page change one after the other. Fails with what it raised last."
    said, end = "", time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            if check(): return
        except Exception as e: said = f": {e!r}"
        page.wait_for_timeout(100)
    pytest.fail(f"not within {timeout} s{said}")

def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]

def private_home():
    "A throw-away home for Jupyter, so that nobody's settings take part."
    tmp = Path(tempfile.mkdtemp(prefix="labhome"))
    news = tmp/"s"/"@jupyterlab"/"apputils-extension"; news.mkdir(parents=True); (news/"notification.jupyterlab-settings").write_text('{"fetchNews":"false","checkForUpdates":false}')
    names = dict(JUPYTER_CONFIG_DIR="c", JUPYTER_DATA_DIR="d", JUPYTER_RUNTIME_DIR="r", IPYTHONDIR="i", JUPYTERLAB_SETTINGS_DIR="s", JUPYTERLAB_WORKSPACES_DIR="w", MPLCONFIGDIR="m")
    env = os.environ | {k: str(tmp/v) for k, v in names.items()} | dict(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", PYTHONPATH=str(HERE.parent), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    env.pop("MPLBACKEND", None); return tmp, env

@contextlib.contextmanager
def serving(command, env, cwd, url, log):
    with open(log, "w") as f: server = subprocess.Popen(command, cwd=cwd, env=env, stdout=f, stderr=subprocess.STDOUT)
    try:
        for _ in range(480):
            if server.poll() is not None: raise RuntimeError(f"the server ended: {Path(log).read_text()[-2000:]}")
            try: urllib.request.urlopen(url, timeout=5).close(); break
            except urllib.error.HTTPError: break               # it answers
            except OSError: pass
            time.sleep(.25)
        yield server
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired): server.wait(20)
        server.kill()

class Sheet:
    "An open notebook: its page, and what the console complained about."
    def __init__(self, page, path, lab): self.page, self.path, self.lab, self.errors = page, path, lab, []
    def listen(self):
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" and not any(b in m.text + str(m.location) for b in BENIGN) else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)) if not any(b in str(e) for b in BENIGN) else None)
    def run(self, timeout=240):
        "Runs every cell and waits for the last one; a traceback in an output fails the test with its text."
        p = self.page
        p.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        p.wait_for_function("['idle'].includes(document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status)", timeout=120_000)
        for _ in range(240):                                  # the page is connected to a kernel that waits
            if any(x["path"] == str(self.path.relative_to(self.lab.home)) and x["kernel"]["execution_state"] == "idle" and x["kernel"]["connections"] for x in self.lab.api("sessions")): break
            time.sleep(.25)
        p.wait_for_timeout(1500)
        for _ in range(6):                                    # a kernel that says idle before it listens loses the first order
            p.click("text=Run >> nth=0"); p.click('li[data-command="runmenu:run-all"]')
            with contextlib.suppress(Exception):
                p.wait_for_function("() => [...document.querySelectorAll('.jp-InputPrompt')].some(c => /[*0-9]/.test(c.innerText))", timeout=25_000); break
        p.wait_for_function("""() => document.body.innerText.includes('NOTEBOOK DONE 2')
            || [...document.querySelectorAll('.jp-OutputArea-output')].some(o => o.innerText.includes('Traceback (most recent call last)'))""", timeout=1000*timeout)
        if "Traceback (most recent call last)" in (text := p.inner_text(".jp-Notebook")): pytest.fail(text[-3000:])
        return self
    def shot(self, name, selector=".necomimi-panel"):
        "A screenshot of the first `selector`, in NECOMIMI_SCREENSHOTS or beside the notebook."
        folder = Path(os.environ.get("NECOMIMI_SCREENSHOTS") or self.path.parent); folder.mkdir(parents=True, exist_ok=True)
        target = self.page.locator(selector).first; target.scroll_into_view_if_needed(); self.page.wait_for_timeout(300); target.screenshot(path=str(folder/f"{name}.png"))
        return folder/f"{name}.png"
    def python(self, code, timeout=60):
        "Runs `code` in a new last cell of the notebook's kernel; returns what it printed."
        p, mark = self.page, f"SAID-{time.monotonic_ns()}"
        p.keyboard.press("Escape"); p.locator(".jp-Notebook .jp-CodeCell").last.locator(".jp-InputPrompt").click(); p.keyboard.press("Escape"); p.keyboard.press("b"); p.keyboard.press("Enter")
        p.keyboard.insert_text(f"{code}\nprint('{mark}', 'end')"); p.keyboard.press("Shift+Enter")
        p.wait_for_function(f"() => [...document.querySelectorAll('.jp-OutputArea-output')].some(o => o.innerText.includes('{mark} end') || o.innerText.includes('Traceback (most'))", timeout=1000*timeout)
        out = p.locator(".jp-OutputArea-output", has_text=f"{mark} end").last.inner_text(timeout=5000)
        return out.replace(f"{mark} end", "").strip()
    def __enter__(self): return self
    def __exit__(self, *a): self.page.close(); self.lab.shut_kernels()

class Lab:
    "A JupyterLab on the folder `home`, and a browser. Notebooks and what their kernels write lie in `root`, a folder below it."
    def __init__(self, browser, home, port, token, env, root=None, pages="lab/tree"): self.browser, self.home, self.root, self.port, self.token, self.env, self.pages = browser, home, root or home, port, token, env, pages
    def within(self, name):
        "The same server, working in a folder of its own: test files leave nothing in each other's way."
        root = self.home/name; root.mkdir(); return Lab(self.browser, self.home, self.port, self.token, self.env, root, self.pages)
    def open(self, *cells, name="sheet", width=1280, height=1400):
        "A notebook of these code cells, opened; use as `with lab.open(...) as sheet: sheet.run()`."
        path = self.root/f"{name}.ipynb"
        nb = new_notebook(cells=[new_code_cell(c) for c in cells] + [new_code_cell("print('NOTEBOOK DONE', 1+1)")], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))
        nbformat.write(nb, path)
        return self.visit(path, width, height)
    def visit(self, path, width=1280, height=1400):
        page = self.browser.new_page(viewport=dict(width=width, height=height)); sheet = Sheet(page, Path(path), self); sheet.listen()
        page.goto(self.url(path), wait_until="domcontentloaded")
        return sheet
    def url(self, path): return f"http://127.0.0.1:{self.port}/{self.pages}/{Path(path).relative_to(self.home)}?reset&token={self.token}"
    def api(self, path, method="GET"):
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", method=method, headers={"Authorization": f"token {self.token}"}), timeout=20) as r: return json.loads(r.read() or "null")
    def shut_kernels(self):
        for s in self.api("sessions"):
            with contextlib.suppress(Exception): self.api(f"sessions/{s['id']}", "DELETE")

@contextlib.contextmanager
def a_browser():
    try: from playwright.sync_api import sync_playwright
    except ImportError: absent("playwright is not installed: pip install 'necomimi[dev]'")
    with sync_playwright() as p:
        try: browser = p.chromium.launch(executable_path=chromium(), headless=True, args=ARGS)
        except Exception as e: absent(f"no Chromium for the browser tests ({str(e).splitlines()[0]}): apt-get install chromium, or playwright install chromium")
        yield browser
        browser.close()

def absent(why):
    "Without a browser: a failure in CI, a skip elsewhere."
    (pytest.fail if os.environ.get("CI") else pytest.skip)(why)

@contextlib.contextmanager
def a_lab(browser, root, app="jupyterlab"):
    "`app`: jupyterlab or notebook."
    port, token = free_port(), "token-of-the-tests"; tmp, env = private_home()
    command = [sys.executable, "-m", app, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", *(["--LabApp.news_url=None", "--LabApp.extension_manager=readonly"] if app == "jupyterlab" else [])]
    with serving(command, env, root, f"http://127.0.0.1:{port}/api/status?token={token}", root/"lab.log"): yield Lab(browser, root, port, token, env, pages=dict(jupyterlab="lab/tree", notebook="notebooks")[app])
    shutil.rmtree(tmp, ignore_errors=True)

@contextlib.contextmanager
def a_voila(browser, notebook):
    "`notebook` through Voila: yields its page."
    port = free_port(); tmp, env = private_home()
    command = [sys.executable, "-m", "voila", str(notebook), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with serving(command, env, Path(notebook).parent, f"http://127.0.0.1:{port}/static/", Path(notebook).with_suffix(".voila.log")):
        page = browser.new_page(viewport=dict(width=1280, height=1400)); page.goto(f"http://127.0.0.1:{port}/", wait_until="domcontentloaded", timeout=180_000)
        yield page
        page.close()
    shutil.rmtree(tmp, ignore_errors=True)
