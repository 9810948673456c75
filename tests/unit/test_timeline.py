"""What a run tells at its end: the sum, the slowest, the failures last, and the picture."""

from __future__ import annotations

import io
import re
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import indigo_model
import pytest
from indigo_model import timeline
from support import load

cluster = load("_states", "indigo_cluster")

NOW = 1_767_323_100.0  # 03:05:00 UTC
SVG = "{http://www.w3.org/2000/svg}"


def step(number, start, seconds, **other):
    return {
        "__id__": f"Step {number}", "__run_num__": number, "start_time": start,
        "duration": seconds * 1000, "result": True, "comment": "fine", "changes": {}, **other,
    }  # fmt: skip


def state(number, start, milliseconds, **other):
    return {
        "__id__": f"State {number}", "__run_num__": number, "__sls__": "node.running",
        "start_time": start, "duration": milliseconds, "result": True, "comment": "", "changes": {},
        **other,
    }  # fmt: skip


RUNNING = {
    "a_|-Step 0_|-x_|-y": step(0, "03:04:00.000000", 2),
    "a_|-Step 1_|-x_|-y": step(1, "03:04:02.000000", 40, __jid__="7"),
    "a_|-Step 2_|-x_|-y": step(2, "03:04:42.0", 0, result=False, __state_ran__=False),
}
#: A host in another zone, whose clock goes wrong: only distances count.
HOST = {
    "1": state(0, "23:59:50.000000", 10),
    "2": state(1, "23:59:50.010000", 20),
    "3": state(
        2, "23:59:52.000000", 18_000.0, changes={"unit": "started"}, __id__="Kubelet <runs>"
    ),
    "4": state(3, "00:00:10.000000", 500, result=False, comment="kubelet died;\nsee journalctl"),
}
RETURNS = [
    ("7", "node1", HOST, "2026-01-02T03:04:40.000000"),
    ("7", "node2", ["Rendering SLS failed"], "2026-01-02T03:04:41.000000"),
    ("8", "other", HOST, "2026-01-02T03:04:40.000000"),
]


@pytest.fixture
def run():
    return timeline.gathered(RUNNING, RETURNS, NOW)


def test_times_are_since_the_start_of_the_run(run) -> None:
    assert run["seconds"] == 60
    assert [(one["begin"], one["seconds"]) for one in run["steps"]] == [(0, 2), (2, 40)]
    # The last state ends when the Salt master heard of it: 03:04:40.
    begins = [one["begin"] for one in run["hosts"]["node1"]]
    assert begins == [19.5, 19.51, 21.5, 39.5]


def test_a_step_may_have_several_jobs() -> None:
    running = {tag: {**one, "__jobs__": ["7", "8"]} for tag, one in RUNNING.items()}
    found = timeline.gathered(running, RETURNS, NOW)
    assert set(found["hosts"]) == {"node1", "node2", "other"}


def test_another_zone_of_the_master_and_midnight_do_not_matter() -> None:
    moved = {
        tag: {**one, **({"start_time": "00:04:00.5"} if "start_time" in one else {})}
        for tag, one in RUNNING.items()
    }
    run = timeline.gathered(moved, [], NOW, zone=-3 * 3600)
    assert run["started"] == NOW - 59.5
    midnight = {"a_|-s_|-x_|-y": step(0, "23:59:58.0", 4)}
    assert timeline.gathered(midnight, [], 86400.0 * 20000 + 2)["seconds"] == 4


def test_other_peoples_jobs_are_left_out(run) -> None:
    assert set(run["hosts"]) == {"node1", "node2"}


def test_the_failures_come_last_with_host_state_and_remedy(run) -> None:
    told = timeline.lines(run, "indigo.deploy", "/x.html")
    assert told[0] == (
        "indigo.deploy: FAILED after 60.0 s; states on 2 hosts: 1 changed, 2 unchanged, 1 failed"
    )
    slow = told[told.index("slowest states:") + 1]
    assert slow == "    18.0 s  node1: Kubelet <runs> (node.running)"
    first = next(n for n, line in enumerate(told) if line.startswith("FAILED "))
    assert all(line.startswith("FAILED ") for line in told[first:])
    assert "node1: State 3: kubelet died; see journalctl" in told[first]
    assert "salt node1 state.apply node.running" in told[first]
    assert "node2: Rendering SLS failed" in told[first + 1]


def test_a_good_run_ends_without_a_failure() -> None:
    good = timeline.gathered({}, [], NOW)
    assert timeline.lines(good, "x")[0].startswith("x: done after 0.0 s")
    assert not any("FAILED" in line for line in timeline.lines(good, "x"))


class Page(HTMLParser):
    """Counts tags that are open, and keeps text by tag."""

    VOID = ("meta", "br", "line", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.outside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def test_the_page_is_whole_and_needs_nothing_else(run) -> None:
    text = timeline.page(run, "indigo.deploy")
    page = Page(text)
    assert page.open == [] and page.outside == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "Kubelet &lt;runs&gt;" in text and "Kubelet <runs>" not in text


def test_the_picture_has_a_bar_for_each_step_and_where_hosts_were_busy(run) -> None:
    text = timeline.page(run, "indigo.deploy")
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.S)[0])
    bars = svg.findall(f"{SVG}rect")
    assert [bar.get("class") for bar in bars] == ["step", "step", "same", "changed", "failed"]
    box = [float(part) for part in svg.get("viewBox").split()]
    for bar in bars:
        left, width = float(bar.get("x")), float(bar.get("width"))
        assert box[0] <= left and left + width <= box[2]
        assert float(bar.get("y")) + float(bar.get("height")) <= box[3]
    changed = bars[3]
    scale = timeline._WIDTH / 60
    assert float(changed.get("width")) == pytest.approx(18 * scale, abs=0.2)
    assert {"node1", "node2"} <= {one.text for one in svg.findall(f"{SVG}text")}


def test_functions_that_hosts_ran_are_drawn_beside_their_states() -> None:
    asked = [
        ("node1", "indigo_preflight.facts", "2026-01-02T03:04:00.5", "2026-01-02T03:04:01.5", True),
        ("etcd1", "indigo_restore.stop", "2026-01-02T03:04:02", "2026-01-02T03:04:05", False),
        ("etcd1", "of a run before", "2026-01-02T03:02:02", "2026-01-02T03:03:05", True),
    ]
    run = timeline.gathered(RUNNING, RETURNS, NOW, asked=asked)
    assert run["asked"]["node1"] == [
        {"name": "indigo_preflight.facts", "begin": 0.5, "seconds": 1.0, "result": True}
    ]
    assert len(run["asked"]["etcd1"]) == 1
    text = timeline.page(run, "indigo.restore")
    drawn = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.S)[0])
    kinds = {bar.find(f"{SVG}title").text: bar.get("class") for bar in drawn.findall(f"{SVG}rect")}
    assert kinds["indigo_preflight.facts: 1.0 s"] == "asked"
    assert kinds["indigo_restore.stop: 3.0 s"] == "failed"
    assert {"node1", "etcd1"} <= {one.text for one in drawn.findall(f"{SVG}text")}


def test_functions_of_ours_are_kept_and_others_are_not() -> None:
    live = cluster._Live(io.StringIO())
    for job, fun in (("1", "indigo_restore.stop"), ("2", "test.ping")):
        live.take(event(f"salt/job/{job}/new", fun=fun, _stamp="a", minions=["x"]))
        live.take(event(f"salt/job/{job}/ret/x", fun=fun, _stamp="b", id="x", retcode=0))
    # Nobody's job: what a schedule returns.
    live.take(event("salt/job/3/ret/x", fun="indigo_backup.look", _stamp="b", id="x"))
    assert live.asked == [("x", "indigo_restore.stop", "a", "b", True)]


def test_a_hundred_hosts_make_a_page_of_bearable_size() -> None:
    states = {str(n): state(n, f"03:04:{n // 10:02}.{n % 10}00000", 90) for n in range(400)}
    many = [("7", f"node{n}", states, "2026-01-02T03:04:50.000000") for n in range(100)]
    started = time.process_time()
    text = timeline.page(timeline.gathered(RUNNING, many, NOW), "x")
    assert time.process_time() - started < 5
    assert len(text) < 1_000_000


# --- the step, and the terminal ------------------------------------------------------------


@pytest.fixture
def live(monkeypatch, tmp_path):
    """A run in this process, on something that is no terminal."""
    found = cluster._Live(io.StringIO())
    monkeypatch.setattr(cluster, "_RUN", [found])
    monkeypatch.setattr(cluster, "__running__", RUNNING, raising=False)
    monkeypatch.setattr(cluster, "__opts__", {"test": False}, raising=False)
    monkeypatch.setattr(indigo_model, "__opts__", {"cachedir": str(tmp_path)}, raising=False)
    functions = {"indigo_model.told": indigo_model.told}
    monkeypatch.setattr(cluster, "__salt__", functions, raising=False)
    return found


def event(tag, **data):
    return {"tag": tag, "data": {"fun": "state.sls", "fun_args": ["indigo.host"], **data}}


def test_the_run_is_told_after_everything_else_and_changes_nothing(live, tmp_path) -> None:
    live.take(event("salt/job/7/new", minions=["node1"]))
    stamp = "2026-01-02T03:04:40.000000+00:00"
    live.take(event("salt/job/7/ret/node1", id="node1", _stamp=stamp, **{"return": HOST}))
    ret = cluster.told("What happened is told", "indigo.deploy")
    assert ret["result"] is True and ret["changes"] == {}
    (page,) = (tmp_path / "indigo" / "runs").glob("*.html")
    assert str(page) in ret["comment"]
    live.end()
    lines = live.stream.getvalue().splitlines()
    assert "node1 FAILED" in lines[0]
    assert lines[1].startswith("indigo.deploy: FAILED")
    assert lines[-1].strip().startswith("again, alone: salt node1")
    assert "\r" not in live.stream.getvalue()


def test_a_run_does_not_fail_because_it_cannot_be_told(live, monkeypatch) -> None:
    live.returns.append(("7", "node1", HOST, "no time"))
    ret = cluster.told("What happened is told", "indigo.deploy")
    assert ret["result"] is True and "could not be summed up" in ret["comment"]


def test_test_mode_keeps_nothing(live, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(cluster.__opts__, "test", True)
    ret = cluster.told("What happened is told", "indigo.deploy")
    assert ret["result"] is None and ret["comment"]
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_has_one_line_that_moves(live) -> None:
    live.terminal = True
    live.step, live.expected = "Every host runs its roles", 1000.0
    live.take(event("salt/job/7/new", minions=["a", "b"]))
    live.tick()
    assert live.stream.getvalue().startswith("\r\033[K[")
    assert "Every host runs its roles: 0 of 2 hosts, about" in live.stream.getvalue()


def test_the_next_run_knows_how_long_the_last_ones_took(live, tmp_path) -> None:
    assert indigo_model.estimate("indigo.deploy", 1) is None
    good = {tag: {**one, "result": True} for tag, one in list(RUNNING.items())[:2]}
    returns = [("7", "node1", {"1": HOST["1"]}, "2026-01-02T03:04:40.000000+00:00")]
    for seconds in (0, 10, 20):
        indigo_model.told(good, returns, "indigo.deploy", NOW + seconds, 0.0, True)
    # Begun at the same time of day, they share a name: the last one counts.
    assert indigo_model.estimate("indigo.deploy", 1) == 80
    assert indigo_model.estimate("indigo.deploy", 2) is None


def test_only_the_newest_pictures_are_kept(live, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(indigo_model, "RUNS", 3)
    for day in range(5):
        indigo_model.told(RUNNING, [], "indigo.deploy", NOW + 86400 * day, 0.0, True)
    folder = tmp_path / "indigo" / "runs"
    assert len(list(folder.glob("*.html"))) == len(list(folder.glob("*.json"))) == 3
