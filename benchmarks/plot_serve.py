"""Draws docs/images/serving.svg: throughput against requests at once, and against different adapters among 64 of them.

    python -m benchmarks.plot_serve                          the embedded base; 5 minutes on 2 quiet cores
    python -m benchmarks.plot_serve --base phi3-mini         3.8 B random weights; wants a GPU
    python -m benchmarks.plot_serve --draw-only              from the numbers of the last run

The numbers go into docs/serving.csv. One request follows another, the longest first, so that as many as are asked for run
nearly to the end.
"""

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.cases import Case
from benchmarks.measuring import apart, measure, running_engine, through_engine
from benchmarks.report import describe_machine
from benchmarks.serve import prepare
from core.adapter_version import AdapterVersion
from core.base_model import locate_base_model
from core.settings import Settings
from core.volume import Volume

DOCS = Path(__file__).parents[1] / "docs"
RANK = 8
MIXED = 16  # different adapters while the number of requests varies
AT_ONCE = 64  # requests while the number of adapters varies
COLUMNS = ["varied", "count", "base only", "with adapters"]

_Row = tuple[str, int, int, int]


def main() -> None:
    args = _parse_args()
    numbers = args.out / "serving.csv"
    if not args.draw_only:
        rows = _measure_all(args)
        with numbers.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    _draw(numbers, args.out / "images" / "serving.svg")


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    powers = [1, 2, 4, 8, 16, 32, 64]
    parser.add_argument(
        "--base", default=Settings().base_model, help="folder, hub name, or phi3-mini"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[*powers, 128])
    parser.add_argument("--adapters", type=int, nargs="+", default=powers)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of serving.csv")
    parser.add_argument("--draw-only", action="store_true", help="measure nothing")
    return parser.parse_args()


def _measure_all(args: argparse.Namespace) -> list[_Row]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = root / "base" if args.base == "phi3-mini" else locate_base_model(args.base)
        volume = Volume(root / "data")
        volume.create()
        print(apart(describe_machine), flush=True)
        ranks = [RANK] * max(MIXED, *args.adapters)
        num_cases = _num_cases(max(AT_ONCE, *args.concurrency))
        cases, versions = apart(prepare, args.base, base, volume, ranks, num_cases)
        return [
            *apart(_vary_concurrency, base, cases, versions[:MIXED], args.concurrency),
            *apart(_vary_adapters, base, cases, versions, args.adapters),
        ]


def _num_cases(concurrency: int) -> int:
    return max(12, 2 * concurrency)


def _vary_concurrency(
    base: Path, cases: list[Case], versions: list[AdapterVersion], counts: list[int]
) -> list[_Row]:
    rows = []
    with running_engine(
        base, max_running=max(counts), lora_width=RANK * len(versions), max_adapters=len(versions)
    ) as engine:
        for count in counts:
            some = _spread(cases[: _num_cases(count)], len(versions))
            speeds = [
                measure(
                    f"{count} at once, {name}",
                    some,
                    lambda some=some, chosen=chosen, count=count: through_engine(
                        engine, some, chosen, count
                    ),
                    rounds=2,
                ).tokens_per_second
                for name, chosen in (("base only", None), ("with adapters", versions))
            ]
            rows.append(("requests at once", count, *map(round, speeds)))
    return rows


def _vary_adapters(
    base: Path, cases: list[Case], versions: list[AdapterVersion], counts: list[int]
) -> list[_Row]:
    """The bank has room for the most of them at every point, so that it is the same."""
    cases = cases[: _num_cases(AT_ONCE)]
    with running_engine(
        base, max_running=AT_ONCE, lora_width=RANK * max(counts), max_adapters=max(counts)
    ) as engine:

        def speed(count: int) -> float:
            chosen = versions[:count] or None
            some = _spread(cases, max(1, count))
            way = f"{count} adapters, {AT_ONCE} at once"
            return measure(
                way, some, lambda: through_engine(engine, some, chosen, AT_ONCE), rounds=2
            ).tokens_per_second

        bare = round(speed(0))
        return [("different adapters", count, bare, round(speed(count))) for count in counts]


def _spread(cases: list[Case], num_adapters: int) -> list[Case]:
    longest_first = sorted(cases, key=lambda case: -case.num_new)
    return [replace(case, adapter=i % num_adapters) for i, case in enumerate(longest_first)]


def _draw(numbers: Path, image: Path) -> None:
    with numbers.open() as file:
        rows = list(csv.DictReader(file))
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
    for axes, varied in zip(panels, ("requests at once", "different adapters"), strict=True):
        _draw_panel(axes, [row for row in rows if row["varied"] == varied])
        axes.set_xlabel(varied)
    panels[0].set_ylabel("tokens/s")
    panels[0].set_title(f"{MIXED} adapters of rank {RANK}", fontsize=9)
    panels[1].set_title(f"{AT_ONCE} requests at once, rank {RANK}", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8)
    pyplot.rcParams["svg.hashsalt"] = "serving"
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, metadata={"Date": None})


def _draw_panel(axes: Axes, rows: list[dict[str, str]]) -> None:
    counts = [int(row["count"]) for row in rows]
    for column, style in (("base only", "--"), ("with adapters", "-")):
        axes.plot(counts, [float(row[column]) for row in rows], style, marker=".", label=column)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
