"""What the tests of upgrades declare, and what they look at."""

from __future__ import annotations

import json
from typing import Any

import yaml
from cluster import Deployed, kubectl, parsed
from indigo_lab import artifacts

UPGRADE = "indigo.upgrade"


def declare(lab, **sections: Any) -> None:
    """Merge sections into cluster.yaml, two levels deep."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    for name, section in sections.items():
        for key, value in section.items():
            document.setdefault(name, {})[key] = value
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")


def declare_newer(lab, newer: artifacts.Published) -> None:
    """Declare the versions that the mirror has beside what runs."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    sums = document["artifacts"]["checksums"]
    merged = {part: {**sums[part], **found} for part, found in newer.checksums.items()}
    declare(lab, versions=newer.versions, artifacts={"checksums": {**sums, **merged}})


def preview(lab) -> Deployed:
    """The upgrade in test mode."""
    done = lab.salt_run("state.orchestrate", UPGRADE, "test=True", "--out", "json", timeout=300)
    return parsed(done.returncode, done.stdout, done.stderr, 0)


def facts(lab) -> dict[str, Any]:
    """What runs on each host."""
    done = lab.salt("*", "indigo_upgrade.facts", "--out", "json", "--static", timeout=120)
    return json.loads(done.stdout)


def running(found: dict[str, Any], unit: str) -> set[str]:
    """The versions of a unit's processes, whatever the files say."""
    return {fact["versions"][unit] for fact in found.values() if unit in fact["versions"]}


def nodes(lab) -> dict[str, dict[str, Any]]:
    """Node objects by name."""
    return {node["metadata"]["name"]: node for node in kubectl(lab, "get", "nodes")["items"]}


def cordoned(lab) -> set[str]:
    """Names of the nodes that get no pods."""
    return {name for name, node in nodes(lab).items() if node["spec"].get("unschedulable")}
