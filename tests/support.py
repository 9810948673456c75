"""What the test suites share: paths, and loading of Salt extension modules outside Salt."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def load(kind: str, name: str) -> ModuleType:
    """Import ``<kind>/<name>.py`` under a name of its own.

    A state module and an execution module often share a name, so neither may be imported
    as a plain top-level module.

    Args:
        kind: Folder of the extension: ``_modules``, ``_states`` or ``_runners``.
        name: Module name without suffix.

    Returns:
        The freshly executed module.

    Example:
        >>> load("_states", "indigo_health").__name__
        'indigo_under_test__states_indigo_health'
    """
    path = ROOT / kind / f"{name}.py"
    unique = f"indigo_under_test_{kind}_{name}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asking(answer: Callable[..., dict[str, Any]]) -> dict[str, Callable[..., Any]]:
    """The functions of ``indigo_ask``, as states have them, over hosts that answer like this."""
    module = load("_modules", "indigo_ask")
    module.minions = answer  # type: ignore[attr-defined]
    return {"indigo_ask.minions": answer, "indigo_ask.each": module.each}


def program(package: str, path: str) -> Path:
    """A program of a Debian package, unpacked once into the lab's cache and not installed."""
    from lab.indigo_lab import debian
    from lab.indigo_lab.base import cache, locked

    folder = cache("tools", f"{package}-{debian.release()}")
    # Tests run side by side, and a program is there before it is whole.
    with locked("tools.lock", "download of programs"):
        if not (folder / path).exists():
            apt = debian.Apt()
            apt.update()
            debian.unpack(apt.single([package])[package], folder)
    return folder / path


class Pod:
    """A server that answers as a pod would, on loopback; use it as a context manager.

    Attributes:
        answers: path, with its question -> status, and text or what is told in JSON.
        asked: path and ``Authorization`` of each request.
        port: where it listens.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers["Authorization"]))
                status, said = outer.answers[self.path]
                self.send_response(status)
                self.end_headers()
                self.wfile.write((said if isinstance(said, str) else json.dumps(said)).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
