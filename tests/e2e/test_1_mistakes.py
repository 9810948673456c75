"""Wrong input is refused by the real command, with key and remedy, before any host is touched.

A binary with a wrong checksum can only be found out once it is fetched: see test_7_absent.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import answering, deploy, parsed
from fingerprints import differences, fingerprints

HERE = Path(__file__).parent
MISTAKES = yaml.safe_load((HERE / "mistakes.yaml").read_text("utf-8"))
UNIT = yaml.safe_load((HERE.parent / "unit/cases/validate.yaml").read_text("utf-8"))["cases"]
NUMBERED = {case["about"].split(".")[0]: case for case in UNIT}


def _cases() -> Iterator[dict[str, Any]]:
    for number in MISTAKES["from_unit"]:
        yield NUMBERED[str(number)]
    yield from MISTAKES["hosts"]
    yield from MISTAKES["text"]


CASES = list(_cases())


def patched(base: dict[Any, Any], patch: dict[Any, Any]) -> dict[Any, Any]:
    """The document with a patch: mappings merge, DELETE takes a key out."""
    result = copy.deepcopy(base)
    for key, value in patch.items():
        if value == "DELETE":
            del result[key]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = patched(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture(scope="module")
def bare(lab):
    """The hosts before any mistake."""
    return fingerprints(lab)


@pytest.fixture
def declaration(lab, bare) -> Iterator[Path]:
    """The file that declares the cluster, put back afterwards."""
    text = lab.cluster_file.read_bytes()
    yield lab.cluster_file
    lab.cluster_file.write_bytes(text)


def refused(done, expected: str) -> None:
    """The deploy failed in preflight with this message, and went no further."""
    assert done.code != 0
    assert list(done.steps), done.stdout + done.progress
    first, *others, told = done.steps.values()
    assert told["name"] == "What happened is told" and told["result"] is True, told
    assert first["name"] == "Every host passes preflight"
    assert first["result"] is False
    assert re.search(expected, first["comment"]), first["comment"]
    assert others
    for step in others:
        assert step["__state_ran__"] is False, step
        assert step["comment"].startswith("One or more requisite failed")
        assert step["changes"] == {}


def test_there_are_enough_mistakes():
    assert len(CASES) + 2 >= 30


#: The unit tests try all of these; `make test` has time for one of eight on the lab.
_FROM_UNIT = len(MISTAKES["from_unit"])
_PARAMETERS = [
    pytest.param(
        case,
        id=case["about"],
        marks=[pytest.mark.slow] * (number < _FROM_UNIT and number % 8 > 0),
    )
    for number, case in enumerate(CASES)
]


@pytest.mark.parametrize("case", _PARAMETERS)
def test_a_mistake_is_refused_with_its_remedy(lab, declaration, case):
    if "text" in case:
        declaration.write_text(case["text"], "utf-8")
    else:
        document = yaml.safe_load(declaration.read_bytes())
        changed = {**patched(document, case.get("patch", {})), **case.get("replace", {})}
        declaration.write_text(yaml.safe_dump(changed, sort_keys=False), "utf-8")
    expected = case["expect"]
    for one in expected if isinstance(expected, list) else [expected]:
        refused(deploy(lab), one)


_WITHOUT_THE_EXAMPLE = """
rm -rf /tmp/no-example && cp -a /etc/salt /tmp/no-example
sed -i 's#, /srv/indigo/pillar##; s#^ *- /srv/indigo/pillar$#    - /srv/indigo-site/pillar#' \
    /tmp/no-example/master.d/*.conf
salt-run -c /tmp/no-example state.orchestrate indigo.deploy --out json
code=$?
rm -rf /tmp/no-example
exit $code
"""


def test_a_missing_file_is_named_with_its_remedy(lab, declaration):
    declaration.unlink()
    # The repository's example is found instead, and its addresses are not these hosts'.
    refused(deploy(lab), r"hosts\.node1\.address: 192\.0\.2\.41 is not on node1, which has 10\.77")
    # Without any example, as on a Salt master whose cluster.yaml lies outside the checkout.
    done = lab.exec("salt", ["sh", "-c", _WITHOUT_THE_EXAMPLE], timeout=120)
    refused(
        parsed(done.returncode, done.stdout, done.stderr, 0),
        r"No cluster\.yaml found in pillar_roots \(.*\): write one from the example",
    )


def test_nothing_on_any_host_changed(lab, bare):
    assert differences(bare, fingerprints(lab)) == {}


def test_an_unreachable_minion_is_named(lab, bare):
    lab.kill("node3")
    try:
        done = deploy(lab)
        others = {host: bare[host] for host in bare if host != "node3"}
        found = differences(others, fingerprints(lab))
    finally:
        lab.start("node3")
    refused(done, r"node3 \(10\.77\.0\.43\) does not answer: start salt-minion there")
    answering(lab, "node3")
    assert found == {}
