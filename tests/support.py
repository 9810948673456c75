"""What the test suites share: paths, and loading of Salt extension modules outside Salt."""

from __future__ import annotations

import importlib.util
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
