"""What a host says of itself before anything is changed on it.

The facts are compared on the Salt master with the declared cluster
(``indigo_model.host_problems``). Gathering them changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Folders of this project's extension modules below a minion's ``extension_modules``.
KINDS = ("modules", "states")


def __virtual__() -> str:
    return "indigo_preflight"


def code_digest(folders: Iterable[str]) -> str:
    """Fingerprint of this project's extension modules in some folders.

    Args:
        folders: Folders of execution and state modules, in the order of :data:`KINDS`.

    Returns:
        SHA-256 in hex over the names and contents of the files ``indigo*.py``. The model, a
        package, is not among them: minions do not have it.

    CLI Example:

    .. code-block:: bash

        salt-call indigo_preflight.code_digest '[/srv/indigo/_modules, /srv/indigo/_states]'
    """
    total = hashlib.sha256()
    for kind, folder in zip(KINDS, folders, strict=True):
        root = Path(folder)
        for path in sorted(root.glob("indigo*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{kind}/{path.name} {content}\n".encode())
    return total.hexdigest()


def code() -> str:
    """Fingerprint of the extension modules that this minion has, see :func:`code_digest`.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_preflight.code
    """
    extmods = __opts__["extension_modules"]
    return code_digest(os.path.join(extmods, kind) for kind in KINDS)


def facts() -> dict[str, Any]:
    """What preflight compares with the declared cluster.

    Returns:
        ``code`` and ``pillar`` (fingerprints that tell whether this minion is up to date),
        ``differs`` (why it is not as the last deploy left it, empty when it is),
        ``interfaces`` (name to list of ``address/prefix``), ``init``, ``arch``, ``os``
        (family, name, major release), ``free_mb`` (folder to MiB), ``time`` (Unix seconds)
        and ``etcd`` (only on etcd hosts whose pillar is current).

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_preflight.facts
    """
    view = __pillar__.get("indigo", {})
    found: dict[str, Any] = {
        "code": code(),
        "pillar": pillar_digest(),
        "differs": __salt__["indigo_deployed.differs"](),
        "interfaces": {
            name: [
                f"{entry['address']}/{_prefix(entry['netmask'])}"
                for entry in data.get("inet", []) + data.get("secondary", [])
                if entry.get("netmask")
            ]
            for name, data in __salt__["network.interfaces"]().items()
        },
        "init": __grains__.get("init"),
        "arch": __grains__.get("osarch"),
        "os": [
            __grains__.get("os_family"),
            __grains__.get("os"),
            str(__grains__.get("osmajorrelease")),
        ],
        "free_mb": {folder: _free_mb(folder) for folder in ("/opt", "/var/lib")},
        "time": time.time(),
    }
    if "etcd" in view.get("roles", []) and "indigo_etcd.facts" in __salt__:
        found["etcd"] = __salt__["indigo_etcd.facts"]()
    return found


def pillar_digest() -> str:
    """Fingerprint of this minion's pillar, as far as it is this project's.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_preflight.pillar_digest
    """
    # The same canonical form as indigo_model.derive.digest, which the master compares with.
    ours = {
        key: __pillar__[key] for key in ("indigo", "x509_signing_policies") if key in __pillar__
    }
    canonical = json.dumps(ours, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _prefix(netmask: str) -> int:
    """Length of a dotted netmask: ``255.255.255.0`` is 24."""
    return sum(bin(int(part)).count("1") for part in netmask.split("."))


def _free_mb(folder: str) -> int:
    """Free MiB on the file system that holds a folder, or would hold it."""
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // 2**20
