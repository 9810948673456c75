"""What a run tells at its end and leaves as a picture; the status as a check and as metrics."""

from __future__ import annotations

import itertools
import json
import re
import time
from xml.etree import ElementTree

import pytest
from browser import WIDTH, opened, timeline
from cluster import deploy, well

SVG = "{http://www.w3.org/2000/svg}"
CONFIG = "/etc/containerd/config.toml"


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    well(lab)


def told(progress):
    """The lines of the sum at the end of a run."""
    lines = progress.rstrip().splitlines()
    first = max(n for n, line in enumerate(lines) if line.startswith("indigo.deploy: "))
    return lines[first:]


def picture(lab, progress):
    """The SVG of a run's timeline."""
    page = timeline(lab, progress)
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", page, re.S)[0])


def test_the_first_deploy_is_summed_up_and_drawn(lab, first_deploy):
    first, *rest = told(first_deploy.progress)
    hosts = [host.name for host in lab.hosts()]
    assert first.startswith("indigo.deploy: done after")
    assert f"states on {len(hosts)} hosts: " in first and first.endswith(" 0 failed")
    changed = int(re.search(r"(\d+) changed", first)[1])
    assert changed > 10 * len(hosts)
    slow = rest[rest.index("slowest states:") + 1 :][:10]
    assert all(re.match(r" +\d+\.\d s  \S+: .+ \(\S+\)$", line) for line in slow), slow
    drawn = picture(lab, first_deploy.progress)
    words = {one.text for one in drawn.findall(f"{SVG}text")}
    assert set(hosts) <= words and "Every host runs its roles" in words
    bars = drawn.findall(f"{SVG}rect")
    assert sum(bar.get("class") == "changed" for bar in bars) == changed
    # Hosts work after the step that has them work has begun, and before it is over.
    step = next(bar for bar in bars if "Every host runs its roles" in bar.find(f"{SVG}title").text)
    left, width = float(step.get("x")), float(step.get("width"))
    for bar in bars:
        if bar.get("class") in ("changed", "same"):
            assert left - 15 <= float(bar.get("x")) <= left + width + 15


def test_the_picture_opens_in_a_browser(lab, first_deploy, tmp_path):
    page = opened(timeline(lab, first_deploy.progress), tmp_path)
    assert page.title == "indigo.deploy"
    assert page.cut() == [] and page.wide <= WIDTH
    assert {host.name for host in lab.hosts()} <= page.words()
    # A host has its own line, and no other host's bars are on it.
    rows = {one["text"]: one for one in page.parts if one["tag"] == "text"}
    middles = sorted((rows[h.name]["top"] + rows[h.name]["bottom"]) / 2 for h in lab.hosts())
    assert all(below - above > 10 for above, below in itertools.pairwise(middles))
    fills = {bar["kind"]: bar["fill"] for bar in page.bars()}
    assert len(fills) == len(set(fills.values())) and {"changed", "same", "step"} <= set(fills)


def test_on_a_terminal_a_line_moves_and_knows_how_long_it_takes(lab):
    orchestrate = "salt-run state.orchestrate indigo.deploy"
    command = f"""{orchestrate} pillar='{{"everywhere": true}}' >/dev/null"""
    done = lab.exec("salt", ["script", "-qec", command, "/dev/null"], timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "12 hosts; the last runs took" in done.stdout
    # Carriage returns have become ends of lines on the way here.
    line = r"[\r\n]\x1b\[K\[ *[\d.]+ s\] Every host runs its roles: (\d+) of 12"
    moved = [int(done_) for done_ in re.findall(line, done.stdout)]
    assert moved and sorted(moved) == moved
    assert "s left" in done.stdout or "longer than the last runs" in done.stdout
    assert any("indigo.deploy: done after" in one for one in done.stdout.splitlines()[-14:])


def test_what_failed_comes_last_with_host_state_and_remedy(lab):
    spoil = f"mv {CONFIG} {CONFIG}.kept && mkdir -p {CONFIG}/x"
    lab.exec("node1", ["sh", "-c", spoil], check=True)
    try:
        done = deploy(lab)
    finally:
        mend = f"rm -r {CONFIG} && mv {CONFIG}.kept {CONFIG}"
        lab.exec("node1", ["sh", "-c", mend], check=True)
    assert done.code != 0
    lines = told(done.progress)
    assert lines[0].startswith("indigo.deploy: FAILED after")
    first = next(n for n, line in enumerate(lines) if line.startswith("FAILED "))
    assert lines[first].startswith("FAILED node1: containerd is configured: "), lines
    assert lines[first + 1].strip() == "again, alone: salt node1 state.apply node.configured"
    assert not any("unclosed" in line or "Traceback" in line for line in lines[first:])
    bars = picture(lab, done.progress).findall(f"{SVG}rect")
    assert any(bar.get("class") == "failed" for bar in bars)
    assert deploy(lab).code == 0


def check(lab):
    """``indigo.check``: exit code, first line, problems, seconds."""
    started = time.monotonic()
    done = lab.salt_run("indigo.check", timeout=120)
    first, *problems = done.stdout.strip().splitlines()
    return done.returncode, first, problems, time.monotonic() - started


def test_a_check_has_its_exit_codes_and_is_fast(lab, figure):
    well(lab)
    code, first, problems, seconds = check(lab)
    assert (code, problems) == (0, []), (first, problems)
    assert first.startswith("INDIGO OK - lab: hosts 12/12, etcd 3/3, api 2/2, nodes 3/3 | ")
    asked = float(re.search(r" time=([\d.]+)s", first)[1])
    figure(f"indigo.check over 12 hosts: {seconds:.1f} s, of which asking {asked:.1f} s")
    assert seconds < 10
    lab.exec("node3", ["systemctl", "stop", "kube-proxy"], check=True)
    try:
        code, first, problems, _ = check(lab)
        text = lab.salt_run("indigo.metrics", timeout=120).stdout
    finally:
        lab.exec("node3", ["systemctl", "start", "kube-proxy"], check=True)
    assert code == 1 and first.startswith("INDIGO WARNING - lab: 1 problems")
    assert problems[0].startswith("node3: kube-proxy does not run")
    assert 'indigo_unit_active{cluster="lab",host="node3",unit="kube-proxy"} 0' in text


def test_metrics_are_a_file_that_node_exporter_reads(lab):
    well(lab)
    path = "/tmp/indigo.prom"
    done = lab.salt_run("indigo.metrics", f"path={path}", "--out=json", timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["problems"] == 0, done.stderr
    text = lab.exec("salt", ["cat", path], check=True).stdout
    values = dict(re.findall(r"^(indigo_\w+)\{[^}]*\} (\S+)$", text, re.M))
    assert values["indigo_severity"] == "0" and values["indigo_tokens_in_step"] == "1"
    assert int(values["indigo_etcd_db_bytes"]) > 10_000
    assert 0 < float(values["indigo_etcd_answer_seconds"]) < 5
    assert len(re.findall(r"^indigo_host_answers\{.*\} 1$", text, re.M)) == 12
    lab.exec("salt", ["rm", path], check=True)
