"""Image archives: names, verification, and the state in both modes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError
from support import load

CTR = """#!/usr/bin/env python3
import json, pathlib, sys
store = pathlib.Path(sys.argv[0]).with_name("images.json")
images = json.loads(store.read_text()) if store.exists() else []
assert sys.argv[1:4] == ["--namespace", "k8s.io", "images"], sys.argv
if sys.argv[4:] == ["ls"]:
    print("REF TYPE DIGEST SIZE")
    for image in images:
        print(image, "application/vnd.oci", "sha256:" + "d" * 64, "1.0 MiB")
elif sys.argv[4] == "ls":
    print("\\n".join(images))
elif sys.argv[4] == "tag":
    store.write_text(json.dumps(images + [sys.argv[-1]]))
elif sys.argv[4] == "pull":
    store.write_text(json.dumps(images + [sys.argv[5].replace(":1@", "@")]))
elif sys.argv[4] == "export":
    pathlib.Path(sys.argv[5]).write_text(sys.argv[6])
elif sys.argv[4] == "import":
    pathlib.Path(sys.argv[0]).with_name("imported").write_text(sys.argv[5])
    store.write_text(json.dumps(images + ["indigo.lab/pause:1"]))
"""


@pytest.fixture
def module(tmp_path: Path):
    loaded = load("_modules", "indigo_image")
    loaded.RECORDS = tmp_path / "records"
    loaded.__opts__ = {"cachedir": str(tmp_path / "cache")}
    loaded.__salt__ = {"cp.cache_file": lambda source: source}
    return loaded


@pytest.fixture
def ctr(tmp_path: Path) -> str:
    path = tmp_path / "ctr"
    path.write_text(CTR)
    path.chmod(0o755)
    return str(path)


def docker_archive(path: Path, *names: str) -> dict[str, str]:
    data = json.dumps([{"Config": "c.json", "RepoTags": list(names), "Layers": []}]).encode()
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": "pause", "source": str(path), "hash": f"sha256:{digest}"}


def state(module, test: bool = False):
    loaded = load("_states", "indigo_image")
    loaded.__opts__ = {"test": test}
    loaded.__salt__ = {
        "indigo_image.missing": module.missing,
        "indigo_image.import": module.import_,
    }
    return loaded


def test_imported_once_and_then_left_alone(module, ctr, tmp_path):
    archive = docker_archive(tmp_path / "pause.tar", "indigo.lab/pause:1")
    first = state(module).imported("x", [archive], ctr)
    assert first["result"] is True
    assert first["changes"] == {"pause": ["indigo.lab/pause:1"]}
    (tmp_path / "imported").unlink()
    second = state(module).imported("x", [archive], ctr)
    assert (second["result"], second["changes"]) == (True, {})
    assert not (tmp_path / "imported").exists()


def test_an_image_that_was_collected_comes_back(module, ctr, tmp_path):
    archive = docker_archive(tmp_path / "pause.tar", "indigo.lab/pause:1")
    state(module).imported("x", [archive], ctr)
    (tmp_path / "images.json").unlink()
    again = state(module).imported("x", [archive], ctr)
    assert again["changes"] == {"pause": ["indigo.lab/pause:1"]}


def test_test_mode_says_so_and_does_nothing(module, ctr, tmp_path):
    archive = docker_archive(tmp_path / "pause.tar", "indigo.lab/pause:1")
    result = state(module, test=True).imported("x", [archive], ctr)
    assert result["result"] is None
    assert result["changes"] == {"pause": "not imported yet"}
    assert not (tmp_path / "imported").exists()
    assert not module.RECORDS.exists()


def test_test_mode_copes_with_a_bare_host(module, tmp_path):
    archive = docker_archive(tmp_path / "pause.tar", "indigo.lab/pause:1")
    module.RECORDS.mkdir()
    module._record(archive).write_text('{"images": ["indigo.lab/pause:1"]}')
    result = state(module, test=True).imported("x", [archive], "/nonexistent/ctr")
    assert result["result"] is None
    failed = state(module).imported("x", [archive], "/nonexistent/ctr")
    assert failed["result"] is False
    assert "/nonexistent/ctr" in failed["comment"]


def test_a_wrong_checksum_reaches_no_runtime(module, ctr, tmp_path):
    archive = docker_archive(tmp_path / "pause.tar", "indigo.lab/pause:1")
    archive["hash"] = "sha256:" + "0" * 64
    result = state(module).imported("x", [archive], ctr)
    assert result["result"] is False
    assert result["changes"] == {}
    assert "expected 0000" in result["comment"]
    assert not (tmp_path / "imported").exists()


def test_the_download_is_removed_and_a_local_file_is_not(module, ctr, tmp_path):
    archive = docker_archive(tmp_path / "pause.tar", "indigo.lab/pause:1")
    (tmp_path / "cache").mkdir()
    cached = tmp_path / "cache/pause.tar"
    cached.write_bytes((tmp_path / "pause.tar").read_bytes())
    module.__salt__ = {"cp.cache_file": lambda source: str(cached)}
    module.import_(archive, ctr)
    assert not cached.exists()
    module.__salt__ = {"cp.cache_file": lambda source: source}
    module.import_(archive, ctr)
    assert (tmp_path / "pause.tar").exists()


def test_a_source_that_cannot_be_fetched_is_named(module, ctr):
    module.__salt__ = {"cp.cache_file": lambda source: False}
    archive = {"name": "web", "source": "https://mirror.test/web.tar", "hash": "sha256:" + "a" * 64}
    with pytest.raises(CommandExecutionError, match=r"web: https://mirror\.test/web\.tar"):
        module.import_(archive, ctr)


def test_an_image_that_did_not_arrive_is_an_error(module, ctr, tmp_path):
    archive = docker_archive(tmp_path / "other.tar", "other:1")
    with pytest.raises(CommandExecutionError, match=r"has no docker\.io/library/other:1"):
        module.import_(archive, ctr)


@pytest.mark.parametrize("content", [b"no tar", None])
def test_what_is_no_image_archive_is_refused(module, tmp_path, content):
    path = tmp_path / "x.tar"
    if content is None:
        docker_archive(path)
    else:
        path.write_bytes(content)
    with pytest.raises(CommandExecutionError, match=str(path)):
        module.references(path)


def test_names_in_an_oci_layout(module, tmp_path):
    index = {
        "manifests": [
            {"annotations": {"io.containerd.image.name": "indigo.lab/a:1"}},
            {"annotations": {"org.opencontainers.image.ref.name": "indigo.lab/b:2"}},
            {"annotations": {"org.opencontainers.image.ref.name": "latest"}},
        ]
    }
    data = json.dumps(index).encode()
    with tarfile.open(tmp_path / "oci.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("./index.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    assert module.references(tmp_path / "oci.tar.gz") == ["indigo.lab/a:1", "indigo.lab/b:2"]


@pytest.mark.parametrize("digest", ["md5:abc", "abc", "sha256:"])
def test_only_strong_checksums_count(module, digest):
    with pytest.raises(CommandExecutionError, match=r"images\.archives"):
        module.missing([{"name": "x", "source": "y", "hash": digest}])


PINNED = "indigo.lab/pause:1@sha256:" + "d" * 64


def test_an_imported_image_is_found_by_the_digest_that_a_manifest_pins(module, ctr, tmp_path):
    module.import_(docker_archive(tmp_path / "pause.tar", "indigo.lab/pause:1"), ctr)
    module.__pillar__ = {"indigo": {"binaries": {"ctr": ctr}}}
    other = "indigo.lab/pause:1@sha256:" + "e" * 64
    assert module.presence(["indigo.lab/pause:1", PINNED, other, "web:1"]) == {
        "indigo.lab/pause:1": True,
        PINNED: True,
        other: False,
        "web:1": False,
    }
    assert "indigo.lab/pause@sha256:" + "d" * 64 in module.listed(ctr)


def test_an_image_is_saved_under_its_name_and_pulled_where_it_is_not_there(module, ctr, tmp_path):
    module.__pillar__ = {"indigo": {"binaries": {"ctr": ctr}}}
    saved = module.save([PINNED], str(tmp_path / "out"))[PINNED]
    path = tmp_path / "out" / saved["file"]
    assert saved["name"] == path.read_text() == "indigo.lab/pause:1"
    assert saved["hash"] == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    other = "indigo.lab/web:1@sha256:" + "e" * 64
    with pytest.raises(CommandExecutionError, match="another image"):
        module.save([other], str(tmp_path / "out"))
