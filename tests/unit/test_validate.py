"""The checks of the declared cluster: each mistake, exactly its message, and never a traceback."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from indigo_model import artifacts, cluster, derive, validate, versions

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


#: Releases that the properties below try.
OTHERS = {
    "kubernetes": [f"1.{n}.2" for n in range(versions.FIRST_MINOR, versions.LAST_MINOR + 1)],
    "containerd": ["1.6.20", "1.7.29", "2.0.0", "2.3.1"],
    "etcd": ["3.4.23", "3.5.30", "3.6.1-rc.0"],
}


def complete() -> dict[str, Any]:
    """A document with every optional key, and a checksum of all that its hosts download."""
    document = patched(BASE, CASES["good"][4])
    digest = "sha256:" + "0" * 64
    releases = {**versions.DEFAULTS, **document["versions"]}
    sums: dict[str, dict[str, Any]] = {
        part: {version: {"amd64": digest} for version in (releases[part], *OTHERS.get(part, ()))}
        for part in releases
        if part not in ("pause", "kubernetes")
    }
    binaries = [name for _, _, names in artifacts.KUBERNETES.values() for name in names]
    sums["kubernetes"] = {
        release: {"amd64": dict.fromkeys(binaries, digest)}
        for release in (releases["kubernetes"], *OTHERS["kubernetes"])
    }
    document["artifacts"]["checksums"] = sums
    return document


FULL = complete()
SITES = paths(FULL)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DATA)
def test_no_data_makes_the_checks_fail(data: Any) -> None:
    assert validate.problems(data), "nothing random is a cluster"


def judged(document: dict[str, Any]) -> None:
    """Data of which the checks find nothing wrong parses, and derives to JSON or a clear no."""
    found = validate.problems(document)
    assert all(": found " in problem for problem in found)
    if found:
        return
    event("good")
    parsed = cluster.parse(document)
    assert parsed.with_role("ca") and parsed.api_service and parsed.dns_service
    for host in parsed.hosts.values():
        try:
            json.dumps(derive.pillar(parsed, host), allow_nan=False)
        except ValueError as err:
            # What a layer alone can know; it names the key too.
            assert re.match(r"(artifacts|overrides|versions|images)\.", str(err)), err


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(SITES), DATA), min_size=1, max_size=3))
def test_random_data_anywhere_is_refused_or_parses(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    document = copy.deepcopy(FULL)
    for site, data in changes:
        place: Any = document
        for key in site[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[site[-1]] = data
    judged(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(WORDS), inner),
    max_leaves=6,
)
FLAG = st.none() | st.booleans() | st.integers() | st.floats(-1, 1) | st.sampled_from(WORDS)

#: Patches that a person could mean, most of which are right.
MEANT = st.fixed_dictionaries(
    {},
    optional={
        "domain": st.sampled_from(["k8s.example.org", "a"]),
        "network": st.sampled_from(cluster.POD_NETWORKS),
        "vip": st.fixed_dictionaries({"port": st.integers(1, 65535)}),
        "networks": st.fixed_dictionaries(
            {"pods": st.sampled_from(["10.128.0.0/10", "10.9.0.0/23"])}
        ),
        "versions": st.fixed_dictionaries(
            {}, optional={part: st.sampled_from(releases) for part, releases in OTHERS.items()}
        ),
        "images": st.fixed_dictionaries({"archives": st.just([])}),
        "overrides": st.fixed_dictionaries(
            {},
            optional={
                **{
                    name: st.fixed_dictionaries(
                        {}, optional={"config": st.dictionaries(st.sampled_from(WORDS), JSON)}
                    )
                    for name in ("haproxy", "containerd", "kubelet", "kube-proxy")
                },
                "keepalived": st.fixed_dictionaries({"config": st.just({"priority": 7})}),
                "etcd": st.fixed_dictionaries(
                    {"flags": st.dictionaries(st.just("log-level"), FLAG)}
                ),
                "kube-apiserver": st.fixed_dictionaries(
                    {"flags": st.dictionaries(st.sampled_from(["v", "event-ttl"]), FLAG)}
                ),
            },
        ),
        "timers": st.fixed_dictionaries(
            {},
            optional={
                "vip_advert": st.floats(0.01, 40.95),
                "api_check": st.floats(0.1, 60),
                "node_status": st.integers(1, 9),
                "node_grace": st.integers(30, 86400) | st.floats(30, 50),
                "pod_eviction": st.integers(0, 86400),
            },
        ),
        "certificates": st.fixed_dictionaries({"days": st.integers(1, 3650)}),
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MEANT)
def test_what_a_person_could_mean_is_refused_or_derives(patch: dict[str, Any]) -> None:
    document = patched(FULL, {key: value for key, value in patch.items() if key != "overrides"})
    if "overrides" in patch:
        document["overrides"] = patch["overrides"]
    judged(document)


def test_the_full_document_is_good_and_its_pillars_are_json() -> None:
    assert validate.problems(FULL) == []
    parsed = cluster.parse(FULL)
    for host in parsed.hosts.values():
        assert json.loads(json.dumps(derive.pillar(parsed, host)))["indigo"]["id"] == host.id


def test_a_structure_that_holds_itself_is_a_problem() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    overrides = {"kubelet": {"config": endless}}
    found = validate.problems(patched(BASE, {}) | {"overrides": overrides})
    assert len(found) == 1 and "an alias to the structure it stands in" in found[0]


def test_the_file_that_a_user_starts_from_is_good() -> None:
    path = ROOT / "pillar" / "cluster.yaml"
    document = validate.load(path.read_bytes(), str(path))
    assert validate.problems(document) == []
    for host in (parsed := cluster.parse(document)).hosts.values():
        assert derive.pillar(parsed, host)["indigo"]["roles"] == list(host.roles)
