"""The load balancer that holds the VIP loses its power: how long clients notice, default timers."""

from __future__ import annotations

import json
import subprocess
import time
from itertools import pairwise

import pytest
import yaml
from cluster import answering, status, until, well
from indigo_lab.base import REPO

ROUNDS = 3
#: Seconds that clients may be without an answer.
ALLOWED = 1.5

# A client on a node: each try is a connection of its own, checks the server's certificate and what
# it answers. One line a try: when it began, when it ended, what was wrong.
_CLIENT = """
import http.client, json, ssl, sys, time
context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
while True:
    began, wrong = time.time(), None
    try:
        client = http.client.HTTPSConnection(sys.argv[1], 8443, timeout=0.2, context=context)
        client.request("GET", "/readyz")
        answer = client.getresponse()
        text = answer.read()
        if (answer.status, text) != (200, b"ok"):
            wrong = f"{answer.status} {text[:80]}"
        client.close()
    except (OSError, http.client.HTTPException) as err:
        wrong = repr(err)
    ended = time.time()
    print(json.dumps([began, ended, wrong]), flush=True)
    time.sleep(max(0, 0.05 - (ended - began)))
"""


class Client:
    """The client's tries, in the background."""

    def __init__(self, host: str, address: str) -> None:
        self._process = subprocess.Popen(
            [str(REPO / "tests/lab/lab"), "exec", host, "--",
             "timeout", "120", "python3", "-u", "-c", _CLIENT, address],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.tries: list[tuple[float, float, str | None]] = []

    def follow(self, seconds: float) -> None:
        """Take in tries for some seconds."""
        assert self._process.stdout
        end = time.time() + seconds
        for line in self._process.stdout:
            self.tries.append(tuple(json.loads(line)))
            if self.tries[-1][1] >= end:
                return
        raise AssertionError("the client ended")

    def close(self) -> None:
        """Break the client's pipe."""
        assert self._process.stdout
        self._process.stdout.close()
        self._process.wait(timeout=130)

    def gap(self, since: float, before: float = float("inf")) -> float:
        """Longest time from the end of one good answer to the end of the next."""
        good = [ended for _, ended, wrong in self.tries if wrong is None]
        pairs = [(a, b) for a, b in pairwise(good) if b >= since and a < before]
        return max(b - a for a, b in pairs)


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    # Default timers: the lab's file sets none.
    assert "timers" not in yaml.safe_load(lab.cluster_file.read_bytes())
    well(lab)


_ROUNDS = [
    pytest.param(number, marks=[pytest.mark.slow] * (number > 1)) for number in range(1, ROUNDS + 1)
]


@pytest.mark.parametrize("number", _ROUNDS)
def test_the_api_answers_again_after_the_holder_of_the_vip_lost_its_power(lab, figure, number):
    (holder,) = status(lab)["vip"]["holders"]
    client = Client("node1", "10.77.0.10")
    try:
        started = time.time()
        client.follow(2)
        killed = time.time()
        lab.kill(holder)
        client.follow(5)
    finally:
        client.close()
    quiet, gap = client.gap(started, killed), client.gap(killed)
    failed = [wrong for began, _, wrong in client.tries if wrong and began >= killed - 0.2]
    figure(
        f"VIP failover {number}: {holder} powered off, {gap:.2f} s without an answer, "
        f"{len(failed)} of {len(client.tries)} tries failed (longest pause before: {quiet:.2f} s)"
    )
    assert not [wrong for _, ended, wrong in client.tries if wrong and ended < killed]
    try:
        assert gap < ALLOWED, failed
        assert client.tries[-1][2] is None
    finally:
        lab.start(holder)
        answering(lab, holder)
    well(lab)
    # The one that came back does not take the VIP away from its holder.
    assert until(lambda: len(status(lab)["vip"]["holders"]) == 1, 10)
