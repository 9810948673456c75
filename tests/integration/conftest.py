"""A real Salt master and minions on loopback, with the repository's own modules and model.

The minions are processes of this machine, so every path of their pillar is moved below a folder
of their own and every account is the one that runs the tests.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.client import LocalClient, get_local_client
from support import ROOT

#: The cluster that the integration tests declare: small, with every role.
CLUSTER = {
    "name": "trial",
    "vip": {"address": "10.99.0.10", "interface": "eth0"},
    "hosts": {
        "ca-host": {"address": "10.99.0.5", "roles": ["ca", "lb"]},
        "Master1": {"address": "10.99.0.31", "roles": ["etcd", "master"]},
        "node1": {"address": "10.99.0.41", "roles": ["node"]},
    },
    "networks": {"services": "10.96.0.0/16", "pods": "10.244.0.0/16"},
}

#: The pillar as the master derives it, with paths and accounts of this machine.
PILLAR = """#!py
import grp, json, os, pwd


def run():
    id_ = __opts__["id"]
    text = json.dumps(__salt__["indigo_model.pillar"](id_))
    view = json.loads(text.replace('"/etc/', '"@ROOT@/%s/etc/' % id_))
    for row in view.get("indigo", {}).get("pki", {}).get("certificates", []):
        row["user"] = pwd.getpwuid(os.geteuid()).pw_name
        row["group"] = grp.getgrgid(os.getegid()).gr_name
    return view
"""


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """Folder of the session: short, for the paths of sockets are limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ind-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def salt_factories_default_root_dir(workspace: Path) -> Path:
    """Where salt-factories puts everything of the daemons."""
    return workspace / "f"


@pytest.fixture(scope="session")
def salt_factories_config() -> dict[str, Any]:
    """Stop daemons without the grace that coverage reports would need."""
    return {"slow_stop": False}


@dataclass
class Site:
    """The running master and minions."""

    master: Any
    client: LocalClient
    minions: dict[str, Any]
    workspace: Path

    def root(self, minion: str) -> Path:
        """Folder that stands for ``/`` in the pillar of a minion."""
        return self.workspace / minion

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        """Run a function on a minion through the master and return its answer."""
        answers = self.client.cmd(minion, function, args, kwarg=kwargs, timeout=60)
        assert minion in answers, f"{minion} did not answer {function}"
        return answers[minion]

    def apply(self, target: str, sls: str, **kwargs: Any) -> dict[str, list[dict[str, Any]]]:
        """Apply states; for each minion the results of its states, in their order."""
        answers = self.client.cmd(target, "state.apply", [sls], kwarg=kwargs, timeout=120)
        for minion, answer in answers.items():
            assert isinstance(answer, dict), f"{minion}: {answer}"
        return {
            minion: sorted(answer.values(), key=lambda step: step["__run_num__"])
            for minion, answer in answers.items()
        }

    def view(self, minion: str) -> dict[str, Any]:
        """The view of a minion as its own process has it."""
        return self.call(minion, "pillar.get", "indigo", unmask=True)


@pytest.fixture(scope="session")
def site(salt_factories: Any, workspace: Path) -> Iterator[Site]:
    """A master with one minion for each host of :data:`CLUSTER`, started at once."""
    pillar = workspace / "pillar"
    pillar.mkdir()
    (pillar / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    (pillar / "top.sls").write_text(json.dumps({"base": {"*": ["trial"]}}))
    (pillar / "trial.sls").write_text(PILLAR.replace("@ROOT@", str(workspace)))
    config = yaml.safe_load((ROOT / "config" / "master.d" / "indigo.conf").read_text())
    loaders = {
        "module_dirs": [str(ROOT / "_modules")],
        "states_dirs": [str(ROOT / "_states")],
    }
    master = salt_factories.salt_master_daemon(
        "master",
        overrides={
            **loaders,
            "runner_dirs": [str(ROOT / "_runners")],
            "peer": config["peer"],
            "file_roots": {"base": [str(ROOT / "salt")]},
            "pillar_roots": {"base": [str(pillar)]},
            "open_mode": False,
            "auto_accept": True,
        },
        extra_cli_arguments_after_first_start_failure=["--log-level=info"],
    )
    with master.started():
        minions = {
            id_: master.salt_minion_daemon(id_, overrides=loaders) for id_ in CLUSTER["hosts"]
        }
        with ThreadPoolExecutor(len(minions)) as pool:
            list(pool.map(lambda daemon: daemon.start(), minions.values()))
        try:
            yield Site(master, get_local_client(mopts=dict(master.config)), minions, workspace)
        finally:
            with ThreadPoolExecutor(len(minions)) as pool:
                list(pool.map(lambda daemon: daemon.terminate(), minions.values()))
