"""When units stopped and served again, and what load balancers saw: from the hosts' journals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from indigo_lab.lab import Lab

#: systemd's message ids: systemd.journal-fields(7), sd-messages.h.
STARTED = "39f53479d3a045ac8e11786248231fbf"
STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
FAILED = "d9b373ed55a64feb8242e02dbe79a49c"

_UP = re.compile(r"Server ready/(\S+) is UP\b")


@dataclass(frozen=True)
class Span:
    """A time without a member, seconds of the epoch."""

    member: str
    begin: float
    end: float

    def __str__(self) -> str:
        return f"{self.member} {self.end - self.begin:.1f} s"


def _entries(lab: Lab, host: str, since: float, *match: str) -> list[tuple[float, dict[str, str]]]:
    done = lab.exec(
        host,
        ["journalctl", "--quiet", "--output=json", f"--since=@{since:.3f}", *match],
        timeout=60,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted(
        ((int(one.get("_SOURCE_REALTIME_TIMESTAMP", one["__REALTIME_TIMESTAMP"])) / 1e6, one)
         for one in found),
        key=lambda pair: pair[0],
    )  # fmt: skip


def _spans(member: str, events: Iterable[tuple[float, bool]]) -> list[Span]:
    """From (time, whether it is up then) to the times without it; open ones never end.

    >>> [(s.begin, s.end) for s in _spans("a", [(1, False), (2, False), (3, True), (9, False)])]
    [(1, 3), (9, inf)]
    """
    spans, begin = [], None
    for at, up in events:
        if up and begin is not None:
            spans.append(Span(member, begin, at))
            begin = None
        elif not up and begin is None:
            begin = at
    return spans + ([Span(member, begin, float("inf"))] if begin is not None else [])


def stops(lab: Lab, host: str, units: Iterable[str], since: float) -> list[Span]:
    """Times from a unit's stop to its start's end, as systemd on the host wrote them down."""
    found = []
    for unit in units:
        ids = [f"MESSAGE_ID={one}" for one in (STARTED, STOPPING, FAILED)]
        entries = _entries(lab, host, since, "_PID=1", f"UNIT={unit}.service", *ids)
        found += _spans(host, ((at, one["MESSAGE_ID"] == STARTED) for at, one in entries))
    return found


def taken_in(lab: Lab, balancer: str, spans: Iterable[Span], since: float) -> list[Span]:
    """Times without API servers as a load balancer has them: until it takes each in again.

    What it sees of a server that runs all the while, say a check that came too late on a busy
    machine, is none of them.
    """
    up = [
        (at, match[1])
        for at, one in _entries(lab, balancer, since, "_SYSTEMD_UNIT=haproxy.service")
        if (match := _UP.search(str(one.get("MESSAGE", ""))))
    ]
    return [
        Span(
            span.member,
            span.begin,
            min((at for at, name in up if name == span.member and at > span.end), default=span.end),
        )
        for span in spans
    ]


def together(spans: Iterable[Span]) -> list[tuple[str, str]]:
    """Pairs of different members that were away at the same time.

    >>> together([Span("a", 1, 3), Span("b", 2, 4), Span("c", 4, 5)])
    [('a 2.0 s', 'b 2.0 s')]
    """
    return [
        (str(a), str(b))
        for a, b in combinations(sorted(spans, key=lambda span: span.begin), 2)
        if a.member != b.member and b.begin < a.end and a.begin < b.end
    ]


def told(tiers: Mapping[str, Iterable[Span]]) -> str:
    """Who was away for how long, for a person."""
    return "; ".join(f"{tier}: {', '.join(map(str, spans))}" for tier, spans in tiers.items())
