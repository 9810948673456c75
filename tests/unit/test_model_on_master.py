"""The model's edge to Salt: the file found in the pillar roots, views kept in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import indigo_model
import pytest
import yaml
from salt.exceptions import CommandExecutionError

CASES = Path(__file__).parent / "cases" / "validate.yaml"
BASE = yaml.safe_load(CASES.read_text("utf-8"))["base"]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a cluster.yaml where the model looks for one."""
    root = tmp_path / "pillar"
    root.mkdir()
    opts = {"pillar_roots": {"base": [str(root)]}, "cachedir": str(tmp_path / "cache")}
    monkeypatch.setattr(indigo_model, "__opts__", opts, raising=False)

    def write(text: str | dict[str, Any]) -> None:
        body = text if isinstance(text, str) else yaml.safe_dump(text)
        (root / "cluster.yaml").write_text(body, "utf-8")

    return write


BROKEN = {
    "a mistake": {**BASE, "network": "calico"},
    "no YAML": "name: [lab\n",
    "nothing": "",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_an_orchestration_renders_over_a_mistake_and_its_preflight_tells_it(declare, text):
    declare(text)
    assert indigo_model.pillar("salt_master") == {}
    assert indigo_model.hosts() == []
    assert indigo_model.hosts("node") == []
    assert len(indigo_model.problems()) == 1


@pytest.mark.usefixtures("declare")
def test_a_missing_file_is_told_and_lets_an_orchestration_render():
    assert indigo_model.pillar("salt_master") == {}
    assert indigo_model.hosts() == []
    (problem,) = indigo_model.problems()
    assert problem.startswith("No cluster.yaml found in pillar_roots (")


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_declared_minion_never_gets_an_empty_view_over_a_mistake(declare, text):
    declare(text)
    with pytest.raises(CommandExecutionError, match=r"cluster\.yaml cannot be used"):
        indigo_model.pillar("node1")


def test_hosts_and_views_follow_the_file(declare):
    declare(BASE)
    assert indigo_model.hosts("node") == ["node1", "node2"]
    assert indigo_model.pillar("node1")["indigo"]["roles"] == ["node"]
    assert indigo_model.pillar("salt_master") == {}
    assert indigo_model.pillar("stranger") == {}
    hosts = {id_: host for id_, host in BASE["hosts"].items() if id_ != "node2"}
    declare({**BASE, "hosts": hosts})
    assert indigo_model.hosts("node") == ["node1"]
    assert indigo_model.pillar("node2") == {}


# Hosts that are leaving ---------------------------------------------------------------------------


def test_a_host_that_is_leaving_is_not_declared_for_anybody(declare):
    declare(BASE)
    before = indigo_model.plan()["hosts"]["node1"]["digest"]
    assert indigo_model.lines("node2")
    indigo_model.mark("node2", {"done": False})
    assert indigo_model.hosts("node") == ["node1"]
    assert indigo_model.pillar("node2") == {}
    assert indigo_model.plan()["hosts"]["node1"]["digest"] == before
    (problem,) = indigo_model.problems()
    assert "run `salt-run indigo.remove host=node2`" in problem
    indigo_model.mark("node2", {"done": True})
    (problem,) = indigo_model.problems()
    first, last = indigo_model.lines("node2")
    assert f"delete lines {first} to {last} of " in problem
    assert indigo_model.unmark("node2")
    assert indigo_model.problems() == []
    assert indigo_model.hosts("node") == ["node1", "node2"]


def test_the_note_goes_with_the_lines_and_the_id_is_free_again(declare):
    declare(BASE)
    indigo_model.mark("node2", {"done": True})
    hosts = {id_: host for id_, host in BASE["hosts"].items() if id_ != "node2"}
    declare({**BASE, "hosts": hosts})
    assert indigo_model.problems() == []
    assert indigo_model.hosts("node") == ["node1"]
    assert indigo_model.leaving() == {}
    declare(BASE)
    assert indigo_model.hosts("node") == ["node1", "node2"]


def test_an_unfinished_removal_is_told_also_without_the_lines(declare):
    hosts = {id_: host for id_, host in BASE["hosts"].items() if id_ != "node2"}
    declare({**BASE, "hosts": hosts})
    indigo_model.mark("node2", {"done": False})
    assert indigo_model.hosts("node") == ["node1"]
    assert list(indigo_model.leaving()) == ["node2"]
    (problem,) = indigo_model.problems()
    assert problem.startswith("node2: its removal was begun and is not finished")


def test_an_even_number_of_members_is_no_mistake_while_one_leaves(declare):
    declare(BASE)
    member = indigo_model.plan()["roles"]["etcd"][-1]
    assert indigo_model.remaining_problems(member) == []
    indigo_model.mark(member, {"done": True})
    assert member not in indigo_model.hosts("etcd")
    # Its lines must wait for another member, so a deploy goes on.
    assert indigo_model.problems() == []


def test_the_last_of_a_role_cannot_leave(declare):
    declare(BASE)
    masters = indigo_model.plan()["roles"]["master"]
    assert "no host with the role master" in indigo_model.remaining_problems(*masters)[0]
