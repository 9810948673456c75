"""A bundle for whoever is asked for help: ``salt-run indigo.report``."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import salt.client
import salt.loader


def __virtual__() -> str:
    return "indigo_report"


def write(path: str | None = None, hosts: str | None = None, timeout: float = 60) -> dict[str, Any]:
    """Collect from hosts, and write one archive that only root can read.

    Args:
        path: Of the archive; by default a new one below the Salt master's cache.
        hosts: Ids of the hosts to ask, with commas between them; by default all.
        timeout: Seconds to wait for their answers.

    Returns:
        ``archive`` (path), ``bytes``, ``hosts`` (those in it) and ``silent`` (those that did not
        answer, with what they said instead).

    Raises:
        OSError: The archive cannot be written.
    """
    model = salt.loader.minion_mods(__opts__)
    texts = {"problems.json": json.dumps(model["indigo_model.problems"](), indent=1)}
    texts["cluster.yaml"] = Path(model["indigo_model.cluster_file"]()).read_text("utf-8")
    ids = list(model["indigo_model.plan"]()["hosts"])
    if hosts:
        ids = [id_ for id_ in ids if id_ in hosts.split(",")]
    # Not indigo.status itself: what failed shows there, and must not keep the rest away.
    with salt.client.get_local_client(mopts=__opts__) as client:
        client.cmd(ids, "saltutil.sync_modules", tgt_type="list", timeout=timeout)
        answers = client.cmd(ids, "indigo_report.collect", tgt_type="list", timeout=timeout)
    texts["versions.json"] = json.dumps(model["indigo_report.versions"](), indent=1)
    texts = {name: model["indigo_report.clean_text"](text) for name, text in texts.items()}
    good = {id_: one for id_, one in answers.items() if isinstance(one, Mapping)}
    for id_, files in good.items():
        texts |= {f"hosts/{id_}/{name}": str(text) for name, text in files.items()}
    silent = {id_: str(answers.get(id_, "no answer"))[-2000:] for id_ in ids if id_ not in good}
    texts["silent.json"] = json.dumps(silent, indent=1)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    archive = Path(path or f"{__opts__['cachedir']}/indigo/reports/report-{stamp}.tar.gz")
    size = pack(archive, f"indigo-{stamp}", texts)
    return {"archive": str(archive), "bytes": size, "hosts": sorted(good), "silent": silent}


def pack(archive: Path, folder: str, texts: Mapping[str, str]) -> int:
    """Write texts into an archive that only its owner can read; its size in bytes."""
    archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, text in sorted(texts.items()):
            data = text.encode("utf-8", errors="replace")
            entry = tarfile.TarInfo(f"{folder}/{name.lstrip('/')}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
    return archive.stat().st_size
