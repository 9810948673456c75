"""Where an add-on's data lies: on a disk of a class that the site has, or on the node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def mebibytes(size: str) -> int:
    """A size of the cluster file in MiB.

    >>> mebibytes("4Gi")
    4096
    """
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|Ti)", size).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1, "Gi": 1024, "Ti": 1024**2}[unit]


def storage(given: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Claims and volumes: a disk of the class that the site named, or the node's own."""
    if not given["storage_class"]:
        return [], [{"name": "data", "emptyDir": {"sizeLimit": given["size"]}}]
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": given["storage_class"],
            "resources": {"requests": {"storage": given["size"]}},
        },
    }
    return [claim], []


def days(span: str) -> str:
    """A time of the cluster file in hours or days, for programs that know no longer units.

    >>> days("12h"), days("2w"), days("1y")
    ('12h', '14d', '365d')
    """
    factor = {"h": 0, "d": 1, "w": 7, "y": 365}[span[-1]]
    return f"{int(span[:-1]) * factor}d" if factor else span
