"""What a run of an orchestration did, told in lines and drawn as steps and states over time.

Pure: from the results of the steps and of the states on hosts to text and to one HTML page that
needs nothing else, no script and no network.
"""

from __future__ import annotations

import datetime
import html
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["estimate", "gathered", "lines", "page"]

DAY = 86400.0

#: Seconds below which a state that changed nothing is drawn together with its neighbours.
SHORT = 0.2

# Geometry of the picture, in its own units.
_LEFT, _WIDTH, _ROW, _BAR, _TOP = 150, 1040, 26, 18, 40
_STYLE = """
body{font:14px system-ui,sans-serif;margin:2em;max-width:1220px;color:#1b1f24;background:#fff}
table{border-collapse:collapse}td,th{text-align:left;padding:.15em 1em .15em 0;vertical-align:top}
td.n,th.n{text-align:right}pre{white-space:pre-wrap;background:#f6f8fa;padding:.8em}
svg text{font:12px system-ui,sans-serif;fill:#1b1f24}
.same{fill:#c9d1d9}.changed{fill:#2f6fab;stroke:#fff;stroke-width:.6}
.failed{fill:#c62828}.asked{fill:#fff;stroke:#57606a}.step{fill:#e8eef5;stroke:#9fb3c8}.grid{stroke:#e4e7eb}.bad{color:#c62828}
"""


def gathered(
    running: Mapping[str, Mapping[str, Any]],
    returns: Iterable[tuple[str, str, Any, str]],
    now: float,
    zone: float = 0.0,
    asked: Iterable[tuple[str, str, str, str, bool]] = (),
) -> dict[str, Any]:
    """One run from what Salt keeps of it.

    Args:
        running: Results of the steps by their tag, each with ``start_time`` (time of day where the
            Salt master is), ``duration`` (milliseconds), ``result`` and ``comment``; a step with
            several jobs on hosts names them as ``__jobs__``, one with a single job as ``__jid__``.
        returns: Of each host's run of states its job, id, what it returned, and when the Salt
            master got it, as events have it (``2026-01-02T03:04:05.6``, UTC).
        now: The end of the run, in seconds since 1970.
        zone: What the Salt master's time of day is ahead of UTC, in seconds.
        asked: Functions of this project that hosts ran: id, name, when the Salt master sent the
            job and when it got the answer (as in ``returns``), and whether it is a good one.

    Returns:
        ``started`` and ``seconds``; ``steps`` (name, begin, seconds, result, comment), ``hosts``
        (id to states with name, sls, begin, seconds, result, changed, comment, or to the text that
        came instead of states) and ``asked`` (id to functions with name, begin, seconds, result).
        Begins are seconds since the start of the run.
    """
    steps: list[dict[str, Any]] = []
    for tag, one in sorted(running.items(), key=lambda item: item[1].get("__run_num__", 0)):
        if "start_time" not in one or one.get("__state_ran__") is False:  # a requisite failed
            continue
        steps.append(
            {
                "name": str(one.get("__id__") or tag.split("_|-")[1]),
                "begin": now - (now + zone - _of_day(one["start_time"])) % DAY,
                "seconds": _milliseconds(one.get("duration")) / 1000,
                "result": one.get("result"),
                "comment": str(one.get("comment", "")),
            }
        )
    started = min([step["begin"] for step in steps], default=now)
    jobs = {
        str(job)
        for one in running.values()
        for job in (*one.get("__jobs__", ()), one.get("__jid__"))
        if job
    }
    hosts: dict[str, Any] = {}
    for job, id_, answer, stamp in returns:
        if jobs and job not in jobs:  # somebody else's, at the same time
            continue
        if not isinstance(answer, Mapping):
            told = answer if isinstance(answer, str) else "; ".join(map(str, answer or ["nothing"]))
            hosts[id_] = told
            continue
        if isinstance(hosts.get(id_, []), list):
            hosts[id_] = [*hosts.get(id_, []), *_states(answer, _epoch(stamp))]
    for step in steps:
        step["begin"] = round(step["begin"] - started, 3)
    for states in hosts.values():
        for state in states if isinstance(states, list) else ():
            state["begin"] = round(state["begin"] - started, 3)
    functions: dict[str, list[dict[str, Any]]] = {}
    for id_, name, sent, got, good in asked:
        begin, end = _epoch(sent), _epoch(got)
        if end >= started:
            one = {"name": name, "begin": round(begin - started, 3), "seconds": end - begin}
            functions.setdefault(id_, []).append({**one, "result": good})
    return {
        "started": started,
        "seconds": now - started,
        "steps": steps,
        "hosts": hosts,
        "asked": functions,
    }


def _states(answer: Mapping[str, Any], ended: float) -> list[dict[str, Any]]:
    """A host's states, in order; its clock and zone count only for the distances."""
    rows = [one for one in answer.values() if isinstance(one, Mapping) and one.get("start_time")]
    rows.sort(key=lambda one: one.get("__run_num__", 0))
    if not rows:
        return []
    last = _of_day(rows[-1]["start_time"]) + _milliseconds(rows[-1].get("duration")) / 1000
    found = []
    for one in rows:
        found.append(
            {
                "name": str(one.get("__id__") or one.get("name")),
                "sls": str(one.get("__sls__", "")),
                "begin": ended - (last - _of_day(one["start_time"])) % DAY,
                "seconds": _milliseconds(one.get("duration")) / 1000,
                "result": one.get("result"),
                "changed": bool(one.get("changes")),
                "comment": str(one.get("comment", "")),
            }
        )
    return found


def _of_day(text: str) -> float:
    """Seconds since midnight.

    >>> _of_day("01:02:03.500000")
    3723.5
    """
    hours, minutes, seconds = str(text).split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _milliseconds(value: Any) -> float:
    # Salt has a number, older ones "12.3 ms".
    try:
        return float(str(value).split()[0])
    except (ValueError, IndexError):
        return 0.0


def _epoch(stamp: str) -> float:
    """Seconds since 1970 of an event's time, which is UTC, with or without saying so.

    >>> _epoch("1970-01-02T00:00:01.250000"), _epoch("1970-01-02T00:00:01.250000+00:00")
    (86401.25, 86401.25)
    """
    found = datetime.datetime.fromisoformat(stamp)
    return (found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _all(run: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (id_, state)
        for id_, states in run["hosts"].items()
        if isinstance(states, list)
        for state in states
    ]


def slowest(run: Mapping[str, Any], count: int = 10) -> list[tuple[str, dict[str, Any]]]:
    """Host and state of those that took longest."""
    return sorted(_all(run), key=lambda item: -item[1]["seconds"])[:count]


def failures(run: Mapping[str, Any]) -> list[str]:
    """What failed: host, state, what it said, and what to do next. Hosts before steps."""
    found = [
        f"{id_}: {state['name']}: {_first(state['comment'])}\n"
        f"    again, alone: salt {id_} state.apply {state['sls']}"
        for id_, state in _all(run)
        if state["result"] is False and not state["comment"].startswith("One or more requisite")
    ]
    found += [
        f"{id_}: {_first(states)}\n    see /var/log/salt/minion there"
        for id_, states in run["hosts"].items()
        if isinstance(states, str)
    ]
    found += [
        f"{step['name']}: {_whole(step['comment'])}"
        for step in run["steps"]
        if step["result"] is False
    ]
    return found


def _first(comment: str) -> str:
    return " ".join(comment.split())[:600]


def _whole(comment: str) -> str:
    """A step's own list of problems; what Salt adds of each host's states is told of the hosts."""
    kept = comment.split("Run failed on minions:")[0] or comment
    return kept.strip().replace("\n", "\n    ")[:4000]


def lines(run: Mapping[str, Any], title: str, picture: str | None = None) -> list[str]:
    """A run in a few lines for a terminal; what failed comes last.

    Args:
        run: What :func:`gathered` returns.
        title: Such as ``indigo.deploy of lab``.
        picture: Path of the page of the same run.
    """
    states = [state for _, state in _all(run)]
    failed = failures(run)
    changed = sum(state["changed"] for state in states)
    bad = sum(state["result"] is False for state in states)
    word = "FAILED" if failed else "done"
    told = [
        f"{title}: {word} after {run['seconds']:.1f} s; states on {len(run['hosts'])} hosts: "
        f"{changed} changed, {len(states) - changed - bad} unchanged, {bad} failed"
    ]
    slow = [(id_, state) for id_, state in slowest(run) if state["seconds"] >= SHORT]
    if slow:
        told.append("slowest states:")
        told += [
            f"  {state['seconds']:6.1f} s  {id_}: {state['name']} ({state['sls']})"
            for id_, state in slow
        ]
    if picture:
        told.append(f"timeline: {picture}")
    return told + [f"FAILED {problem}" for problem in failed]


def estimate(runs: Iterable[Mapping[str, Any]], hosts: int | None) -> float | None:
    """Seconds that a run on so many hosts may take: the median of the last five that succeeded.

    Args:
        runs: ``hosts``, ``seconds`` and ``good`` of each, the oldest first.
        hosts: None takes runs on any number of them.

    >>> estimate([{"hosts": 3, "seconds": s, "good": True} for s in (9, 50, 10)], 3)
    10
    >>> estimate([], 3) is None
    True
    """
    took = [
        run["seconds"]
        for run in runs
        if run.get("good") and (hosts is None or run.get("hosts") == hosts)
    ][-5:]
    return sorted(took)[len(took) // 2] if took else None


# --- the picture ---------------------------------------------------------------------------


def page(run: Mapping[str, Any], title: str) -> str:
    """One HTML page: the timeline, the slowest states, and what failed."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run["started"]))
    failed = failures(run)
    rows = "".join(
        f'<tr><td class="n">{state["seconds"]:.1f} s</td><td>{html.escape(id_)}</td>'
        f"<td>{html.escape(state['name'])}</td><td>{html.escape(state['sls'])}</td></tr>"
        for id_, state in slowest(run)
    )
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        f"<p>{when}, {run['seconds']:.1f} s. {html.escape(lines(run, title)[0])}.</p>",
        _svg(run),
        "<p>Blue changed something, grey found it as it should be, red failed; hollow is a "
        "question to the host. Point at a bar for its name.</p>",
        '<h2>Slowest states</h2><table><tr><th class="n">took</th><th>host</th><th>state</th>'
        f"<th>SLS</th></tr>{rows}</table>",
    ]
    if failed:
        text = "\n".join(html.escape(problem) for problem in failed)
        parts.append(f'<h2 class="bad">Failed</h2><pre>{text}</pre>')
    return "\n".join([*parts, "</body></html>\n"])


def _svg(run: Mapping[str, Any]) -> str:
    seconds = max(run["seconds"], 0.001)
    hosts = {**dict.fromkeys(run["asked"], ()), **run["hosts"]}
    height = _TOP + _ROW * (len(run["steps"]) + len(hosts)) + 10

    def x(at: float) -> float:
        return round(_LEFT + _WIDTH * min(max(at / seconds, 0), 1), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" '
        f'width="100%" role="img" aria-label="Steps and hosts over time">'
    ]
    for at in _ticks(seconds):
        parts.append(
            f'<line class="grid" x1="{x(at)}" x2="{x(at)}" y1="{_TOP - 12}" y2="{height}"/>'
            f'<text x="{x(at)}" y="{_TOP - 18}" text-anchor="middle">{at:g} s</text>'
        )
    y = _TOP
    for step in run["steps"]:
        kind = "failed" if step["result"] is False else "step"
        bar = _bar(x, y, step, kind, f"{step['name']}: {step['seconds']:.1f} s")
        # A name beside a short bar, on the side where there is room.
        late = step["begin"] / seconds > 0.5
        at = x(step["begin"]) - 6 if late else x(step["begin"]) + 4
        anchor = "end" if late else "start"
        label = html.escape(step["name"])
        parts.append(bar)
        parts.append(f'<text x="{at}" y="{y + 13}" text-anchor="{anchor}">{label}</text>')
        y += _ROW
    for id_, states in hosts.items():
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{html.escape(id_)}</text>'
        )
        for one in run["asked"].get(id_, ()):
            kind = "asked" if one["result"] else "failed"
            parts.append(_bar(x, y, one, kind, f"{one['name']}: {one['seconds']:.1f} s"))
        if isinstance(states, str):
            parts.append(f'<text x="{_LEFT}" y="{y + 13}">{html.escape(states[:120])}</text>')
        else:
            # What failed is drawn last, over its neighbours, and wide enough to be seen.
            bars = sorted(merged(states), key=lambda bar: bar["kind"] == "failed")
            parts += [_bar(x, y, one, one["kind"], one["label"]) for one in bars]
        y += _ROW
    return "\n".join([*parts, "</svg>"])


def merged(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bars of a host: states that changed nothing and took no time are drawn as one.

    Example:
        >>> base = {"begin": 0, "seconds": 0.01, "result": True, "changed": False, "name": "a"}
        >>> [bar["label"] for bar in merged([base, {**base, "begin": 0.01, "name": "b"}])]
        ['2 states without a change, 0.0 s']
    """
    bars: list[dict[str, Any]] = []
    for state in states:
        kind = "failed" if state["result"] is False else "changed" if state["changed"] else "same"
        end = state["begin"] + state["seconds"]
        last = bars[-1] if bars else None
        short = kind == "same" and state["seconds"] < SHORT
        if short and last and last["count"] and state["begin"] - last["end"] < SHORT:
            last["end"] = max(last["end"], end)
            last["count"] += 1
        else:
            bars.append(
                {
                    "begin": state["begin"],
                    "end": end,
                    "kind": kind,
                    "count": int(short),
                    "label": f"{state['name']}: {state['seconds']:.1f} s",
                }
            )
    for bar in bars:
        bar["seconds"] = bar["end"] - bar["begin"]
        if bar["count"] > 1:
            bar["label"] = f"{bar['count']} states without a change, {bar['seconds']:.1f} s"
    return bars


def _bar(x: Any, y: int, one: Mapping[str, Any], kind: str, label: str) -> str:
    left = x(one["begin"])
    width = round(max(x(one["begin"] + one["seconds"]) - left, 4 if kind == "failed" else 1), 1)
    return (
        f'<rect class="{kind}" x="{left}" y="{y}" width="{width}" height="{_BAR}">'
        f"<title>{html.escape(label)}</title></rect>"
    )


def _ticks(seconds: float) -> list[float]:
    """Some six round numbers up to the end.

    >>> _ticks(57)
    [0, 10, 20, 30, 40, 50]
    """
    step = next(
        (one for one in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300) if seconds / one <= 8),
        600,
    )
    return [round(step * n, 3) for n in range(int(seconds / step) + 1)]
