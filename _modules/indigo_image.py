"""Container images that come as archives: verified, imported once, and found again.

A record beside containerd's data names the images that an archive brought, so that a later run
needs no download: one listing of containerd's images tells whether they are all still there. An
image that kubelet's garbage collection removed is imported again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


RECORDS = Path("/var/lib/indigo/images")

#: Namespace of the images that pods run from.
NAMESPACE = "k8s.io"

ALGORITHMS = ("sha256", "sha512")


def __virtual__() -> str:
    return "indigo_image"


def normalized(reference: str) -> str:
    """An image's name as containerd keeps it.

    Source: the rules of ``docker.io`` names, github.com/distribution/reference ``normalize.go``.

    >>> normalized("busybox:1"), normalized("me/x"), normalized("indigo.lab/pause:1")
    ('docker.io/library/busybox:1', 'docker.io/me/x:latest', 'indigo.lab/pause:1')
    """
    first, slash, _ = reference.partition("/")
    if not slash:
        reference = f"docker.io/library/{reference}"
    elif not ("." in first or ":" in first or first == "localhost"):
        reference = f"docker.io/{reference}"
    last = reference.rsplit("/", 1)[-1]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


def references(archive: Path) -> list[str]:
    """Names of the images in an archive of ``docker save`` or of the OCI layout.

    Args:
        archive: The file, compressed or not.

    Returns:
        Normalised names, sorted.

    Raises:
        CommandExecutionError: The file is no such archive, or names no image.
    """
    found: set[str] = set()
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                name = member.name.removeprefix("./")
                if name not in ("manifest.json", "index.json") or not member.isfile():
                    continue
                stream = opened.extractfile(member)
                document: Any = json.load(stream) if stream else None
                if name == "manifest.json":
                    found.update(tag for entry in document for tag in entry.get("RepoTags") or ())
                else:
                    found.update(_annotated(document))
    except (OSError, tarfile.TarError, ValueError, AttributeError, TypeError) as error:
        raise CommandExecutionError(
            f"{archive} is no image archive: {error}; expected one as docker save makes it"
        ) from error
    if not found:
        raise CommandExecutionError(
            f"{archive} names no image; expected an archive that was saved by name, as by "
            "docker save NAME:TAG"
        )
    return sorted(normalized(name) for name in found)


def _annotated(index: Mapping[str, Any]) -> list[str]:
    """Names in an OCI index; a bare tag in ``ref.name`` names nothing on its own."""
    names = []
    for manifest in index.get("manifests", []):
        annotations = manifest.get("annotations") or {}
        name = annotations.get("io.containerd.image.name")
        if not name:
            reference = annotations.get("org.opencontainers.image.ref.name", "")
            name = reference if ":" in reference or "/" in reference else None
        if name:
            names.append(name)
    return names


def _ctr(ctr: str, *arguments: str, timeout: float = 600) -> str:
    try:
        done = subprocess.run(
            [ctr, "--namespace", NAMESPACE, "images", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandExecutionError(f"{ctr} images {arguments[0]} failed: {error}") from error
    if done.returncode:
        raise CommandExecutionError(
            f"{ctr} images {arguments[0]} failed: {done.stderr.strip()[-500:]}. "
            "Look at: systemctl status containerd"
        )
    return done.stdout


def listed(ctr: str = "ctr") -> list[str]:
    """Names of the images that containerd has for pods.

    Args:
        ctr: Path of containerd's client.

    Raises:
        CommandExecutionError: containerd does not answer.

    Example:
        ``salt node1 indigo_image.listed /opt/indigo/containerd-2.3.2/ctr``
    """
    return sorted(set(_ctr(ctr, "ls", "--quiet", timeout=60).split()))


def missing(archives: Iterable[Mapping[str, str]], ctr: str = "ctr") -> dict[str, str]:
    """Archives of which an image is not in containerd.

    Args:
        archives: ``[{"name", "source", "hash"}]``.
        ctr: Path of containerd's client.

    Returns:
        ``{name of the archive: why it must be imported}``; empty when all images are there.

    Raises:
        CommandExecutionError: containerd does not answer, or a checksum is no checksum.

    Example:
        ``salt node1 indigo_image.missing '[{name: pause, source: ..., hash: "sha256:..."}]'``
    """
    result: dict[str, str] = {}
    recorded: dict[str, list[str]] = {}
    for archive in archives:
        images = _recorded(archive)
        if images is None:
            result[archive["name"]] = "not imported yet"
        else:
            recorded[archive["name"]] = images
    if recorded:
        present = set(listed(ctr))
        for name, images in recorded.items():
            gone = [image for image in images if image not in present]
            if gone:
                result[name] = f"{', '.join(gone)} is gone"
    return result


def _checksum(archive: Mapping[str, str]) -> tuple[str, str]:
    algorithm, _, digest = archive["hash"].partition(":")
    if algorithm not in ALGORITHMS or not digest:
        raise CommandExecutionError(
            f"images.archives: {archive['name']} has checksum {archive['hash']!r}; expected "
            f"one of {', '.join(ALGORITHMS)} as 'sha256:<hex>'"
        )
    return algorithm, digest.lower()


def _record(archive: Mapping[str, str]) -> Path:
    return RECORDS / f"{_checksum(archive)[1]}.json"


def _recorded(archive: Mapping[str, str]) -> list[str] | None:
    try:
        images = json.loads(_record(archive).read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return list(images)


def import_(archive: Mapping[str, str], ctr: str = "ctr") -> list[str]:
    """Fetch, verify and import one archive.

    Args:
        archive: ``{"name", "source", "hash"}``; the source is anything that ``cp.cache_file``
            takes: ``https://``, ``salt://``, an absolute path.
        ctr: Path of containerd's client.

    Returns:
        Names of the images that are there now.

    Raises:
        CommandExecutionError: Not fetched, wrong checksum, no archive, or refused by containerd.
            Nothing unverified reaches containerd.

    Example:
        ``salt node1 indigo_image.import '{name: pause, source: ..., hash: "sha256:..."}'``
    """
    name, source = archive["name"], archive["source"]
    try:
        cached = __salt__["cp.cache_file"](source)
    except Exception as error:  # whatever the transport raises, the remedy is the same
        raise CommandExecutionError(f"{name}: {source} cannot be fetched: {error}") from error
    if not cached:
        raise CommandExecutionError(
            f"{name}: {source} cannot be fetched. Check images.archives in pillar/cluster.yaml "
            "and that this host reaches the server"
        )
    path = Path(cached)
    try:
        _verify(archive, path)
        images = references(path)
        _ctr(ctr, "import", str(path))
    finally:
        _forget(path)
    absent = sorted(set(images) - set(listed(ctr)))
    if absent:
        raise CommandExecutionError(
            f"{name}: containerd imported {source} but has no {', '.join(absent)}"
        )
    _name_by_digest(images, ctr)
    RECORDS.mkdir(parents=True, exist_ok=True)
    record = _record(archive)
    fresh = record.with_suffix(".new")
    fresh.write_text(json.dumps({"name": name, "images": images}) + "\n", encoding="utf-8")
    os.replace(fresh, record)
    return images


def digests(ctr: str = "ctr") -> dict[str, str]:
    """Images that containerd has for pods: name to the digest of its manifest.

    Args:
        ctr: Path of containerd's client.

    Raises:
        CommandExecutionError: containerd does not answer.

    Example:
        ``salt node1 indigo_image.digests /opt/indigo/containerd-2.3.2/ctr``
    """
    rows = (line.split() for line in _ctr(ctr, "ls", timeout=60).splitlines())
    return {
        name: found
        for name, *columns in rows
        for found in columns
        if re.fullmatch(r"sha256:[0-9a-f]{64}", found)
    }


def _name_by_digest(images: Iterable[str], ctr: str) -> None:
    """Give images the name by digest too, as a pull does: kubelet asks by it for pinned ones."""
    there = digests(ctr)
    for image in images:
        repository = image.partition("@")[0].rpartition(":")[0]
        wanted = f"{repository}@{there.get(image)}"
        if image in there and wanted not in there:
            _ctr(ctr, "tag", image, wanted, timeout=60)


def presence(references: Iterable[str]) -> dict[str, bool]:
    """Which images this node has: as pinned, where they are pinned by digest.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_image.presence '[indigo.lab/web:1]'
    """
    there = digests(__pillar__["indigo"]["binaries"]["ctr"])
    return {one: _held(one, there) is not None for one in references}


def _held(reference: str, there: Mapping[str, str]) -> str | None:
    """The name under which containerd has an image; None where it has not, or another one."""
    name, _, digest = reference.partition("@")
    name = normalized(name)
    repository = name.rpartition(":")[0]
    for known in (f"{repository}@{digest}", name):
        if known in there and digest in ("", there[known]):
            return known
    return None


def save(references: Iterable[str], folder: str) -> dict[str, dict[str, str]]:
    """Write images as archives into a folder of this node; pull those that it does not have.

    Args:
        references: Images, as manifests name them.
        folder: Absolute path; it is made where it is not there.

    Returns:
        Reference to ``name`` (without digest), ``file`` and ``hash`` of its archive.

    Raises:
        CommandExecutionError: An image is neither here nor can be pulled, or is not the pinned one.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_image.save '[indigo.lab/web:1]' /srv/images
    """
    ctr = __pillar__["indigo"]["binaries"]["ctr"]
    result = {}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for reference in references:
        found = _held(reference, digests(ctr))
        if found is None:
            _ctr(ctr, "pull", reference)
            found = _held(reference, digests(ctr))
        if found is None:
            raise CommandExecutionError(f"{reference}: what was pulled is another image")
        name = normalized(reference.partition("@")[0])
        if found != name:
            # An archive tells the name that it was saved by.
            _ctr(ctr, "tag", "--force", found, name, timeout=60)
        path = Path(folder) / archive_name(name)
        partial = path.with_name(path.name + ".new")
        _ctr(ctr, "export", str(partial), name)
        partial.replace(path)
        result[reference] = {
            "name": name,
            "file": path.name,
            "hash": f"sha256:{_hash(path, 'sha256')}",
        }
    return result


def archive_name(reference: str) -> str:
    """The file name of an image's archive.

    >>> archive_name("quay.io/prometheus/prometheus:v2.55.1")
    'quay.io_prometheus_prometheus_v2.55.1.tar'
    """
    return re.sub(r"[/:]", "_", reference) + ".tar"


def _hash(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verify(archive: Mapping[str, str], path: Path) -> None:
    algorithm, expected = _checksum(archive)
    found = _hash(path, algorithm)
    if found != expected:
        raise CommandExecutionError(
            f"{archive['name']}: {archive['source']} has {algorithm} {found}, "
            f"expected {expected}. Nothing was imported. Correct images.archives, or find out "
            "who altered the file"
        )


def _forget(path: Path) -> None:
    """Remove a download from the minion's cache, but never a source that is a local file."""
    cache = Path(__opts__.get("cachedir", "/nonexistent")).resolve()
    if cache in path.resolve().parents:
        path.unlink(missing_ok=True)


__func_alias__ = {"import_": "import"}
