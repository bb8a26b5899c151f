"""The curve as a picture: what is in it, for every shape of curve."""

import math
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from app.curve import Theme, draw_curve, thin, thin_curve
from core.jobs import EvalPoint, LossCurve, TrainPoint

SVG = "{http://www.w3.org/2000/svg}"


def made_curve(num_points: int, num_evals: int = 0, *, rate: float | None = 1e-3) -> LossCurve:
    rng = random.Random(0)
    train = [
        TrainPoint(
            step=step,
            epoch=step / 100,
            loss=3 * math.exp(-step / num_points) + rng.uniform(0, 0.3),
            learning_rate=rate,
        )
        for step in range(1, num_points + 1)
    ]
    stride = num_points // max(num_evals, 1)
    evals = [
        EvalPoint(step=stride * n, loss=3 * math.exp(-n / num_evals))
        for n in range(1, num_evals + 1)
    ]
    return LossCurve(train=train, eval=evals)


def parse(svg: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: bytes) -> list[str]:
    return ["".join(t.itertext()).strip() for t in parse(svg).iter(f"{SVG}text")]


def lines(svg: bytes) -> dict[str, int]:
    """The named lines -> how many points each has."""
    return {
        group.attrib["id"]: group.find(f"{SVG}path").attrib["d"].count("L")  # type: ignore[union-attr]
        for group in parse(svg).iter(f"{SVG}g")
        if "id" in group.attrib and not re.search(r"_\d+$|^matplotlib", group.attrib["id"])
    }


def test_all_that_a_reader_needs() -> None:
    svg = draw_curve(made_curve(200, 10), title="yoda@3", subtitle="job-1 · running")
    shown = texts(svg)
    for text in ("yoda@3", "job-1 · running", "optimiser step", "loss", "training", "learning"):
        assert text in shown, text
    assert any(t.startswith("smoothed: ") for t in shown)
    assert any(t.startswith("held-out: ") for t in shown)
    assert set(lines(svg)) == {"train-loss", "train-loss-smoothed", "eval-loss", "learning-rate"}
    assert parse(svg).findtext(f"{SVG}title") == "yoda@3"


@pytest.mark.parametrize("theme", get_args(Theme))
@pytest.mark.parametrize("log", [False, True])
def test_size_theme_and_scale(theme: Any, log: bool) -> None:
    svg = draw_curve(made_curve(50, 3), title="yoda", width=800, height=400, theme=theme, log=log)
    root = parse(svg)
    assert (root.attrib["width"], root.attrib["height"]) == ("600pt", "300pt")  # 4/3 px each
    background = root.find(f".//*[@id='patch_1']/{SVG}path")
    colour = "" if background is None else background.attrib["style"]
    assert {"auto": "none", "light": "#ffffff", "dark": "#0d1117"}[theme] in (colour or "none")
    assert b"mathdefault" not in svg


def test_logarithmic_losses() -> None:
    train = [TrainPoint(step=s, epoch=0, loss=10 * 0.9**s) for s in range(80)]
    assert {"10", "1", "0.1", "0.01"} <= set(
        texts(draw_curve(LossCurve(train=train), title="x", log=True))
    )


def test_the_same_curve_is_the_same_bytes() -> None:
    curve = made_curve(300, 4)
    first = draw_curve(curve, title="yoda")
    assert draw_curve(curve, title="yoda") == first
    assert draw_curve(curve, title="yoda@1") != first
    assert b"<dc:date>" not in first
    code = (
        "import sys; from app.curve import draw_curve; from tests.app.test_curve import made_curve;"
        "sys.stdout.buffer.write(draw_curve(made_curve(300, 4), title='yoda'))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert other.stdout == first


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "curve",
    [
        made_curve(1),
        made_curve(2, rate=None),
        made_curve(11, 1),
        LossCurve(eval=[EvalPoint(step=1, loss=2.0)]),
        LossCurve(train=[TrainPoint(step=s, epoch=0, loss=0.0) for s in (1, 2)]),
        LossCurve(train=[TrainPoint(step=s, epoch=0, loss=1e300) for s in (1, 2)]),
        LossCurve(train=[TrainPoint(step=s, epoch=0, loss=-1.0 / s) for s in range(1, 30)]),
        LossCurve(train=[TrainPoint(step=s, epoch=0, loss=s, learning_rate=0) for s in (1, 10**7)]),
    ],
    ids=range(8),
)
@pytest.mark.filterwarnings("error")
def test_odd_curves(curve: LossCurve, log: bool) -> None:
    svg = draw_curve(curve, title="x", width=480, height=320, log=log)
    assert lines(svg)
    assert "nan" not in svg.decode()


def test_no_points_yet() -> None:
    shown = texts(draw_curve(LossCurve(), title="yoda", subtitle="queued", log=True))
    assert sorted(shown) == ["no points yet", "queued", "yoda"]


def test_no_text_is_markup() -> None:
    svg = draw_curve(LossCurve(), title="<b>$x_1$ & co", subtitle="]]><script>")
    assert set(texts(svg)) >= {"<b>$x_1$ & co", "]]><script>"}


def test_a_long_curve_is_drawn_with_few_points() -> None:
    curve = made_curve(100_000, 20)
    curve.train[55_555] = curve.train[55_555].model_copy(update={"loss": 50.0})
    svg = draw_curve(curve, title="yoda")
    drawn = lines(svg)
    assert 1000 < drawn["train-loss"] <= 2000
    assert drawn["train-loss-smoothed"] <= 2000
    assert drawn["learning-rate"] <= 2000
    assert len(svg) < 200_000
    assert "50" in texts(svg), "the axis reaches the one outlier"


@pytest.mark.parametrize("max_points", [2, 3, 10, 11, 999, 1000, 5000])
def test_thinning_keeps_ends_and_extremes(max_points: int) -> None:
    points = made_curve(1000).train
    points[300] = points[300].model_copy(update={"loss": 99.0})
    points[700] = points[700].model_copy(update={"loss": -99.0})
    thinned = thin(points, max_points)
    assert len(thinned) <= max_points
    assert thinned == sorted(thinned, key=lambda p: p.step)
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    if max_points >= 4:
        assert points[300] in thinned
        assert points[700] in thinned
    if max_points >= 1000:
        assert thinned == points


def test_thinning_of_each_line() -> None:
    thinned = thin_curve(made_curve(1000, 50), 20)
    assert (len(thinned.train), len(thinned.eval)) == (20, 20)
    assert thin_curve(LossCurve(), 2) == LossCurve()


def test_many_threads_at_once() -> None:
    curves = [made_curve(20 + n) for n in range(6)]

    def draw(curve: LossCurve) -> bytes:
        return draw_curve(curve, title=f"{len(curve.train)}", theme="dark")

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(draw, curves))
    assert together == [draw(curve) for curve in curves]


def test_a_server_that_draws_nothing_imports_no_matplotlib() -> None:
    code = "import sys, app.routes.curve; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
