"""The lock through another minion: what a real Salt master passes on, and who it says asks."""

from __future__ import annotations

import pytest

BALANCER, MEMBER, NODE = "ca-host", "Master1", "node1"


def ask(site, minion, function, *arg):
    """What a minion obtains from the etcd host."""
    return site.call(minion, "publish.publish", MEMBER, function, arg=list(arg), timeout=15)


def test_the_pillar_says_who_may_have_which_lock(site):
    assert site.view(BALANCER)["lock"] == {"through": [MEMBER]}
    assert site.view(MEMBER)["lock"]["lends"] == {"lb": [BALANCER]}
    assert "lock" not in site.view(NODE)


@pytest.mark.parametrize("function", ["hold", "free"])
@pytest.mark.parametrize(
    ("minion", "tier"),
    [
        # 1. No host of that tier.
        (NODE, "lb"),
        # 2. A host that may have another tier's lock.
        (BALANCER, "etcd"),
        (BALANCER, "kube-apiserver"),
    ],
)
def test_the_lock_of_another_is_refused(site, function, minion, tier):
    answer = ask(site, minion, f"indigo_rolling.{function}", tier)[MEMBER]
    assert answer["problem"].startswith(
        f"minion '{minion}' may not have the lock of the tier '{tier}' here"
    )


def test_whoever_claims_to_be_another_is_known_all_the_same(site):
    lie = {"__pub_id": BALANCER, "__kwarg__": True}
    answer = ask(site, NODE, "indigo_rolling.hold", "lb", 0, lie)[MEMBER]
    assert f"minion '{NODE}' may not" in answer["problem"]


def test_a_peer_says_whether_it_serves(site):
    answer = ask(site, BALANCER, "indigo_rolling.serves", "etcd")[MEMBER]
    assert answer == {
        "ok": False,
        "problem": "the pillar declares no tier of etcd on this host",
    }


@pytest.mark.parametrize("function", ["restart", "holders", "hold_all", "after"])
def test_nothing_else_is_passed_on(site, function):
    assert ask(site, BALANCER, f"indigo_rolling.{function}", "etcd") == {}
