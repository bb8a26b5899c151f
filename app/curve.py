"""A job's loss curve for eyes: thinned to what a screen can show, and drawn as SVG.

matplotlib is imported by the first drawing: it takes time and memory that a server without one need not spend.
"""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from core.jobs import EvalPoint, LossCurve, TrainPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme = Literal["auto", "light", "dark"]
_Point = TypeVar("_Point", TrainPoint, EvalPoint)

_PIXELS_PER_INCH = 96
_MAX_DRAWN_POINTS = 2000
_MIN_SMOOTHED_POINTS = 12
_SMOOTHED_SHARE = 0.04  # of the points: the time constant of the smoothed line
# matplotlib's state is the process's.
_drawing = threading.Lock()


@dataclass(frozen=True)
class _Palette:
    background: str
    ink: str
    faint: str
    train: str
    eval: str
    rate: str


_PALETTES: dict[Theme, _Palette] = {
    # No background, and colours that stand out against white as against near-black.
    "auto": _Palette("none", "#7a828e", "#8b949e", "#3b82e0", "#e0701a", "#8f7bd8"),
    "light": _Palette("#ffffff", "#24292f", "#8c959f", "#0b5cad", "#c4500a", "#6f56b8"),
    "dark": _Palette("#0d1117", "#d8dee6", "#6e7681", "#58a6ff", "#f0883e", "#a894ec"),
}


def thin(points: Sequence[_Point], max_points: int) -> list[_Point]:
    """At most `max_points` (>= 2) of the points: the ends, and the lowest and the highest loss of equal stretches."""
    if len(points) <= max_points:
        return list(points)
    num_stretches = (max_points - 2) // 2
    kept = {0, len(points) - 1}
    for number in range(num_stretches):
        start = 1 + number * (len(points) - 2) // num_stretches
        end = 1 + (number + 1) * (len(points) - 2) // num_stretches
        stretch = range(start, end)
        kept.add(min(stretch, key=lambda i: points[i].loss))
        kept.add(max(stretch, key=lambda i: points[i].loss))
    return [points[i] for i in sorted(kept)]


def thin_curve(curve: LossCurve, max_points: int) -> LossCurve:
    """Each of the curve's lines, thinned."""
    return LossCurve(train=thin(curve.train, max_points), eval=thin(curve.eval, max_points))


def draw_curve(
    curve: LossCurve,
    *,
    title: str,
    subtitle: str = "",
    width: int = 960,
    height: int = 540,
    theme: Theme = "auto",
    log: bool = False,
) -> bytes:
    """An SVG of `width` x `height` CSS pixels; the same bytes for the same arguments. Thread-safe.

    The smoothed line is a mean over both sides, whose weights fall off exponentially: unlike a moving average it does
    not lag behind the curve.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "dragoman",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.parse_math": False,
    }
    with _drawing, mpl.rc_context(style):
        figure = Figure(
            figsize=(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH),
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
        )
        _draw(figure, curve, title, subtitle, _PALETTES[theme], log)
        FigureCanvasSVG(figure)
        file = io.BytesIO()
        figure.savefig(
            file,
            format="svg",
            facecolor=_PALETTES[theme].background,
            metadata={"Date": None, "Title": title},
        )
        return file.getvalue()


def _draw(
    figure: "Figure",
    curve: LossCurve,
    title: str,
    subtitle: str,
    palette: _Palette,
    log: bool,
) -> None:
    has_rates = any(p.learning_rate is not None for p in curve.train)
    if has_rates:
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4.5, 1))
        _draw_rates(rates, curve.train, palette)
    else:
        losses = figure.subplots()
    for axes in figure.axes:
        _style(axes, palette)
    if curve.train or curve.eval:
        _draw_losses(losses, curve, palette, log)
        _number_steps(figure.axes[-1], palette)
    else:
        losses.set_axis_off()
        losses.text(
            *(0.5, 0.5, "no points yet"),
            transform=losses.transAxes,
            ha="center",
            va="center",
            color=palette.ink,
            fontsize=12,
        )
    losses.set_title(title, loc="left", color=palette.ink, fontsize=14, fontweight="bold", pad=44)
    losses.annotate(
        subtitle,
        (0, 1),
        (0, 29),
        xycoords="axes fraction",
        textcoords="offset points",
        color=palette.ink,
        fontsize=9.5,
    ).set_in_layout(False)  # a long line must not narrow the plot
    figure.align_ylabels()


def _number_steps(axes: "Axes", palette: _Palette) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimiser step", color=palette.ink)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_losses(axes: "Axes", curve: LossCurve, palette: _Palette, log: bool) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    if curve.train:
        _draw_training(axes, curve.train, palette)
    if curve.eval:
        shown = thin(curve.eval, _MAX_DRAWN_POINTS)
        axes.plot(
            [p.step for p in shown],
            [p.loss for p in shown],
            color=palette.eval,
            marker="o" if len(shown) <= 100 else None,
            markersize=5,
            linewidth=1.6,
            label=f"held-out: {curve.eval[-1].loss:.3g}",
            gid="eval-loss",
        )
    losses = [p.loss for p in curve.train] + [p.loss for p in curve.eval]
    if log and max(losses) > 0:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    elif min(losses) >= 0:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
    axes.set_ylabel("loss", color=palette.ink)
    axes.legend(
        frameon=False,
        labelcolor=palette.ink,
        fontsize=9.5,
        loc="lower left",
        bbox_to_anchor=(0, 1),  # above the plot, where no line runs
        ncols=3,
        handlelength=1.4,
        columnspacing=1.2,
        borderaxespad=0.2,
        borderpad=0.2,
    ).set_in_layout(False)


def _draw_training(axes: "Axes", points: Sequence[TrainPoint], palette: _Palette) -> None:
    shown = thin(points, _MAX_DRAWN_POINTS)
    is_smoothed = len(points) >= _MIN_SMOOTHED_POINTS
    axes.plot(
        [p.step for p in shown],
        [p.loss for p in shown],
        color=palette.train,
        marker="o" if len(shown) < _MIN_SMOOTHED_POINTS else None,
        markersize=4,
        linewidth=0.8 if is_smoothed else 1.6,
        alpha=0.45 if is_smoothed else 1,
        label="training",
        gid="train-loss",
    )
    if is_smoothed:
        stride = -(-len(points) // _MAX_DRAWN_POINTS)
        smoothed = [*zip((p.step for p in points), _smooth(points), strict=True)]
        drawn = [*smoothed[:-1:stride], smoothed[-1]]
        axes.plot(
            *zip(*drawn, strict=True),
            color=palette.train,
            linewidth=2.2,
            label=f"smoothed: {drawn[-1][1]:.3g}",
            gid="train-loss-smoothed",
        )


def _draw_rates(axes: "Axes", points: Sequence[TrainPoint], palette: _Palette) -> None:
    known = [(p.step, p.learning_rate) for p in points if p.learning_rate is not None]
    stride = -(-len(known) // _MAX_DRAWN_POINTS)
    axes.plot(
        *zip(*[*known[:-1:stride], known[-1]], strict=True),
        color=palette.rate,
        linewidth=1.6,
        gid="learning-rate",
    )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.locator_params(axis="y", nbins=2)
    axes.set_ylabel("learning\nrate", color=palette.ink)


def _style(axes: "Axes", palette: _Palette) -> None:
    axes.set_facecolor("none")
    axes.grid(visible=True, color=palette.faint, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.faint)
    axes.tick_params(colors=palette.ink, length=0, labelsize=9)
    axes.margins(x=0.015)


def _smooth(points: Sequence[TrainPoint]) -> list[float]:
    losses = [p.loss for p in points]
    decay = 1 - 1 / max(_SMOOTHED_SHARE * len(points), 3)
    before, after = _accumulate(losses, decay), _accumulate(losses[::-1], decay)[::-1]
    return [
        (sum_before + sum_after - loss) / (weight_before + weight_after - 1)  # counted by both
        for loss, (sum_before, weight_before), (sum_after, weight_after) in zip(
            losses, before, after, strict=True
        )
    ]


def _accumulate(losses: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """For each loss, the weighted sum up to it and its weight; a loss weighs 1 when it is new."""
    total, weight = 0.0, 0.0
    sums = []
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        sums.append((total, weight))
    return sums
