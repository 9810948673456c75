"""Tokens through a real master: two masters and a node, every step seen on the wire."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import salt.client
import salt.utils.event
import yaml
from support import ROOT

CLUSTER: dict[str, Any] = {
    "name": "tokens",
    "vip": {"address": "10.99.1.10", "interface": "eth0"},
    "hosts": {
        "tm1": {"address": "10.99.1.31", "roles": ["ca", "lb", "etcd", "master"]},
        "tm2": {"address": "10.99.1.32", "roles": ["master"]},
    },
    "networks": {"services": "10.96.0.0/16", "pods": "10.244.0.0/16"},
}
NODE = {"address": "10.99.1.41", "roles": ["node"]}

#: The pillar as the master derives it, with paths and accounts of this machine.
PILLAR = """#!py
import json, os, pwd


def run():
    id_ = __opts__["id"]
    text = json.dumps(__salt__["indigo_model.pillar"](id_))
    view = json.loads(text.replace('"/etc/', '"@ROOT@/%s/etc/' % id_))
    indigo = view.get("indigo", {})
    token_set = indigo.get("token_set", {})
    for row in [*indigo.get("tokens", []), *token_set.get("files", []), token_set]:
        row["user"] = pwd.getpwuid(os.geteuid()).pw_name
    return view
"""

STATES = {
    "replicate": "Masters and nodes have their tokens:\n  indigo_tokens.replicated: []\n",
    "host": """{% set indigo = pillar.indigo %}
The tokens of this host are in place:
  indigo_tokens.present:
    - tokens: {{ indigo.tokens | json }}
    - set: {{ 'master' in indigo.roles }}
""",
    "gone": """{% set indigo = pillar.indigo %}
No token is left on this host:
  indigo_tokens.absent:
    - tokens: {{ indigo.tokens | json }}
    - set: {{ 'master' in indigo.roles }}
""",
}


class Site:
    """A master, the minions tm1, tm2 and tn1, and a record of every event."""

    def __init__(self, master: Any, minions: dict[str, Any], workspace: Path) -> None:
        self.master, self.minions, self.workspace = master, minions, workspace
        self.client = salt.client.get_local_client(mopts=dict(master.config))

    def declare(self, **nodes: Any) -> None:
        """Write cluster.yaml with these hosts beside the two masters; refresh pillars."""
        document = {**CLUSTER, "hosts": {**CLUSTER["hosts"], **nodes}}
        (self.workspace / "pillar" / "cluster.yaml").write_text(yaml.safe_dump(document))
        answers = self.client.cmd("*", "saltutil.refresh_pillar", kwarg={"wait": True}, timeout=60)
        assert set(answers) == set(self.minions), answers

    def path(self, minion: str, name: str = "") -> Path:
        return self.workspace / minion / "etc" / "kubernetes" / name

    def call(self, minion: str, function: str, **kwargs: Any) -> Any:
        return self.client.cmd(minion, function, kwarg=kwargs, timeout=60)[minion]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What a person types: salt-run with these words."""
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=180, check=False
        )

    def command(self, *words: str) -> list[str]:
        config = os.path.dirname(self.master.config["conf_file"])
        script = self.master.salt_run_cli().get_script_path()
        return [sys.executable, script, "-c", config, *words, "--out=json"]

    def replicate(self, *words: str) -> dict[str, Any]:
        done = self.run("indigo_tokens.replicate", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def published(self, function: str = "", since: int = 0) -> int:
        """How many jobs for indigo_tokens the bus has seen, after a place in the record."""
        with (self.workspace / "events").open() as record:
            record.seek(since)
            return sum(
                line.startswith("salt/job/")
                and "/new " in line[:60]
                and f"'fun': 'indigo_tokens.{function}" in line
                for line in record
            )

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Content and ctime of every token file on every host."""
        return {
            str(path): (path.read_bytes(), path.stat().st_ctime_ns)
            for minion in self.minions
            for path in sorted(self.path(minion).rglob("*"))
            if path.is_file()
        }

    def wipe(self, *minions: str) -> None:
        for minion in minions:
            for path in self.path(minion).rglob("*"):
                if path.is_file():
                    path.unlink()

    def in_step(self) -> None:
        """Assert from the files alone that masters are equal and the node has its own."""
        names = ["tokens.csv", "pki/sa.key", "pki/controller-manager-sa.key", "pki/sa.pub"]
        names += ["encryption.yaml", "tokens.set", "tokens/admin"]
        for name in names:
            assert self.path("tm1", name).read_bytes() == self.path("tm2", name).read_bytes()
        rows = [line.split(",") for line in self.path("tm1", "tokens.csv").read_text().split()]
        tokens = {row[2]: row[0] for row in rows}
        for name in ("kubelet", "kube-proxy"):
            assert self.path("tn1", f"tokens/{name}").read_text() == tokens[f"{name}:tn1"] + "\n"
        found = [path.name for path in self.path("tn1").rglob("*") if path.is_file()]
        assert sorted(found) == ["kube-proxy", "kubelet"]


def record(opts: dict[str, Any], target: Path, started: threading.Event, stop: threading.Event):
    """Write every event of the master's bus to a file, a line each."""
    with (
        salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=True) as bus,
        target.open("w") as out,
    ):
        started.set()
        while not stop.is_set():
            event = bus.get_event(wait=0.2, full=True)
            if event:
                print(event["tag"], event["data"], file=out, flush=True)


@pytest.fixture(scope="module")
def site(salt_factories: Any, workspace: Path) -> Iterator[Site]:
    """Everything logged as finely as Salt can: a secret that passes by must be seen."""
    folder = workspace / "t"
    for name in ("pillar", "states"):
        (folder / name).mkdir(parents=True)
    (folder / "pillar" / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    (folder / "pillar" / "top.sls").write_text(json.dumps({"base": {"*": ["trial"]}}))
    (folder / "pillar" / "trial.sls").write_text(PILLAR.replace("@ROOT@", str(folder)))
    for name, text in STATES.items():
        (folder / "states" / f"{name}.sls").write_text(text)
    loaders = {
        "module_dirs": [str(ROOT / "_modules")],
        "states_dirs": [str(ROOT / "_states")],
        "log_level_logfile": "all",
    }
    master = salt_factories.salt_master_daemon(
        "tmaster",
        overrides={
            **loaders,
            "runner_dirs": [str(ROOT / "_runners")],
            "file_roots": {"base": [str(folder / "states")]},
            "pillar_roots": {"base": [str(folder / "pillar")]},
            "open_mode": False,
            "auto_accept": True,
            "timeout": 2,
            "gather_job_timeout": 2,
        },
    )
    with master.started():
        started, stop = threading.Event(), threading.Event()
        recorder = threading.Thread(
            target=record, args=(dict(master.config), folder / "events", started, stop)
        )
        recorder.start()
        assert started.wait(10)
        minions = {
            id_: master.salt_minion_daemon(id_, overrides=loaders) for id_ in ("tm1", "tm2", "tn1")
        }
        try:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda daemon: daemon.start(), minions.values()))
            yield Site(master, minions, folder)
        finally:
            stop.set()
            recorder.join()
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda daemon: daemon.terminate(), minions.values()))


def test_test_mode_tells_what_would_come_and_writes_nothing(site):
    site.declare(tn1=NODE)
    result = site.replicate("test=True")
    assert result["changes"] == {
        "tm1": "makes the token set",
        "tm2": "receives the token set",
        "tn1": "receives kubelet:tn1, kube-proxy:tn1",
    }
    done = site.run("state.orchestrate", "replicate", "test=True")
    assert done.returncode == 0, done.stdout
    (step,) = next(iter(json.loads(done.stdout)["data"].values())).values()
    assert step["result"] is None and set(step["changes"]) == {"tm1", "tm2", "tn1"}
    assert not site.files()


def test_a_host_without_tokens_fails_with_the_remedy_and_not_in_test_mode(site):
    (step,) = site.call("tn1", "state.apply", mods="host").values()
    assert step["result"] is False and "indigo.deploy" in step["comment"]
    (step,) = site.call("tn1", "state.apply", mods="host", test=True).values()
    assert step["result"] is None


def test_two_masters_and_a_node_converge_in_three_publishes_then_one(site):
    before = site.published()
    result = site.replicate()
    assert result["holder"] == "tm1" and result["in_step"] and not result["unreachable"]
    assert set(result["changes"]) == {"tm1", "tm2", "tn1"}
    site.in_step()
    time.sleep(0.5)  # for the recorder, not for the subject
    assert site.published() - before == 3
    files = site.files()
    assert site.replicate() == {
        "changes": {},
        "holder": "tm1",
        "in_step": True,
        "unreachable": [],
    }
    time.sleep(0.5)
    assert site.published() - before == 4
    assert site.files() == files


def test_an_orchestration_and_every_host_s_state_have_nothing_left_to_do(site):
    done = site.run("state.orchestrate", "replicate")
    assert done.returncode == 0, done.stdout
    (step,) = next(iter(json.loads(done.stdout)["data"].values())).values()
    assert step["result"] is True and step["changes"] == {}
    for minion in site.minions:
        (step,) = site.call(minion, "state.apply", mods="host").values()
        assert step["result"] is True and step["changes"] == {}, step


def test_a_master_s_own_state_mends_what_follows_from_the_set(site):
    path = site.path("tm2", "tokens.csv")
    path.unlink()
    (step,) = site.call("tm2", "state.apply", mods="host").values()
    assert step["result"] is True and step["changes"] == {str(path): "missing"}
    site.in_step()


def test_a_lost_first_master_gets_the_set_back_from_the_other(site):
    before = site.path("tm2", "tokens.set").read_bytes()
    site.wipe("tm1")
    result = site.replicate()
    assert result["holder"] == "tm2" and set(result["changes"]) == {"tm1"}
    assert site.path("tm1", "tokens.set").read_bytes() == before
    site.in_step()


def test_a_node_that_leaves_loses_its_access_and_one_that_comes_gets_its_own(site):
    kubelet = site.path("tn1", "tokens/kubelet").read_text().strip()
    (step,) = site.call("tn1", "state.apply", mods="gone").values()
    assert len(step["changes"]) == 2
    site.declare()
    assert set(site.replicate()["changes"]) == {"tm1", "tm2"}
    assert kubelet not in site.path("tm2", "tokens.csv").read_text()
    site.declare(tn1=NODE)
    assert set(site.replicate()["changes"]) == {"tm1", "tm2", "tn1"}
    assert site.path("tn1", "tokens/kubelet").read_text().strip() != kubelet
    site.in_step()


def test_killed_after_the_holder_s_part_the_next_run_does_the_rest(site):
    """The runner died between its calls: the holder has a newer set, the others do not know."""
    identities = json.loads(site.run("salt.cmd", "indigo_model.tokens_plan").stdout)["identities"]
    extra = {"name": "kubelet:later", "user": "u", "groups": []}
    site.call("tm1", "indigo_tokens.ensure", identities=[*identities, extra])
    result = site.replicate()
    assert set(result["changes"]) == {"tm1", "tm2"}  # the extra one is not declared: dropped
    site.in_step()


@pytest.mark.parametrize("function", ["state", "seal", "unseal"])
def test_killed_at_any_step_the_next_run_converges(site, function):
    site.wipe("tm2", "tn1")
    events = site.workspace / "events"
    seen = events.stat().st_size
    with subprocess.Popen(
        site.command("indigo_tokens.replicate"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        deadline = time.monotonic() + 60
        while not site.published(function, seen):
            assert time.monotonic() < deadline, f"the run never came to {function}"
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert site.replicate()["in_step"]
    site.in_step()


def test_the_phase_of_an_exchange_goes_with_the_set(site):
    old = site.path("tn1", "tokens/kubelet").read_text()
    for phase, lines in (("trusted", 2), ("used", 2), ("dropped", 1)):
        said = site.call("tm1", "indigo_tokens.rotate", what="tokens", phase=phase)
        assert said["set"]["rotation"]["phase"] == phase, said
        changed = set(site.replicate()["changes"])
        assert changed == ({"tm2", "tn1"} if phase == "used" else {"tm2"})
        for master in ("tm1", "tm2"):
            found = json.loads(site.path(master, "tokens.set").read_text())["rotation"]
            assert (found["what"], found["phase"]) == ("tokens", phase)
            rows = site.path(master, "tokens.csv").read_text().split()
            assert len([row for row in rows if ",kubelet:tn1" in row]) == lines
        # A master that is lost half-way gets the phase back with the set.
        if phase == "used":
            site.wipe("tm1")
            assert site.replicate()["holder"] == "tm2"
            assert "rotation" in json.loads(site.path("tm1", "tokens.set").read_text())
    new = site.path("tn1", "tokens/kubelet").read_text()
    assert new != old
    assert old.strip() not in site.path("tm2", "tokens.csv").read_text()
    site.call("tm1", "indigo_tokens.rotate", what="tokens", phase=None)
    site.replicate()
    assert "rotation" not in json.loads(site.path("tm2", "tokens.set").read_text())
    site.in_step()


def signalled(daemon: Any, number: int) -> None:
    """Send a signal to a daemon and its children."""
    process = psutil.Process(daemon.pid)
    children = process.children(recursive=True)
    process.send_signal(number)
    for one in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # a job's process may have ended meanwhile
            one.send_signal(number)


def test_a_silent_master_that_may_hold_the_set_stops_the_making_of_another(site):
    held = {path: path.read_bytes() for path in site.path("tm1").rglob("*") if path.is_file()}
    signalled(site.minions["tm2"], signal.SIGSTOP)
    try:
        site.wipe("tm1")
        done = site.run("indigo_tokens.replicate")
        assert done.returncode != 0
        assert "tm2 may hold it" in done.stdout + done.stderr
        assert not site.path("tm1", "tokens.set").exists()
        for path, content in held.items():
            path.write_bytes(content)
        result = site.replicate()
        assert result["unreachable"] == ["tm2"] and result["in_step"] is False
    finally:
        signalled(site.minions["tm2"], signal.SIGCONT)
    assert site.replicate()["in_step"]
    site.in_step()


def test_a_minion_cannot_open_what_is_sealed_for_another(site):
    (key,) = [(Path(site.master.config["pki_dir"]) / "minions" / "tm2").read_text()]
    wishes = {"tm2": {"set": True, "public_key": key}}
    sealed = site.call("tm1", "indigo_tokens.seal", recipients=wishes)["sealed"]["tm2"]
    sealed["header"].update(recipient="tn1", kind="tokens")
    answer = site.call("tn1", "indigo_tokens.unseal", sealed={"tn1": sealed})
    assert "do not open" in answer


def shapes(secret: str) -> list[bytes]:
    """A secret as it is, in hexadecimal, and in base64 at each of the three alignments."""
    found = [secret.encode(), secret.encode().hex().encode()]
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + secret.encode())
        found.append(encoded[4:-4])  # without the characters that its neighbours share
    return found


def process_text() -> bytes:
    """Arguments and environment of every process."""
    found = b""
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                found += (folder / name).read_bytes()
            except OSError:  # it has ended
                continue
    return found


def test_no_secret_is_in_any_cache_event_log_or_process_list(site):
    """Last: searches everything that the runs above have left."""
    document = json.loads(site.path("tm1", "tokens.set").read_text())
    secrets = [entry["token"] for entry in document["tokens"].values()]
    secrets += document["service_account_key"].split("\n")[1:-2]
    config = yaml.safe_load(document["encryption"])
    secrets.append(config["resources"][0]["providers"][0]["secretbox"]["keys"][0]["secret"])
    places = {
        str(path): path.read_bytes()
        for root in (site.workspace.parent / "f", site.workspace / "pillar")
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    for minion in site.minions.values():  # the logs are among them, and tell of every call
        assert b"indigo_tokens.state" in places[minion.config["log_file"]]
    places["events"] = (site.workspace / "events").read_bytes()
    places["processes"] = process_text()
    wanted = [shape for secret in secrets for shape in shapes(secret)]
    leaks = {name for name, text in places.items() if any(shape in text for shape in wanted)}
    assert not leaks
    # The control: what was sent sealed is found where it passed, so the search does look there.
    key = (Path(site.master.config["pki_dir"]) / "minions" / "tn1").read_text()
    wishes = {"tn1": {"grants": ["kubelet:tn1"], "public_key": key}}
    answer = site.call("tm1", "indigo_tokens.seal", recipients=wishes)
    data = answer["sealed"]["tn1"]["data"].encode()
    time.sleep(0.5)
    assert data in (site.workspace / "events").read_bytes()
    cache = Path(site.master.config["cachedir"]) / "jobs"
    assert any(data in path.read_bytes() for path in cache.rglob("*") if path.is_file())
