"""Records what an intruder on the hosts could have seen while a deploy ran.

Two sources: every event on the Salt master's bus, and the command line and environment of every
process of every host. Guests are processes of this machine, so one look at ``/proc`` shows all.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from cluster import until
from indigo_lab.base import REPO
from indigo_lab.lab import Lab

#: Runs on the Salt master's host until its standard input ends: one event a line.
_LISTENER = """
import json, sys, threading, os
import salt.config, salt.utils.event
opts = salt.config.client_config("/etc/salt/master")
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
with salt.utils.event.get_event("master", sock_dir=opts["sock_dir"], opts=opts, listen=True) as bus:
    bus.connect_pub()
    print("listening", flush=True)
    while True:
        event = bus.get_event(wait=1, full=True, auto_reconnect=True)
        if event:
            print(json.dumps(event, default=repr), flush=True)
"""

#: Seconds between two looks at all processes.
_INTERVAL = 0.1


class Witness:
    """The recorder; use it as a context manager, then read :attr:`events` and :attr:`processes`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._folder = tempfile.TemporaryDirectory(prefix="indigo-witness-")
        self._file = Path(self._folder.name, "events")
        self._seen: set[bytes] = set()
        self._watching = False

    def __enter__(self) -> Witness:
        with self._file.open("wb") as out:
            self._listener = subprocess.Popen(
                [str(REPO / "tests/lab/lab"), "exec", "salt", "--",
                 "/opt/salt/bin/python3", "-c", _LISTENER],
                stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        assert until(lambda: self._file.stat().st_size, 20, 0.1), "no listener on the event bus"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._listener.stdin
        self._listener.stdin.close()
        self._listener.wait(timeout=30)
        self._folder.cleanup()

    @property
    def events(self) -> bytes:
        """All events so far, one JSON document a line."""
        return self._file.read_bytes()

    @property
    def processes(self) -> bytes:
        """Every distinct command line and environment seen while watching."""
        return b"\n".join(self._seen)

    def look(self) -> None:
        """Take in the processes that run now."""
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            for part in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    self._seen.add(Path("/proc", name, part).read_bytes())

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at all processes again and again."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(_INTERVAL):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
