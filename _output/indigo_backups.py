"""The history of backups for ``salt-run indigo.backups``: a table with bars."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import salt.output

#: Characters of the longest bar.
WIDTH = 20


def __virtual__() -> str:
    return "indigo_backups"


def output(data: Any, **kwargs: Any) -> str:
    """Draw the sets, the newest first, and what is wrong.

    Args:
        data: Of ``indigo_backup.list``; anything else is drawn as ``nested``.
    """
    if isinstance(data, Mapping) and "data" in data:
        data = data["data"]
    if not isinstance(data, Mapping) or "sets" not in data:
        return salt.output.out_format(data, "nested", __opts__)
    lines = [f"! {problem}" for problem in data["problems"]]
    return "\n".join([*lines, *table(data["sets"])])


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table.

    Example:
        >>> table([{"name": "19700101T000000Z-a", "made": 0, "bytes": 2**20, "keys": 3,
        ...         "revision": 9, "seconds": {"total": 1.5}, "hosts": ["a"],
        ...         "complete": False}])[1][:55]
        '1970-01-01 00:00     1.0  ####################     1.5 '
    """
    if not rows:
        return ["there is no proven backup"]
    most = max(row["bytes"] for row in rows)
    lines = [
        f"{'made (UTC)':<16} {'MiB':>7}  {'':<{WIDTH}} {'s':>7} {'keys':>10} {'revision':>12}  "
        f"{'sealed':<6} {'name':<24} hosts"
    ]
    for row in rows:
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["made"]))
        bar = "#" * max(1, round(WIDTH * row["bytes"] / most))
        lines.append(
            f"{made} {row['bytes'] / 2**20:7.1f}  {bar:<{WIDTH}} {row['seconds']['total']:7.1f} "
            f"{row['keys']:10} {row['revision']:12}  {'yes' if row['complete'] else 'no':<6} "
            f"{row['name']:<24} {','.join(row['hosts'])}"
        )
    return lines
