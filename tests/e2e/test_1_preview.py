"""``test=True`` on bare hosts previews the whole deployment and changes nothing."""

from __future__ import annotations

import pytest
from cluster import deploy
from fingerprints import differences, fingerprints


@pytest.fixture(scope="module")
def preview(lab):
    before = fingerprints(lab)
    done = deploy(lab, "test=True")
    return done, differences(before, fingerprints(lab))


def test_the_preview_succeeds(preview):
    done, _ = preview
    assert done.code == 0, done.told
    assert done.steps
    assert not [name for name, step in done.steps.items() if step["result"] is False], done.told


def test_the_preview_changes_nothing(preview):
    _, found = preview
    assert found == {}


def test_every_step_says_what_it_would_do(preview):
    done, _ = preview
    steps = {name: (step["result"], step["comment"]) for name, step in done.steps.items()}
    # Only preflight is done for real: it reads. And without add-ons there is nothing to try.
    assert [name for name, (result, _) in steps.items() if result is not None] == [
        "Every host passes preflight",
        "The add-ons work",
    ]
    assert steps["The add-ons work"][1] == "No add-on is declared"
    assert all(comment for _, comment in steps.values())
    assert "would be allowed to form a new etcd cluster" in str(steps)
    assert "would receive tokens" in str(steps)
    assert "would be asked" in str(steps["The cluster is whole"])


def test_every_host_and_every_state_is_previewed(lab, preview):
    done, _ = preview
    states = list(done.states())
    assert {host for _, host, _ in states} == {host.name for host in lab.hosts()}
    assert not [state for _, _, state in states if state["result"] is False], done.told
    for _, host, state in states:
        if state["result"] is None:
            assert state["comment"], (host, state["name"])
    # What each role is about appears on each of its hosts as something that would be done.
    would = {
        role: {
            host.name: {s["name"] for _, h, s in states if h == host.name and s["result"] is None}
            for host in lab.with_role(role)
        }
        for role in ("ca", "lb", "etcd", "master", "node")
    }
    expected = {
        "ca": {"Certificate authorities are present"},
        "lb": {"haproxy", "keepalived"},
        "etcd": {"etcd"},
        "master": {"etcd-proxy", "kube-apiserver", "kube-controller-manager", "kube-scheduler"},
        "node": {"containerd", "kubelet", "kube-proxy"},
    }
    for role, names in expected.items():
        for host, found in would[role].items():
            assert names <= found, (role, host, sorted(found))
