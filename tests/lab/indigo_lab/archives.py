"""Archives that come out the same from the same files: upstream's layouts, docker archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

Source = Path | bytes


def entry(name: str, mode: int, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """A tar header without anything of this machine: root's, dated 1970."""
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.type = mode, size, kind
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = "root"
    return info


def tar(members: Mapping[str, Source | str], mode: int = 0o755) -> bytes:
    """A tar archive of the given members, in their order.

    Args:
        members: path in the archive -> a file, its bytes, or (a str) the target of a symbolic
            link; a path that ends in `/` is a folder, whatever it holds.
        mode: of the files.

    Example:
        tar({"bin/": b"", "bin/sh": Path("/bin/busybox"), "bin/ls": "sh"})
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, source in members.items():
            if name.endswith("/"):
                archive.addfile(entry(name, 0o755, kind=tarfile.DIRTYPE))
            elif isinstance(source, str):
                link = entry(name, 0o777, kind=tarfile.SYMTYPE)
                link.linkname = source
                archive.addfile(link)
            else:
                data = source if isinstance(source, bytes) else source.read_bytes()
                archive.addfile(entry(name, mode, len(data)), io.BytesIO(data))
    return out.getvalue()


def tgz(members: Mapping[str, Source | str]) -> bytes:
    """A gzipped `tar` of the members, fast rather than small."""
    return gzip.compress(tar(members), compresslevel=1, mtime=0)


def docker_archive(
    reference: str,
    layer: bytes,
    *,
    arch: str,
    command: Sequence[str],
    env: Sequence[str] = ("PATH=/bin",),
    ports: Sequence[str] = (),
) -> bytes:
    """A one-layer image as `docker save` writes it (image specification 1.2).

    Args:
        reference: `name:tag`.
        layer: an uncompressed tar of the image's files.
        arch: Go's name of the architecture.
        command: the entry point.
        ports: such as `8080/tcp`.

    Returns:
        the archive, the same bytes for the same arguments.
    """
    layer_id = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": arch,
        "config": {
            "Entrypoint": list(command),
            "Env": list(env),
            "ExposedPorts": {port: {} for port in ports},
        },
        "created": "1970-01-01T00:00:00Z",
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "indigo lab"}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
    }
    text = json.dumps(config, sort_keys=True).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": [f"{layer_id}/layer.tar"]}]
    return tar(
        {
            name: text,
            f"{layer_id}/": b"",
            f"{layer_id}/layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        },
        mode=0o644,
    )


def references(archive: Path) -> list[str]:
    """The image names in a docker archive."""
    with tarfile.open(archive) as opened:
        file = opened.extractfile("manifest.json")
        if file is None:
            return []
        return [tag for image in json.load(file) for tag in image.get("RepoTags") or []]
