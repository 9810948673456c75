"""The timeline of a run, opened in a browser: what is drawn is seen, and lies where it should."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

from browser import WIDTH, opened
from indigo_model import timeline

NOW = 1_767_323_100.0  # 03:05:00 UTC
HOSTS = [f"node{number}" for number in range(1, 13)]


def state(number, start, milliseconds, **other):
    return {
        "__id__": f"State {number}", "__run_num__": number, "__sls__": "node.running",
        "start_time": start, "duration": milliseconds, "result": True, "changes": {}, **other,
    }  # fmt: skip


def test_a_run_is_seen_whole_with_a_line_a_host(tmp_path) -> None:
    running = {
        f"a_|-{name}_|-x_|-y": {
            "__id__": name, "__run_num__": number, "start_time": start, "duration": took * 1000,
            "result": True, "comment": "", "changes": {},
        }
        for number, (name, start, took) in enumerate(
            [("Every host passes preflight", "03:04:00.0", 2), ("It is whole", "03:04:55.0", 5)]
        )
    }  # fmt: skip
    states = {
        "1": state(0, "03:04:10.0", 900),
        "2": state(1, "03:04:11.0", 9000, changes={"a": "b"}),
        "3": state(2, "03:04:20.0", 2000, result=False),
    }
    returns = [("7", host, states, "2026-01-02T03:04:30.0") for host in HOSTS]
    asked = [("etcd1", "indigo_x.y", "2026-01-02T03:04:31", "2026-01-02T03:04:40", True)]
    run = timeline.gathered(running, returns, NOW, asked=asked)
    page = opened(timeline.page(run, "indigo.deploy"), tmp_path)
    assert page.title == "indigo.deploy"
    assert page.cut() == [] and page.wide <= WIDTH
    assert {*HOSTS, "etcd1", "It is whole"} <= page.words()
    rows = {one["text"]: one["top"] for one in page.parts if one["tag"] == "text"}
    tops = sorted(rows[host] for host in [*HOSTS, "etcd1"])
    assert all(below - above > 10 for above, below in itertools.pairwise(tops))
    fills = {bar["kind"]: bar["fill"] for bar in page.bars()}
    assert set(fills) == {"step", "same", "changed", "failed", "asked"}
    assert len(set(fills.values())) == len(fills)


def test_what_lies_outside_is_found(tmp_path) -> None:
    text = timeline.page(timeline.gathered({}, [], NOW), "x")
    bar = '<rect class="step" x="5000" y="0" width="9" height="9"/></svg>'
    assert opened(text.replace("</svg>", bar), tmp_path).cut()
