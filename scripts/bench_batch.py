"""Time of a grid of tiny mini runs on a local Dask cluster, and parallel efficiency against one worker: `python scripts/bench_batch.py [--subjects 10] [--seeds 2] [--part 2] [--store DIR]`.
The first `--part` subjects are done with one worker and, in another store, with all workers (same runs, so the ratio is of like with like); then all workers do the rest of the grid."""
import argparse, shutil, tempfile, time
from pathlib import Path
from necomimi.batch import batch, n_workers, plan

def grid(subjects, encoders, seeds):
    return dict(name="bench", stages=["preprocess", "embed", "train", "score"], parameters=dict(tiny=True), grid=dict(subject=list(range(1, subjects + 1)), encoder=encoders, seed=list(range(seeds))), limits=dict(threads=1))

def timed(g, store, n):
    began = time.perf_counter(); result = batch(g, store, n=n, progress=None); wall = time.perf_counter() - began
    new = [r for r in result.records if not r.get("earlier")]; assert result.ok, result
    print(f"{n} worker(s): {len(new)} runs in {wall:.0f} s, {wall/len(new):.1f} s a run; in runs {sum(r['seconds'] for r in new):.0f} s, {sum(r['seconds'] for r in new)/n/wall:.0%} of {n} × wall", flush=True)
    return wall

if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__); a.add_argument("--subjects", type=int, default=10); a.add_argument("--seeds", type=int, default=2); a.add_argument("--part", type=int, default=2)
    a.add_argument("--encoders", default="nerv,nice,mlp"); a.add_argument("--store"); a = a.parse_args(); encoders = a.encoders.split(",")
    home = Path(a.store or tempfile.mkdtemp(prefix="necomimi-bench-")); part, whole = (grid(s, encoders, a.seeds) for s in (min(a.part, a.subjects), a.subjects)); n = n_workers(plan(whole))
    print(f"grid: {a.subjects} subjects × {len(encoders)} encoders × {a.seeds} seeds = {len(plan(whole))} runs; {n} workers; simulated EEG, tiny profile")
    one = timed(part, home/"one", 1); many = timed(part, home/"many", n); shutil.rmtree(home/"one")
    print(f"first {a.part} subjects: one worker / {n} workers = {one/many:.2f}, parallel efficiency {one/many/n:.0%}")
    if a.part < a.subjects: print(f"whole grid with {n} workers: {many + timed(whole, home/'many', n):.0f} s; runs in {home/'many'}")
