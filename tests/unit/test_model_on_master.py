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
