"""CPU seconds that one minion costs, at 10, 100 and 1000 minions.

No daemon: the Salt master's own pillar compiler and the state compiler run in this process, for
every one of the minions, from an empty cache. Deriving the views is in the figure.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import salt.config
import salt.loader
import salt.pillar
import salt.state
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent

#: What pillar and states see of a host; the bench is not about grains.
GRAINS = {
    "os": "Debian",
    "os_family": "Debian",
    "osarch": "amd64",
    "osmajorrelease": 12,
    "osrelease": "12",
    "oscodename": "bookworm",
    "osfullname": "Debian GNU/Linux",
    "kernel": "Linux",
    "init": "systemd",
    "systemd": {"version": "252", "features": ""},
    "path": "/usr/bin:/bin",
    "pythonversion": [3, 11],
}


def cluster(minions: int) -> dict[str, Any]:
    """The example cluster with as many nodes as make up the number of minions."""
    document = yaml.safe_load((ROOT / "pillar" / "cluster.yaml").read_text())
    hosts = {id_: host for id_, host in document["hosts"].items() if "node" not in host["roles"]}
    for number in range(minions - len(hosts)):
        hosts[f"node{number + 1}"] = {
            "address": f"198.18.{number // 250}.{number % 250 + 1}",
            "roles": ["node"],
            # Declared, or the states would look for the address on the machine of the bench.
            "interface": "eth0",
        }
    document["hosts"] = hosts
    document["networks"] = {"services": "10.96.0.0/16", "pods": "172.16.0.0/12"}
    return document


def options(folder: Path, kind: str) -> dict[str, Any]:
    """Options of a master or minion that serves the tree and a cluster file in a folder."""
    read = salt.config.master_config if kind == "master" else salt.config.minion_config
    opts = read(None)
    opts.update(
        root_dir=str(folder),
        cachedir=str(folder / "cache" / kind),
        extension_modules=str(folder / "extmods"),
        module_dirs=[str(ROOT / "_modules")],
        states_dirs=[str(ROOT / "_states")],
        file_roots={"base": [str(ROOT / "salt")]},
        pillar_roots={"base": [str(folder), str(ROOT / "pillar")]},
        file_client="local",
        file_ignore_glob=["*.pyc", "*/__pycache__/*"],
        id="bench",
    )
    return opts


def pillars(folder: Path, ids: list[str]) -> tuple[float, dict[str, Any]]:
    """CPU seconds a minion to compile the pillars of all, and one node's pillar."""
    opts = options(folder, "master")
    sample: dict[str, Any] = {}
    started = time.process_time()
    for id_ in ids:
        sample = salt.pillar.Pillar(opts, {**GRAINS, "id": id_}, id_, "base").compile_pillar()
        if "_errors" in sample:
            raise SystemExit(f"pillar of {id_}: {sample['_errors']}")
    return (time.process_time() - started) / len(ids), sample


def states(folder: Path, id_: str, pillar: dict[str, Any], runs: int = 15) -> float:
    """CPU seconds to compile one minion's states, up to the low data: the median of the runs."""
    opts = options(folder, "minion")
    opts.update(id=id_, grains={**GRAINS, "id": id_}, pillar=pillar, test=True)
    seconds = []
    for _ in range(runs):
        started = time.process_time()
        highstate = salt.state.HighState(opts, initial_pillar=pillar)
        highstate.push_active()
        try:
            low = highstate.compile_low_chunks()
        finally:
            highstate.pop_active()
        seconds.append(time.process_time() - started)
        if not low or not isinstance(low[0], dict):
            raise SystemExit(f"states of {id_} do not compile: {low}")
    return statistics.median(seconds)


def measure(counts: tuple[int, ...] = (10, 100, 1000)) -> dict[int, dict[str, float]]:
    """CPU seconds a minion by number of minions: ``pillar``, ``states`` and their ``total``."""
    figures = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="indigo-bench-") as name:
            folder = Path(name)
            document = cluster(count)
            (folder / "cluster.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
            ids = list(document["hosts"])
            if count < len(ids):
                # The fixed hosts alone are more than ten: take as many as were asked for.
                ids = ids[-count:]
            each, pillar = pillars(folder, ids)
            compiled = states(folder, ids[-1], pillar)
        figures[count] = {"pillar": each, "states": compiled, "total": each + compiled}
    return figures


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=2)
    print()
