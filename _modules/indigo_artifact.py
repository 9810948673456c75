"""Verified software from outside the packages: fetched, checked, unpacked, and kept as it was.

Nothing is unpacked whose checksum was not right, nothing is put in place half. A stamp beside the
files names what they came from and what they were, so that a later run needs only a ``stat`` of
each to know that all is as installed, and reads a file only where its ``stat`` differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


STAMP = ".indigo.json"

#: Names that distributions give to the architectures of Go's releases.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

#: Checksums that are good enough to run what they vouch for.
ALGORITHMS = ("sha256", "sha512")


def __virtual__() -> str:
    return "indigo_artifact"


def architecture(osarch: str) -> str:
    """Name of an architecture as upstream releases spell it.

    >>> architecture("x86_64"), architecture("arm64")
    ('amd64', 'arm64')
    """
    return ARCHITECTURES.get(osarch, osarch)


def choose(name: str, sources: Mapping[str, Mapping[str, str]], osarch: str) -> dict[str, str]:
    """Source and checksum for a host's architecture.

    Args:
        name: Folder of the artifact, for errors.
        sources: ``{architecture: {"source": URL, "hash": "sha256:hex"}}``.
        osarch: The host's grain.

    Returns:
        ``{"source": URL, "hash": "sha256:hex", "algorithm": "sha256", "digest": "hex"}``.

    Raises:
        CommandExecutionError: No source for the architecture, or a checksum of no known kind.

    Example:
        >>> choose("/opt/x", {"amd64": {"source": "u", "hash": "sha256:ab"}}, "x86_64")["digest"]
        'ab'
    """
    wanted = architecture(osarch)
    if wanted not in sources:
        raise CommandExecutionError(
            f"{name}: no source with a checksum for architecture {wanted}; there is "
            f"{', '.join(sorted(sources)) or 'none'}. Give artifacts.checksums for {wanted} "
            "in pillar/cluster.yaml"
        )
    chosen = dict(sources[wanted])
    algorithm, _, digest = chosen.get("hash", "").replace("=", ":", 1).partition(":")
    if algorithm not in ALGORITHMS or not digest:
        raise CommandExecutionError(
            f"{name}: checksum {chosen.get('hash')!r} of {chosen.get('source')}; "
            f"expected one of {', '.join(ALGORITHMS)} as 'sha256:<hex>'"
        )
    return {**chosen, "algorithm": algorithm, "digest": digest.strip().lower()}


def _digest(path: Path, algorithm: str = "sha256") -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def differences(name: str, digest: str, members: Mapping[str, str] | None = None) -> list[str]:
    """What keeps a folder from being the artifact as it was installed.

    Args:
        name: Folder of the artifact.
        digest: Checksum of its source, as hex.
        members: Names of the files it must hold; none: those it was installed with.

    Returns:
        One text per difference, for example ``kubelet is missing``; none when all is right.

    Example:
        >>> differences("/nonexistent", "ab", {"kubelet": ""})
        ['not installed']
    """
    folder = Path(name)
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = stamp["files"]
        installed = stamp["digest"]
    except FileNotFoundError:
        return ["not installed"]
    except (OSError, ValueError, KeyError, TypeError):
        return ["its record is damaged"]
    if installed != digest:
        return [f"installed from {installed[:12]}, declared {digest[:12]}"]
    found = [f"{file} is missing" for file in sorted(members or {}) if file not in files]
    for file, was in sorted(files.items()):
        try:
            now = (folder / file).lstat()
        except OSError:
            found.append(f"{file} is missing")
            continue
        if [now.st_size, now.st_mtime_ns, now.st_mode] == [was["size"], was["mtime"], was["mode"]]:
            continue
        if now.st_mode != was["mode"] or _digest(folder / file) != was["sha256"]:
            found.append(f"{file} was altered")
    return found


def _fetch(name: str, source: Mapping[str, str]) -> Path:
    """Download into the minion's cache and verify; the caller removes the file."""
    url = source["source"]
    try:
        cached = __salt__["cp.cache_file"](url)
    except Exception as error:  # whatever the transport raises, the remedy is the same
        raise CommandExecutionError(
            f"{name}: {url} cannot be fetched: {error}. Check artifacts.mirror and the network"
        ) from error
    if not cached:
        raise CommandExecutionError(
            f"{name}: {url} cannot be fetched. Check artifacts.mirror, the version, and that "
            "this host reaches the server"
        )
    path = Path(cached)
    found = _digest(path, source["algorithm"])
    if found != source["digest"]:
        _forget(path)
        raise CommandExecutionError(
            f"{name}: {url} has {source['algorithm']} {found}, expected {source['digest']}. "
            "Nothing was installed. Either the download was altered or the declared checksum "
            "is of another version"
        )
    return path


def _forget(path: Path) -> None:
    """Remove a download from the minion's cache, but never a source that is a local file."""
    cache = Path(__opts__.get("cachedir", "/nonexistent")).resolve()
    if cache in path.resolve().parents:
        path.unlink(missing_ok=True)


def _safe(name: str) -> str:
    """Relative path of an archive's entry, refusing one that leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise CommandExecutionError(
            f"The archive holds the path {name!r}; expected only paths inside it"
        )
    return str(path)


def unpack(archive: Path, folder: Path, members: Mapping[str, str] | None) -> list[str]:
    """Write the wanted files of a download into a folder, with mode 0755.

    Args:
        archive: The verified download.
        folder: Existing folder for the files.
        members: ``{file name: path inside the archive}``; ``""`` stands for the download itself;
            none: every regular file, at its path inside the archive.

    Returns:
        Names of the files written, relative to the folder.

    Raises:
        CommandExecutionError: A member is not there, is no regular file, or leads out.

    Example:
        ``unpack(Path("etcd.tar.gz"), Path("/opt/x"), {"etcd": "etcd-v3.5.30-linux-amd64/etcd"})``
    """
    if members and all(inside == "" for inside in members.values()):
        for file in members:
            with archive.open("rb") as source:
                _write(source, folder / _safe(file))
        return sorted(members)
    wanted = {_safe(inside): _safe(file) for file, inside in (members or {}).items()}
    written = []
    try:
        with tarfile.open(archive, "r:*") as tar:
            for entry in tar:
                inside = _safe(entry.name)
                if (wanted and inside not in wanted) or entry.isdir():
                    continue
                stream = tar.extractfile(entry) if entry.isreg() else None
                if stream is None:
                    raise CommandExecutionError(
                        f"{inside} in the archive is a link or device; expected a regular file"
                    )
                file = wanted.get(inside, inside)
                _write(stream, folder / file)
                written.append(file)
                if wanted and len(set(written)) == len(wanted):
                    break
    except tarfile.TarError as error:
        raise CommandExecutionError(
            f"{archive.name} is no tar archive: {error}; expected one as files are to be taken "
            "out of it"
        ) from error
    missing = sorted(set(wanted.values()) - set(written))
    if missing:
        raise CommandExecutionError(f"The archive does not hold {', '.join(missing)}")
    return sorted(set(written))


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with target.open("wb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())
    target.chmod(0o755)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(folder: Path, files: list[str], source: Mapping[str, str]) -> None:
    """Write the stamp: what the files came from and what they are."""
    entries = {}
    for file in files:
        path = folder / file
        stat = path.lstat()
        entries[file] = {
            "size": stat.st_size,
            "mtime": stat.st_mtime_ns,
            "mode": stat.st_mode,
            "sha256": _digest(path),
        }
    stamp = {"source": source["source"], "digest": source["digest"], "files": entries}
    with (folder / STAMP).open("w", encoding="utf-8") as stream:
        json.dump(stamp, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def install(
    name: str,
    sources: Mapping[str, Mapping[str, str]],
    members: Mapping[str, str] | None = None,
) -> list[str]:
    """Fetch, verify and put in place an artifact.

    Args:
        name: Folder that is to hold its files.
        sources: See :func:`choose`.
        members: See :func:`unpack`; ``{arch}`` in a path stands for the host's architecture.

    Returns:
        Names of the files installed.

    Raises:
        CommandExecutionError: Not to be fetched, wrong checksum, or a member that is not there;
            nothing was installed then.

    Example:
        ``salt-call indigo_artifact.install /opt/indigo/kubelet-1.36.2 sources=… members='{…}'``
    """
    folder = Path(name)
    source = choose(name, sources, __grains__["osarch"])
    folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.partial-*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    arch = architecture(__grains__["osarch"])
    wanted = {file: inside.replace("{arch}", arch) for file, inside in (members or {}).items()}
    archive = _fetch(name, source)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        files = unpack(archive, partial, wanted)
        _record(partial, files, source)
        _sync_folder(partial)
        if folder.is_dir():
            # Running programs keep their files; each name changes over at once, the stamp last.
            (folder / STAMP).unlink(missing_ok=True)
            for file in [*files, STAMP]:
                (folder / file).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                (partial / file).replace(folder / file)
            _sync_folder(folder)
        else:
            partial.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _forget(archive)
    return files
