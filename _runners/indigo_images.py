"""Images of add-ons: which the cluster needs, and archives of them for one without a registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import salt.client
import salt.loader
import salt.utils.hashutils
from salt.exceptions import CommandExecutionError

__func_alias__ = {"list_": "list"}

#: What `save` writes beside the archives.
INDEX = "images.json"

#: Folder of archives in the Salt master's file server.
SERVED = "images"


def __virtual__() -> str:
    return "indigo_images"


def list_(timeout: float = 15) -> dict[str, Any]:
    """Images of the wanted add-ons: where each comes from, and which nodes lack it.

    Args:
        timeout: Seconds to wait for a node's answer.

    Returns:
        By reference ``addon``, ``licence`` (None for a site's own image), ``from`` (an archive's
        source, or ``registry``) and ``missing``: nodes that do not have it, or did not answer.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.images
    """
    needed, nodes = _needed()
    references = [one["reference"] for one in needed]
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(
            nodes, "indigo_image.presence", [references], tgt_type="list", timeout=timeout
        )
    return {
        one["reference"]: {
            "addon": one["addon"],
            "licence": one["licence"],
            "from": one["archive"] or "registry",
            "missing": lacking(one["reference"], nodes, answers),
        }
        for one in needed
    }


def lacking(reference: str, nodes: Iterable[str], answers: Mapping[str, Any]) -> list[str]:
    """Nodes that did not say that they have an image.

    >>> lacking("a", ["n1", "n2", "n3"], {"n1": {"a": True}, "n2": {"a": False}})
    ['n2', 'n3']
    """
    return [
        node
        for node in nodes
        if not (isinstance(answers.get(node), Mapping) and answers[node].get(reference) is True)
    ]


def save(folder: str, node: str | None = None, timeout: float = 900) -> dict[str, Any]:
    """Write archives of all needed images into a folder of a node that has them or can pull them.

    Args:
        folder: Absolute path on the node; such as one of a disk that is carried elsewhere.
        node: Minion id of the node; by default the first of the cluster.
        timeout: Seconds for all of them.

    Returns:
        ``node``, ``folder`` and ``archives`` (file names).

    Raises:
        CommandExecutionError: No add-on is wanted, or the node cannot.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.images save=/mnt/disk node=node1
    """
    needed, nodes = _needed()
    if not needed:
        raise CommandExecutionError("cluster.yaml declares no add-on, so no image is needed")
    chosen = node or nodes[0]
    if chosen not in nodes:
        raise CommandExecutionError(f"{chosen} is no node; expected one of {', '.join(nodes)}")
    references = [one["reference"] for one in needed]
    with salt.client.get_local_client(mopts=__opts__) as client:
        saved = client.cmd(chosen, "indigo_image.save", [references, folder], timeout=timeout).get(
            chosen
        )
        if not isinstance(saved, Mapping):
            raise CommandExecutionError(f"{chosen}: {saved or 'no answer'}")
        index = [
            {**saved[one["reference"]], "licence": one["licence"], "addon": one["addon"]}
            for one in needed
        ]
        text = json.dumps(index, indent=1) + "\n"
        written = client.cmd(chosen, "file.write", [f"{folder}/{INDEX}", text], timeout=60).get(
            chosen
        )
    if not str(written).startswith("Wrote"):
        raise CommandExecutionError(f"{chosen}: {folder}/{INDEX}: {written or 'no answer'}")
    return {"node": chosen, "folder": folder, "archives": [one["file"] for one in index]}


def load(folder: str) -> dict[str, Any]:
    """Take a folder that ``save`` wrote into the Salt master's file server.

    Nothing is taken of a folder in which an archive is missing or damaged.

    Args:
        folder: Absolute path on the Salt master.

    Returns:
        ``archives``: what to write under ``images.archives`` in ``cluster.yaml``.

    Raises:
        CommandExecutionError: No such folder, an archive that is not as saved, or no place to
            serve archives from.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.images load=/mnt/disk
    """
    return {"archives": taken(Path(folder), _served())}


def taken(source: Path, target: Path) -> list[dict[str, str]]:
    """Copy a folder's archives, all checked first; the entries for ``images.archives``.

    Args:
        source: Folder with archives and their index.
        target: Folder of the file server; it is made where it is not there.

    Raises:
        CommandExecutionError: No index, or an archive that is missing or damaged.
    """
    try:
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CommandExecutionError(
            f"{source / INDEX} cannot be read ({err}); expected a folder that "
            "`salt-run indigo.images save=…` wrote"
        ) from err
    for one in index:
        path = source / Path(one["file"]).name
        try:
            found = f"sha256:{salt.utils.hashutils.get_hash(path)}"
        except OSError as err:
            raise CommandExecutionError(f"{path} cannot be read: {err}") from err
        if found != one["hash"]:
            raise CommandExecutionError(
                f"{path} has {found}, expected {one['hash']}: it is not as it was saved. "
                "Nothing was taken; copy the folder again"
            )
    target.mkdir(parents=True, exist_ok=True)
    entries = []
    for one in index:
        name = Path(one["file"]).name
        partial = target / f".{name}.new"
        shutil.copyfile(source / name, partial)
        partial.replace(target / name)
        entries.append(
            {"name": one["name"], "source": f"salt://{SERVED}/{name}", "hash": one["hash"]}
        )
    return entries


def _served() -> Path:
    """The file root beside the state tree, which is not ours to write to."""
    roots = [Path(root) for root in __opts__.get("file_roots", {}).get("base", [])]
    for root in roots:
        if not (root / "indigo" / "host.sls").is_file():
            return root / SERVED
    raise CommandExecutionError(
        "file_roots of the Salt master has no folder for archives: add /srv/indigo-files, as "
        "config/master.d/indigo.conf does, and restart salt-master"
    )


def _needed() -> tuple[list[dict[str, Any]], list[str]]:
    model = salt.loader.minion_mods(__opts__)
    return model["indigo_model.images"](), model["indigo_model.hosts"]("node")
