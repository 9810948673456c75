"""Verified software: what is installed, what is refused, and that a rerun changes nothing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load


def archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return path


def checksum(path: Path, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, path.read_bytes()).hexdigest()}"


@pytest.fixture
def host(tmp_path):
    """A minion with a cache; its downloads are counted."""
    module = load("_modules", "indigo_artifact")
    cache = tmp_path / "cache"
    cache.mkdir()
    fetched: list[str] = []

    def cache_file(url):
        fetched.append(url)
        source = Path(url)
        if not source.is_file():
            return ""
        copy = cache / source.name
        copy.write_bytes(source.read_bytes())
        return str(copy)

    module.__salt__ = {"cp.cache_file": cache_file}
    module.__opts__ = {"cachedir": str(cache)}
    module.__grains__ = {"osarch": "x86_64"}
    state = load("_states", "indigo_artifact")
    names = ("choose", "differences", "install")
    state.__salt__ = {f"indigo_artifact.{name}": getattr(module, name) for name in names}
    state.__grains__ = {"osarch": "x86_64"}
    state.__opts__ = {"test": False}

    def installed(source: Path, members=None, *, test=False, hash_=None):
        state.__opts__ = {"test": test}
        sources = {"amd64": {"source": str(source), "hash": hash_ or checksum(source)}}
        return state.installed(str(tmp_path / "opt" / "x-1"), sources, members)

    return SimpleNamespace(
        module=module,
        state=state,
        installed=installed,
        fetched=fetched,
        cache=cache,
        folder=tmp_path / "opt" / "x-1",
        tmp=tmp_path,
    )


def names(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".indigo.json"
    }


def test_a_download_that_is_the_file_itself(host):
    source = host.tmp / "kubelet"
    source.write_bytes(b"binary")
    ret = host.installed(source, {"kubelet": ""})
    assert ret["result"] is True
    assert ret["changes"] == {"reason": ["not installed"], "installed": ["kubelet"]}
    assert (host.folder / "kubelet").read_bytes() == b"binary"
    assert (host.folder / "kubelet").stat().st_mode & 0o777 == 0o755


def test_only_the_named_members_are_unpacked_under_their_new_names(host):
    source = archive(
        host.tmp / "a.tgz", {"v1-amd64/etcd": b"e", "v1-amd64/etcdctl": b"c", "README": b"r"}
    )
    ret = host.installed(source, {"etcd": "v1-{arch}/etcd", "ctl": "v1-{arch}/etcdctl"})
    assert ret["result"] is True, ret["comment"]
    assert names(host.folder) == {"etcd", "ctl"}
    assert (host.folder / "ctl").read_bytes() == b"c"


@pytest.mark.parametrize("members", [None, {}])
def test_without_members_everything_is_unpacked(host, members):
    source = archive(host.tmp / "a.tgz", {"./bridge": b"b", "./sub/portmap": b"p"})
    assert host.installed(source, members)["changes"]["installed"] == ["bridge", "sub/portmap"]
    assert names(host.folder) == {"bridge", "sub/portmap"}


def test_sha512_is_good_too(host):
    source = host.tmp / "f"
    source.write_bytes(b"x")
    ret = host.installed(source, {"f": ""}, hash_=checksum(source, "sha512"))
    assert ret["result"] is True


def test_a_second_run_changes_nothing_and_downloads_nothing(host):
    source = archive(host.tmp / "a.tgz", {"etcd": b"e"})
    host.installed(source, {"etcd": "etcd"})
    host.fetched.clear()
    for test in (True, False):
        ret = host.installed(source, {"etcd": "etcd"}, test=test)
        assert (ret["result"], ret["changes"]) == (True, {})
    assert host.fetched == []


def test_test_mode_predicts_and_does_nothing(host):
    source = host.tmp / "f"
    source.write_bytes(b"x")
    ret = host.installed(source, {"f": ""}, test=True)
    assert ret["result"] is None
    assert ret["changes"] == {"reason": ["not installed"]}
    assert host.fetched == []
    assert not host.folder.exists()


def test_a_wrong_checksum_is_never_installed(host):
    source = host.tmp / "f"
    source.write_bytes(b"altered")
    ret = host.installed(source, {"f": ""}, hash_="sha256:" + "0" * 64)
    assert ret["result"] is False
    assert ret["changes"] == {}
    for part in (str(source), "0" * 64, hashlib.sha256(b"altered").hexdigest()):
        assert part in ret["comment"]
    assert not host.folder.exists()
    assert list(host.folder.parent.iterdir()) == []


@pytest.mark.parametrize("hash_", ["md5:00", "sha256:", "", "0123"])
def test_a_weak_or_missing_checksum_is_refused_before_the_download(host, hash_):
    sources = {"amd64": {"source": "u", "hash": hash_}}
    with pytest.raises(CommandExecutionError, match="expected one of sha256, sha512"):
        host.module.choose("/x", sources, "amd64")
    assert host.fetched == []


def test_an_architecture_without_a_source_is_named(host):
    with pytest.raises(CommandExecutionError, match=r"architecture arm64; there is amd64"):
        host.module.choose("/x", {"amd64": {}}, "aarch64")


def test_a_source_that_is_not_there_is_named(host):
    ret = host.installed(host.tmp / "nothing", {"f": ""}, hash_="sha256:" + "0" * 64)
    assert ret["result"] is False
    assert "nothing cannot be fetched" in ret["comment"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "etcd").write_bytes(b"evil!"), "etcd was altered"),
        (lambda folder: (folder / "etcd").unlink(), "etcd is missing"),
        (lambda folder: (folder / "etcd").chmod(0o4755), "etcd was altered"),
        (lambda folder: (folder / ".indigo.json").write_text("{"), "its record is damaged"),
        (lambda folder: (folder / ".indigo.json").unlink(), "not installed"),
    ],
)
def test_what_is_damaged_is_installed_again(host, damage, reason):
    source = archive(host.tmp / "a.tgz", {"etcd": b"e"})
    host.installed(source, {"etcd": "etcd"})
    damage(host.folder)
    ret = host.installed(source, {"etcd": "etcd"})
    assert ret["changes"] == {"reason": [reason], "installed": ["etcd"]}
    assert (host.folder / "etcd").read_bytes() == b"e"
    assert (host.folder / "etcd").stat().st_mode & 0o7777 == 0o755
    assert host.installed(source, {"etcd": "etcd"})["changes"] == {}


def test_a_new_time_with_the_same_content_is_no_difference(host):
    source = archive(host.tmp / "a.tgz", {"etcd": b"e"})
    host.installed(source, {"etcd": "etcd"})
    (host.folder / "etcd").touch()
    assert host.installed(source, {"etcd": "etcd"})["changes"] == {}


def test_another_checksum_for_the_same_folder_replaces_its_files(host):
    host.installed(archive(host.tmp / "a.tgz", {"etcd": b"1"}), {"etcd": "etcd"})
    ret = host.installed(archive(host.tmp / "b.tgz", {"etcd": b"2"}), {"etcd": "etcd"})
    assert ret["changes"]["reason"][0].startswith("installed from")
    assert (host.folder / "etcd").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("files", "links", "members", "told"),
    [
        ({"../evil": b"x"}, {}, None, "only paths inside"),
        ({"/etc/evil": b"x"}, {}, None, "only paths inside"),
        ({"a": b"x"}, {"b": "/etc/shadow"}, None, "expected a regular file"),
        ({"a": b"x"}, {}, {"etcd": "v1/etcd"}, "does not hold etcd"),
    ],
)
def test_an_archive_with_surprises_is_refused_and_leaves_nothing(host, files, links, members, told):
    ret = host.installed(archive(host.tmp / "a.tgz", files, links), members)
    assert ret["result"] is False
    assert told in ret["comment"]
    assert not host.folder.exists()
    assert list(host.folder.parent.iterdir()) == []
    assert not (host.tmp / "evil").exists()


def test_a_download_that_is_no_archive_is_named(host):
    source = host.tmp / "f"
    source.write_bytes(b"<html>")
    ret = host.installed(source, {"etcd": "etcd"})
    assert ret["result"] is False
    assert "is no tar archive" in ret["comment"]


def test_the_download_is_removed_but_a_local_source_never(host):
    source = host.tmp / "f"
    source.write_bytes(b"x")
    host.installed(source, {"f": ""})
    assert list(host.cache.iterdir()) == []
    # cp.cache_file returns the path itself for a file:// URL.
    host.module.__salt__ = {"cp.cache_file": lambda url: url}
    (host.folder / "f").unlink()
    host.installed(source, {"f": ""})
    assert source.exists()


def test_what_a_killed_run_left_is_removed(host):
    left = host.folder.parent / ".x-1.partial-abc"
    left.mkdir(parents=True)
    source = host.tmp / "f"
    source.write_bytes(b"x")
    host.installed(source, {"f": ""})
    assert not left.exists()


def test_the_record_says_where_the_files_came_from(host):
    source = host.tmp / "f"
    source.write_bytes(b"x")
    host.installed(source, {"f": ""})
    stamp = json.loads((host.folder / ".indigo.json").read_text())
    assert stamp["source"] == str(source)
    assert stamp["files"]["f"]["sha256"] == hashlib.sha256(b"x").hexdigest()
