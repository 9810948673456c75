"""An orchestration that runs in the background, to be watched and struck at a chosen moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Deployed, parsed
from indigo_lab import engine
from indigo_lab.base import REPO
from indigo_lab.lab import Lab


class Run:
    """One orchestration, ``indigo.deploy`` by default, through the lab's own command."""

    def __init__(self, lab: Lab, orchestration: str = "indigo.deploy") -> None:
        self.lab = lab
        self._words = f"/salt-run state.orchestrate {orchestration} "
        self._folder = tempfile.TemporaryDirectory(prefix="indigo-run-")
        self._out, self._err = (Path(self._folder.name, name) for name in ("out", "err"))
        self._roots = {host.name: self._root(host.name) for host in lab.hosts()}
        self._started = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [str(REPO / "tests/lab/lab"), "salt-run", "state.orchestrate", orchestration,
                 "--out", "json"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    @staticmethod
    def _root(host: str) -> Path:
        # A guest's disk as its first process sees it: one look costs no command.
        pid = engine.podman("inspect", "--format", "{{.State.Pid}}", engine.container(host)).stdout
        return Path("/proc", pid.strip(), "root")

    # ------------------------------------------------------------ what has happened so far

    def has(self, host: str, pattern: str) -> bool:
        """Whether a host has a file that matches a pattern."""
        return next(self._roots[host].glob(pattern.lstrip("/")), None) is not None

    def document(self, host: str, path: str) -> dict[str, Any]:
        """A JSON file of a host; empty where there is none."""
        try:
            return dict(json.loads((self._roots[host] / path.lstrip("/")).read_text()))
        except (OSError, ValueError):
            return {}

    def runs(self, host: str, unit: str) -> bool:
        """Whether systemd on a host has started a unit."""
        return os.path.lexists(self._roots[host] / f"run/systemd/units/invocation:{unit}.service")

    def done(self) -> set[str]:
        """Hosts that reported the end of a step of this run."""
        progress = self._err.read_text()
        return set(re.findall(r"  (\S+) done, \d+ of [1-9]\d* hosts", progress))

    def pids(self) -> list[int]:
        """The processes of salt-run, seen from this machine."""
        found = []
        for name in os.listdir("/proc"):
            try:
                words = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            # Salt gives its processes a title; the path is there before and after.
            if self._words.encode() in words + b" ":
                found.append(int(name))
        return found

    @property
    def over(self) -> bool:
        """Whether the command has ended."""
        return self._process.poll() is not None

    def wait_for(self, moment: Callable[[Run], bool], seconds: float = 180) -> bool:
        """Look every few milliseconds until the moment has come; false if the run ended first."""
        deadline = time.monotonic() + seconds
        while not self.over:
            if moment(self):
                return True
            assert time.monotonic() < deadline, self._err.read_text()
            time.sleep(0.01)
        return False

    # ------------------------------------------------------------ how it ends

    def kill(self) -> None:
        """SIGKILL for salt-run, and nothing else."""
        pids = self.pids()
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert self._process.wait(timeout=30) == 128 + signal.SIGKILL

    def end(self) -> Deployed:
        """Wait for its own end."""
        code = self._process.wait(timeout=600)
        seconds = time.monotonic() - self._started
        return parsed(code, self._out.read_text(), self._err.read_text(), seconds)


@dataclass(frozen=True)
class Moment:
    """When to strike.

    Attributes:
        about: in words.
        when: whether it has come.
        host: whom to strike; it is made bare before the run, so that the run has work there.
    """

    about: str
    when: Callable[[Run], bool]
    host: str = ""

    def __str__(self) -> str:
        return f"{self.host}: {self.about}" if self.host else self.about
