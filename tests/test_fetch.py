"necomimi.fetch: against a real HTTP server on loopback that serves the published layout, and misbehaves as told."
import http.server, json, os, re, shutil, signal, stat, subprocess, sys, threading, time, zipfile, zlib

import numpy as np
import pandas as pd
import pytest

from necomimi import fetch as f
from necomimi.data import NecomimiError, picture_table
from necomimi.fetch import CATALOGUE, fetch, plan, verify

QUICK = dict(wait=.005, timeout=5., progress=False)
SPLITS = ("training", "test")

class Server(http.server.ThreadingHTTPServer):
    """Serves `folder`. `cut`: bytes after which the next answers hang up; `ranges`, `length`, `html`: what it can do; `status`: {path: code, or a list of codes for the next requests};
    `stall`: seconds of silence before the next answers end; `log`: (path, first byte, one after the last byte sent) of every answer but the one-byte questions."""
    daemon_threads = True
    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cut, self.ranges, self.length, self.html, self.status, self.stall, self.log = folder, [], True, True, (), {}, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        s, path = self.server, self.path.lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if s.ranges else None
        question = self.headers.get("Range") == "bytes=0-0"
        status = s.status.get(path)
        if isinstance(status, list): status = status.pop(0) if status and not question else None
        if status: return self.send_error(status)
        if not (s.folder/path).is_file(): return self.send_error(404)
        content = (s.folder/path).read_bytes()
        start, stop = (int(asked[1]), int(asked[2] or len(content)-1) + 1) if asked else (0, len(content))
        if start >= len(content): return self.send_error(416)
        self.send_response(206 if asked else 200)
        if path in s.html: self.send_header("Content-Type", "text/html; charset=utf-8")
        if s.length: self.send_header("Content-Length", str(stop - start)); self.send_header("ETag", f'"{zlib.crc32(content):x}"')
        if asked: self.send_header("Content-Range", f"bytes {start}-{stop-1}/{len(content)}")
        self.end_headers()
        if question: return self.wfile.write(content[start:start+1])
        if s.cut: stop = min(stop, start + s.cut.pop(0))
        s.log.append((path, start, stop))                # before the client can know
        self.wfile.write(content[start:stop]); self.wfile.flush()
        if s.stall: time.sleep(s.stall.pop(0))

def archive(path, members, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as z:
        for name, content in members.items(): z.writestr(zipfile.ZipInfo(name), content, compression)
    return path

def sessions(subject, n=30_000):
    rng = np.random.default_rng(subject)
    return {f"ses-0{s}/raw_eeg_{split}.npy": rng.bytes(n) for s in (1, 2, 3, 4) for split in SPLITS}

def publish(folder, subjects=(1, 2)):
    "A small THINGS-EEG2 under the catalogue's names; odd subjects' archives have a leading folder, even ones' have none."
    for s in subjects:
        head = f"sub-{s:02d}/"*(s % 2)
        archive(folder/f"raw/sub-{s:02d}.zip", {head + k: v for k, v in sessions(s).items()} | {"__MACOSX/._x": b"", head + "notes.txt": b"not ours"})
        archive(folder/f"preprocessed/sub-{s:02d}.zip", {f"{head}preprocessed_eeg_{split}.npy": os.urandom(5000) for split in SPLITS}, zipfile.ZIP_DEFLATED)
    names = dict(training=[(c, f"{c[6:]}_{i:02d}b.jpg") for c in ("00001_aardvark", "00002_abacus") for i in (1, 2, 3)], test=[("00001_aircraft_carrier", "aircraft_carrier_06s.jpg")])
    for split, head in (("training", "training_images/"), ("test", "")):
        archive(folder/f"pictures/{split}_images.zip", {f"{head}{c}/{n}": os.urandom(2000) for c, n in names[split]} | {f"{head}{c}/._{n}": b"mac" for c, n in names[split]})
    (folder/"metadata").mkdir()
    np.save(folder/"metadata/image_metadata.npy", {f"{k.removesuffix('ing')}_img_{w}": [n[i] for n in v] for k, v in names.items() for i, w in enumerate(("concepts", "files"))})
    return folder

@pytest.fixture
def server(tmp_path):
    s = Server(publish(tmp_path/"server")); yield s
    s.shutdown(); s.server_close()

@pytest.fixture
def root(tmp_path): return tmp_path/"study"

def refused(match): return pytest.raises(NecomimiError, match=match)
def content(root): return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
def registry(root): return json.loads((root/"registry.json").read_text())
def leftovers(root): return sorted(p.name for p in root.rglob("*") if p.is_file() and (p.parent.parent.name == "downloads" or ".part" in p.name or p.name.startswith("tmp")))
def get(root, server, what="raw", subjects=1, **kw): return fetch(root, what, subjects, **{**QUICK, "mirror": getattr(server, "url", server), **kw})
def raw_is_there(root, s=1): return all((root/f"Raw_data/sub-{s:02d}"/k).read_bytes() == v for k, v in sessions(s).items())

# ---- the catalogue and the plan

def test_catalogue():
    assert [sum(r.kind == k for r in CATALOGUE) for k in ("raw", "preprocessed", "pictures", "metadata")] == [10, 10, 2, 1]
    by = {r.name: r for r in CATALOGUE}
    assert by["raw/sub-06.zip"].urls == ("https://plus.figshare.com/ndownloader/files/34404491", "https://files.osf.io/v1/resources/crxs4/providers/googledrive/sub-06.zip")
    assert by["preprocessed/sub-10.zip"].urls == ("https://osf.io/download/8fyu9/",) and by["preprocessed/sub-10.zip"].path == "Preprocessed_data_100Hz/sub-10"
    assert by["pictures/test_images.zip"].urls == ("https://osf.io/download/znu7b/",) and by["metadata/image_metadata.npy"].path == "image_set/image_metadata.npy"
    assert len({u for r in CATALOGUE for u in r.urls}) == 33 and all(u.startswith("https://") for r in CATALOGUE for u in r.urls)

def test_plan_without_network_writes_and_asks_nothing(root, monkeypatch):
    import requests
    monkeypatch.setattr(requests, "get", lambda *a, **k: pytest.fail("asked"))
    p = plan(root)
    assert len(p.table) == 13 and set(p.table.state) == {"missing"} and not p.table.exact.any() and not root.exists()
    assert 126e9*1.2 + 12e9 < p.need < 126e9*1.2 + 14e9 and "≈ 12.6 GB" in repr(p) and "raw/sub-10.zip" in p._repr_html_() and "plus.figshare.com" in repr(p)
    assert plan(root, keep_archives=True).need > p.need + 100e9 and plan(root, "preprocessed", 3).table.name.tolist() == ["preprocessed/sub-03.zip"]

def test_plan_with_mirror_is_exact(root, server):
    p = plan(root, ("raw", "preprocessed", "pictures", "metadata"), (1, 2), server.url)
    assert p.table.exact.all() and p.table.bytes.tolist() == [(server.folder/n).stat().st_size for n in p.table.name] and p.need < 2e6 and not server.log
    assert plan(root, "raw", (1, 9), server.url).table.exact.tolist() == [True, False]        # 9 is not there: about

def test_plan_says_when_the_disk_is_too_small(root, monkeypatch):
    monkeypatch.setattr(f.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10**12, 10**12 - 5*10**9, 5*10**9))
    assert "NOT ENOUGH" in repr(plan(root)) and "NOT ENOUGH" not in repr(plan(root, "metadata"))

@pytest.mark.parametrize("what, subjects, match", [("eeg", 1, "'eeg'.*raw, preprocessed, pictures, metadata"), ("raw", 11, "no subject 11.*1 to 10"), ("raw", 0, "no subject 0"),
                                                   ("raw", "sub-01", "no subject 'sub-01'"), ("raw", (1, "2"), "no subject '2'"), ("raw", (), "nothing to fetch"), ((), 1, "nothing to fetch")])
def test_wrong_words(root, server, what, subjects, match):
    for verb in (plan, fetch):
        with refused(match): verb(root, what, subjects, mirror=server.url)
    assert not root.exists()

def test_numpy_numbers_are_subjects(root, server): assert plan(root, "raw", np.arange(1, 3), server.url).table.subject.tolist() == [1, 2]

# ---- the whole of it

def test_all_kinds(root, server):
    done = get(root, server, ("raw", "preprocessed", "pictures", "metadata"), (1, 2), accept_picture_terms=True)
    assert set(done.table.state) == {"done"} and "All there" in repr(done) and done.need == 0 and not leftovers(root)
    assert raw_is_there(root, 1) and raw_is_there(root, 2) and not list(root.rglob("notes.txt")) and not list(root.rglob("._*"))
    assert sorted(p.name for p in (root/"Preprocessed_data_100Hz/sub-02").iterdir()) == ["preprocessed_eeg_test.npy", "preprocessed_eeg_training.npy"]
    for split in SPLITS: assert picture_table(root/"image_set/image_metadata.npy", split).equals(picture_table(root/"image_set", split)) and len(picture_table(root/"image_set", split))
    entry = registry(root)["raw/sub-02.zip"]; sent = server.folder/"raw/sub-02.zip"
    assert entry["sha256"] == f._sha256(sent) and entry["bytes"] == sent.stat().st_size and entry["source"] == f"{server.url}/raw/sub-02.zip" and len(entry["files"]) == 8 and entry["date"][:2] == "20"
    server.log.clear(); before = content(root)
    assert set(get(root, server, ("raw", "preprocessed", "pictures", "metadata"), (1, 2)).table.state) == {"done"} and not server.log       # nor are terms asked for what is there
    assert content(root) == before

def test_keep_archives(root, server):
    get(root, server, keep_archives=True)
    assert (root/"downloads/raw/sub-01.zip").read_bytes() == (server.folder/"raw/sub-01.zip").read_bytes() and verify(root, progress=False).state.tolist() == ["ok"]
    (root/"downloads/raw/sub-01.zip").write_bytes(b"x")
    assert verify(root, progress=False).problems.tolist() == ["downloads/raw/sub-01.zip"]

def test_terms_must_be_accepted_for_pictures_only(root, server):
    with refused("research use.*accept_picture_terms=True"): get(root, server, ("raw", "pictures"))
    assert not root.exists() and not server.log
    get(root, server, ("raw", "metadata"))

def test_too_small_a_disk_is_said_before_the_start(root, server, monkeypatch):
    monkeypatch.setattr(f.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10**6, 9*10**5, 10**5))
    with refused(r"too small a disk: expected .* kB of room.*found 100.0 kB"): get(root, server)
    assert not root.exists() and not server.log

def test_disk_that_fills_up_keeps_the_piece(root, server, monkeypatch):
    real = open
    class Full:
        def __init__(self, file): self.file = file
        def write(self, b):
            if self.file.tell() > 50_000: raise OSError(28, "No space left on device")
            return self.file.write(b)
        def __enter__(self): return self
        def __exit__(self, *a): self.file.close()
        def __getattr__(self, name): return getattr(self.file, name)
    monkeypatch.setattr(f, "open", lambda p, mode="r", *a: Full(real(p, mode, *a)) if str(p).endswith(".part") else real(p, mode, *a), raising=False)
    with refused("raw/sub-01.zip: cannot be written: No space left on device"): get(root, server)
    assert plan(root, "raw", 1, server.url).table.fetched[0] > 50_000 and plan(root, "raw", 1, server.url).table.state[0] == "partial"
    monkeypatch.undo(); server.log.clear()
    get(root, server); assert server.log[0][1] > 50_000 and raw_is_there(root)

def test_root_that_is_a_file(tmp_path, server):
    (tmp_path/"file").write_text("x")
    with refused("cannot write to .*file"): get(tmp_path/"file", server)

# ---- lines that break

def test_broken_transfers_are_resumed(root, server):
    server.cut = [100_000, 0, 0, 90_000]
    get(root, server)
    starts = [a for _, a, _ in server.log]
    assert raw_is_there(root) and len(starts) == 5 and starts[0] == 0 and 80_000 < starts[1] == starts[2] == starts[3] <= 100_000 < starts[4]

def test_given_up_and_resumed_by_a_later_call(root, server):
    server.cut = [150_000] + [0]*20
    with refused(r"sub-01\.zip: could not be fetched(?s:.*)kB are kept(?s:.*)put it at .*downloads/raw/sub-01.zip") as e: get(root, server, retries=3)
    assert "0 of 1 files are there" in str(e.value) and len(server.log) == 5
    row = plan(root, "raw", 1, server.url).table.iloc[0]
    assert row.state == "partial" and 130_000 < row.fetched <= 150_000 and "kB fetched" in repr(plan(root, "raw", 1, server.url))
    server.cut = []; server.log.clear()
    get(root, server); assert raw_is_there(root) and server.log[0][1] == row.fetched and not leftovers(root)

def test_server_without_ranges_starts_over(root, server):
    server.ranges, server.cut = False, [100_000]
    get(root, server)
    assert raw_is_there(root) and [a for _, a, _ in server.log] == [0, 0]

def test_server_that_does_not_say_the_length(root, server, monkeypatch):
    server.ranges = server.length = False
    assert not plan(root, "raw", 1, server.url).table.exact[0]
    monkeypatch.setattr(f, "_need", lambda *a: 0)      # "about 12.6 GB" need not fit on the machine that runs the tests
    get(root, server); assert raw_is_there(root)

def test_file_that_changed_in_between_starts_over(root, server):
    server.cut = [100_000] + [0]*5
    with refused("could not be fetched"): get(root, server, retries=0)
    archive(server.folder/"raw/sub-01.zip", sessions(1) | {"longer.txt": b"another version"})
    server.cut = []; server.log.clear()
    get(root, server); assert raw_is_there(root) and server.log[-1][1] == 0 and registry(root)["raw/sub-01.zip"]["sha256"] == f._sha256(server.folder/"raw/sub-01.zip")

def test_line_that_falls_silent(root, server):
    server.cut, server.stall = [100_000], [1.2]
    get(root, server, timeout=.3)
    assert raw_is_there(root) and [a for _, a, _ in server.log][0] == 0 and 80_000 < server.log[1][1] <= 100_000

def test_busy_server_is_asked_again_and_a_refusing_one_is_not(root, server, monkeypatch):
    server.status["raw/sub-01.zip"] = [503, 429]
    get(root, server); assert raw_is_there(root)
    server.status["raw/sub-02.zip"] = 403; tries = []
    real = f._transfer; monkeypatch.setattr(f, "_transfer", lambda *a: (tries.append(1), real(*a))[1]); monkeypatch.setattr(f, "_need", lambda *a: 0)
    with refused("HTTP 403 Forbidden"): get(root, server, subjects=2)
    assert len(tries) == 1

# ---- what is killed

def run_killed(code, root, server):
    "Runs `code` and a fetch of subject 1 in another process that is killed with SIGKILL by itself."
    head = f"import os, signal, sys; from necomimi import fetch as f; die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n{code}\n"
    done = subprocess.run([sys.executable, "-c", head + f"f.fetch({str(root)!r}, 'raw', 1, mirror={server.url!r}, progress=False)"], capture_output=True, text=True, timeout=50)
    assert done.returncode == -signal.SIGKILL, done.stderr

KILLED = dict(
    transfer="open_ = open\nclass F:\n  def __init__(s, x): s.x = x\n  def __enter__(s): return s\n  def __exit__(s, *a): s.x.close()\n"
             "  def __getattr__(s, n): return getattr(s.x, n)\n  def write(s, b): s.x.write(b); s.x.tell() > 120_000 and (s.x.flush(), die())\n"
             "f.open = lambda p, *a, **k: F(open_(p, *a, **k)) if str(p).endswith('.part') else open_(p, *a, **k)",
    checksum="import pooch; pooch.core.file_hash = pooch.hashes.file_hash = pooch.core.hash_matches = die",
    unpack="import shutil; real, n = shutil.copyfileobj, []\ndef copy(a, b, *c):\n  n.append(1); len(n) == 4 and (b.write(a.read(1000)), b.flush(), die()); real(a, b, *c)\nf.shutil.copyfileobj = copy",
    record="f._record = die")

@pytest.mark.parametrize("when", KILLED)
def test_killed_and_started_again(root, server, when):
    run_killed(KILLED[when], root, server)
    assert plan(root, "raw", 1, server.url).table.state[0] == "partial"
    there = {p: p.stat().st_mtime_ns for p in (root/"Raw_data").rglob("raw_eeg_*.npy")}
    server.log.clear(); get(root, server)
    assert raw_is_there(root) and not leftovers(root) and verify(root, progress=False).state.tolist() == ["ok"]
    if when == "transfer": assert [a > 100_000 for _, a, _ in server.log] == [True]
    else: assert not server.log                                                                      # nothing came twice
    assert len(there) == dict(unpack=3, record=8).get(when, 0) and all(p.stat().st_mtime_ns == t for p, t in there.items())
    assert not list(root.rglob(".*partial*"))

def test_two_at_once(root, server):
    from filelock import FileLock
    (root/"downloads").mkdir(parents=True)
    with FileLock(root/"downloads"/".lock"), refused("another fetch is at work"): get(root, server)
    get(root, server); assert raw_is_there(root)

# ---- addresses and checksums

def test_dead_addresses_are_all_named(root, server, monkeypatch):
    dead = ("http://127.0.0.1:9/sub-01.zip", f"{server.url}/gone/sub-01.zip", f"{server.url}/login.html", f"{server.url}/not.zip")
    (server.folder/"login.html").write_text("<html>log in</html>"); (server.folder/"not.zip").write_text("gone"); server.html = ("login.html",)
    monkeypatch.setattr(f, "_places", lambda remote, mirror: list(dead)); monkeypatch.setattr(f, "_need", lambda *a: 0)
    with refused("raw/sub-01.zip: could not be fetched") as e: get(root, server, subjects=(1, 2))
    said = str(e.value)
    assert all(u in said for u in dead) and "Connection refused" in said and "HTTP 404" in said and "a web page instead of the file" in said and "not a zip archive" in said
    assert str(root/"downloads/raw/sub-01.zip") in said and "raw/sub-02.zip" in said and not leftovers(root)

def test_second_address_is_tried(root, server, monkeypatch):
    monkeypatch.setattr(f, "_places", lambda remote, mirror: [f"{server.url}/gone/{remote.name}", f"{server.url}/{remote.name}"])
    get(root, server); assert raw_is_there(root) and registry(root)["raw/sub-01.zip"]["source"] == f"{server.url}/raw/sub-01.zip"

def test_one_dead_address_does_not_hold_up_the_others(root, server):
    with refused("raw/sub-09.zip.*\n.*HTTP 404.*\n.*\n2 of 3 files are there"): get(root, server, subjects=(1, 9, 2))
    assert raw_is_there(root, 1) and raw_is_there(root, 2)

@pytest.mark.parametrize("local", [False, True])
def test_another_file_under_an_old_name(root, server, local):
    get(root, server); recorded = registry(root)
    shutil.rmtree(root/"Raw_data"); archive(server.folder/"raw/sub-01.zip", sessions(7))
    with refused(f"another file than the one recorded.*{recorded['raw/sub-01.zip']['sha256'][:12]}(?s:.*)registry.json"): get(root, server.folder if local else server)
    assert not (root/"Raw_data").exists() and not leftovers(root) and registry(root) == recorded and (server.folder/"raw/sub-01.zip").exists()
    (root/"registry.json").write_text("{}")
    get(root, server); assert (root/"Raw_data/sub-01/ses-02/raw_eeg_test.npy").read_bytes() == sessions(7)["ses-02/raw_eeg_test.npy"] and verify(root, progress=False).state.tolist() == ["ok"]

def test_checksum_known_beforehand(root, server):
    root.mkdir(); (root/"registry.json").write_text(json.dumps({"raw/sub-01.zip": dict(sha256="0"*64)}))
    with refused("another file than the one recorded: sha256 .* instead of 000000000000"): get(root, server)
    (root/"registry.json").write_text(json.dumps({"raw/sub-01.zip": dict(sha256=f._sha256(server.folder/"raw/sub-01.zip"))}))
    get(root, server); assert raw_is_there(root)

def test_registry_that_cannot_be_read(root, server):
    root.mkdir(); (root/"registry.json").write_text("{half")
    for verb in (lambda: plan(root), lambda: get(root, server), lambda: verify(root)):
        with refused("registry.json is not valid JSON"): verb()

# ---- by hand, and from a folder

def test_archive_put_there_by_hand(root, server):
    (root/"downloads/raw").mkdir(parents=True); shutil.copy(server.folder/"raw/sub-01.zip", root/"downloads/raw/sub-01.zip")
    assert plan(root, "raw", 1).table.state[0] == "partial"
    get(root, server, mirror="http://127.0.0.1:9"); assert raw_is_there(root) and not leftovers(root) and registry(root)["raw/sub-01.zip"]["source"] == "found at downloads/raw/sub-01.zip"

def test_broken_archive_put_there_by_hand_is_left(root, server):
    (root/"downloads/raw").mkdir(parents=True); (root/"downloads/raw/sub-01.zip").write_bytes((server.folder/"raw/sub-01.zip").read_bytes()[:-500])
    with refused("a broken archive.*Put a whole one in its place"): get(root, server)
    assert (root/"downloads/raw/sub-01.zip").exists() and "raw/sub-01.zip" not in f._registry(root)

def test_files_put_there_by_hand(root, server):
    for k, v in sessions(1).items(): (p := root/"Raw_data/sub-01"/k).parent.mkdir(parents=True, exist_ok=True); p.write_bytes(v)
    assert plan(root, "raw", 1).table.state[0] == "done" and verify(root, progress=False).state.tolist() == ["not recorded"]
    get(root, server); assert not server.log and verify(root, progress=False).state.tolist() == ["ok"] and registry(root)["raw/sub-01.zip"]["source"] == "put there by hand"
    (root/"Raw_data/sub-01/ses-01/raw_eeg_test.npy").unlink()
    assert plan(root, "raw", 1).table.state[0] == "partial"
    get(root, server); assert raw_is_there(root)

def test_a_folder_as_mirror_is_read_in_place(root, server):
    before = content(server.folder)
    p = plan(root, "raw", (1, 2), server.folder); assert p.table.exact.all() and p.need < 1.3*p.table.bytes.sum()
    done = fetch(root, ("raw", "pictures", "metadata"), (1, 2), mirror=server.folder.as_uri(), accept_picture_terms=True, progress=False)
    assert set(done.table.state) == {"done"} and content(server.folder) == before and raw_is_there(root) and not leftovers(root) and not server.log
    with refused("sub-09.zip: could not be fetched(?s:.*)no such file"): get(root, server.folder, subjects=9)
    with refused("neither a folder nor a URL"): get(root, server.folder/"nowhere")

# ---- archives

def bad_archive(path, kind):
    good = {f"sub-01/{k}": v for k, v in sessions(1).items()}
    if kind == "cut": archive(path, good); path.write_bytes(path.read_bytes()[:100_000]); return
    if kind == "flipped": archive(path, good); raw = bytearray(path.read_bytes()); raw[5000] ^= 1; path.write_bytes(raw); return
    archive(path, dict(slip=good | {"../../evil.txt": b"x"}, slip_named={"../../sub-01/" + k: v for k, v in good.items()}, absolute=good | {"/etc/evil": b"x"}, backslash=good | {"..\\evil": b"x"},
                       drive=good | {"C:/evil": b"x"}, foreign={k.replace("sub-01", "sub-02"): v for k, v in good.items()}, half=dict(list(good.items())[:5]), empty={}, other={"readme.txt": b"x"},
                       twice=good | {"copy/" + k: v for k, v in good.items()}).get(kind, good))
    if kind == "link":
        link = zipfile.ZipInfo("sub-01/link"); link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "a") as z: z.writestr(link, "/etc/passwd")
    if kind == "password":
        raw = bytearray(path.read_bytes())
        for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            i = -1
            while (i := raw.find(magic, i + 1)) >= 0: raw[i + at] |= 1
        path.write_bytes(raw)

@pytest.mark.parametrize("kind, match", dict(slip="unsafe member", slip_named="unsafe member", absolute="unsafe member '/etc/evil'", backslash="unsafe member", drive="unsafe member", link="unsafe member 'sub-01/link'",
                                             foreign="which is not of raw/sub-01.zip", half="Expected 8 files like ses-01/raw_eeg_training.npy", empty="Expected 8 files", other="readme.txt", twice="twice",
                                             password="locked with a password; unpack it by hand", cut="not a zip archive", flipped="a broken archive.*removed; run again").items())
def test_unfit_archives(root, server, tmp_path, kind, match):
    bad_archive(server.folder/"raw/sub-01.zip", kind)
    with refused(match): get(root, server)
    assert not (root/"registry.json").exists()
    if kind != "flipped": assert not (root/"Raw_data").exists()
    assert [p for p in tmp_path.iterdir() if p.name not in ("server", "study")] == [] and not list(root.rglob(".*partial*"))
    if kind == "flipped": publish(tmp_path/"again"); shutil.copy(tmp_path/"again/raw/sub-01.zip", server.folder/"raw"); get(root, server); assert raw_is_there(root)

def test_pictures_of_the_other_half(root, server):
    archive(server.folder/"pictures/training_images.zip", {"test_images/00001_x/x_01b.jpg": b"x"})
    with refused("not of pictures/training_images.zip"): get(root, server, "pictures", accept_picture_terms=True)

def test_metadata_that_is_something_else(root, server):
    np.save(server.folder/"metadata/image_metadata.npy", np.zeros(3))
    with refused("image_metadata.npy"): get(root, server, "metadata")
    assert not (root/"image_set").exists() and not (root/"registry.json").exists()

def test_archive_that_does_not_fit_when_unpacked(root, server, monkeypatch):
    archive(server.folder/"raw/sub-01.zip", {k: bytes(2_000_000) for k in sessions(1)}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(f.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    with refused("needs 16.0 MB to unpack, 10.0 MB are free"): get(root, server)
    assert not (root/"Raw_data").exists() and (root/"downloads/raw/sub-01.zip").exists()
    monkeypatch.undo(); server.log.clear()
    get(root, server); assert not server.log and (root/"Raw_data/sub-01/ses-01/raw_eeg_test.npy").stat().st_size == 2_000_000

# ---- is it still whole

def test_verify_names_what_is_wrong_and_fetch_brings_it_back(root, server):
    get(root, server, ("raw", "pictures", "metadata"), (1, 2), accept_picture_terms=True)
    table = verify(root, progress=False)
    assert table.state.tolist() == ["ok"]*5 and table.files.tolist() == [8, 8, 6, 1, 1] and table.bytes[0] == 8*30_000
    a, b = root/"Raw_data/sub-01/ses-03/raw_eeg_training.npy", root/"image_set/training_images/00002_abacus/abacus_02b.jpg"
    raw = bytearray(a.read_bytes()); raw[77] ^= 4; a.write_bytes(raw); b.unlink()
    table = verify(root, progress=False).set_index("name")
    assert table.state.to_dict() == {"raw/sub-01.zip": "changed", "raw/sub-02.zip": "ok", "pictures/training_images.zip": "missing", "pictures/test_images.zip": "ok", "metadata/image_metadata.npy": "ok"}
    assert table.problems["raw/sub-01.zip"] == "Raw_data/sub-01/ses-03/raw_eeg_training.npy" and table.problems["pictures/training_images.zip"] == b.relative_to(root).as_posix()
    a.unlink(); get(root, server, ("raw", "pictures"), (1, 2), accept_picture_terms=True)
    assert set(verify(root, progress=False).state) == {"ok"} and raw_is_there(root)

def test_verify_of_nothing(root): assert len(verify(root, progress=False)) == 0 and isinstance(verify(root, progress=False), pd.DataFrame)

def test_import_is_light():
    code = "import sys, necomimi.fetch; print([m for m in ('requests', 'pooch', 'filelock', 'tqdm', 'mne', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
