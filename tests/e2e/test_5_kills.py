"""Killed at any moment and run again, a deploy converges.

On the profile compact, whose three hosts have all roles each (two of them the masters'): whichever
host is struck, a load balancer, an etcd member, a node and mostly a master are struck with it. The
Salt master's host is left alone: its power-off is the orchestration's death, which the first half
is about, and the certificate authority's, which no run survives.
"""

from __future__ import annotations

import pytest
from cluster import answering, deploy, ready_nodes, well
from moments import Moment, Run

PROFILE = "compact"
HOSTS = ("host1", "host2", "host3")

SET = "/etc/kubernetes/tokens.set"
PARTIAL = "/opt/indigo/.*.partial-*"
MODULE = "/var/cache/salt/minion/extmods/modules/indigo_service.py"

#: From bare hosts on; each run gets further than the one before. What minions were told to do goes
#: on without the orchestration, so later moments need a host that is made bare again.
ORCHESTRATION = (
    Moment("it has just begun", lambda run: bool(run.pids())),
    Moment("modules reach the first host", lambda run: any(run.has(h, MODULE) for h in HOSTS)),
    Moment(
        "a member of etcd may bootstrap",
        lambda run: any(run.has(h, "/var/lib/etcd-bootstrap.grant") for h in HOSTS),
    ),
    Moment(
        "the holder has made the tokens, the other master has none",
        lambda run: run.has("host1", SET) and not run.has("host2", SET),
    ),
    Moment(
        "packages are being installed",
        lambda run: run.has("host1", "/var/lib/dpkg/info/haproxy.list"),
    ),
    Moment("tokens reach a master", lambda run: run.has("host2", SET), "host2"),
    Moment("a binary is half there", lambda run: run.has("host2", PARTIAL), "host2"),
    Moment("etcd joins", lambda run: run.has("host2", "/var/lib/etcd/member"), "host2"),
    Moment("the API server starts", lambda run: run.runs("host2", "kube-apiserver"), "host2"),
    Moment("one host is done", lambda run: bool(run.done()), "host2"),
    # A deploy runs on no host that is as the last one left it.
    Moment("that host is done", lambda run: "host2" in run.done(), "host2"),
)

#: The host that loses its power is made bare first, so that the run has everything to do there.
HOST = (
    Moment("modules reach it", lambda run: run.has("host3", MODULE), "host3"),
    Moment("tokens reach it", lambda run: run.has("host2", SET), "host2"),
    Moment(
        "packages are being installed",
        lambda run: run.has("host1", "/var/lib/dpkg/info/haproxy.list"),
        "host1",
    ),
    Moment("a binary is half there", lambda run: run.has("host3", PARTIAL), "host3"),
    Moment(
        "it asks for its certificates", lambda run: run.has("host1", "/etc/etcd/pki/*.key"), "host1"
    ),
    Moment("etcd joins", lambda run: run.has("host2", "/var/lib/etcd/member"), "host2"),
    Moment("containerd starts", lambda run: run.runs("host3", "containerd"), "host3"),
    Moment("the API server starts", lambda run: run.runs("host1", "kube-apiserver"), "host1"),
    Moment("kubelet starts", lambda run: run.runs("host3", "kubelet"), "host3"),
    # The one that is asked whether the cluster is whole.
    Moment("it is done, others may not be", lambda run: "host1" in run.done(), "host1"),
)

#: Those of `make test-slow`, by their numbers: `make test` has no time for all.
SLOW_KILLS = frozenset({1, 6, 7, 9})
SLOW = frozenset({0, 1, 2, 3, 4, 5, 6, 8, 9})


def some(moments, slow):
    """Numbers of the moments as parameters, the slow ones marked."""
    return [
        pytest.param(number, id=str(moment), marks=[pytest.mark.slow] * (number in slow))
        for number, moment in enumerate(moments)
    ]


def converges(lab, figure, about: str) -> None:
    """The next run reaches the declared state, and the one after it finds it."""
    done = deploy(lab)
    assert done.code == 0, done.told
    again = deploy(lab)
    figure(f"{about}: next run {done.seconds:.1f} s, the one after {again.seconds:.1f} s")
    assert again.code == 0, again.told
    assert again.changes == {}


# One after the other, without a whole run in between.
@pytest.mark.parametrize("number", some(ORCHESTRATION, SLOW_KILLS))
def test_the_orchestration_is_killed(lab, number):
    moment = ORCHESTRATION[number]
    if moment.host:
        lab.rebuild(moment.host)
    run = Run(lab)
    assert run.wait_for(moment.when), run.end().told
    run.kill()


@pytest.mark.foundation
def test_after_all_kills_of_the_orchestration_it_converges(lab, figure):
    converges(lab, figure, "after the kills of the orchestration")
    well(lab)
    assert ready_nodes(lab) == set(HOSTS)


@pytest.mark.parametrize("number", some(HOST, SLOW))
def test_a_host_loses_its_power_and_the_next_run_converges(lab, figure, number):
    moment = HOST[number]
    lab.rebuild(moment.host)
    run = Run(lab)
    assert run.wait_for(moment.when), run.end().told
    lab.kill(moment.host)
    # Every other host is back while the run is still waiting for it.
    at_once = number % 2 == 0
    if at_once:
        lab.start(moment.host)
    struck = run.end()
    # It says which host was lost. Only a host that had nothing left to do may be lost unnoticed.
    if struck.code or "done" not in moment.about:
        assert struck.code != 0
        assert moment.host in struck.told
    lab.start(moment.host)
    answering(lab, moment.host)
    converges(lab, figure, f"{moment} (that run: exit {struck.code} after {struck.seconds:.1f} s)")


def test_after_all_power_offs_the_cluster_is_well(lab):
    well(lab)
    assert ready_nodes(lab) == set(HOSTS)
