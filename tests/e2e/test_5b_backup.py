"""Backups that are proven, restores with one command, and the drill: everything of etcd lost.

On the profile compact, whose three hosts have all roles each, two of them the masters': what is
destroyed here is etcd, the masters' keys and tokens, and every node with them.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from browser import opened, timeline
from cluster import deploy, kubectl, orchestrate, ready_nodes, until, well
from indigo_lab import engine

PROFILE = "compact"
HOSTS = ("host1", "host2", "host3")
FOLDER = "/var/lib/indigo-backup"
KEY = "/root/indigo-backup-key"

#: How many objects the writer makes before the backup; the restore must bring all of them back.
OBJECTS = 10_000


def run_json(lab, *arguments: str, timeout: float = 300) -> Any:
    """A runner's answer."""
    done = lab.salt_run(*arguments, "--out", "json", timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def minion_json(lab, target: str, function: str, *arguments: str) -> dict[str, Any]:
    done = lab.salt(target, function, *arguments, "--out", "json", "--static", timeout=300)
    return json.loads(done.stdout)


def sets(lab) -> list[dict[str, Any]]:
    return run_json(lab, "indigo.backups")["sets"]


def declare(lab, **backup: Any) -> None:
    """Set keys of the section ``backup`` in cluster.yaml, and let the minions know."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document["backup"] = {**document.get("backup", {}), **backup}
    document["backup"] = {k: v for k, v in document["backup"].items() if v is not None}
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    lab.salt("*", "saltutil.refresh_pillar", "wait=True", timeout=60)


@pytest.fixture(scope="module", autouse=True)
def cluster(lab) -> Iterator[None]:
    """The cluster that the file before leaves; deployed here when this file runs alone."""
    done = deploy(lab)
    assert done.code == 0, done.told
    before = lab.cluster_file.read_bytes()
    yield
    lab.cluster_file.write_bytes(before)
    lab.salt("*", "saltutil.refresh_pillar", "wait=True", timeout=60)


# Runs on a master: writes ConfigMaps through the VIP until told to stop; prints what was
# acknowledged.
_WRITER = r"""
import http.client, json, ssl, sys, threading
prefix, count, workers = sys.argv[1], int(sys.argv[2]), 4
token = open("/etc/kubernetes/tokens/admin").read().strip()
context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
def work(number):
    connection = http.client.HTTPSConnection("10.77.0.10", 8443, timeout=20, context=context)
    for n in range(number, count, workers):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{prefix}-{n}"},
                "data": {"n": str(n)}}
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        path = "/api/v1/namespaces/writer/configmaps"
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 201:
            print(f"{prefix}-{n}", flush=True)
threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def write(lab, prefix: str, count: int) -> set[str]:
    """Write objects; the names of those that the API acknowledged."""
    done = lab.exec(
        "host1", ["python3", "-c", _WRITER, prefix, str(count)], timeout=180, check=True
    )
    return set(done.stdout.split())


def stored(lab) -> set[str]:
    """Names of the writer's objects."""
    done = lab.kubectl("get", "configmaps", "-n", "writer", "-o", "name", timeout=60)
    assert done.returncode == 0, done.stderr
    return {line.partition("/")[2] for line in done.stdout.split()} - {"kube-root-ca.crt"}


# Making them --------------------------------------------------------------------------------------


@pytest.mark.foundation
def test_the_schedule_makes_the_first_one_by_itself(lab, figure):
    lab.exec("salt", ["rm", "-rf", KEY])
    pair = run_json(lab, "indigo.backup_keypair", KEY)
    public = lab.exec("salt", ["cat", pair["public"]], check=True).stdout
    for host in HOSTS:
        lab.exec(host, ["sh", "-c", f"rm -rf {FOLDER}/2* {FOLDER}/suspect-*"])
        lab.exec(host, ["sh", "-c", "ETCDCTL_API=3 /opt/indigo/etcd-*/etcdctl --cacert "
                 "/etc/etcd/pki/ca.crt --cert /etc/etcd/pki/member.crt --key "
                 "/etc/etcd/pki/member.key del indigo/backup/newest"])  # fmt: skip
    declare(lab, recipient=public, look=10, splay=2)

    # What it is going to do can be seen on every etcd host.
    # A minion looks at its schedule once a second, and knows of a new job only then.
    def told():
        return minion_json(lab, "host*", "schedule.show_next_fire_time", "etcd_backup")

    assert until(lambda: all(one["next_fire_time"] for one in told().values()), 10, 1), told()
    started = time.monotonic()
    found = until(lambda: sets(lab), 120, 3)
    figure(f"first backup by the schedule, looks every 10 s: {time.monotonic() - started:.0f} s")
    assert found, lab.salt("host*", "indigo_backup.status").stdout
    # The others were told that there is one: one set, on all hosts, with the cluster's keys.
    assert until(lambda: sets(lab)[0]["hosts"] == list(HOSTS), 60, 2), sets(lab)
    assert len(sets(lab)) == 1
    assert sets(lab)[0]["complete"]
    declare(lab, look=None, splay=None)


def test_sets_are_for_root_alone_and_their_secrets_sealed(lab):
    name = sets(lab)[0]["name"]
    for host in HOSTS:
        done = lab.exec(host, ["find", f"{FOLDER}/{name}", "-printf", "%y %m %u %f\n"], check=True)
        rows = {tuple(line.split()[:3]) for line in done.stdout.splitlines()}
        assert rows == {("d", "700", "root"), ("f", "600", "root")}, done.stdout
    sealed = lab.exec("host1", ["cat", f"{FOLDER}/{name}/secrets.json"], check=True).stdout
    assert set(json.loads(sealed)) == {"authorities", "tokens"}
    assert "PRIVATE" not in sealed
    token = lab.exec("host1", ["cat", "/etc/kubernetes/tokens/admin"], check=True).stdout.strip()
    assert token not in sealed


def test_status_tells_the_age_and_an_old_one_is_a_problem(lab):
    well(lab)
    found = run_json(lab, "indigo.status")
    assert found["backup"]["age"] < 600
    (name,) = [one["name"] for one in sets(lab)]
    # As if made 27 hours ago, everywhere.
    script = (
        f"cd {FOLDER} && touch -d '3 days ago' .since && python3 - {name} <<'EOF'\n"
        "import json, sys\n"
        "path = sys.argv[1] + '/manifest.json'\n"
        "data = json.load(open(path))\n"
        "data['made'] -= 27 * 3600\n"
        "json.dump(data, open(path, 'w'))\n"
        "EOF"
    )
    for host in HOSTS:
        lab.exec(host, ["sh", "-c", script], check=True)
    done = lab.salt_run("indigo.status", "--out", "json", timeout=60)
    problems = json.loads(done.stdout)["problems"]
    assert done.returncode == 1
    assert any("the newest proven one is 27 h old" in one for one in problems), problems


def test_a_forced_run_makes_one_and_every_etcd_host_has_it(lab, figure):
    made = run_json(lab, "indigo_backup.run")
    figure(f"backup of {made['bytes'] / 2**20:.1f} MiB: {made['seconds']['total']} s")
    assert set(made["copies"].values()) == {"ok"}
    newest = sets(lab)[0]
    assert newest["name"] == made["made"]
    assert newest["hosts"] == list(HOSTS)
    # None is left of the proof.
    for host in HOSTS:
        assert lab.exec(host, ["sh", "-c", f"ls -d {FOLDER}/.partial-*"]).stdout == ""
    well(lab)


@pytest.mark.slow
def test_the_next_host_takes_over_when_one_is_down(lab):
    lab.kill("host3")
    try:
        made = run_json(lab, "indigo_backup.run")
        assert made["host"] in ("host1", "host2")
        assert made["copies"]["host3"] != "ok"
    finally:
        lab.start("host3")
    well(lab)
    # It gets its copy when its maker looks the next time.
    found = minion_json(lab, made["host"], "indigo_backup.run")[made["host"]]
    assert found["made"] is None
    assert found["copies"]["host3"] == "ok"


def test_a_flipped_byte_is_caught_and_kept_aside(lab):
    name = sets(lab)[0]["name"]
    flip = (
        "import sys\n"
        "with open(sys.argv[1], 'r+b') as f:\n"
        "    f.seek(200000); b = f.read(1); f.seek(200000); f.write(bytes([b[0] ^ 1]))\n"
    )
    path = f"{FOLDER}/{name}/snapshot.db"
    lab.exec("host2", ["python3", "-c", flip, path], check=True)
    # The proof itself, not only the checksum, finds it: as it would in a fresh snapshot.
    done = lab.salt("host2", "indigo_backup.prove", path, timeout=120)
    assert "does not" in done.stdout or "cannot be read" in done.stdout, done.stdout
    done = lab.salt_run("indigo_backup.check", timeout=120)
    assert "SHA-256" in done.stdout + done.stderr
    assert lab.exec("host2", ["ls", FOLDER]).stdout.split() == [f"suspect-{name}"] or (
        f"suspect-{name}" in lab.exec("host2", ["ls", FOLDER]).stdout
    )
    # The others' copies are good, and it is fetched again.
    (source,) = [host for host in ("host1",) if host in sets(lab)[0]["hosts"]]
    assert minion_json(lab, source, "indigo_backup.share", name)[source]["host2"] == "ok"
    lab.exec("host2", ["rm", "-rf", f"{FOLDER}/suspect-{name}"], check=True)


# Restoring ----------------------------------------------------------------------------------------


class Watch:
    """A watch of ConfigMaps through kubectl, which reads on when the API server goes away."""

    def __init__(self, lab) -> None:
        host, command = lab.kubectl_command(
            ["get", "configmaps", "-n", "writer", "--watch", "-o", "name"]
        )
        script = 'while :; do "$@"; sleep 0.5; done'
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            ["podman", "exec", engine.container(host), "sh", "-c", script, "watch", *command],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(line.strip())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def written(lab) -> dict[str, Any]:
    """What was acknowledged before the backup, and after it."""
    lab.kubectl("create", "namespace", "writer")
    lab.kubectl("create", "secret", "generic", "-n", "writer", "kept", "--from-literal=word=indigo")
    done = lab.kubectl("apply", "-f", "-", stdin=_TOKEN)
    assert done.returncode == 0, done.stderr
    before = write(lab, "before", OBJECTS)
    assert len(before) == OBJECTS
    made = run_json(lab, "indigo_backup.run")
    after = write(lab, "after", 100)
    return {"before": before, "after": after, "made": made["made"]}


# Releases before 1.24 make one for every service account by themselves, later ones only if asked.
_TOKEN = """
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata:
  name: signed
  namespace: writer
  annotations: {kubernetes.io/service-account.name: default}
"""


def _service_account_token(lab) -> str:
    """A token that the controller made, and so one that the service account key signed."""
    ask = ("get", "secret", "-n", "writer", "signed")
    found = until(lambda: kubectl(lab, *ask).get("data", {}).get("token"), 30)
    assert found, kubectl(lab, *ask)
    return base64.b64decode(found).decode()


def _who(lab, token: str) -> str:
    """Status of a question that is asked with a token: 403 for one who is known and may not."""
    code = (
        "import ssl, sys, urllib.request as u, urllib.error as e\n"
        "c = ssl.create_default_context(cafile='/etc/kubernetes/pki/ca.crt')\n"
        "r = u.Request('https://10.77.0.10:8443/api/v1/namespaces/writer/pods',\n"
        "              headers={'Authorization': 'Bearer ' + sys.stdin.read().strip()})\n"
        "try: print(u.urlopen(r, context=c, timeout=10).status)\n"
        "except e.HTTPError as err: print(err.code)\n"
    )
    return lab.exec("host1", ["python3", "-c", code], stdin=token, timeout=30).stdout.strip()


def holds_what_the_backup_held(lab, written: dict[str, Any]) -> None:
    assert stored(lab) >= written["before"]
    assert not stored(lab) & written["after"]
    secret = kubectl(lab, "get", "secret", "-n", "writer", "kept")
    assert secret["data"]["word"] == "aW5kaWdv"


def test_without_a_confirmation_nothing_happens(lab, written):
    done = orchestrate(lab, "indigo.restore")
    assert done.code != 0
    assert "everything written since" in done.told
    assert '"confirm": "lab"' in done.told
    assert stored(lab) >= written["after"]
    wrong = orchestrate(lab, "indigo.restore", confirm="another")
    assert wrong.code != 0
    previewed = lab.salt_run("state.orchestrate", "indigo.restore", "test=True", timeout=120)
    assert previewed.returncode == 0, previewed.stdout
    assert stored(lab) >= written["after"]


def test_killed_half_way_and_run_again_a_restore_finishes(lab, written, figure):
    token = _service_account_token(lab)
    assert _who(lab, token) == "403"
    watch = Watch(lab)
    try:
        assert until(lambda: len(watch.lines) >= OBJECTS, 60)
        process = subprocess.Popen(
            ["podman", "exec", engine.container("salt"), "salt-run", "state.orchestrate",
             "indigo.restore", 'pillar={"confirm": "lab"}'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # As soon as one member is being changed; what the hosts were told goes on without it.
        changing = ["sh", "-c", "ls -d /var/lib/etcd/restoring-* /var/lib/etcd/replaced-*"]
        before = lab.exec("host2", changing).stdout
        assert until(lambda: lab.exec("host2", changing).stdout != before, 60, 0.05)
        kill = "kill -9 $(pgrep -f '[s]alt-run state.orchestrate indigo.restore')"
        lab.exec("salt", ["sh", "-c", kill])
        process.wait(timeout=60)
        done = orchestrate(lab, "indigo.restore", confirm="lab")
        figure(f"restore of {OBJECTS} objects on 3 members: {done.seconds:.1f} s")
        assert done.code == 0, done.told
        well(lab)
        holds_what_the_backup_held(lab, written)
        assert _who(lab, token) == "403"
        # Watches go on: what is written now arrives.
        fresh = write(lab, "fresh", 3)
        assert until(lambda: {f"configmap/{name}" for name in fresh} <= set(watch.lines), 30)
    finally:
        watch.end()
    # The data from before is kept.
    for host in HOSTS:
        assert lab.exec(host, ["sh", "-c", "ls -d /var/lib/etcd/replaced-*/member"]).returncode == 0
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {}), again.told


@pytest.mark.slow
def test_a_snapshot_that_was_brought_as_a_file_is_restored(lab, written, figure, tmp_path):
    # As somebody takes one by hand, before whatever he is about to do.
    save = (
        "ETCDCTL_API=3 $(ls -d /opt/indigo/etcd-*)/etcdctl --cacert=/etc/etcd/pki/ca.crt"
        " --cert=/etc/etcd/pki/member.crt --key=/etc/etcd/pki/member.key"
        " snapshot save /root/mine.db"
    )
    lab.exec("host1", ["sh", "-c", save], timeout=60, check=True)
    too_late = write(lab, "late", 20)
    assert stored(lab) >= too_late
    adopted = minion_json(lab, "host1", "indigo_backup.adopt", "/root/mine.db")["host1"]
    done = orchestrate(lab, "indigo.restore", confirm="lab", backup=adopted["name"])
    figure(f"restore of a snapshot that was brought as a file: {done.seconds:.1f} s")
    assert done.code == 0, done.told
    well(lab)
    holds_what_the_backup_held(lab, written)
    assert not stored(lab) & too_late
    assert "indigo.restore: done after" in done.progress
    # Its picture shows what each host was asked for, and when.
    page = opened(timeline(lab, done.progress), tmp_path, "restore")
    assert page.title == "indigo.restore" and page.cut() == []
    assert {*HOSTS, "Every member holds the data of the backup"} <= page.words()
    asked = [bar for bar in page.bars("asked") if bar["text"].startswith("indigo_restore.")]
    assert len(asked) >= len(HOSTS) and not page.bars("failed")
    # Everyone who restored it has it, until somebody removes it; it is none that later tests want.
    for host in HOSTS:
        lab.exec(host, ["rm", "-rf", "/root/mine.db", f"{FOLDER}/{adopted['name']}"], check=True)


# Losing hosts -------------------------------------------------------------------------------------


def test_with_a_quorum_there_is_nothing_to_recover(lab):
    done = orchestrate(lab, "indigo.recover", confirm="lab")
    assert done.code == 0, done.told
    assert done.changes == {}


@pytest.mark.slow
def test_the_quorum_is_lost_and_one_member_brings_it_back(lab, written, figure):
    for host in ("host2", "host3"):
        lab.kill(host)
    asked = orchestrate(lab, "indigo.recover")
    assert asked.code != 0
    assert "host2, host3" in asked.told
    done = orchestrate(lab, "indigo.recover", confirm="lab")
    figure(f"recovery from one member of three: {done.seconds:.1f} s")
    assert done.code == 0, done.told
    holds_what_the_backup_held(lab, written)
    for host in ("host2", "host3"):
        lab.rebuild(host)
    back = deploy(lab)
    assert back.code == 0, back.told
    well(lab)
    holds_what_the_backup_held(lab, written)
    assert ready_nodes(lab) == set(HOSTS)


def test_drill_all_hosts_of_etcd_and_all_masters_are_destroyed(lab, written, figure):
    token = _service_account_token(lab)
    made = run_json(lab, "indigo_backup.run")
    copy = lab.exec(
        made["host"], ["sh", "-c", f"tar -C {FOLDER} -cf - {made['made']} | base64"], check=True
    ).stdout
    for host in HOSTS:
        lab.rebuild(host)
    # Brought from elsewhere to any host of etcd.
    unpack = f"mkdir -p -m 0700 {FOLDER} && base64 -d | tar -C {FOLDER} -xf -"
    lab.exec("host2", ["sh", "-c", unpack], stdin=copy, check=True)
    refused = orchestrate(lab, "indigo.restore", confirm="lab")
    assert refused.code != 0
    assert '"key"' in refused.told
    done = orchestrate(lab, "indigo.restore", confirm="lab", key=f"{KEY}/private.pem")
    figure(f"drill, from three bare hosts to the whole cluster: {done.seconds:.1f} s")
    assert done.code == 0, done.told
    well(lab)
    holds_what_the_backup_held(lab, written)
    assert _who(lab, token) == "403"
    assert ready_nodes(lab) == set(HOSTS)
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {}), again.told
