"""Archives that the lab's mirror serves: the same bytes each time, in upstream's layouts."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile

import pytest
from indigo_model import images, versions
from lab.indigo_lab import archives, containers, debian, pythons, saltenv, wheels
from lab.indigo_lab.artifacts import ADDONS, Docroot


def test_an_archive_depends_on_names_and_bytes_only(tmp_path):
    file = tmp_path / "etcd"
    file.write_bytes(b"program")
    members = {"top/": b"", "top/etcd": file, "top/link": "etcd"}
    first = archives.tgz(members)
    file.chmod(0o600)
    os.utime(file, (1, 1))
    assert archives.tgz(members) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as opened:
        found = {m.name: (m.mode, m.uid, m.mtime, m.linkname) for m in opened}
    assert found == {
        "top": (0o755, 0, 0, ""),
        "top/etcd": (0o755, 0, 0, ""),
        "top/link": (0o777, 0, 0, "etcd"),
    }


def test_a_docker_archive_names_its_layers_by_their_content(tmp_path):
    layer = archives.tar({"pause": b"x"})
    data = archives.docker_archive("lab/pause:1", layer, arch="arm64", command=["/pause"])
    assert data == archives.docker_archive("lab/pause:1", layer, arch="arm64", command=["/pause"])
    path = tmp_path / "pause.tar"
    path.write_bytes(data)
    assert archives.references(path) == ["lab/pause:1"]
    with tarfile.open(path) as opened:
        (image,) = json.load(opened.extractfile("manifest.json"))
        config = opened.extractfile(image["Config"]).read()
        stored = opened.extractfile(image["Layers"][0]).read()
    assert image["Config"] == hashlib.sha256(config).hexdigest() + ".json"
    read = json.loads(config)
    assert read["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(stored).hexdigest()]
    assert stored == layer
    assert (read["architecture"], read["config"]["Entrypoint"]) == ("arm64", ["/pause"])


def test_the_docroot_is_laid_out_as_upstream_and_sees_a_changed_file(tmp_path):
    program = tmp_path / "runc"
    program.write_bytes(b"one")
    docroot = Docroot(tmp_path / "www", "amd64")
    docroot.component("runc", "1.1.5", program)
    path = "github.com/opencontainers/runc/releases/download/v1.1.5/runc.amd64"
    assert (tmp_path / "www" / path).read_bytes() == b"one"
    docroot.save()
    program.write_bytes(b"other")
    again = Docroot(tmp_path / "www", "amd64")
    again.component("runc", "1.1.5", program)
    assert (tmp_path / "www" / path).read_bytes() == b"other"
    total = again.published.checksums["runc"]["1.1.5"]["amd64"]
    assert total == "sha256:" + hashlib.sha256(b"other").hexdigest()


def test_the_machines_package_sources_are_read_in_both_formats():
    deb822 = (
        "Types: deb deb-src\n# a comment\nURIs: http://m/debian\nSuites: bookworm\n"
        " bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off\nSuites: bookworm\nComponents: main\n\n"
        "Types: deb-src\nURIs: http://src\nSuites: bookworm\nComponents: main\n"
    )
    one = "# deb http://off bookworm main\ndeb [arch=amd64] http://n/debian bookworm main  # n\n"
    assert debian.one_line_sources([("a.sources", deb822), ("b.list", one)]) == [
        "[signed-by=/k.gpg] http://m/debian bookworm main",
        "[signed-by=/k.gpg] http://m/debian bookworm-updates main",
        "[arch=amd64] http://n/debian bookworm main",
    ]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1.20.5+really1.20.2-1.1+deb12u1", "1.20.2"),
        ("1.6.20~ds1-1+deb12u1", "1.6.20"),
        ("1.1.5+ds1-1+deb12u1", "1.1.5"),
        ("3.4.23-4+b4", "3.4.23"),
    ],
)
def test_the_upstream_part_of_a_debian_version(text, plain):
    assert debian.plain_version(text) == plain


def test_the_guests_get_what_the_repository_pins(tmp_path):
    assert saltenv.requirements(tmp_path / "none.toml") == list(saltenv.DEFAULT)
    file = tmp_path / "pyproject.toml"
    file.write_text('[project]\ndependencies = ["salt==1.2"]\n')
    assert saltenv.requirements(file) == ["salt==1.2"]


def test_the_master_config_is_the_repositorys_plus_the_labs(tmp_path):
    conf = tmp_path / "repo/config/master.d"
    conf.mkdir(parents=True)
    (conf / "indigo.conf").write_text("a: 1\n")
    guest = tmp_path / "etc"
    assert saltenv.master_files(guest, tmp_path / "repo") is True
    assert saltenv.master_files(guest, tmp_path / "repo") is False
    names = sorted(p.name for p in (guest / "master.d").iterdir())
    assert names == ["00-lab.conf", "indigo.conf"]  # Salt joins lists: the first file's come first
    (conf / "indigo.conf").unlink()
    assert saltenv.master_files(guest, tmp_path / "repo") is True
    assert not (guest / "master.d/indigo.conf").exists()


def test_the_lab_knows_the_images_of_the_projects_table():
    assert set(ADDONS) == set(images.NAMES)
    assert {one.name for one in containers.PROGRAMS} < set(images.NAMES)
    assert {one.name for one in wheels.WHEELS} < set(images.NAMES)
    assert {one.name for one in pythons.SERVICES} < set(images.NAMES)


@pytest.mark.parametrize("minor", range(versions.FIRST_MINOR, versions.LAST_MINOR + 1))
def test_a_wheel_has_the_release_that_the_projects_table_pins(minor):
    for name, wheel in wheels.chosen(minor).items():
        assert images.pinned(name, f"1.{minor}.0").tag == f"v{wheel.version}"


def test_a_restamped_package_has_its_files_and_comes_before_the_other(tmp_path):
    folder = tmp_path / "tree"
    (folder / "DEBIAN").mkdir(parents=True)
    (folder / "usr").mkdir()
    (folder / "usr/x").write_text("x")
    (folder / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1:2-3\nArchitecture: all\nMaintainer: a <b@c>\nDescription: x\n"
    )
    subprocess.run(["dpkg-deb", "--build", folder, tmp_path / "x.deb"], check=True)
    made = debian.restamped(tmp_path / "x.deb", "1:2-3~lab1", tmp_path)
    assert made.name == "x_1_2-3~lab1_all.deb"
    assert debian.field(made, "Version") == "1:2-3~lab1"
    assert (debian.unpack(made, tmp_path / "out") / "usr/x").read_text() == "x"
    assert debian.earlier("1:2-3~lab1", "1:2-3")
    assert not debian.earlier("1:2-3", "1:2-3~lab1")


@pytest.mark.parametrize("service", pythons.SERVICES, ids=lambda one: one.name)
def test_a_service_of_pypi_has_the_release_that_the_projects_table_pins(service):
    assert images.pinned(service.name, versions.DEFAULTS["kubernetes"]).tag == service.version
    text = service.requirements.read_text().replace("\\\n", " ")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert [f"{service.name}=={service.version}"] == [
        row[0] for row in rows if row[0].startswith(f"{service.name}==")
    ]
    for name, *hashes in rows:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", name)
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
    assert set(service.source) < {row[0].partition("==")[0] for row in rows}


def test_an_image_has_files_and_links_of_a_folder_but_no_pages(tmp_path):
    for name in ("usr/bin/python3.11", "usr/share/doc/python3.11/README", "opt/modules/a/b.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/ld.so").symlink_to("/lib/ld.so")
    (tmp_path / "opt/link").symlink_to("modules")
    assert pythons.tree(tmp_path) == {
        "lib64/ld.so": "/lib/ld.so",
        "opt/link": "modules",
        "opt/modules/a/b.py": tmp_path / "opt/modules/a/b.py",
        "usr/bin/python3.11": tmp_path / "usr/bin/python3.11",
    }
