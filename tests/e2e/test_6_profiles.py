"""The small profiles: hosts that share roles, and one host that is everything."""

from __future__ import annotations

import pytest
from cluster import apply_all, changes, deploy, ready_nodes, well

NODES = {"compact": {"host1", "host2", "host3"}, "single": {"salt"}}


# The files before deploy on compact in each run; its lab comes with their cluster, when those ran.
_PROFILES = [pytest.param("compact", marks=pytest.mark.slow), "single"]


@pytest.fixture(scope="module", params=_PROFILES, autouse=True)
def lab(request, stage):
    return stage.take(request.param)


@pytest.mark.foundation
def test_deploys(lab, stage, figure):
    done = deploy(lab)
    figure(f"deploy on profile {stage.profile}: {done.seconds:.1f} s")
    assert done.code == 0, done.told


def test_nodes_are_ready_and_all_is_well(lab, stage):
    assert ready_nodes(lab) == NODES[stage.profile]
    well(lab)


def test_a_second_deploy_changes_nothing(lab, stage, figure):
    done = deploy(lab)
    figure(f"second deploy on profile {stage.profile}: {done.seconds:.1f} s")
    assert done.code == 0, done.told
    assert done.changes == {}


def test_state_apply_changes_nothing(lab):
    code, results = apply_all(lab)
    assert {host: changes(result) for host, result in results.items() if changes(result)} == {}
    assert code == 0
