"""One table for ``salt-run indigo.preflight``, and below it what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import salt.output
import salt.utils.color


def __virtual__() -> str:
    return "indigo_preflight"


def output(data: Any, **kwargs: Any) -> str:
    """Draw the checks.

    Args:
        data: The data of ``indigo.preflight``; anything else is drawn as ``nested``.

    Returns:
        Lines for a terminal, with colours where Salt uses them.
    """
    if isinstance(data, Mapping) and "data" in data:
        data = data["data"]
    if not isinstance(data, Mapping) or "checks" not in data:
        return salt.output.out_format(data, "nested", __opts__)
    colors = salt.utils.color.get_colors(__opts__.get("color"), __opts__.get("color_theme", None))
    paint = {"ok": colors["GREEN"], "warning": colors["YELLOW"], "problem": colors["RED"]}
    lines = [
        f"{paint[result]}{result.ljust(9)}{colors['ENDC']}{check.ljust(16)}{found}"
        for result, check, found in rows(data)
    ]
    told = [
        f"{paint[one['result']]}  ! {problem}{colors['ENDC']}"
        for one in data["checks"]
        for problem in one["problems"]
    ]
    return "\n".join([*lines, "", *told, *([""] if told else []), verdict(data)])


def rows(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Result, check and what was found, a line each.

    >>> rows({"checks": [{"check": "swap", "result": "problem", "found": "off",
    ...                   "problems": ["a", "b"]}]})
    [('problem', 'swap', '2 found, see below')]
    """
    found = []
    for one in data["checks"]:
        count = len(one["problems"])
        text = one["found"] if not count else f"{count} found, see below"
        found.append((one["result"], one["check"], text))
    return found


def verdict(data: Mapping[str, Any]) -> str:
    """Whether a deploy may begin.

    >>> verdict({"problems": 0, "warnings": 1})
    'Ready for indigo.deploy, with 1 warning'
    """
    if data["problems"]:
        return f"Not ready: {data['problems']} of the checks failed. Nothing was changed"
    count = data["warnings"]
    more = f", with {count} warning{'s' * (count > 1)}" if count else ""
    return f"Ready for indigo.deploy{more}"
