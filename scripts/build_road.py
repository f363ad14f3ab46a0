"""nbs/images/road.png, the picture of the road in README.md, from the figures of a finished demo:
python scripts/build_road.py runs/demo"""
import sys
from pathlib import Path
import matplotlib; matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
STOPS = dict(evoked="1  EEG (simulated): what pictures evoke", training="2  NERV learns the pictures' vectors", similarity="3  every EEG against every picture", retrieval="4  retrieval, intervals, shuffled control")

def main(run):
    fig = plt.figure(figsize=(14, 12.5), layout="constrained"); grid = fig.add_gridspec(3, 2, height_ratios=[1, 1, 1.55])
    for (name, title), place in zip(STOPS.items(), [(0, 0), (0, 1), (1, 0), (1, 1)]):
        ax = fig.add_subplot(grid[place]); ax.imshow(plt.imread(run/"figures"/f"{name}.png")); ax.set_title(title, fontsize=13, loc="left"); ax.axis("off")
    ax = fig.add_subplot(grid[2, :]); ax.imshow(plt.imread(run/"figures"/"grid.png")); ax.set_title("5  pictures, with ceiling and controls", fontsize=13, loc="left"); ax.axis("off")
    out = ROOT/"nbs/images/road.png"; fig.savefig(out, dpi=80); print(out)

if __name__ == "__main__": main(Path(sys.argv[1]))
