"""The lab's own pillar: the cluster.yaml that a user of the lab's hosts would write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .artifacts import Published
from .topology import MIRROR_URL, PODS, SERVICES, VIP, Host


def cluster(hosts: Sequence[Host], published: Published, *, cgroup_v1: bool) -> dict[str, Any]:
    """The cluster's declaration, as data.

    Args:
        hosts: the lab's hosts.
        published: what the mirror serves.
        cgroup_v1: whether the machine (so every guest) has cgroup v1.

    Returns:
        the content of cluster.yaml; `overrides` holds what only guests on one machine need.
    """
    return {
        "name": "lab",
        "vip": {"address": VIP, "interface": "eth0"},
        "hosts": {h.name: {"address": h.address, "roles": list(h.roles)} for h in hosts},
        "networks": {"services": SERVICES, "pods": PODS},
        "network": "routes",
        "versions": dict(published.versions),
        "artifacts": {"mirror": MIRROR_URL, "checksums": published.checksums},
        "images": {
            "pause": "indigo.lab/pause:1",
            "use": dict(published.use),
            "archives": published.images,
        },
        "overrides": overrides(published.versions["kubernetes"], cgroup_v1=cgroup_v1),
    }


def overrides(kubernetes: str, *, cgroup_v1: bool) -> dict[str, Any]:
    """Settings for guests that share one kernel, one disk, and lack CAP_SYS_RESOURCE.

    >>> overrides("1.36.2", cgroup_v1=True)["kubelet"]["config"]["failCgroupV1"]
    False
    """
    kubelet: dict[str, Any] = {
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        # The machine's disk is everybody's: its fill says nothing about a guest.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
    }
    minor = int(kubernetes.split(".")[1])
    if cgroup_v1 and minor >= 31:
        kubelet["failCgroupV1"] = False
    return {
        # nf_conntrack_max belongs to the machine and is read-only in a guest.
        "kube-proxy": {"config": {"conntrack": {"maxPerCore": 0, "min": 0}}},
        "kubelet": {"config": kubelet},
        "containerd": {"config": {"restrict_oom_score_adj": True}},
    }


# Words, and numbers with two dots (versions, addresses), which YAML takes for no other type.
_PLAIN = re.compile(r"([A-Za-z]|\d+\.\d+\.\d)([A-Za-z0-9_./-]|:(?=\S))*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "~"}


def scalar(value: object) -> str:
    """A YAML scalar: bare where nothing can mistake it, else as JSON writes it.

    >>> scalar("routes"), scalar("1.20"), scalar(True), scalar("a: b")
    ('routes', '"1.20"', 'true', '"a: b"')
    """
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value)


def yaml(value: object, indent: int = 0) -> str:
    """Block YAML of JSON types; lists of plain values stay on one line.

    >>> print(yaml({"a": {"b": [1, 2]}, "c": []}), end="")
    a:
      b: [1, 2]
    c: []
    """
    pad = " " * indent
    if isinstance(value, Mapping) and value:
        return "".join(f"{pad}{scalar(key)}:{_under(item, indent)}" for key, item in value.items())
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            text = yaml(item, indent + 2)
            lines.append(f"{pad}- {text[indent + 2 :]}")
        return "".join(lines)
    return f"{pad}{_flow(value)}\n"


def _under(item: object, indent: int) -> str:
    simple = not isinstance(item, Mapping | list) or not item
    flat = isinstance(item, list) and not any(isinstance(x, Mapping | list) for x in item)
    if simple or flat:
        return f" {_flow(item)}\n"
    return "\n" + yaml(item, indent + 2)


def _flow(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    return scalar(value)
