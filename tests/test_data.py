"necomimi.data: the store, the reader of published files, and everything that can be wrong with them."
import json, os, pickle, signal, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from necomimi import data as d
from necomimi.data import CHANNELS, OCCIPITO_PARIETAL, REGIONS, NecomimiError, TrialStore, concept_split, convert_published, create_store, read_published, safe_load

LAYOUTS = ("a", "b")
SHAPE = (6, 4, 64, 250)

def published(shape=SHAPE, seed=0, dtype="f8", **changes):
    eeg = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return dict(preprocessed_eeg_data=eeg, ch_names=[*CHANNELS, "stim"][:shape[2]], times=np.linspace(-.2, 1, 300, endpoint=False)) | changes

def write(path, content, layout="b", protocol=4):
    if layout == "a": np.save(path, content)
    else: path.write_bytes(pickle.dumps(content, protocol))
    return path

def refused(match):
    return pytest.raises(NecomimiError, match=match)

def card(shape, **changes):
    return dict(shape=shape, ch_names=CHANNELS[:shape[2]], times=np.arange(shape[3])/100, sfreq=100, units="a.u.", recipe="test", subject=1) | changes

def small_store(folder, split="training", **changes):
    trials = np.random.default_rng(1).standard_normal((4, 3, 63, 5)).astype("f2")
    with create_store(folder, split, **card(trials.shape, **changes)) as out: out[:] = trials
    return TrialStore.open(folder, split), trials

def leftovers(folder):
    return sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else []

# ---- the channel table

def test_channels():
    assert len(CHANNELS) == len(set(CHANNELS)) == 63 and CHANNELS[:3] == ("Fp1", "Fp2", "AF7") and CHANNELS[-3:] == ("O1", "Oz", "O2")
    assert {k: len(v) for k, v in REGIONS.items()} == dict(frontal=15, central=14, parietal=16, temporal=10, occipital=8)
    assert sorted(sum(REGIONS.values(), ())) == sorted(CHANNELS) and len(OCCIPITO_PARIETAL) == 17 and set(OCCIPITO_PARIETAL) <= set(CHANNELS)

def test_channels_of_the_real_recordings_and_the_golden_file(shared):
    golden = np.load(shared/"golden"/"preprocessing_seed11.npz")
    assert tuple(golden["ch_names"]) == CHANNELS and len(golden["times"]) == 300
    times, notes = d._times(golden["times"], 250, "golden")
    assert len(times) == 250 and times[0] == pytest.approx(0, abs=1e-9) and "50 of 300" in notes[0]

# ---- the store

def test_store_round_trip(tmp_path):
    pictures = pd.DataFrame(dict(concept=["a", "b", "nan", "None"], file=["1.png", "2.png", "3.png", "4.png"]))
    store, trials = small_store(tmp_path, pictures=pictures)
    np.testing.assert_array_equal(store.trials, trials)
    assert isinstance(store.trials, np.memmap) and not store.trials.flags.writeable and store.trials.dtype == np.float16
    assert store.pictures.equals(pictures) and store.ch_names == CHANNELS and store.subject == 1 and not store.simulated
    assert leftovers(tmp_path) == ["training.json", "training.npy", "training_pictures.csv"]
    np.testing.assert_array_equal(np.load(tmp_path/"training.npy", allow_pickle=False), trials)   # other tools open it
    assert "SIMULATED" not in repr(store) and "SIMULATED" in repr(small_store(tmp_path, simulated=True)[0])

def test_store_replaced_without_pictures_keeps_no_old_table(tmp_path):
    small_store(tmp_path, pictures=pd.DataFrame(dict(concept=list("abcd"))))
    assert small_store(tmp_path)[0].pictures is None and leftovers(tmp_path) == ["training.json", "training.npy"]

def test_average_and_pick(tmp_path):
    store, trials = small_store(tmp_path)
    x = trials.astype("f4")
    for which, want in ((None, x.mean(1)), (2, x[:, :2].mean(1)), ([2], x[:, 2]), (np.array([True, False, True]), x[:, ::2].mean(1))):
        got = store.average(which)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-6)
    for bad in (0, 4, -1, [3], []):
        with refused("cannot average"): store.average(bad)
    assert np.shares_memory(store.pick(OCCIPITO_PARIETAL), store.trials)
    np.testing.assert_array_equal(store.pick(["Oz", "Fp1"]), trials[:, :, [CHANNELS.index("Oz"), 0]])
    np.testing.assert_array_equal(store.pick("Oz"), trials[:, :, [CHANNELS.index("Oz")]])
    assert store.pick("temporal").shape == (4, 3, 10, 5)
    with refused("no channel .'Fz'"): store.pick(["Fz"])

def test_store_travels_to_a_worker_as_a_path(tmp_path):
    store, trials = small_store(tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).trials, trials)

def test_hash_is_verified_on_request(tmp_path):
    store, _ = small_store(tmp_path)
    assert TrialStore.open(tmp_path, "training", verify=True).hash == store.hash and len(store.hash) == 64
    with open(tmp_path/"training.npy", "r+b") as f: f.seek(-2, 2); f.write(b"\0\1")
    TrialStore.open(tmp_path, "training")
    with refused("sha256"): TrialStore.open(tmp_path, "training", verify=True)

def test_open_refuses_what_is_not_a_store(tmp_path):
    with refused("no such folder"): TrialStore.open(tmp_path/"nowhere", "training")
    small_store(tmp_path)
    with refused(r"no finished trial store 'test'.*\['training'\]"): TrialStore.open(tmp_path, "test")
    size = (tmp_path/"training.npy").stat().st_size
    os.truncate(tmp_path/"training.npy", size - 100)
    with refused(f"truncated: expected {size:,} bytes, found {size-100:,}"): TrialStore.open(tmp_path, "training")
    small_store(tmp_path)
    text = (tmp_path/"training.json").read_text()
    (tmp_path/"training.json").write_text(text.replace("63", "62"))
    with refused("its JSON says"): TrialStore.open(tmp_path, "training")
    (tmp_path/"training.json").write_text(text[:100])
    with refused("not a readable trial store"): TrialStore.open(tmp_path, "training")
    (tmp_path/"training.json").write_text("{}")
    with refused("not a readable trial store"): TrialStore.open(tmp_path, "training")

@pytest.mark.parametrize("changes, match", [
    (dict(shape=(0, 3, 63, 5)), "split empty"), (dict(shape=(4, 63, 5)), "expected a shape"), (dict(ch_names=CHANNELS[:5]), "63 channel names"),
    (dict(times=np.arange(3)), "5 times"), (dict(pictures=pd.DataFrame(dict(concept=["a"]))), "4 rows of pictures"), (dict(dtype="f8"), "float16 or float32"),
    (dict(units="V"), "volts"), (dict(split="../test"), "no name for a split")])
def test_create_store_refuses(tmp_path, changes, match):
    with refused(match):
        with create_store(**(card((4, 3, 63, 5)) | dict(folder=tmp_path/"s", split="training") | changes)): pass
    assert not (tmp_path/"s").exists()

def test_a_failing_block_leaves_what_was_there_before(tmp_path):
    store, trials = small_store(tmp_path)
    before = leftovers(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        with create_store(tmp_path, "training", **card(trials.shape)) as out: out[:] = 0; raise KeyboardInterrupt
    assert leftovers(tmp_path) == before and TrialStore.open(tmp_path, "training", verify=True).hash == store.hash

def test_two_writers_of_one_store(tmp_path):
    with create_store(tmp_path, "training", **card((4, 3, 63, 5))) as out:
        with refused("another process is writing"):
            with create_store(tmp_path, "training", **card((4, 3, 63, 5))): pass
        out[:] = 1
    assert (TrialStore.open(tmp_path, "training").trials == 1).all()

# ---- full disk, unwritable folder, kill

def no_space(*_): raise OSError(28, os.strerror(28))

@pytest.mark.parametrize("target, name", [(os, "posix_fallocate"), (Path, "write_text"), (pd.DataFrame, "to_csv")])
def test_full_disk_at_each_write(tmp_path, monkeypatch, target, name):
    source = write(tmp_path/"p.npy", published())
    monkeypatch.setattr(target, name, lambda *_, **__: no_space(), raising=False)
    with refused("cannot write the store 'training'.*No space left.*needs .* MB"):
        convert_published(source, tmp_path/"s", "training", 1, pictures=pd.DataFrame(dict(concept=list("abcdef"))), progress=False)
    assert leftovers(tmp_path/"s") == []

def test_file_size_limit_of_the_system(tmp_path):
    source = write(tmp_path/"p.npy", published())
    code = """if True:
        import resource, sys, necomimi.data as d
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try: d.convert_published(sys.argv[1], sys.argv[2], "training", 1, progress=False)
        except d.NecomimiError as e: print("refused:", e)"""
    out = run(code, source, tmp_path/"s")
    assert "refused: cannot write the store 'training'" in out and "File too large" in out and leftovers(tmp_path/"s") == []

def test_really_full_disk(tmp_path):
    disk = tmp_path/"disk"; disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)], capture_output=True).returncode: pytest.skip("may not mount a small disk here")
    try:
        with refused("No space left"): convert_published(write(tmp_path/"p.npy", published()), disk/"s", "training", 1, progress=False)
        assert leftovers(disk/"s") == []
    finally: subprocess.run(["umount", str(disk)], check=True)

def test_unwritable_folder(tmp_path):
    source = write(tmp_path/"p.npy", published())
    (tmp_path/"file").write_text("in the way")
    for folder in (tmp_path/"file", tmp_path/"file"/"sub-01"):
        with refused("cannot write the store 'training' in .*file"): convert_published(source, folder, "training", 1, progress=False)
    assert (tmp_path/"file").read_text() == "in the way"

def run(code, *args):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True).stdout

@pytest.mark.parametrize("old_store", [False, True])
def test_kill_during_conversion_then_restart(tmp_path, old_store):
    source, folder = write(tmp_path/"p.npy", published()), tmp_path/"s"
    if old_store: old = convert_published(write(tmp_path/"q.npy", published(seed=5)), folder, "training", 1, progress=False).hash
    code = """if True:
        import sys, time, necomimi.data as d
        def slow(*maps): print("block", flush=True); time.sleep(60)
        d._forget = slow
        d.convert_published(sys.argv[1], sys.argv[2], "training", 1, block_bytes=1, progress=False)"""
    child = subprocess.Popen([sys.executable, "-c", code, str(source), str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "block\n"
    child.send_signal(signal.SIGKILL); assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    if old_store: assert TrialStore.open(folder, "training", verify=True).hash == old   # the finished one is untouched
    else:
        with refused("cut short here; run it again"): TrialStore.open(folder, "training")
    store = convert_published(source, folder, "training", 1, progress=False)
    np.testing.assert_allclose(store.trials, published()["preprocessed_eeg_data"][:, :, :63], rtol=1e-3, atol=1e-3)
    assert leftovers(folder) == ["training.json", "training.npy"]

@pytest.mark.parametrize("renames", [0, 1])
def test_kill_between_the_renames(tmp_path, renames):
    "Whichever of the last steps is cut, `open` accepts only a whole store."
    small_store(tmp_path, pictures=pd.DataFrame(dict(concept=list("abcd"))))
    code = f"""if True:
        import os, signal, sys, numpy as np, necomimi.data as d
        done, real = [], os.replace
        def replace(*a):
            if len(done) == {renames}: os.kill(os.getpid(), signal.SIGKILL)
            done.append(real(*a))
        os.replace = replace
        with d.create_store(sys.argv[1], "training", (4, 3, 63, 5), d.CHANNELS, np.arange(5), 100, "a.u.", "new", 1) as out: out[:] = 7"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    with refused("no finished trial store"): TrialStore.open(tmp_path, "training")
    store, trials = small_store(tmp_path)
    assert store.pictures is None and not [n for n in leftovers(tmp_path) if "partial" in n]

# ---- the reader of published files

@pytest.mark.parametrize("layout, protocol, dtype", [("a", 4, "f8"), ("a", 4, "f4"), ("b", 3, "f8"), ("b", 4, "f8"), ("b", 4, ">f4"), ("b", 5, "f4")])
def test_reads_both_layouts(tmp_path, layout, protocol, dtype):
    content = published(dtype=dtype)
    source = write(tmp_path/"p.npy", content, layout, protocol)
    p = read_published(source)
    assert isinstance(p.raw, np.memmap) and p.shape == (6, 4, 63, 250) and p.ch_names == CHANNELS and p.sfreq == 250
    np.testing.assert_array_equal(p[:], content["preprocessed_eeg_data"][:, :, :63])
    np.testing.assert_array_equal(p[[4, 1]], content["preprocessed_eeg_data"][[4, 1], :, :63])
    np.testing.assert_allclose(p.times, np.arange(250)/250, atol=1e-9)
    store = convert_published(source, tmp_path/"s", "training", 3, dtype="float32", progress=False, block_bytes=600_000)
    np.testing.assert_array_equal(store.trials, p[:].astype("f4"))
    assert store.subject == 3 and "stim dropped" in store.recipe and "50 of 300" in store.recipe

@pytest.mark.parametrize("protocol", (3, 4))
@pytest.mark.parametrize("old, new", [("numpy.core", "numpy._core"), ("numpy._core", "numpy.core")])
def test_numpys_old_and_new_module_names(tmp_path, protocol, old, new):
    name = lambda m: (f"c{m}.multiarray\n" if protocol == 3 else chr(len(m) + 11) + m + ".multiarray").encode()
    raw = pickle.dumps(published(), protocol).replace(name(old), name(new))
    assert name(new) in raw and name(old) not in raw
    (tmp_path/"p.npy").write_bytes(raw)
    np.testing.assert_array_equal(read_published(tmp_path/"p.npy")[:], published()["preprocessed_eeg_data"][:, :, :63])

def test_the_whole_array_inside_one_frame(tmp_path):
    "As Python 3.6 wrote protocol 4: one frame around everything."
    body = pickle.dumps(published(), 3)[2:-1]
    (tmp_path/"p.npy").write_bytes(b"\x80\x04\x95" + (len(body) + 1).to_bytes(8, "little") + body + b".")
    assert pickle.loads((tmp_path/"p.npy").read_bytes())["ch_names"][0] == "Fp1"   # a sound pickle
    p = read_published(tmp_path/"p.npy")
    assert isinstance(p.raw, np.memmap)
    np.testing.assert_array_equal(p[:], published()["preprocessed_eeg_data"][:, :, :63])

@pytest.mark.parametrize("layout", LAYOUTS)
def test_fortran_order_and_views(tmp_path, layout):
    eeg = published()["preprocessed_eeg_data"]
    for array in (np.asfortranarray(eeg), np.repeat(eeg, 2, 0)[::2]):
        source = write(tmp_path/"p.npy", published(preprocessed_eeg_data=array), layout)
        np.testing.assert_array_equal(read_published(source)[:], eeg[:, :, :63])
        store = convert_published(source, tmp_path/"s", "training", 1, dtype="float32", progress=False, block_bytes=1)
        np.testing.assert_array_equal(store.trials, eeg[:, :, :63].astype("f4"))

@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_a_data_file_may_hold(tmp_path, layout):
    x = np.arange(20000.)
    content = dict(text="ä", none=None, flags=[True, False], ints=[1, -2, 300, 70000, 2**40, -2**70], floats=(1.5, np.float32(2.5), np.float64(3.5), np.int64(4)), nested={"a": [{"b": ("c",)}]},
                   names=np.array(["Oz", "Cz"]), bools=np.array([True, False]), objects=np.array(["a", 1, None], dtype=object), twice=[x, x], empty=[{}, [], ()], small=np.eye(3), i=np.arange(9000))
    for protocol in (3, 4, 5):
        got = safe_load(write(tmp_path/"p.npy", content, layout, protocol))
        assert list(got) == list(content) and got["objects"] == ["a", 1, None]
        for k in ("names", "bools", "small", "i"): np.testing.assert_array_equal(got[k], content[k])
        for k in ("text", "none", "flags", "ints", "floats", "nested", "empty"): assert got[k] == content[k]
        for y in got["twice"]: np.testing.assert_array_equal(y, x)
    np.save(tmp_path/"plain.npy", x)
    np.testing.assert_array_equal(safe_load(tmp_path/"plain.npy"), x)

class Calls:
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args

class Plain: pass

@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("thing, named", [(Calls(os.system, "touch was-here"), "(posix|nt).system"), (Calls(eval, "1"), "builtins.eval"), (Calls(getattr, "a", "upper"), "builtins.getattr"),
    (Calls(np.load, "x"), "numpy.load"), (Calls(np.memmap, "was-here", "u1", "w+"), "numpy.*memmap"), (Plain(), "Plain"), ({1, 2}, "."), (Path("/"), "PosixPath|WindowsPath"),
    (np.zeros(3, "M8[s]"), "type"), (np.zeros(2, "i4,i4"), "type")])
def test_foreign_content_is_refused_by_name(tmp_path, monkeypatch, layout, thing, named):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path/"p.npy", published(extra=thing), layout)
    for read in (safe_load, read_published, lambda p: convert_published(p, tmp_path/"s", "training", 1, progress=False), lambda p: d.picture_table(p, "training")):
        with refused(f"p.npy: .*({named})"): read(source)
    assert leftovers(tmp_path) == ["p.npy"]

@pytest.mark.parametrize("program", [
    b"c_codecs\nencode\n.", b"cnumpy\nndarray.__reduce__\n.", b"\x80\x04\x8c\x05numpy\x8c\x0bload.system\x93.", b"\x82\x01.", b"(ios\nsystem\n.", b"Pid\n.", b"\x80\x02cnumpy\ndtype\n)\x81.",
    b"cnumpy.core.multiarray\nscalar\n}X\x01\x00\x00\x00a]sb.", b"}}b.", b"cnumpy\ndtype\n}b.", b".", b"", b"}", b"no pickle at all", b"\x80\xff.", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"h\x05.", b"]" + b"(" * 5000, b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr"])
def test_odd_programs_are_refused(tmp_path, program):
    (tmp_path/"p.npy").write_bytes(program)
    with refused("p.npy"): read_published(tmp_path/"p.npy")

def test_reader_survives_damage_anywhere(tmp_path):
    "Any byte changed, any cut: the reader answers with data or with a NecomimiError, never with another error."
    raw = bytearray(write(tmp_path/"p.npy", published((2, 1, 2, 3), ch_names=["Oz", "Cz"], times=np.arange(3.))).read_bytes())
    rng, outcomes = np.random.default_rng(0), set()
    for trial in range(600):
        damaged = raw.copy()
        if trial % 3: damaged[rng.integers(len(raw))] = rng.integers(256)
        else: del damaged[rng.integers(len(raw)):]
        (tmp_path/"p.npy").write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: read_published(tmp_path/"p.npy", ch_names=("Oz", "Cz")); outcomes.add("data")
            except NecomimiError as e: assert "p.npy" in str(e); outcomes.add("refused")
    assert outcomes == {"data", "refused"}

@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cut", [.02, .5, -1, -400])
def test_truncated_file_is_named_with_bytes(tmp_path, layout, cut):
    source = write(tmp_path/"p.npy", published(), layout)
    size = source.stat().st_size
    os.truncate(source, size + cut if cut < 0 else int(size*cut))
    with refused(f"p.npy: truncated: expected at least [0-9,]+ bytes, found {source.stat().st_size:,}"): convert_published(source, tmp_path/"s", "training", 1, progress=False)
    assert not (tmp_path/"s").exists()

@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversion_takes_little_memory(tmp_path, layout):
    "Peak of the process as the system counts it (mapped pages included) grows by far less than the file's 202 MB."
    if not Path("/proc/self/status").exists(): pytest.skip("needs Linux's VmHWM")
    run("""if True:
        import sys, pickle, numpy as np
        from necomimi.data import CHANNELS
        content = dict(preprocessed_eeg_data=np.tile(np.random.default_rng(0).standard_normal((20, 4, 63, 250)), (20, 1, 1, 1)), ch_names=list(CHANNELS), times=np.arange(250)/250)
        np.save(sys.argv[1], content) if sys.argv[2] == "a" else pickle.dump(content, open(sys.argv[1], "wb"), protocol=4)""", tmp_path/"p.npy", layout)
    code = """if True:
        import sys; from pathlib import Path
        from necomimi.data import convert_published
        peak = lambda: 1024*int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])
        before = peak(); convert_published(sys.argv[1], sys.argv[2], "training", 1, progress=False); print(peak() - before)"""
    size, grown = (tmp_path/"p.npy").stat().st_size, int(run(code, tmp_path/"p.npy", tmp_path/"s"))
    assert size > 200e6 and grown < 70e6
    assert TrialStore.open(tmp_path/"s", "training").trials.shape == (400, 4, 63, 250)

# ---- content that does not fit

@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrong_number_of_channels(tmp_path, layout):
    for content, match in ((published((2, 1, 60, 250)), "Expected 63, found 60 .missing: O1, Oz, O2"), (published((2, 1, 63, 250), ch_names=list(CHANNELS[:62])), "62 names beside 63 channels"),
                           (published((2, 1, 63, 250), ch_names=[*CHANNELS[:62], "Fz"]), "missing: O2; not known: Fz"), (published((2, 1, 63, 250), ch_names=[*CHANNELS[:62], "Oz"]), "there twice: Oz")):
        with refused(match): convert_published(write(tmp_path/"p.npy", content, layout), tmp_path/"s", "training", 1, progress=False)
    assert not (tmp_path/"s").exists()

@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_order_is_repaired_by_name_and_said(tmp_path, layout):
    order = np.random.default_rng(3).permutation(64)   # `stim` is somewhere in the middle
    content = published()
    eeg = content["preprocessed_eeg_data"]
    mixed = published(preprocessed_eeg_data=eeg[:, :, order], ch_names=[[*CHANNELS, "stim"][i].upper() for i in order])
    with pytest.warns(UserWarning, match="p.npy: channels came in another order and were re-ordered by name"):
        store = convert_published(write(tmp_path/"p.npy", mixed, layout), tmp_path/"s", "training", 1, dtype="float32", progress=False)
    np.testing.assert_array_equal(store.trials, eeg[:, :, :63].astype("f4"))
    assert "re-ordered by name" in store.recipe and store.ch_names == CHANNELS

def test_usual_order_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_published(write(tmp_path/"p.npy", published()))

def test_seventeen_channels_and_a_choice_of_channels(tmp_path):
    source = write(tmp_path/"p.npy", published((2, 1, 17, 100), ch_names=list(OCCIPITO_PARIETAL), times=np.arange(100)/100))
    p = read_published(source)
    assert p.ch_names == OCCIPITO_PARIETAL and p.sfreq == 100 and p.notes == ()
    with pytest.warns(UserWarning, match="re-ordered"): p = read_published(source, ch_names=("Oz", "Pz"))
    np.testing.assert_array_equal(p[:][:, :, 0], p.raw[:, :, OCCIPITO_PARIETAL.index("Oz")])

@pytest.mark.parametrize("times", [np.arange(249)/250, np.arange(300)/250, np.linspace(-.2, 1, 301, endpoint=False), np.arange(0)])
def test_times_that_do_not_fit(tmp_path, times):
    with refused("expected 250 times for 250 samples.*found"): read_published(write(tmp_path/"p.npy", published(times=times)))

def test_nan_is_named_and_nothing_is_left(tmp_path):
    content = published()
    content["preprocessed_eeg_data"][4, 2, CHANNELS.index("PO7"), 9] = np.nan
    with refused("p.npy: NaN.*channel PO7 of picture 4, repetition 2"):
        convert_published(write(tmp_path/"p.npy", content), tmp_path/"s", "training", 1, progress=False, block_bytes=600_000)
    assert leftovers(tmp_path/"s") == []
    content["preprocessed_eeg_data"][:] = np.nan_to_num(content["preprocessed_eeg_data"]); content["preprocessed_eeg_data"][:, :, 63] = np.nan   # NaNs of `stim` do not matter
    convert_published(write(tmp_path/"p.npy", content), tmp_path/"s", "training", 1, progress=False)

@pytest.mark.parametrize("factor", (1e5, 1e-5))
def test_values_that_do_not_fit_float16(tmp_path, factor):
    source = write(tmp_path/"p.npy", published(preprocessed_eeg_data=published()["preprocessed_eeg_data"]*factor))
    with refused("do not fit float16. Use dtype='float32'"): convert_published(source, tmp_path/"s", "training", 1, progress=False)
    assert leftovers(tmp_path/"s") == []
    convert_published(source, tmp_path/"s", "training", 1, progress=False, dtype="float32")

@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_split_and_wrong_contents(tmp_path, layout):
    for content, match in ((published((0, 4, 63, 250)), "no trials in it"), (dict(raw_eeg_data=np.zeros((64, 9))), "a raw recording"), ({"x": 1}, "not there .found .'x'"), (["a", None], "found list"),
                           (published(preprocessed_eeg_data=np.zeros((3, 63, 250))), "expected floating-point trials"), (published(preprocessed_eeg_data=np.zeros(SHAPE, int)), "expected floating-point trials")):
        with refused(match): convert_published(write(tmp_path/"p.npy", content, layout), tmp_path/"s", "training", 1, progress=False)
    with refused("6 rows of pictures"): convert_published(write(tmp_path/"p.npy", published(), layout), tmp_path/"s", "training", 1, pictures=pd.DataFrame(dict(concept=["a"])), progress=False)
    with refused("no such file"): read_published(tmp_path/"nothing.npy")
    assert not (tmp_path/"s").exists()

def test_check_eeg():
    x = np.zeros((5, 63, 10), np.float32)
    assert d.check_eeg(x, 63, 10) is x and d.check_eeg(x[0]) is not None
    for bad, kw, match in ((x, dict(n_chans=17), "expected 17 channels, found 63"), (x, dict(n_times=250), "expected 250 samples, found 10"), (x[:0], {}, "nothing in it"), (x[0, 0], {}, "n_chans, n_times"),
                           ([1, 2], {}, "found list"), (x, dict(ch_names=("Oz", "Cz")), "expected 2 channels")):
        with refused(match): d.check_eeg(bad, **kw)
    x[3, 1, 0], x[4, 2, 0] = np.inf, np.nan
    with refused("channel Fp2 of trial 3, channel AF7 of trial 4"): d.check_eeg(x)
    with refused("channel 1 of trial 3"): d.check_eeg(x[:, :9])

# ---- pictures, concepts

def test_picture_table_of_the_real_test_pictures(tmp_path, shared):
    "The folders alone give the published order of the 200 test pictures."
    real = json.loads((shared/"data"/"eeg2_split.json").read_text())["test"]
    by_metadata = d.picture_table(write(tmp_path/"image_metadata.npy", dict(test_img_concepts=[r["concept"] for r in real], test_img_files=[r["file"] for r in real]), "a"), "test")
    for f in by_metadata.file[::-1]: (tmp_path/f).parent.mkdir(parents=True); (tmp_path/f).touch()
    assert d.picture_table(tmp_path, "test").equals(by_metadata) and by_metadata.concept.nunique() == 200

def test_picture_table_from_metadata_and_from_folders(tmp_path):
    meta = dict(train_img_concepts=["00001_aardvark", "00001_aardvark", "00002_abacus"], train_img_files=["aardvark_01b.jpg", "aardvark_02s.jpg", "abacus_01b.jpg"],
                test_img_concepts=["00001_aircraft_carrier"], test_img_files=["aircraft_carrier_06s.jpg"])
    for layout in LAYOUTS:
        table = d.picture_table(write(tmp_path/"image_metadata.npy", meta, layout), "training")
        assert list(table.concept) == ["aardvark", "aardvark", "abacus"] and table.file[1] == "training_images/00001_aardvark/aardvark_02s.jpg"
    for f in reversed(table.file): (tmp_path/f).parent.mkdir(parents=True, exist_ok=True); (tmp_path/f).touch()
    assert d.picture_table(tmp_path, "training").equals(table)
    assert d.picture_table(tmp_path/"image_metadata.npy", "test").concept.tolist() == ["aircraft_carrier"]
    with refused("0 files"): d.picture_table(tmp_path, "test")
    with refused("'training' or 'test'"): d.picture_table(tmp_path, "train")
    with refused("is it image_metadata.npy"): d.picture_table(write(tmp_path/"p.npy", {"a": 1}), "test")

def test_concept_split():
    concepts = np.repeat([f"c{i}" for i in range(50)], 10)
    train, val = concept_split(concepts, fraction=.1, seed=3)
    assert len(set(concepts[val])) == 5 and not set(concepts[train]) & set(concepts[val])
    assert sorted([*train, *val]) == list(range(500)) and (np.diff(train) > 0).all()
    assert (concept_split(concepts, fraction=.1, seed=3)[1] == val).all() and not np.array_equal(concept_split(concepts, seed=4)[1], val)
    assert len(concept_split(pd.Series(concepts), n_val=7)[1]) == 70
    for bad in (0, 50, 51, -1):
        with refused("cannot keep"): concept_split(concepts, n_val=bad)
    with refused("cannot keep"): concept_split([])

# ---- MNE

def test_to_mne_and_back(tmp_path):
    mne = pytest.importorskip("mne")
    pictures = pd.DataFrame(dict(concept=["dog", "cat", "dog", "owl"], file=[f"{i}.png" for i in range(4)]))
    store, trials = small_store(tmp_path/"a", pictures=pictures, units="µV", simulated=True)
    epochs = store.to_mne()
    assert isinstance(epochs, mne.EpochsArray) and epochs.ch_names == list(CHANNELS) and len(epochs["dog"]) == 2 and epochs.metadata.file.tolist() == pictures.file.tolist()
    np.testing.assert_allclose(epochs.get_data(), store.average()*1e-6, rtol=1e-6)
    np.testing.assert_allclose(epochs.times, store.times, atol=1e-9)
    assert "SIMULATED" in epochs.info["description"] and np.isfinite([c["loc"][:3] for c in epochs.info["chs"]]).all()
    single = store.to_mne(average=False)
    assert len(single) == 12 and single.metadata.repetition.tolist() == [0, 1, 2]*4
    shuffled = single[np.random.default_rng(0).permutation(12)].reorder_channels(list(CHANNELS[::-1]))
    with pytest.warns(UserWarning, match="re-ordered by name"): back = d.from_mne(shuffled, tmp_path/"b", "training", 2, recipe="back", dtype="float32")
    for i, f in enumerate(back.pictures.file):
        want, got = trials[pictures.file.tolist().index(f)].astype(float), back.trials[i]
        np.testing.assert_allclose(np.sort(got, 0), np.sort(want, 0), rtol=1e-5)   # repetitions in order of appearance
    assert back.subject == 2 and back.ch_names == CHANNELS and "repetition" not in back.pictures

def test_from_mne_refuses(tmp_path):
    pytest.importorskip("mne")
    store, _ = small_store(tmp_path/"a", units="µV", pictures=pd.DataFrame(dict(concept=list("abcd"))))
    single = store.to_mne(average=False)
    with refused("expected 3 repetitions of every picture, found 2 to 3. Use n_repetitions=2"): d.from_mne(single[1:], tmp_path/"b", "training", 1, recipe="x")
    assert d.from_mne(single[1:], tmp_path/"b", "training", 1, recipe="x", n_repetitions=2).trials.shape == (4, 2, 63, 5)
    with refused("no column 'colour'"): d.from_mne(single, tmp_path/"c", "training", 1, recipe="x", by="colour")
    with refused("volts"): d.from_mne(single, tmp_path/"c", "training", 1, recipe="x", units="V")
    single._data[5, 3, 1] = np.nan
    with refused("NaN.*channel AF3 of trial 5"): d.from_mne(single, tmp_path/"c", "training", 1, recipe="x")
    assert not leftovers(tmp_path/"c")

def test_real_erps_through_the_store(tmp_path, shared):
    "Real EEG (THINGS-EEG1 category responses): in, to MNE, and the categories differ when and where they should."
    pytest.importorskip("mne")
    z = np.load(shared/"data"/"things_eeg1_erp.npz")
    names, x, times = [str(c) for c in z["chs"]], z["x"].astype("f4"), np.asarray(z["time"], float).ravel()
    with refused("NaN.*channel"): d.check_eeg(x, ch_names=names)   # two subjects lack a channel
    whole = x[np.isfinite(x).all((1, 2, 3))]
    trials = whole.transpose(1, 0, 2, 3)   # category, subject as repetition, channel, time
    with create_store(tmp_path, "test", trials.shape, names, times, 250, "µV", "THINGS-EEG1 category averages", 1, pd.DataFrame(dict(concept=[str(c) for c in z["cats"]]))) as out: out[:] = trials
    store = TrialStore.open(tmp_path, "test", verify=True)
    np.testing.assert_allclose(store.average(), trials.mean(1), atol=2e-2)
    # ten pictures a second: the mean response runs into its neighbours', what is locked to the picture is the difference between categories
    spread = store.to_mne().get_data(picks=list(REGIONS["occipital"])).std(0).mean(0)
    assert .1 < times[spread.argmax()] < .35 and spread[times < 0].max() < spread.max()/5

# ---- import

def test_import_is_light():
    out = run("import sys, necomimi.data; print([m for m in ('torch', 'mne', 'ipywidgets', 'plotly', 'diffusers', 'matplotlib', 'sklearn', 'tqdm') if m in sys.modules])")
    assert out.strip() == "[]"
