"""What every suite needs: the model importable, and salt-factories' servers on loopback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from saltfactories.plugins.event_listener import EventListener

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "_modules", ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep salt-factories' log server on loopback; its default is every address."""
    server = session.config.pluginmanager.get_plugin("saltfactories-log-server")
    if server is not None:
        server.log_host = "127.0.0.1"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Records of daemons that stop reach the log server after pytest closed its streams."""
    logging.raiseExceptions = False


@pytest.fixture(scope="session")
def event_listener() -> Iterator[EventListener]:
    """salt-factories' event listener on loopback; its default is every address."""
    listener = EventListener()
    listener.host = "127.0.0.1"
    listener.address = f"tcp://127.0.0.1:{listener.port}"
    with listener:
        yield listener
