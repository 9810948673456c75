"""The labs for the tests that need one: one story, in the order of the files' names.

A module names the profile it needs (``PROFILE``, default ``ha``). The lab stands until a module
needs another one, so what a file leaves is what the next one finds. Hosts start bare: ``test_1_*``
look at them before anything is deployed, ``test_2_*`` deploy, what follows works on that cluster.

``INDIGO_KEEP_LAB=1`` takes a running lab of the right profile as it is, and leaves it running.
``INDIGO_KUBERNETES``, ``INDIGO_CONTAINERD`` and ``INDIGO_ETCD`` bring other binaries than the
lab's own, and ``INDIGO_IMAGES`` more images, as the options of ``lab up`` do
(docs/operations/lab.md).
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

from cluster import Deployed, deploy
from indigo_lab.lab import Lab, Options, from_environment
from witness import Witness

#: One session of tests at a time may use the one lab of this machine.
CLAIM = "/run/lock/indigo-lab-tests"

KEEP = bool(os.environ.get("INDIGO_KEEP_LAB"))

FIGURES = pytest.StashKey[list[str]]()


class Stage:
    """The one lab of this machine, and what happened on it."""

    def __init__(self) -> None:
        self._claim = open(CLAIM, "a+", encoding="utf-8")  # noqa: SIM115 - held until the end
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._claim.seek(0)
            pytest.exit(
                f"the lab is in use by the tests of process {self._claim.read().strip()} "
                f"({CLAIM}): wait for them to end",
                returncode=2,
            )
        self._claim.truncate(0)
        self._claim.write(str(os.getpid()))
        self._claim.flush()
        self.lab = Lab()
        self.profile: str | None = None
        #: Test on which all later ones on this lab stand, if it failed: they could only fail too.
        self.broken: str | None = None

    def take(self, profile: str) -> Lab:
        """The lab of a profile; another one is taken down first."""
        if self.profile == profile:
            return self.lab
        if not (KEEP and self.lab.running and self._kept() == profile):
            self.down()
            options = Options(profile=profile, nodes=3 if profile == "ha" else None, prepared=False)
            self.lab.up(options.over(from_environment()))
        self.profile, self.broken = profile, None
        return self.lab

    def _kept(self) -> str:
        names = {host.name for host in self.lab.hosts()}
        return "single" if names == {"salt"} else "compact" if "host1" in names else "ha"

    def down(self) -> None:
        """Take the lab down, if there is one."""
        if self.lab.running:
            self.lab.down()
        self.profile = None


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """The labs of this session, one after the other."""
    found = Stage()
    yield found
    if not KEEP:
        found.down()


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, stage: Stage) -> Lab:
    """The lab that this module needs, as the modules before left it."""
    return stage.take(getattr(request.module, "PROFILE", "ha"))


@pytest.fixture(scope="session")
def witness(stage: Stage) -> Iterator[Witness]:
    """Sees every event of the Salt master and every process of all hosts during the deploy."""
    with Witness(stage.take("ha")) as found:
        yield found


@pytest.fixture(scope="session")
def first_deploy(stage: Stage, witness: Witness) -> Deployed:
    """The deploy on the bare hosts of the profile ha; whoever needs that cluster asks for it."""
    with witness.watching():
        return deploy(stage.take("ha"))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line of measurements to the end of pytest's report."""
    return request.config.stash[FIGURES].append


def pytest_configure(config: pytest.Config) -> None:
    """Start without figures."""
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    figures = terminalreporter.config.stash[FIGURES]
    if figures:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(figures))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs the lab."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Say at once why a test failed, and remember it when others stand on that test.

    The report at the end comes an hour later, or never when the run is cut off.
    """
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    reporter = item.config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        reporter.ensure_newline()
        reporter.write_line(f"FAILED {item.nodeid}, {report.when}: {reason(report.longreprtext)}")
    if item.get_closest_marker("foundation"):
        stage = getattr(item, "funcargs", {}).get("stage")
        if stage and not stage.broken:
            stage.broken = item.nodeid


def reason(traceback: str, lines: int = 12) -> str:
    """What a traceback of pytest says of the error itself, with the place where it happened."""
    text = traceback.strip().splitlines()
    return "\n".join([one for one in text if one.startswith("E ")][:lines] + text[-1:])


@pytest.fixture(autouse=True)
def _stands(request: pytest.FixtureRequest, stage: Stage) -> Iterator[None]:
    """Fail at once, and say why, instead of waiting for a cluster that is not there."""
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab")
    if stage.broken:
        pytest.fail(f"stands on {stage.broken}, which failed", pytrace=False)
    started = time.monotonic()
    yield
    print(f"[{request.node.name}: {time.monotonic() - started:.1f} s]")
