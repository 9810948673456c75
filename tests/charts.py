"""The charts of docs/benchmarks.md and docs/operations/chaos.md, drawn from figures beside them.

``make bench`` and ``make chaos`` write what they measured to ``docs/figures/*.json``, keep there
what they did not measure, and draw anew. ``python tests/charts.py`` only draws. A test compares
figures, charts and the pages' tables.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"

#: What one row of a chart says.
Row = Mapping[str, Any]

_LEFT, _WIDTH, _RIGHT, _ROW, _BAR, _TOP = 330, 480, 250, 20, 12, 64
_STYLE = (
    "text{font:12px DejaVu Sans,Verdana,sans-serif;fill:#1b1f24}"
    ".title{font-size:15px;font-weight:bold}.paper{fill:#fff}.grid{stroke:#e4e7eb}"
    ".good{fill:#2f6fab}.bad{fill:#c62828}.run{fill:#fff;stroke:#1b1f24}"
    ".target{stroke:#1b1f24;stroke-width:2}"
)


def chart(title: str, note: str, rows: Sequence[Row], unit: str = "") -> str:
    """Horizontal bars, each with its target, on one scale.

    Args:
        title, note: The two lines above.
        rows: Each with ``name``, ``values`` (of every run; the bar is the largest, runs before it
            are dots), ``target`` (a mark), ``says`` (behind the bar).
        unit: Of the values, at the axis.

    Returns:
        An SVG document that needs nothing else.

    Example:
        >>> "<svg" in chart("t", "n", [{"name": "a", "values": [1], "target": 2, "says": "1 s"}])
        True
    """
    most = max([*(max(row["values"]) for row in rows), *(row["target"] for row in rows)])
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _ROW * len(rows) + 10

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * value / most, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{html.escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" x="0" y="0" width="{width}" height="{height}"/>',
        f'<text class="title" x="10" y="20">{html.escape(title)}</text>',
        f'<text x="10" y="38">{html.escape(note)}</text>',
    ]
    for at in _ticks(most):
        parts += [
            f'<line class="grid" x1="{x(at)}" x2="{x(at)}" y1="{_TOP - 6}" y2="{height - 6}"/>',
            f'<text x="{x(at)}" y="{_TOP - 10}" text-anchor="middle">{at:g}{unit}</text>',
        ]
    for number, row in enumerate(rows):
        parts += _bar(x, _TOP + _ROW * number, row)
    return "\n".join([*parts, "</svg>", ""])


def _bar(x: Any, y: int, row: Row) -> list[str]:
    worst = max(row["values"])
    kind = "good" if worst <= row["target"] else "bad"
    middle = y + _ROW / 2
    end = max(x(worst), x(row["target"])) + 8
    name = html.escape(row["name"])
    return [
        f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{name}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{middle - _BAR / 2}" '
        f'width="{round(max(x(worst) - _LEFT, 1), 1)}" height="{_BAR}"/>',
        *(
            f'<circle class="run" cx="{x(value)}" cy="{middle}" r="3"/>'
            for value in sorted(row["values"])[:-1]
        ),
        f'<line class="target" x1="{x(row["target"])}" x2="{x(row["target"])}" '
        f'y1="{middle - 8}" y2="{middle + 8}"/>',
        f'<text x="{end}" y="{middle + 4}">{html.escape(row["says"])}</text>',
    ]


def _ticks(most: float) -> list[float]:
    """Some round numbers up to the end.

    >>> _ticks(3)
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    """
    step = next((one for one in (0.1, 0.2, 0.5, 1, 2, 5, 10) if most / one <= 7), 20)
    return [round(step * number, 3) for number in range(int(most / step) + 1)]


def bench(figures: Iterable[Row]) -> str:
    """The ratios of ``make bench``, each as a part of its target.

    Args:
        figures: Each with ``name``, ``above`` and ``below`` (medians, in ``unit``), ``ratio`` and
            ``target``.
    """
    rows = [
        {
            "name": one["name"],
            "values": [one["ratio"] / one["target"]],
            "target": 1,
            "says": f"{one['ratio']:.2f} of {one['target']:g} "
            f"({one['above']:g} / {one['below']:g} {one['unit']})",
        }
        for one in figures
    ]
    return chart("Ratios of make bench over their targets", "the mark is the target", rows)


def chaos(figures: Iterable[Row]) -> str:
    """Seconds without an acknowledged write, by fault.

    Args:
        figures: Each with ``name``, ``values`` (seconds of each run) and ``target``.
    """
    rows = [
        {**one, "says": ", ".join(f"{value:.2f}" for value in one["values"]) + " s"}
        for one in figures
    ]
    note = "The longest of all clients: a bar to the worst run, dots for others, the target's mark"
    return chart("Seconds without a write through the VIP", note, rows, " s")


DRAWN = {"benchmarks": bench, "chaos": chaos}


def load(name: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The figures of a chart; none where there are none yet."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def keep(name: str, measured: Iterable[dict[str, Any]], folder: Path = FOLDER) -> None:
    """Write figures that were measured over those of the same name, and draw the chart anew."""
    rows = {row["name"]: row for row in load(name, folder)}
    rows |= {row["name"]: row for row in measured}
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows.values())
    (folder / f"{name}.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    (folder / f"{name}.svg").write_text(DRAWN[name](rows.values()), "utf-8")


if __name__ == "__main__":
    for one in DRAWN:
        keep(one, [])
