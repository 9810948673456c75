"""``indigo.check`` and ``indigo.metrics``: the status for programs that watch it."""

from __future__ import annotations

import re

import pytest
from salt.exceptions import CommandExecutionError
from support import load
from test_status_screen import assess as assessed
from test_status_screen import both_masters, put

check = load("_runners", "indigo_check")
SAMPLE = re.compile(r'indigo_[a-z_]+\{(\w+="(\\.|[^"\\])*",?)+\} -?\d+(\.\d+)?(e[+-]\d+)?')


@pytest.fixture
def status(monkeypatch):
    """Let ``indigo.status`` find this, or raise it."""

    def use(found):
        def answer(timeout):
            if isinstance(found, Exception):
                raise found
            return {"data": found}

        monkeypatch.setattr(check, "__salt__", {"indigo.status": answer}, raising=False)

    return use


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda reports: None, 0),
        (lambda reports: reports.pop("N1"), 1),
        (put("m2", "api", value={"ok": False, "problem": "refused"}), 1),
        (both_masters("api", value={"ok": False, "problem": "refused"}), 2),
        (put("lb1", "vip", value=False), 2),
        (put("e1", "etcd", value={"problem": "dead"}), 2),
        (both_masters("kubernetes", value={"problem": "timed out"}), 2),
    ],
)
def test_how_bad_it_is(status, change, code) -> None:
    status(assessed(change))
    found = check.check()["data"]
    assert found["retcode"] == code, found
    first, *problems = found["text"].splitlines()
    assert first.startswith(f"INDIGO {check.WORDS[code]} - lab: ")
    assert bool(problems) == bool(code)


def test_the_line_has_figures_a_check_keeps(status) -> None:
    status(assessed(lambda reports: reports.pop("N1")))
    text = check.check()["data"]["text"]
    told, figures = text.splitlines()[0].split(" | ")
    assert "hosts 6/7" in told
    values = dict(pair.split("=") for pair in figures.split())
    assert values["hosts"] == "6;;;0;7" and values["certificate_days"] == "200"
    assert text.count("|") == 1


def test_what_cannot_be_asked_is_unknown(status) -> None:
    status(CommandExecutionError("name: found\nnothing"))
    found = check.check()["data"]
    assert found == {"text": "INDIGO UNKNOWN - name: found nothing", "retcode": 3}


def test_metrics_are_samples_with_their_type() -> None:
    data = assessed(put("m2", "api", value={"ok": False, "problem": "refused"}))
    data["versions"]["odd"] = 'a"b\\c'
    text = check.exposition(data, 1_790_000_000.25, 1.5)
    typed = set(re.findall(r"# TYPE (\w+) gauge", text))
    for line in text.splitlines():
        if not line.startswith("#"):
            assert SAMPLE.fullmatch(line), line
            assert line.split("{")[0] in typed
    assert 'indigo_api_ready{cluster="lab",host="m2"} 0' in text
    assert 'indigo_severity{cluster="lab"} 1' in text
    assert 'indigo_asked_timestamp_seconds{cluster="lab"} 1790000000.25' in text
    assert 'indigo_certificate_first_expiry_days{cluster="lab",host="e1",path="/pki/x.crt"} 200'
    names = re.findall(r"^(indigo_\w+\{.*\}) ", text, re.M)
    assert len(names) == len(set(names))


def test_the_file_is_replaced_in_one_move(status, tmp_path) -> None:
    status(assessed())
    path = tmp_path / "indigo.prom"
    path.write_text("old")
    assert check.metrics(path=str(path))["problems"] == 0
    assert path.read_text().startswith("# HELP indigo_problems")
    assert [one.name for one in tmp_path.iterdir()] == ["indigo.prom"]
    with pytest.raises(CommandExecutionError, match="path: "):
        check.metrics(path=str(tmp_path / "none" / "x.prom"))
