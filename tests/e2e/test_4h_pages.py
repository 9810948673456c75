"""Every command of docs/operations, as a reader types it.

``tests/pages.py`` says how a page tells what is special about a command. Here is what the lab has
in the place of a page's names, and what has to be there before its commands, and goes after them.
"""

from __future__ import annotations

import json
import subprocess
import time

import pages
import pytest
import yaml
from cluster import answering, deploy, until, well
from indigo_lab.base import REPO

PAGES = pages.pages()
COMMANDS = {page.stem: pages.commands(page) for page in PAGES}

#: An address and names in the pages, and what they are in the lab.
NAMES = {"10.0.0.10": "10.77.0.10", "CLUSTER_NAME": "lab", "salt CA ": "salt salt "}
BACKUP = "20261124T221553Z-host1"

SNAPSHOT = """
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=https://127.0.0.1:2379 ETCDCTL_CACERT=/etc/etcd/pki/ca.crt
export ETCDCTL_CERT=/etc/etcd/pki/member.crt ETCDCTL_KEY=/etc/etcd/pki/member.key
/opt/indigo/etcd-*/etcdctl snapshot save /root/before-upgrade.db
"""
SERVICE = "/etc/kubernetes/services/service-wiki"
MANIFEST = '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "wiki"}}'

#: Page to host and script: what readers have before its first command, what goes after the last.
BEFORE = {
    "restore": ("etcd1", SNAPSHOT),
    "services": ("master1", f"mkdir -p {SERVICE} && echo '{MANIFEST}' > {SERVICE}/wiki.yaml"),
    "status": ("salt", "mkdir -p /var/lib/prometheus/node-exporter"),
}
AFTER = {
    "backup": ("salt", "rm -r /root/indigo-backup-key"),
    "restore": ("etcd1", "rm /root/before-upgrade.db"),
    "services": ("master1", f"rm -r {SERVICE}"),
    "status": ("salt", "rm -r /var/lib/prometheus"),
    "support": ("salt", "rm /root/etcd.tar.gz"),
}


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    well(lab)


class Reader:
    """Types commands on the hosts that a page means."""

    def __init__(self, lab):
        self.lab = lab
        self.seconds = {}
        self._holder = None

    def host(self, place):
        """A host for a place of a page; the holder of the address stays the same host."""
        if place == "holder":
            self._holder = self._holder or next(
                host.name
                for host in self.lab.with_role("lb")
                if "10.77.0.10/" in self.lab.exec(host.name, ["ip", "-4", "addr"]).stdout
            )
            return self._holder
        return "salt" if place in ("salt", "ca") else self.lab.with_role(place)[0].name

    def text(self, command):
        """The command with the lab's own names."""
        text = command.text
        for name, here in NAMES.items():
            text = text.replace(name, here)
        if BACKUP in text:
            text = text.replace(BACKUP, self.newest())
        return text

    def newest(self):
        """Name of the newest backup."""
        done = self.lab.salt_run("indigo.backups", "--out=json", timeout=120)
        return json.loads(done.stdout)["sets"][0]["name"]

    def run(self, command):
        """Run it, and compare how it ends with what the page says."""
        text = self.text(command)
        started = time.monotonic()
        if command.on == "machine":
            done = subprocess.run(
                ["sh", "-c", text], cwd=REPO, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=900,
            )  # fmt: skip
        else:
            shell = ["sh", "-c", text]
            # A person says yes where Salt asks.
            done = self.lab.exec(self.host(command.on), shell, stdin="y\n", timeout=900)
        self.seconds[str(command)] = time.monotonic() - started
        told = f"{command}\non {command.on}: {text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        assert done.returncode == command.exits, f"exit {done.returncode}: {told}"


@pytest.fixture
def reader(lab, figure):
    """Whoever reads a page at 3 a.m."""
    found = Reader(lab)
    yield found
    slowest = sorted(found.seconds.items(), key=lambda item: -item[1])[:1]
    for command, seconds in slowest:
        figure(f"{len(found.seconds)} commands, the longest {seconds:.1f} s: {command}")


def script(lab, found):
    """What a page needs around its commands."""
    if found:
        host, text = found
        lab.exec(host, ["sh", "-ec", text], timeout=120, check=True)


def quick(page):
    """The commands of a page that neither take long nor destroy anything."""
    return [one for one in COMMANDS[page] if not one.reason and not one.slow]


#: Pages whose commands other files run too, so that `make test` leaves them out here.
ELSEWHERE = {"support": "test_4e_support.py", "upgrade": "test_5e_upgrade.py"}
READ = [
    pytest.param(page, marks=[pytest.mark.slow] * (page in ELSEWHERE))
    for page in filter(quick, COMMANDS)
]


@pytest.mark.parametrize("page", READ)
def test_commands_run_as_they_are_written(lab, reader, page):
    script(lab, BEFORE.get(page))
    try:
        for command in quick(page):
            reader.run(command)
    finally:
        script(lab, AFTER.get(page))
    well(lab)


# What takes long, or destroys something ----------------------------------------------------


def slow(reader, page, words=""):
    """Run the slow commands of a page that have these words."""
    found = [
        command
        for command in COMMANDS[page]
        if command.slow and not command.reason and words in command.text
    ]
    assert found
    for command in found:
        reader.run(command)


@pytest.mark.slow
def test_a_role_is_taken_off_a_node_and_a_deploy_brings_it_back(lab, reader):
    slow(reader, "deploy")
    assert deploy(lab).code == 0
    well(lab)


@pytest.mark.slow
def test_all_certificates_are_exchanged(lab, reader):
    slow(reader, "rotate")
    well(lab)


@pytest.mark.slow
def test_the_firewall_is_looked_at(lab, reader):
    before = lab.cluster_file.read_bytes()
    document = yaml.safe_load(before)
    document["firewall"] = "nftables"
    document["networks"]["hosts"] = "10.77.0.0/24"
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    try:
        assert deploy(lab).code == 0
        slow(reader, "ports")
    finally:
        lab.cluster_file.write_bytes(before)
    assert deploy(lab).code == 0
    well(lab)


@pytest.mark.slow
def test_etcd_goes_back_to_a_backup(lab, reader):
    assert lab.salt_run("indigo_backup.run", timeout=300).returncode == 0
    slow(reader, "restore")
    well(lab)


@pytest.mark.slow
def test_a_host_of_the_lab_is_made_anew(lab, reader):
    slow(reader, "lab")
    assert deploy(lab).code == 0
    well(lab)


@pytest.mark.slow
def test_a_host_leaves_and_another_is_replaced(lab, reader):
    slow(reader, "hosts", "remove")
    # As the page says to who changed their mind; the machine is a new one here.
    done = lab.salt_run("indigo.remove", "host=node3", "cancel=True", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lab.rebuild("node3")
    assert deploy(lab).code == 0
    well(lab)
    first, *others = [one for one in COMMANDS["hosts"] if "etcd1" in one.text and one.slow]
    lab.kill("etcd1")
    told = lab.exec("salt", ["sh", "-c", first.text], timeout=600)
    assert told.returncode != 0 and "salt-key -a etcd1" in told.stdout + told.stderr
    lab.rebuild("etcd1")
    # The lab accepts its key. The page has a person do it.
    lab.exec("salt", ["salt-key", "-y", "-d", "etcd1"], check=True)
    lab.exec("etcd1", ["systemctl", "restart", "salt-minion"], check=True)

    def pending():
        keys = json.loads(lab.exec("salt", ["salt-key", "-L", "--out=json"], check=True).stdout)
        return "etcd1" in keys["minions_pre"]

    assert until(pending, 60)
    for command in others:
        if command.text.startswith("salt-run"):
            answering(lab, "etcd1")
        reader.run(command)
    well(lab)
