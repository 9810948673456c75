"""The checks of the declared cluster: each mistake, exactly its message, and never a traceback."""

from __future__ import annotations

import copy
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indigo_model import cluster, validate

ROOT = Path(__file__).resolve().parents[2]
CASES = yaml.safe_load((Path(__file__).parent / "cases" / "validate.yaml").read_text("utf-8"))
BASE = CASES["base"]


def patched(base: dict[Any, Any], patch: dict[Any, Any]) -> dict[Any, Any]:
    result = copy.deepcopy(base)
    for key, value in patch.items():
        if value == "DELETE":
            del result[key]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = patched(result[key], value)
        else:
            result[key] = value
    return result


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["about"])
def test_a_mistake_is_told_and_nothing_else(case: dict[str, Any]) -> None:
    document = {**patched(BASE, case.get("patch", {})), **case.get("replace", {})}
    found = validate.problems(document)
    for expected in case["expect"]:
        matches = [problem for problem in found if re.match(expected, problem)]
        assert len(matches) == 1, f"{expected!r} among {found}"
    assert len(found) == len(case["expect"]), found
    for problem in found:
        assert re.fullmatch(r"[^;\n]+: found [^\n]+; expected [^\n]+; [^\n]+", problem), problem


@pytest.mark.parametrize("patch", CASES["good"], ids=lambda patch: ",".join(map(str, patch)))
def test_a_good_document_has_no_problem_and_parses(patch: dict[str, Any]) -> None:
    document = patched(BASE, patch)
    assert validate.problems(document) == []
    parsed = cluster.parse(document)
    assert set(parsed.hosts) == set(document["hosts"])


@pytest.mark.parametrize("case", CASES["unreadable"], ids=lambda case: case["about"])
def test_unreadable_text_is_refused_with_its_place(case: dict[str, Any]) -> None:
    with pytest.raises(validate.DocumentError) as raised:
        validate.load(case["text"], "cluster.yaml")
    assert re.match(case["expect"], str(raised.value)), raised.value


def test_bytes_that_are_no_utf_8_are_refused_with_their_line() -> None:
    with pytest.raises(validate.DocumentError, match=r"c\.yaml, line 2: found a byte that is not"):
        validate.load(b"name: lab\nvip: \xff\n", "c.yaml")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(validate.DocumentError, match=r"^c\.yaml"):
        validate.load("[" * 100_000, "c.yaml")


def test_merge_keys_and_anchors_are_plain_yaml() -> None:
    text = "base: &b {roles: [node]}\na:\n  <<: *b\n  address: 1\nb:\n  <<: *b\n  roles: [lb]\n"
    assert validate.load(text, "c.yaml")["b"] == {"roles": ["lb"]}


def test_the_example_is_good() -> None:
    assert validate.problems(validate.load(validate.EXAMPLE, "example")) == []


def test_the_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "pillar.md").read_text("utf-8")
    assert written == validate.reference(), "write validate.reference() to docs/pillar.md"


def test_every_default_of_the_model_is_allowed_and_documented() -> None:
    document = patched(
        BASE, {"timers": dict(cluster.TIMERS), "certificates": dict(cluster.CERTIFICATES)}
    )
    assert validate.problems(document) == []
    documented = {key.path for key in validate.KEYS}
    assert {f"timers.{name}" for name in cluster.TIMERS} <= documented
    assert {f"certificates.{name}" for name in cluster.CERTIFICATES} <= documented


def test_a_thousand_hosts_are_checked_fast() -> None:
    hosts = {
        f"node{n}": {"address": f"10.1.{n // 200}.{n % 200 + 1}", "roles": ["node"]}
        for n in range(1000)
    }
    document = patched(BASE, {"hosts": hosts, "networks": {"pods": "10.128.0.0/10"}})
    document["networks"]["hosts"] = ["10.0.0.0/10", "10.77.0.0/24"]
    document["network"] = "flannel"
    text = yaml.safe_dump(document)
    start = time.process_time()
    assert validate.problems(validate.load(text, "c.yaml")) == []
    assert time.process_time() - start < 2


# --- properties ----------------------------------------------------------------------------

WORDS = sorted(
    {part for key in validate.KEYS for part in re.split(r"[.\[\]]+", key.path) if part}
    | set(cluster.ROLES)
    | {"10.77.0.10", "10.96.0.0/16", "1.36.2", "runc", "amd64", "kubelet", "v", "lb1"}
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-10, 70000)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=3)
    | st.integers(5000, 5001).map(lambda digits: 10**digits)  # too long for str()
)
KEYS = st.sampled_from(WORDS) | st.text(max_size=4) | st.integers() | st.none() | st.booleans()
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def paths(data: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put into a document."""
    result = [above] if above else []
    if isinstance(data, dict):
        for key, value in data.items():
            result += paths(value, (*above, key))
    return result


FULL = patched(BASE, CASES["good"][4])
SITES = paths(FULL)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DATA)
def test_no_data_makes_the_checks_fail(data: Any) -> None:
    assert validate.problems(data), "nothing random is a cluster"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(SITES), DATA), min_size=1, max_size=3))
def test_a_document_with_no_problem_parses(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Put random data into random places of a full document: it is refused, or it parses."""
    document = copy.deepcopy(FULL)
    for site, data in changes:
        place: Any = document
        for key in site[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[site[-1]] = data
    found = validate.problems(document)
    assert all(": found " in problem for problem in found)
    if not found:
        parsed = cluster.parse(document)
        assert parsed.with_role("ca") and parsed.api_service and parsed.dns_service


def test_a_structure_that_holds_itself_is_a_problem() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    found = validate.problems(patched(BASE, {}) | {"addons": endless})
    assert len(found) == 1 and "an alias to the structure it stands in" in found[0]
