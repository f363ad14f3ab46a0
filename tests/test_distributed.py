"Several processes that train one model: the same losses and weights as one process with the same whole batch. Synthetic data; CPU processes (gloo), started by accelerate launch."
import atexit, json, os, re, shutil, signal, socket, subprocess, sys, sysconfig, time
from datetime import timedelta
from pathlib import Path
import numpy as np, pytest, torch
from torch import nn
from necomimi.data import NecomimiError
from necomimi.encoders import make_encoder
from necomimi.training import FitResult, Team, TrainConfig, fit

class Odd(nn.Module):
    "Batch normalisation of several kinds: of (batch, channel, time), without weights or running statistics, with a cumulative average."
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(8), nn.ELU(), nn.Conv1d(8, 6, 9, bias=False), nn.BatchNorm1d(6, affine=False, track_running_stats=False), nn.ELU(), nn.Flatten(),
                                 nn.Linear(6*52, 24, bias=False), nn.BatchNorm1d(24, momentum=None), nn.ELU(), nn.Linear(24, 16))
    def forward(self, x): return self.net(x)

def module(case):
    """An untrained encoder of a case, or None for one that `fit` is to make. NERV's biases in front of a batch normalisation are held: their gradient is zero but for rounding, which Adam
    makes into steps of full size, so that even two runs of one process would differ in them."""
    if case not in ("nerv", "amp", "odd"): return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if case == "odd": return Odd()
        m = make_encoder("nerv", 8, 60, 16, 250., **NERV)
    for layer in (m.temporal[0], m.temporal[4], m.spatial[0], m.spatial[3]): layer.bias.requires_grad_(False)
    return m

def problem(n_concepts=20, n_exemplars=5, R=3, seed=0):
    "EEG (100, 3, 8, 60) as a noisy linear mix of what the targets (100, 16) are made of."
    rng = np.random.default_rng(seed); mix, rotate = rng.standard_normal((8, 8*60))/3, np.linalg.qr(rng.standard_normal((16, 8)))[0].T
    concepts = np.repeat(np.arange(n_concepts), n_exemplars)
    hidden = np.repeat(rng.standard_normal((n_concepts, 8)), n_exemplars, 0) + .8*rng.standard_normal((len(concepts), 8))
    return ((hidden @ mix).reshape(-1, 1, 8, 60) + rng.standard_normal((len(concepts), R, 8, 60))).astype("float32"), (hidden @ rotate).astype("float32"), concepts

NERV = dict(n_filters=40, filter_time_length=6, pool_time_length=12, pool_time_stride=4, hidden_dim=64, core_dim=32, ff_dim=32, drop_prob=0., att_drop_prob=0., time_drop_prob=0.)
BASE = TrainConfig(epochs=2, batch_size=20, lr=1e-3, val_fraction=.2)
CASES = dict(nerv=dict(encoder="nerv", encoder_options=NERV), mlp=dict(encoder="mlp", encoder_options=dict(drop_prob=0.)), odd={}, trials=dict(encoder="mlp", encoder_options=dict(drop_prob=0.), average=None, epochs=1),
             text=dict(encoder="mlp", encoder_options=dict(drop_prob=0.), text_weight=.3, temperature="reference", lr=1e-4, same="concept"), amp=dict(encoder="nerv", encoder_options=NERV, amp=True, epochs=1),
             early=dict(encoder="mlp", encoder_options=dict(drop_prob=0.), epochs=12, patience=2, lr=.02, schedule=None))

def train(case, watched=None, **options):
    "`fit` on CASES[case]; in `watched` the mean loss before each step and the encoder's gradients of the first step."
    eeg, targets, concepts = problem(); encoder = options.pop("encoder", None) or module(case)
    def note(at):
        watched.setdefault("losses", []).append(at["loss"]())
        if at["step"] == 1 and not at["history"] and encoder: watched["grads"] = {k: p.grad.clone() for k, p in encoder.named_parameters() if p.grad is not None}
    config = TrainConfig(**(BASE.to_dict() | CASES[case] | options.pop("config", {})))
    return fit(eeg, targets, concepts=concepts, text_targets=targets[:, ::-1].copy() if config.text_weight else None, config=config, progress=options.pop("progress", False), device="cpu",
               encoder=encoder, on_step=options.pop("on_step", note if watched is not None else None), **options)

# ---- what the processes run: `python test_distributed.py WHAT FOLDER` ----
def everything(out):
    "All cases, and what is asked of two processes besides; each process writes what it saw to rank-N.json."
    rank, seen = int(os.environ["RANK"]), {}
    atexit.register(lambda: (out/f"group-{rank}").write_text(str(torch.distributed.is_initialized())))         # runs after what is registered later
    for case in CASES:
        watched, called = {}, []
        r = train(case, watched, folder=out/case, callback=lambda record: called.append(record["epoch"]), progress=case == "mlp")
        torch.save(dict(weights=r.encoder.state_dict(), scale=r.info["logit_scale"], **watched), out/f"{case}-{rank}.pt")
        seen[case] = dict(called=called, history=r.history.drop(columns="seconds").to_dict("records"), kept=r.info["epoch_kept"], kinds=[type(m).__name__ for m in r.encoder.modules() if type(m).__module__ == "necomimi.training"])
    def refused(**options):
        try: train("mlp", **options)
        except NecomimiError as e: return str(e)
    seen["uneven"] = refused(config=dict(batch_size=21))
    seen["small"] = refused(config=dict(batch_size=256, val_fraction=.15))
    seen["again"] = len(train("mlp", folder=out/"mlp").history)
    seen["ended"] = len(train("mlp", config=dict(epochs=9), callback=lambda record: record["epoch"] == 2).history)
    seen["from one"] = train("mlp", folder=out/"one", config=dict(epochs=4)).history.loss.tolist()
    seen["stopped"] = refused(on_step=lambda at: True)
    def fail(record): raise OSError("the callback failed")
    try: train("mlp", folder=out/"cut", checkpoint_seconds=0, config=dict(epochs=4), callback=lambda record: fail(record) if record["epoch"] == 2 else False)
    except (OSError, NecomimiError) as e: seen["failed"] = f"{type(e).__name__}: {e}"
    team, own, whole = Team.join("cpu"), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    own.grad, whole.grad = torch.full((2,), rank + 1.), torch.full((3,), 5.); team.add_gradients([own, nn.Parameter(torch.zeros(1))], [whole])
    x = torch.full((2, 3), float(rank), requires_grad=True); z = team.gather(x); (z*torch.arange(4.)[:, None]).sum().backward()
    seen["parts"] = [own.grad.tolist(), whole.grad.tolist(), z[:, 0].tolist(), x.grad[:, 0].tolist()]
    (out/f"rank-{rank}.json").write_text(json.dumps(seen))

def endless(out):
    "Trains until something happens, and says when it is under way. Waits four seconds for the other instead of ten minutes."
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=4))
    (out/f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    def note(record): (out/"under-way").touch()
    try: train("mlp", folder=out/"run", checkpoint_seconds=0, config=dict(epochs=100_000), callback=note)
    except NecomimiError as e: print("NecomimiError:", e, flush=True); os._exit(3)

def forked(out):
    "Two processes as a launcher would make them, but nobody watches them: what remains when process 1 meets its fate."
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    pids = []
    for rank in (0, 1):
        pids.append(os.fork())
        if not pids[-1]: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)); endless(out)
    until((out/"under-way").exists); os.kill(pids[1], getattr(signal, out.name)); start = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]); print(f"process 0 ended with {code} after {time.monotonic()-start:.1f} s", flush=True)
    os.kill(pids[1], signal.SIGKILL); os.waitpid(pids[1], 0)

def fates(out):
    for fate in ("SIGKILL", "SIGSTOP"): (out/fate).mkdir(); forked(out/fate)

def until(condition, seconds=60):
    "Waits for it."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(.05)

if __name__ == "__main__": dict(everything=everything, endless=endless, fates=fates)[sys.argv[1]](Path(sys.argv[2])); sys.exit()

# ---- the tests ----
ENV = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", PYTHONPYCACHEPREFIX=str(Path(__file__).parents[1]/".pytest_cache"/"bytecode"))
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]

class Cut(Exception): pass
def cut_short(folder):
    "A training of one process, ended by an error after its second of four epochs."
    def cut(record):
        if record["epoch"] == 2: raise Cut
    with pytest.raises(Cut): train("mlp", folder=folder, checkpoint_seconds=0, config=dict(epochs=4), callback=cut)

@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Folder and what the two processes saw, after `everything` under accelerate launch."
    out = tmp_path_factory.mktemp("two"); cut_short(out/"one")
    done = subprocess.run([*LAUNCH, __file__, "everything", out], env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, [json.loads((out/f"rank-{r}.json").read_text()) for r in (0, 1)], done

@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(two, case):
    out, seen, _ = two; watched = {}
    one, loose = train(case, watched), 300 if case == "amp" else 1
    main, second = (s[case] for s in seen)
    assert main["history"] == second["history"] and len(main["history"]) == len(one.history) and main["kept"] == second["kept"] == one.info["epoch_kept"] and not main["kinds"]
    close = lambda a, b, **k: np.testing.assert_allclose(a, b, rtol=1e-4*loose, **k)
    for measure in ("loss", "val_loss", "val_top1", "scale", "samples"): close([h[measure] for h in main["history"]], one.history[measure])
    first, other = (torch.load(out/f"{case}-{r}.pt") for r in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first["weights"].values(), other["weights"].values()))        # bit for bit the same in both
    close(first["losses"], watched["losses"]); close(first["scale"], one.info["logit_scale"])
    if case == "amp": return                                   # bfloat16 rounds otherwise in halves of a batch: the loss must do
    if module(case):
        size = torch.cat([g.flatten() for g in watched["grads"].values()]).norm()
        for k, g in watched["grads"].items(): assert float((g - first["grads"][k]).norm()) <= 1e-4*float(g.norm()) + 1e-6*float(size), k
    start = (module(case) or made("mlp")).state_dict()
    for k, v in one.encoder.state_dict().items():
        v, w, s = (x.float().view(3, -1)[::2] if "in_proj_bias" in k else x.float() for x in (v, first["weights"][k], start[k]))      # the bias of keys has no gradient either
        assert float((v - w).norm()) <= 1e-3*float((v - s).norm()), k

def made(encoder):
    with torch.random.fork_rng(): torch.manual_seed(0); return make_encoder(encoder, 8, 60, 16, 250.)

def test_only_the_main_process_writes_shows_and_calls(two):
    out, (main, second), done = two
    assert main["nerv"]["called"] == [1, 2] and second["nerv"]["called"] == [] and main["ended"] == second["ended"] == 2
    assert len(main["early"]["history"]) == main["early"]["kept"] + 2 or main["early"]["kept"] > 10
    assert len({*re.findall(r"train \w+", done.stderr)}) == 1 and done.stderr.count("2/2") <= 2
    for case in CASES: assert sorted(os.listdir(out/case)) == ["encoder.safetensors", "fit.json", "history.csv"]
    r = FitResult.load(out/"early"); assert r.history.drop(columns="seconds").to_dict("records") == main["early"]["history"]

def test_parts_are_added_and_wholes_are_not(two):
    "Adam does not see a gradient that is twice too large, so the losses would not tell."
    for rank, seen in enumerate(two[1]): assert seen["parts"] == [[3., 3.], [5., 5., 5.], [0., 0., 1., 1.], [2.*rank, 2.*rank + 1]]

def test_the_process_group_ends_before_python_does(two):
    out, seen, _ = two
    assert [(out/f"group-{r}").read_text() for r in (0, 1)] == ["False"]*2, "a thread of gloo that outlives Python aborts a process that had ended well"

def test_refusals_reach_every_process(two):
    for seen in two[1]:
        assert "a batch of 21 cannot be shared evenly by 2 processes" in seen["uneven"] and "set batch_size=20" in seen["uneven"] and "set batch_size=84" in seen["small"]
        assert seen["again"] == 2 and "within its first epoch" in seen["stopped"]
    assert [s["failed"] for s in two[1]] == ["OSError: the callback failed", "NecomimiError: the main process ended the training: OSError: the callback failed"]

def test_a_checkpoint_goes_from_two_to_one_and_back(two, tmp_path):
    straight = train("mlp", config=dict(epochs=4)).history.loss
    for seen in two[1]: np.testing.assert_allclose(seen["from one"], straight, rtol=1e-4)
    assert os.listdir(two[0]/"cut") == ["checkpoint.safetensors"]
    shutil.copytree(two[0]/"cut", tmp_path/"cut"); called = []
    resumed = train("mlp", folder=tmp_path/"cut", config=dict(epochs=4), callback=lambda r: called.append(r["epoch"]))
    assert called == [3, 4]; np.testing.assert_allclose(resumed.history.loss, straight, rtol=1e-4)

def alive(pid):
    try: return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError: return False

def test_a_lost_process_is_an_error_not_a_hang(tmp_path):
    done = subprocess.run([sys.executable, __file__, "fates", tmp_path], env=ENV, capture_output=True, text=True, timeout=100)
    said = done.stdout.split("ended with 3 after "); assert done.returncode == 0 and len(said) == 3, done.stdout + done.stderr[-2000:]
    for text in said[:2]: assert "process 0 of 2 lost the others" in text and "last checkpoint" in text, text
    ended = train("mlp", folder=tmp_path/"SIGKILL"/"run", config=dict(epochs=100_000), callback=lambda record: True)          # one process goes on where two were
    assert len(ended.history) > 1

def test_accelerate_launch_ends_when_a_process_is_killed(tmp_path):
    launch = subprocess.Popen([*LAUNCH, __file__, "endless", tmp_path], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until((tmp_path/"under-way").exists); pids = [int((tmp_path/f"pid-{r}").read_text()) for r in (0, 1)]
        os.kill(pids[1], signal.SIGKILL); said, _ = launch.communicate(timeout=40)
        assert launch.returncode and not any(map(alive, pids)) and "Signal 9 (SIGKILL)" in said
    finally: launch.kill()
    assert (tmp_path/"run"/"checkpoint.safetensors").is_file()

def test_the_command_line_trains_in_two_processes(tmp_path):
    from necomimi.cli import main
    from necomimi.study import Study, embed, prepare, trained
    study = Study.mini(tmp_path, n_exemplars=1, repetitions=(2, 2), snr=.2); prepare(study, [1], progress=False); embed(study, progress=False)
    train = ["train", "--mini", "--root", str(tmp_path), "--subjects", "1", "--encoder", "mlp", "--epochs", "2", "--batch-size", "64", "-p", 'encoder_options={"drop_prob": 0.0}', "--name"]
    done = subprocess.run([*LAUNCH, Path(sysconfig.get_path("scripts"))/"necomimi", *train, "two"], env=ENV, capture_output=True, text=True, timeout=120); assert done.returncode == 0, done.stderr[-2000:]
    with pytest.raises(SystemExit, match="0"): main([*train, "one"])
    a, b = (trained(study, 1, "mlp", 0, name).history for name in ("one", "two"))
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-4); assert a.samples.tolist() == b.samples.tolist()

def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1"); team = Team.join("cpu")
    assert (team.rank, team.size, team.rows(7)) == (0, 1, slice(0, 7)) and not torch.distributed.is_initialized()
    x = torch.randn(3, 4, requires_grad=True); assert team.gather(x) is x
    with pytest.raises(KeyError): team.lead(lambda: {}["no"])

def test_a_team_without_a_meeting_place(monkeypatch):
    for k, v in dict(WORLD_SIZE="2", RANK="0").items(): monkeypatch.setenv(k, v)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(NecomimiError, match="never started"): train("mlp")
