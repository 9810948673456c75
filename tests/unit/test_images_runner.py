"""Archives of images on their way to a cluster without a registry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError
from support import load

runner = load("_runners", "indigo_images")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    index = []
    for name in ("a", "b"):
        (folder / f"{name}.tar").write_text(name)
        digest = hashlib.sha256(name.encode()).hexdigest()
        index.append({"name": f"x/{name}:1", "file": f"{name}.tar", "hash": f"sha256:{digest}"})
    (folder / "images.json").write_text(json.dumps(index))
    return folder


def test_what_was_saved_is_served_and_told_as_the_cluster_file_wants_it(saved, tmp_path):
    target = tmp_path / "served"
    found = runner.taken(saved, target)
    assert [one["source"] for one in found] == ["salt://images/a.tar", "salt://images/b.tar"]
    assert [one["name"] for one in found] == ["x/a:1", "x/b:1"]
    assert sorted(path.name for path in target.iterdir()) == ["a.tar", "b.tar"]
    assert runner.taken(saved, target) == found


@pytest.mark.parametrize("harm", ["damage", "remove"])
def test_of_a_folder_that_is_not_whole_nothing_is_taken(saved, tmp_path, harm):
    (saved / "b.tar").write_text("c") if harm == "damage" else (saved / "b.tar").unlink()
    with pytest.raises(CommandExecutionError, match=r"b\.tar"):
        runner.taken(saved, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_an_index_cannot_lead_out_of_its_folder(saved, tmp_path):
    (tmp_path / "secret").write_text("a")
    index = json.loads((saved / "images.json").read_text())
    index[0]["file"] = "../secret"
    (saved / "images.json").write_text(json.dumps(index))
    with pytest.raises(CommandExecutionError, match="disk/secret"):
        runner.taken(saved, tmp_path / "served")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(CommandExecutionError, match=r"images\.json cannot be read"):
        runner.taken(tmp_path, tmp_path / "served")


def test_archives_never_go_into_the_state_tree(tmp_path):
    tree, other = tmp_path / "salt", tmp_path / "other"
    (tree / "indigo").mkdir(parents=True)
    (tree / "indigo" / "host.sls").touch()
    runner.__opts__ = {"file_roots": {"base": [str(tree), str(other)]}}
    assert runner._served() == other / "images"
    runner.__opts__ = {"file_roots": {"base": [str(tree)]}}
    with pytest.raises(CommandExecutionError, match="file_roots"):
        runner._served()
