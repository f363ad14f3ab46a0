"""Time and peak memory of `necomimi.preprocess` beside a plain per-epoch implementation (mne.Epochs + scikit-learn, a session at a time in memory), on the same simulated session.

    python scripts/bench_preprocess.py [--epochs 2400] [--repeats 1]

Both read the same files (63 channels, 1 kHz, float64), write the same store, and are compared; each runs in a process of its own, with one thread. The plain one does what the public
THINGS-EEG2 scripts do: everything in memory, `mne.Epochs.resample`, one `ledoit_wolf` an epoch, matrix power -1/2."""
import argparse, json, os, resource, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np

def ours(root, out):
    from necomimi.preprocess import preprocess
    preprocess(root, out, 1, n_sessions=1, progress=False)

def plain(root, out, seed=20200220):
    import mne, scipy.linalg
    from sklearn.discriminant_analysis import _cov
    from sklearn.utils import shuffle
    from necomimi.data import CHANNELS
    from necomimi.preprocess import raw_path
    mne.set_log_level("error")
    splits = {}
    for split, n in (("training", 2), ("test", 20)):
        d = np.load(raw_path(root, 1, 1, split), allow_pickle=True).item()      # our own simulated file
        raw = mne.io.RawArray(d["raw_eeg_data"], mne.create_info(d["ch_names"], d["sfreq"], d["ch_types"]))
        del d
        events = mne.find_events(raw, stim_channel="stim")
        raw.pick(list(CHANNELS))
        events = events[events[:, 2] != 99999]
        epochs = mne.Epochs(raw, events, tmin=-.2, tmax=1., baseline=(None, 0), preload=True)
        del raw
        data, codes = epochs.resample(250).get_data(), epochs.events[:, 2]
        splits[split] = np.stack([data[shuffle(np.flatnonzero(codes == c), random_state=seed, n_samples=n)] for c in np.unique(codes)])[..., 50:]
        del epochs, data
    sigma = np.mean([np.mean([_cov(e.T, shrinkage="auto") for e in picture], axis=0) for picture in splits["training"]], axis=0)
    white = scipy.linalg.fractional_matrix_power(sigma, -.5)
    for split, x in splits.items():
        x = (x.swapaxes(-1, -2) @ white).swapaxes(-1, -2)[:, shuffle(np.arange(x.shape[1]), random_state=seed)]
        np.save(Path(out)/f"plain_{split}.npy", x.astype(np.float32))

def simulate(root, out, epochs):
    from necomimi.preprocess import simulate_raw
    rng = np.random.default_rng(0)
    simulate_raw(root, 1, {"training": rng.standard_normal((int(epochs)//2, 63, 50)), "test": rng.standard_normal((5, 63, 50))}, n_sessions=1)

def child(which, *args):
    import mne, mne.filter, scipy.linalg, sklearn.covariance, sklearn.discriminant_analysis, joblib, necomimi.preprocess     # imports are not what is measured
    mne.filter.resample, mne.Epochs, mne.io.RawArray, mne.create_info
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    base, wall, cpu = peak(), time.perf_counter(), time.process_time()
    {"ours": ours, "plain": plain, "simulate": simulate}[which](*args)
    print(json.dumps(dict(seconds=time.perf_counter() - wall, cpu=time.process_time() - cpu, peak=peak(), own=peak() - base)))

def run(*args):
    "A process of its own: what it holds at most must not be blurred by what this one holds (Linux hands ru_maxrss down), so this one holds nothing."
    environment = os.environ | dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    return json.loads(subprocess.run([sys.executable, __file__, "--child", *map(str, args)], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])

def main(epochs, repeats):
    runs = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder)/"Raw_data", Path(folder)/"out"
        out.mkdir()
        run("simulate", root, out, epochs)
        print(f"one simulated session: 63 channels at 1 kHz, {epochs} training + 100 test epochs, {sum(f.stat().st_size for f in root.rglob('*.npy'))/1e6:.0f} MB", flush=True)
        for _ in range(repeats):
            for which, found in runs.items():
                shutil.rmtree(out/"sub-01", ignore_errors=True)
                found.append(run(which, root, out))
        worst = max(np.abs(np.load(out/f"plain_{s}.npy", mmap_mode="r") - np.load(out/"sub-01"/f"{s}.npy", mmap_mode="r")).max() for s in ("training", "test"))
        from necomimi.preprocess import estimate
        said = estimate(root, 1, n_sessions=1).ram_bytes/1e6
    best = {which: {k: min(r[k] for r in found) for k in found[0]} for which, found in runs.items()}
    for which, v in best.items(): print(f"{which:6} {v['seconds']:7.2f} s ({v['cpu']:.2f} s of processor)   peak {v['peak']:6.0f} MB, of which beyond imports {v['own']:6.0f} MB")
    print(f"largest difference of the two results: {worst:.1e} (whitened units)\nour estimate of memory beyond imports: {said:.0f} MB")
    ratio = {k: best["plain"][k]/best["ours"][k] for k in best["ours"]}
    print(f"plain/ours: time {ratio['seconds']:.1f} (processor {ratio['cpu']:.1f}), peak memory {ratio['peak']:.1f} (beyond imports {ratio['own']:.1f})")

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--epochs", type=int, default=2400); p.add_argument("--repeats", type=int, default=1)
    p.add_argument("--child", nargs="+")
    a = p.parse_args()
    child(*a.child) if a.child else main(a.epochs, a.repeats)
