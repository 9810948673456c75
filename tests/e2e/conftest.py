"""The lab for the tests that need it: one lab, one story, in the order of the files' names.

The hosts start bare. ``test_1_*`` look at them before anything is deployed, ``test_2_*`` deploy,
what follows works on the running cluster. ``INDIGO_KEEP_LAB=1`` leaves it running afterwards.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

from indigo_lab.lab import Lab, Options

#: Step on which all later ones stand; when it failed they could only fail too.
_broken: list[str] = []


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A lab of the seed's size with bare hosts."""
    found = Lab()
    if found.running:
        found.down()
    found.up(Options(profile="ha", nodes=3, prepared=False))
    yield found
    if not os.environ.get("INDIGO_KEEP_LAB"):
        found.down()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs the lab."""
    for item in items:
        item.add_marker(pytest.mark.lab)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Remember when a test that others stand on fails."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and item.get_closest_marker("foundation"):
        _broken.append(item.nodeid)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail at once, and say why, instead of waiting for a cluster that is not there."""
    if _broken:
        pytest.fail(f"stands on {_broken[0]}, which failed", pytrace=False)


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"[{request.node.name}: {time.monotonic() - started:.1f} s]")
