"""The real road, end to end: THINGS-EEG2 in its published raw form (all ten subjects and the real layout, tiny sizes, EEG simulated) comes from a server on
loopback and leaves as a table beside the paper's, by one command without a network. Only the sizes differ from the real thing: every stage runs the code
that ViT-H-14 and SDXL-Turbo would run, on random weights in their file layouts."""
import json, os, subprocess, sys, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from necomimi import study as S
from necomimi.cli import main
from necomimi.data import NecomimiError
from test_fetch import Server
from tiny_diffusion import tiny_sdxl

pytest.importorskip("diffusers", reason="needs necomimi[generation]"); pytest.importorskip("open_clip", reason="needs necomimi[generation]")
SUBJECTS, N_TRAIN, N_TEST = 10, 14, 8                     # concepts; two pictures a training concept

def photographs(folder, n):
    "n pictures with names: real photographs where shared/ is there, else coloured noise."
    real = sorted(Path(folder).glob("*.webp"))[:n] if folder else []
    if len(real) == n: return [(p.stem, Image.open(p).convert("RGB")) for p in real]
    rng = np.random.default_rng(0)
    return [(f"thing{i}", Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((256, 256))) for i in range(n)]

@pytest.fixture(scope="session")
def published(tmp_path_factory):
    "A folder as the publishers' servers hold it: zips of raw sessions and pictures, and the metadata."
    from necomimi.preprocess import simulate_raw
    root = tmp_path_factory.mktemp("published"); here = Path(__file__).resolve().parents[2]/"shared"/"data"/"things_cc0_256"
    photos = photographs(here if here.is_dir() else None, N_TRAIN + N_TEST)
    meta = {f"{s}_img_{k}": [] for s in ("train", "test") for k in ("concepts", "files")}
    for split, short, some, k in (("training", "train", photos[:N_TRAIN], 2), ("test", "test", photos[N_TRAIN:], 1)):
        (root/"pictures").mkdir(exist_ok=True)
        with zipfile.ZipFile(root/"pictures"/f"{split}_images.zip", "w") as z:
            for i, (name, picture) in enumerate(some):
                for j in range(k):
                    concept, file = f"{i+1:05d}_{name}", f"{name}_{j+1:02d}b.jpg"
                    (picture if j == 0 else picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).save(root/"one.jpg"); z.write(root/"one.jpg", f"{split}_images/{concept}/{file}")
                    meta[f"{short}_img_concepts"].append(concept); meta[f"{short}_img_files"].append(file)
    (root/"one.jpg").unlink(); (root/"metadata").mkdir(); np.save(root/"metadata"/"image_metadata.npy", np.array(meta, dtype=object), allow_pickle=True)
    rng = np.random.default_rng(1); looks = {s: np.stack([np.asarray(p.resize((3, 3)), float).ravel() for _, p in some for _ in range(k)]) for s, some, k in (("training", photos[:N_TRAIN], 2), ("test", photos[N_TRAIN:], 1))}
    mix = rng.standard_normal((27, 63, 1))*np.exp(-((np.linspace(0, 1, 250) - rng.uniform(.1, .5, (27, 1, 1)))/.08)**2)
    responses = {s: np.einsum("nk,kct->nct", (x - looks["training"].mean(0))/looks["training"].std(0), mix) for s, x in looks.items()}
    (root/"raw").mkdir()
    for n in range(1, SUBJECTS+1):
        files = simulate_raw(root/"tmp", n, responses, presentations={"training": 2, "test": 3}, seed=n)
        with zipfile.ZipFile(root/"raw"/f"sub-{n:02d}.zip", "w") as z:
            for f in files: z.write(f, Path(f).relative_to(root/"tmp")); Path(f).unlink()
    return root

@pytest.fixture(scope="session")
def server(published):
    "The folder on loopback; its `log` holds what was asked."
    s = Server(published)
    yield s
    s.shutdown()

@pytest.fixture(scope="session")
def models(tmp_path_factory, tiny_clip):
    "Random models in the layouts of the hub: a CLIP of width 1024 and an SDXL with its IP-Adapter."
    home = tmp_path_factory.mktemp("models"); tiny_clip(home/"clip"); tiny_sdxl(home/"sdxl")
    return home

@pytest.fixture
def here(capsys):
    "The command without a new process."
    def run(*argv):
        with pytest.raises(SystemExit) as e: main([*map(str, argv)])
        out = capsys.readouterr(); return e.value.code, out.out, out.err
    return run

def necomimi(*argv):
    env = os.environ | dict(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"), PYTHONPATH=str(Path(S.__file__).parents[1]))
    return subprocess.run([sys.executable, "-c", "from necomimi.cli import main; main()", *map(str, argv)], capture_output=True, text=True, env=env, timeout=900)

@pytest.fixture(scope="session")
def walked(tmp_path_factory, server, models):
    "The one command, and the study folder it leaves."
    root = tmp_path_factory.mktemp("study")
    tags = pd.DataFrame(dict(picture=[f"p{i}" for i in range(N_TEST)], broad_1=["living", "made"]*(N_TEST//2), broad_2=["small", "small", "large", "large"]*(N_TEST//4),
                             specific=[f"thing {i}" for i in range(N_TEST)], background=["plain", "outdoors"]*(N_TEST//2), fifth=["round", "long"]*(N_TEST//2)))
    tags.to_csv(root/"tags.csv", index=False)
    command = ["reproduce", "necomimi-table3", "--root", root, "--subjects", f"1-{SUBJECTS}", "--encoders", "nice,nerv", "--vision", models/"clip", "--generator", models/"sdxl", "--mirror", server.url, "--accept-picture-terms",
               "--epochs", 1, "--batch-size", 28, "--prior", "epochs=1", "--prior", "min_steps=10", "--n-pictures", 4, "--jobs", 2, "--eeg", 'n_repetitions={"training": 2, "test": 3}']
    done = necomimi(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done, command

def test_one_command_goes_the_whole_road(walked, models):
    root, done, _ = walked
    study = S.Study(root, vision=str(models/"clip"), pretrained=None)
    assert study.subjects() == list(range(1, SUBJECTS+1))
    test = study.store(10, "test")
    assert test.trials.shape == (N_TEST, 12, 63, 250) and study.store(1, "training").trials.shape == (2*N_TRAIN, 4, 63, 250) and test.simulated
    targets = S.load_targets(study)
    assert targets["training"].vectors.shape == (2*N_TRAIN, 1024) and not np.allclose(targets["test"].norms, 1)
    for encoder in ("nice", "nerv"):
        folder = study.folder(3, encoder, name="paper")
        assert (folder/"encoder"/"encoder.safetensors").is_file() and (folder/"prior"/"prior.safetensors").is_file()
        drawn = S.read_drawn(study, 3, encoder, name="paper", generator="sdxl")
        assert drawn["two-stage"].shape == (4, 64, 64, 3) and (drawn["two-stage"] != drawn["true embedding"]).any()
        assert json.loads((folder/"pictures-sdxl"/"cat.json").read_text())["two-stage"]["protocol"]["simulated"]
    assert "simulated" in done.stdout.lower() and "not comparable" in done.stdout.lower() and "439.7" in done.stdout
    rows = pd.read_csv(next((root/"results"/"necomimi-table3").glob("ours*.csv")))
    assert set(rows.subject) == set(range(1, SUBJECTS+1)) and set(rows.encoder) == {"nice", "nerv"} and rows.value.between(0, 1000).all()

def test_the_same_command_again_does_nothing_twice(walked, server):
    root, _, command = walked; asked = len(server.log)
    files = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.suffix in (".npy", ".safetensors", ".png")}
    again = necomimi(*command)
    assert again.returncode == 0 and len(server.log) == asked > 0
    assert files and {p: p.stat().st_mtime_ns for p in files} == files

def test_table2_goes_on_from_what_table3_left(walked, models):
    root, _, command = walked
    done = necomimi("reproduce", "necomimi-table2", *command[2:])
    assert done.returncode == 0, done.stderr[-2000:]
    rows = pd.read_csv(next((root/"results"/"necomimi-table2").glob("ours*.csv")))
    found = rows[rows.measure == "200-way top-1"]
    assert len(found) == 2*SUBJECTS*N_TEST and set(found.value) <= {0, 1} and f"{N_TEST} pictures in the gallery instead of 200" in done.stdout

def test_each_stage_is_a_command_of_its_own(walked, models, here):
    root, *_ = walked
    road = ["--root", root, "--vision", models/"clip", "--subjects", "2", "--encoder", "mlp"]
    for argv, said in ((["train", *road, "--epochs", 1, "--batch-size", 16], "MLP"), (["retrieve", *road], f"{N_TEST} test pictures"), (["prior", *road, "-p", "epochs=1", "-p", "min_steps=5"], "rior"),
                       (["generate", *road, "--generator", models/"sdxl", "--conditions", "two-stage,true embedding", "--n-pictures", 2], "2 pictures each"), (["cat", *road, "--generator", "sdxl"], "two-stage")):
        code, out, err = here(*argv)
        assert code == 0 and said in out, (argv[0], out[-500:], err[-2000:])

def refused(fn, *parts):
    with pytest.raises(NecomimiError) as e: fn()
    assert all(p in str(e.value) for p in parts), str(e.value)

def test_missing_pictures_are_named_before_the_work(walked, models):
    root, *_ = walked; study = S.Study(root, vision=str(models/"clip"), pretrained=None)
    gone = study.images/S.pictures(study, "training").file[3]; kept = gone.read_bytes(); gone.unlink()
    try: refused(lambda: S.embed(study), gone.name, "1 of 28")
    finally: gone.write_bytes(kept)

def test_concepts_that_disagree_with_the_metadata_are_named(walked, models):
    root, *_ = walked; study = S.Study(root, vision=str(models/"clip"), pretrained=None)
    folder = sorted((study.images/"test_images").iterdir())[0]; other = folder.with_name("00001_unicorn"); folder.rename(other)
    try: refused(lambda: S.pictures(study, "test"), "00001_unicorn", folder.name, "metadata")
    finally: other.rename(folder)

def test_half_a_subject_is_said(walked, models):
    root, *_ = walked; study = S.Study(root, vision=str(models/"clip"), pretrained=None)
    card = study.stores/"sub-09"/"test.json"; card.rename(card.with_suffix(".off"))
    try:
        assert 9 not in study.subjects()
        refused(lambda: S.join(study, 9), "sub-09", "test")
    finally: card.with_suffix(".off").rename(card)

@pytest.mark.parametrize("argv, part", [(["train", "--encoder", "nerf"], "nerf"), (["train", "--preset", "best"], "--preset best"), (["train", "-p", "epoch=3"], "epoch"), (["train", "--subjects", "1-x"], "1-x"),
                                        (["prior", "-p", "depth=3", "--encoder", "nice", "--name", "paper"], "depth"), (["retrieve", "--encoder", "muse"], "necomimi train"), (["reproduce", "necomimi-table9"], "table9")])
def test_wrong_use_is_one_line(walked, models, here, argv, part):
    code, out, err = here(*argv, "--root", walked[0], "--vision", models/"clip", *([] if "--subjects" in argv else ["--subjects", "1"]))
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("necomimi: ") and part in last, err[-1500:]

def test_a_batch_walks_the_same_road(walked, models, tmp_path):
    "Stage notebooks, grid and store on the published raw form give the numbers of the commands."
    pytest.importorskip("distributed", reason="needs necomimi[batch]")
    from necomimi.batch import batch
    root, source = walked[0], tmp_path/"source"; source.mkdir()
    for name in ("Raw_data", "image_set"): (source/name).symlink_to(root/name)
    stages = dict(preprocess=dict(parameters=dict(eeg=dict(n_repetitions=dict(training=2, test=3)))), embed={}, train=dict(parameters=dict(preset="paper", epochs=1, batch_size=28)), score={})
    result = batch(dict(source=str(source), parameters=dict(recipe="necomimi-250hz", vision=str(models/"clip")), stages=stages, grid=dict(subject=[2], encoder=["nice"]), limits=dict(threads=1)), tmp_path/"store", n=2, progress=None)
    assert result.ok, result
    score = next(r["id"] for r in result.records if r["stage"] == "score"); hits = pd.read_csv(tmp_path/"store"/"runs"/score/"hits.csv").groupby("measure").value.mean()
    study = S.Study(root, vision=str(models/"clip"), pretrained=None); found = S.retrieve_subject(study, 2, "nice", name="paper")
    for measure, value in found.hits.mean().items(): assert hits[measure] == pytest.approx(value, abs=1e-6), measure
    assert not any((tmp_path/"store"/"runs").glob("*/study/Raw_data")) and len(list((tmp_path/"store"/"runs").glob("preprocess-*/study/stores/necomimi-250hz/sub-02/*.npy"))) == 2
