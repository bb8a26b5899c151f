"""Draws docs/images/step.svg from docs/performance.csv: where a decoding step's time goes on a GPU.

python -m benchmarks.plot_steps
"""

import csv
from pathlib import Path

from matplotlib import pyplot

DOCS = Path(__file__).parents[1] / "docs"
# Bytes that a step must read (weights, keys and values, bank) over 4.3 TB/s, in ms; see performance.md.
FLOORS_MS = (2.02, 2.11)


def main() -> None:
    with (DOCS / "performance.csv").open() as file:
        parts = list(csv.DictReader(file))
    steps = [name for name in parts[0] if name != "part"]
    figure, axes = pyplot.subplots(figsize=(8, 2.3), layout="constrained")
    left = [0.0] * len(steps)
    for part in parts:
        widths = [float(part[step]) for step in steps]
        axes.barh(steps, widths, left=left, label=part["part"])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, floor in enumerate(FLOORS_MS):
        axes.plot([floor, floor], [row - 0.4, row + 0.4], color="black", linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("ms on the device (dashed: memory bandwidth's floor)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    pyplot.rcParams["svg.hashsalt"] = "step"
    figure.savefig(DOCS / "images" / "step.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
