"""The plot of the loss lab's results. Needs matplotlib, an optional extra: pip install 'tunnel-supervisor[plot]'.

    python -m tools.bench.loss_plot RESULT.json PLOT.png        from a file that --json wrote

Lines over the loss, random solid and bursty dashed: percentile 99 of the ping, and of the light stream alone and beside
a bulk transfer; the bulk transfer's throughput. As bars: the longest silence when a connection is cut or black-holed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tools.bench.loss_report import Cell, Delays, LossResult, Scenario, Stream
from tools.lab.namespace import LabError

INCHES = (15, 8.5)
DOTS_PER_INCH = 120
BURSTY = (5, 2)
"""Dash pattern, in points."""


def require_matplotlib() -> None:
    if not importlib.util.find_spec("matplotlib"):
        raise LabError("--plot: matplotlib is not installed; install it (pip install 'tunnel-supervisor[plot]')")


def plot(result: LossResult, path: str) -> None:
    """Draw into `path`; its ending says the format."""
    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((ping, alone, beside), (bulk, bulk_gap, light_gap)) = pyplot.subplots(2, 3, figsize=INCHES)
    try:
        _lines(ping, result, "ping, there and back, p99", "ms", lambda cell: _p99(cell.ping))
        _lines(alone, result, "light stream alone, one way, p99", "ms", lambda cell: _p99(_light(cell.alone)))
        _lines(
            beside,
            result,
            "light stream beside a bulk transfer, one way, p99",
            "ms",
            lambda cell: _p99(_light(cell.beside)),
        )
        _lines(bulk, result, "bulk transfer", "Mbit/s", _field("bulk_mbit"))
        _bars(
            bulk_gap,
            result,
            "longest silence of the bulk transfer",
            _field("bulk_gap_ms"),
        )
        _bars(
            light_gap,
            result,
            "longest silence of the light stream beside it",
            _field("light_gap_ms"),
        )
        for axes in (ping, alone, beside):
            _logarithmic(axes)
        bulk.set_ylim(bottom=0)
        handles, labels = max((axes.get_legend_handles_labels() for axes in figure.axes), key=lambda one: len(one[0]))
        figure.legend(handles, labels, loc="lower center", ncols=max(1, len(labels)), frameon=False)
        figure.suptitle(
            f"link {result.rate_mbit:g} Mbit/s, RTT {result.rtt_ms:g} ms, queue {result.queue_bytes} "
            f"bytes, congestion control {result.congestion}; solid: random loss, dashed: in bursts"
        )
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:
        raise LabError(f"--plot {path}: {error}") from None
    finally:
        pyplot.close(figure)


def points(
    result: LossResult, configuration: str, bursty: bool, value: Callable[[Cell], float | None]
) -> list[tuple[float, float]]:
    """(loss in percent, value) of one line, in order. No loss belongs to both lines."""
    found = []
    for scenario in result.scenarios:
        if not (scenario.event or scenario.burst_ms) and (scenario.loss_percent == 0 or (scenario.burst > 1) == bursty):
            one = _value(result, scenario, configuration, value)
            if one is not None:
                found.append((scenario.loss_percent, one))
    return sorted(found)


def _lines(axes: Any, result: LossResult, title: str, unit: str, value: Callable[[Cell], float | None]) -> None:
    for number, configuration in enumerate(result.configurations):
        for bursty in (False, True):
            line = points(result, configuration.name, bursty, value)
            if line:
                axes.plot(
                    *zip(*line, strict=True),
                    marker="s" if bursty else "o",
                    color=f"C{number}",
                    dashes=BURSTY if bursty else (),
                    label=None if bursty else configuration.name,
                )
    axes.set_title(title)
    axes.set_xlabel("loss in each direction, %")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3, which="both")


def _bars(axes: Any, result: LossResult, title: str, value: Callable[[Cell], float | None]) -> None:
    events = [scenario for scenario in result.scenarios if scenario.event]
    width = 0.8 / len(result.configurations)
    for number, configuration in enumerate(result.configurations):
        heights = [_value(result, event, configuration.name, value) for event in events]
        shown = [
            (place + (number + 0.5) * width - 0.4, height) for place, height in enumerate(heights) if height is not None
        ]
        if shown:
            bars = axes.bar(*zip(*shown, strict=True), width=width, color=f"C{number}", label=configuration.name)
            axes.bar_label(bars, [_duration(height) for _, height in shown], fontsize="small")
    axes.set_xticks(range(len(events)), [event.name for event in events])
    axes.set_title(title)
    axes.set_ylabel("ms")
    if events:
        _logarithmic(axes)
    else:
        axes.set_visible(False)


def _logarithmic(axes: Any) -> None:
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"


def _value(
    result: LossResult, scenario: Scenario, configuration: str, value: Callable[[Cell], float | None]
) -> float | None:
    for cell in result.cells:
        if (cell.scenario, cell.configuration) == (scenario.name, configuration):
            return value(cell)
    return None


def _light(stream: Stream | None) -> Delays | None:
    return None if stream is None else stream.light


def _field(name: str) -> Callable[[Cell], float | None]:
    """A field of the stream beside bulk."""
    return lambda cell: getattr(cell.beside, name, None)


def _p99(found: Delays | None) -> float | None:
    return None if found is None else found.p99


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m tools.bench.loss_plot RESULT.json PLOT.png", file=sys.stderr)
        return 2
    try:
        plot(msgspec.json.decode(Path(argv[0]).read_bytes(), type=LossResult), argv[1])
    except (LabError, OSError, msgspec.MsgspecError) as error:
        print(f"loss_plot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
