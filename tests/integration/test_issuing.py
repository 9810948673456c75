"""Certificates through a real master: issuing, refusing, renewing, reporting."""

from __future__ import annotations


def apply(site, minion, sls, **kwargs):
    answer = site.call(minion, "state.apply", sls, **kwargs)
    assert isinstance(answer, dict), answer
    return list(answer.values())


def test_issue(site):
    for step in apply(site, "ca-host", "ca"):
        assert step["result"] is True, step
        print(step)
    for _ in range(3):
        for step in apply(site, "Master1", "common.certificates"):
            print(step)
            assert step["result"] is True, step
