"""Every check of :mod:`cis` passes or says why not, for every release; and so do the sandboxes."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import cis
import pytest
import yaml
from indigo_model import pki
from render_compiler import MINORS, ROOT, Minion, declared, pillar, release


@functools.cache
def minion() -> Minion:
    return Minion("debian12")


@functools.cache
def units(minor: int) -> dict[str, str]:
    """Rendered units by name, of one host with all roles."""
    return {
        Path(path).stem: text for path, text in rendered(minor)[1].items() if ".service" in path
    }


@functools.cache
def more_units() -> dict[str, str]:
    """Units that only other settings bring."""
    subject = minion()
    subject.use(pillar("single", "all1", release(max(MINORS)), "flannel", "nftables"))
    found = {}
    for chunk in subject.compile(["common", "lb", "etcd", "master", "node"]).chunks:
        if chunk["state"] == "file" and str(chunk["name"]).endswith(".service"):
            found[Path(chunk["name"]).stem] = subject.content(chunk) or ""
    return found


@functools.cache
def rendered(minor: int) -> tuple[tuple[cis.Entry, ...], dict[str, str]]:
    """Files and folders of one host with all roles, and the content of files."""
    subject = minion()
    subject.use(pillar("single", "all1", release(minor)))
    compiled = subject.compile(["common", "ca", "lb", "etcd", "master", "node"])
    assert not compiled.errors, compiled.errors
    entries, content = [], {}
    for chunk in compiled.chunks:
        if chunk["state"] == "file" and chunk["fun"] in ("managed", "directory"):
            if chunk["fun"] == "directory" and "mode" not in chunk:
                continue  # of a pod's data, which kubelet gives to it
            path, mode = str(chunk["name"]), int(str(chunk["mode"]), 8)
            user = str(chunk.get("user", "root"))
            entries.append(cis.Entry(path, mode, user, str(chunk.get("group", "root"))))
            if chunk["fun"] == "managed":
                content[path] = subject.content(chunk) or ""
    return tuple(entries), content


@functools.cache
def facts(minor: int) -> cis.Facts:
    entries, content = rendered(minor)
    flags = {
        name: cis.flags_of(text)
        for name, text in units(minor).items()
        if name in ("etcd", "kubelet", "kube-proxy", cis.API, cis.KCM, cis.SCHEDULER)
    }
    clients = [
        row.name
        for row in pki.CERTIFICATES
        if pki.CLIENT in row.usages and row.authority == "kubernetes" and row.organization
    ]
    return cis.Facts(
        flags=flags,
        kubelet=yaml.safe_load(content["/etc/kubernetes/kubelet.yaml"]),
        kube_proxy=yaml.safe_load(content["/etc/kubernetes/kube-proxy.yaml"]),
        audit=yaml.safe_load(content["/etc/kubernetes/audit-policy.yaml"]),
        files=entries,
        authorities={row.name: row.authority for row in pki.CERTIFICATES},
        persons=tuple(clients),
        readers=frozenset(row.user for row in pki.CERTIFICATES),
    )


@pytest.mark.parametrize("minor", MINORS, ids=lambda minor: f"1.{minor}")
def test_every_check_passes_or_says_why_not(minor: int) -> None:
    found = facts(minor)
    wrong = []
    for check in cis.CHECKS:
        passes = check.judge(found)
        if passes is False and not check.reason:
            wrong.append(f"{check.number} ({check.asks}) does not pass")
        if passes is True and check.reason:
            wrong.append(f"{check.number} ({check.asks}) passes, and says why it does not")
    assert not wrong, "\n".join(wrong)


def test_what_is_not_rendered_is_looked_at_on_hosts() -> None:
    """Only files have nothing to be looked at here, and they say where they lie."""
    blind = [check for check in cis.CHECKS if check.judge(facts(max(MINORS))) is None]
    assert all(check.paths or check.reason for check in blind), [one.number for one in blind]
    assert {check.number for check in blind if check.paths} <= {
        *("1.1.9", "1.1.10", "1.1.20", "1.1.21", "4.1.7", "4.1.8"),
    }


def test_the_table_is_complete_and_in_order() -> None:
    numbers = [check.number for check in cis.CHECKS]
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers, key=lambda text: [int(part) for part in text.split(".")])
    last = {"1.1": 21, "1.2": 30, "1.3": 7, "1.4": 2, "3.1": 3, "3.2": 2, "4.1": 10, "4.2": 15}
    for section, count in last.items():
        assert sum(number.startswith(f"{section}.") for number in numbers) == count, section
    assert sum(bool(re.fullmatch(r"2\.\d", number)) for number in numbers) == 7


def test_a_check_can_fail() -> None:
    found = facts(max(MINORS))
    open_ = {**found.flags, cis.API: {**found.flags[cis.API], "authorization-mode": "AlwaysAllow"}}
    worse = cis.Facts(**{**vars(found), "flags": open_, "kubelet": {}})
    failed = {check.number for check in cis.CHECKS if check.judge(worse) is False}
    assert {"1.2.6", "1.2.7", "1.2.8", "4.2.1", "4.2.2", "4.2.4"} <= failed
    loose = tuple(cis.Entry(one.path, 0o777, "nobody", one.group) for one in found.files)
    worse = cis.Facts(**{**vars(found), "files": loose})
    failed = {check.number for check in cis.CHECKS if check.judge(worse) is False}
    assert {"1.1.11", "1.1.12", "1.1.13", "4.1.5", "4.1.9"} <= failed


def test_an_anonymous_caller_gets_health_and_nothing_else() -> None:
    """By path where the release can; else RBAC's own public role is all it is bound to."""
    for minor in MINORS:
        flags = facts(minor).flags[cis.API]
        text = rendered(minor)[1].get("/etc/kubernetes/authentication.yaml")
        if minor >= 32:
            assert "anonymous-auth" not in flags and flags["authentication-config"]
            paths = {one["path"] for one in yaml.safe_load(text)["anonymous"]["conditions"]}
            assert paths == {"/livez", "/readyz", "/healthz"}
        else:
            assert flags["anonymous-auth"] == "true" and text is None
        for one in declared("single", release(minor)).hosts.values():
            objects = pillar("single", one.id, release(minor))["indigo"]["rbac"]
            assert "anonymous" not in str(objects) and "unauthenticated" not in str(objects)


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "cis.md").read_text("utf-8")
    assert written == cis.reference(), "write cis.reference() to docs/cis.md"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd on this machine")
def test_no_unit_is_more_open_than_the_page_says(tmp_path: Path) -> None:
    found = {}
    for name, text in {**more_units(), **units(max(MINORS))}.items():
        path = tmp_path / f"{name}.service"
        path.write_text(text)
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        score = re.search(r"Overall exposure level for \S+: ([\d.]+)", said.stdout)
        assert score, said.stdout[-300:] + said.stderr
        found[name] = float(score[1])
    assert set(found) == set(cis.EXPOSURE), found
    # Other releases of systemd weigh a little differently.
    worse = {name: one for name, one in found.items() if one > cis.EXPOSURE[name][0] + 0.5}
    assert not worse, worse
