"""Logs: what Fluent Bit is told, and what would keep it from starting."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import parse_qs, urlsplit

import netaddr
import pytest
import yaml
from indigo_model import logs
from salt.exceptions import CommandExecutionError
from support import ROOT, Pod, load

module = load("_modules", "indigo_addon")

FILE = logs.fluent_bit("10.1.0.17", "10.1.0.1")


def test_no_way_of_it_needs_names():
    servers = re.findall(r"^ +(?:Host|Kube_URL) +(?:https://)?([^\s:]+)", FILE, re.MULTILINE)
    assert [str(netaddr.IPAddress(one)) for one in servers] == [
        "10.1.0.1", "10.1.0.17", "10.1.0.17",
    ]  # fmt: skip


def test_it_starts_where_the_journal_is_kept_in_memory():
    """A folder that is not there keeps the input, and so all of Fluent Bit, from starting."""
    (journal,) = re.findall(r"\[INPUT\]\n +Name +systemd\n(.*?)\n\n", FILE, re.DOTALL)
    assert not re.search(r"^ +Path ", journal, re.MULTILINE)


def test_an_answer_to_any_number_of_lines_is_read():
    """One that is cut off counts as none, and the same lines are sent again for ever."""
    assert FILE.count("Buffer_Size         false") == FILE.count("[OUTPUT]") == 2


# --- its check -----------------------------------------------------------------------------------

POLICY = {"indigo": {"policy": {"phases": {"delete": {"min_age": "14d"}}}}}


class Elasticsearch(Pod):
    """One with a policy; what it says to a search."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = Answers({"/_ilm/policy/indigo": (200, POLICY)})


class Answers(dict):
    """Answers by path alone, whatever is asked there."""

    def __getitem__(self, path):
        return super().__getitem__(urlsplit(path).path)


@pytest.fixture
def store(monkeypatch):
    password = base64.b64encode(b"s3cret").decode()
    salt = {"indigo_kube.get": lambda *_, **__: {"data": {"elastic": password}}}
    monkeypatch.setattr(module, "__salt__", salt, raising=False)
    monkeypatch.setattr(module, "_server", lambda: "https://x")
    monkeypatch.setattr(module, "_addresses", lambda *_: ["127.0.0.1"])
    with Elasticsearch() as found:
        yield found


def check(store, nodes=("n1", "n2"), age="14d"):
    return module._lines(
        {"port": store.port, "lifecycle": "indigo", "streams": logs.PATTERN, "nodes": nodes,
         "age": age}
    )  # fmt: skip


SEARCH = f"/{logs.PATTERN}/_search"


def test_a_node_whose_lines_do_not_come_is_named(store):
    buckets = [{"key": "n1", "doc_count": 7}]
    store.answers[SEARCH] = (200, {"aggregations": {"nodes": {"buckets": buckets}}})
    assert check(store) == "no line came from n2 in the last ten minutes"
    assert check(store, nodes=("n1",)) == ""
    path, user = store.asked[-1]
    assert user == "Basic " + base64.b64encode(b"elastic:s3cret").decode()
    question = json.loads(parse_qs(urlsplit(path).query)["source"][0])
    assert question["aggs"]["nodes"]["terms"]["field"] == "node"


def test_before_the_first_line_nobody_has_sent_any(store):
    store.answers[SEARCH] = (200, {"hits": {"total": {"value": 0}, "hits": []}})
    assert check(store) == "no line came from n1, n2 in the last ten minutes"


def test_another_lifecycle_than_the_declared_one_is_told(store):
    assert "deletes lines after 14d, not after 30d" in check(store, age="30d")
    store.answers["/_ilm/policy/indigo"] = (401, {})
    with pytest.raises(CommandExecutionError, match="401"):
        check(store)


# --- Elasticsearch's pod -------------------------------------------------------------------------


def test_its_settings_are_copied_into_a_folder_of_roots_and_java_writes_no_log_of_its_own():
    text = (ROOT / "salt/addons/logging/manifests.yaml.jinja").read_text()
    (command,) = re.findall(r"command: (\[cp,.*\])", text)
    # With -a or -p cp sets times of the folder, which is not its own there, and fails.
    assert yaml.safe_load(command)[:2] == ["cp", "-r"]
    (options,) = re.findall(r"-Xms.*", text)
    assert "-Xlog:disable" in options
