"""From hosts with nothing but sshd, and a setup.conf, to a cluster: ``salt-run indigo.setup``."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from cluster import deploy, on_all, ready_nodes, status, well
from indigo_lab import debian, rootfs
from indigo_lab.base import cache, run, write
from indigo_lab.saltenv import DEFAULT
from indigo_lab.topology import MIRROR_URL, PODS, SERVICES, VIP
from indigo_model import openstack

PROFILE = "compact"

#: It builds a lab of its own.
pytestmark = pytest.mark.slow
HOSTS = ("host1", "host2", "host3")
SALT = DEFAULT[0].removeprefix("salt==")

#: Makes a host one that never had a minion.
BARE = """
systemctl disable -q --now salt-minion
rm -rf /etc/systemd/system/salt-minion.service /usr/local/bin/salt*
rm -rf /etc/salt/minion.d /etc/salt/pki /etc/salt/minion_id /var/cache/salt
systemctl daemon-reload
echo 'deb [signed-by=/usr/share/keyrings/indigo-lab.gpg] URL ./' > /etc/apt/sources.list.d/ssh.list
apt-get -q update && apt-get -qy install --no-install-recommends openssh-server
rm /etc/apt/sources.list.d/ssh.list
mkdir -p -m 0700 /root/.ssh
cat > /root/.ssh/authorized_keys
"""

CONF = f"""\
SALT=10.77.0.5 name=salt
VIP={VIP}
SERVICES={SERVICES}
PODS={PODS}
SALT_REPOSITORY={MIRROR_URL}/setup ./
SALT_REPOSITORY_KEY=/usr/share/keyrings/indigo-lab.gpg
LB1=10.77.0.31 name=host1
LB2=10.77.0.32 name=host2
LB3=10.77.0.33 name=host3
ETCD1=10.77.0.31
ETCD2=10.77.0.32
ETCD3=10.77.0.33
MASTER1=10.77.0.31
MASTER2=10.77.0.32
NODE1=10.77.0.31
NODE2=10.77.0.32
NODE3=10.77.0.33
"""


def minion_package(work):
    """A package of salt-minion as a distribution has it: it starts when it is installed."""
    root = work / "salt-minion"
    for program in ("salt-minion", "salt-call"):
        text = f'#!/bin/sh\nexec {rootfs.VENV}/bin/python3 {rootfs.VENV}/bin/{program} "$@"\n'
        write(root / "usr/bin" / program, text, 0o755)
    unit = rootfs.files()["etc/systemd/system/salt-minion.service"]
    unit = "\n".join(line for line in unit.splitlines() if not line.startswith("Condition"))
    write(root / "lib/systemd/system/salt-minion.service", unit + "\n")
    write(
        root / "DEBIAN/control",
        f"Package: salt-minion\nVersion: {SALT}\nArchitecture: all\nDepends: python3\n"
        "Maintainer: Indigo lab <lab@indigo.invalid>\nDescription: Salt's minion\n",
    )
    write(
        root / "DEBIAN/postinst",
        "#!/bin/sh\nsystemctl daemon-reload\nsystemctl enable -q --now --no-block salt-minion\n",
        0o755,
    )
    package = work / f"salt-minion_{SALT}_all.deb"
    run(["dpkg-deb", "--root-owner-group", "--build", root, package])
    return package


def repository():
    """What the lab's mirror serves for this file: ssh, downloaded once, and salt-minion."""
    disk = rootfs.bare(debian.architecture())
    folder, stamp = cache("www", "setup"), cache("www", ".setup-for")
    wanted = f"1 {disk.name} {SALT}"
    if not stamp.exists() or stamp.read_text() != wanted:
        apt = debian.Apt(status=disk / "var/lib/dpkg/status")
        apt.update()
        with tempfile.TemporaryDirectory() as work:
            ssh = apt.packages(("openssh-server", "openssh-client"))
            debian.repository([*ssh, minion_package(Path(work))], folder)
        write(stamp, wanted)


@pytest.fixture(scope="module")
def lab(stage):
    """Hosts with sshd and no minion; the Salt master has none of their keys, but a key for ssh."""
    stage.down()
    lab = stage.take(PROFILE)
    repository()
    url = f"{MIRROR_URL}/setup"
    client = (
        f"echo 'deb [signed-by=/usr/share/keyrings/indigo-lab.gpg] {url} ./' "
        "> /etc/apt/sources.list.d/ssh.list; apt-get -q update && "
        "apt-get -qy install --no-install-recommends openssh-client && "
        "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"
    )
    lab.exec("salt", ["sh", "-c", f"mkdir -p -m 0700 /root/.ssh; {client}"], check=True)
    public = lab.exec("salt", ["cat", "/root/.ssh/id_ed25519.pub"], check=True).stdout
    known = ""
    for host in HOSTS:
        script = BARE.replace("URL", url)
        lab.exec(host, ["sh", "-ec", script], stdin=public, check=True)
        key = lab.exec(host, ["cat", "/etc/ssh/ssh_host_ed25519_key.pub"], check=True).stdout
        known += f"{lab.host(host).address} {key}"
    lab.exec("salt", ["sh", "-c", "cat > /root/.ssh/known_hosts"], stdin=known, check=True)
    lab.exec("salt", ["salt-key", "-y", "-d", "host*"], check=True)
    yield lab
    stage.profile = PROFILE


@pytest.fixture(scope="module")
def site(lab):
    """The folder that both the Salt master and the tests see, with the lab's own keys in it."""
    folder = lab.cluster_file.parent
    more = yaml.safe_load(lab.cluster_file.read_text())
    for key in ("name", "hosts", "vip", "networks"):
        del more[key]
    (folder / "more.yaml").write_text(yaml.safe_dump(more))
    (folder / "setup.conf").write_text(CONF)
    lab.cluster_file.unlink()
    return folder


def setup(lab, *arguments, conf="setup.conf"):
    """Run ``indigo.setup``: exit code, data, all that it told."""
    folder = "/srv/indigo-site/pillar"
    done = lab.salt_run(
        "indigo.setup", f"conf={folder}/{conf}", f"more={folder}/more.yaml", *arguments,
        "--out=json", timeout=600,
    )  # fmt: skip
    try:
        data = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        data = {}
    return done.returncode, data, done.stdout + done.stderr


def accepted(lab):
    """Minions whose keys the Salt master has accepted."""
    done = lab.exec("salt", ["salt-key", "-L", "--out=json"], check=True)
    return set(json.loads(done.stdout)["minions"])


def test_hosts_are_bare(lab):
    assert accepted(lab) == {"salt"}
    for host in HOSTS:
        assert lab.exec(host, ["sh", "-c", "command -v salt-minion salt-call"]).returncode != 0
        assert lab.exec(host, ["systemctl", "is-active", "ssh"]).stdout.strip() == "active"


def test_wrong_lines_are_refused_by_number_and_nothing_is_done(lab, site):
    wrong = CONF.replace("ETCD2=10.77.0.32", "ETCD2=10.77.0.322").replace("NODE3=", "NOD3=")
    (site / "wrong.conf").write_text(wrong)
    code, _, told = setup(lab, conf="wrong.conf")
    assert code != 0
    assert "line 11: ETCD2: found" in told and "line 17: NOD3: found an unknown key" in told
    assert not lab.cluster_file.exists()
    assert accepted(lab) == {"salt"}


def test_a_preview_changes_nothing(lab, site):
    code, data, told = setup(lab, "test=True")
    assert code == 0, told
    assert sum("a minion, over ssh" in line for line in data["would"]) == len(HOSTS)
    assert accepted(lab) == {"salt"} and not lab.cluster_file.exists()


def test_a_host_that_ssh_does_not_know_is_named_and_the_others_go_on(lab, site):
    lab.exec("salt", ["ssh-keygen", "-q", "-R", "10.77.0.33"], check=True)
    code, _, told = setup(lab)
    assert code != 0
    assert "host3 (10.77.0.33): ssh does not know the host's key" in told
    assert accepted(lab) == {"salt", "host1", "host2"}
    assert not lab.cluster_file.exists()


@pytest.mark.foundation
def test_one_command_makes_the_cluster(lab, site, figure):
    key = lab.exec("host3", ["cat", "/etc/ssh/ssh_host_ed25519_key.pub"], check=True).stdout
    add = ["sh", "-c", "cat >> /root/.ssh/known_hosts"]
    lab.exec("salt", add, stdin=f"10.77.0.33 {key}", check=True)
    started = time.monotonic()
    code, data, told = setup(lab)
    assert code == 0, told
    figure(f"indigo.setup, one host to make a minion: {time.monotonic() - started:.1f} s")
    assert data["done"][-1] == "deployed"
    assert ready_nodes(lab) == set(HOSTS)
    well(lab)
    document = yaml.safe_load(lab.cluster_file.read_text())
    assert document["vip"] == {"address": VIP, "interface": "eth0"}


def test_minions_have_the_pinned_salt_and_know_their_master(lab):
    fingers = json.loads(lab.salt("*", "key.finger_master", "--out=json", "--static").stdout)
    for host in HOSTS:
        config = lab.exec(host, ["cat", "/etc/salt/minion.d/indigo-setup.conf"]).stdout
        said = yaml.safe_load(config)
        assert said["id"] == host and said["master"] == "10.77.0.5"
        assert said["master_finger"] == fingers[host]
    versions = json.loads(lab.salt("*", "test.version", "--out=json", "--static").stdout)
    assert versions == dict.fromkeys(("salt", *HOSTS), SALT)


def test_a_second_run_needs_no_ssh_and_changes_nothing(lab, site):
    on_all(lab, lambda host: lab.exec(host, ["systemctl", "stop", "ssh"]))
    before = lab.cluster_file.stat().st_ino
    code, data, told = setup(lab, "deploy=False")
    assert code == 0, told
    assert data["done"] == []
    assert lab.cluster_file.stat().st_ino == before
    assert deploy(lab).changes == {}


def test_the_password_of_a_cloud_travels_sealed_and_alone(lab, site):
    word = "a-word-of-the-cloud's"
    lines = (
        "OPENSTACK_URL=https://10.77.0.254:5000/v3\nOPENSTACK_USER=indigo\n"
        f"OPENSTACK_TENANTID=5a1b\nOPENSTACK_REGION=RegionOne\nOPENSTACK_PASS={word}\n"
    )
    conf = site / "cloud.conf"
    conf.write_text(CONF + lines)
    conf.chmod(0o644)
    code, _, told = setup(lab, "deploy=False", conf=conf.name)
    assert code != 0 and "which has mode 0644; expected 0600" in told and word not in told
    conf.chmod(0o600)
    code, data, told = setup(lab, "deploy=False", conf=conf.name)
    assert code == 0, told
    assert data["done"][0] == "put OPENSTACK_PASS on host1" and len(data["done"]) == 2
    assert yaml.safe_load(lab.cluster_file.read_text())["addons"]["openstack"]["user"] == "indigo"
    found = lab.exec("host1", ["stat", "-c", "%a %U", openstack.SECRET_FILE], check=True).stdout
    assert found.split() == ["600", "root"]
    assert lab.exec("host1", ["cat", openstack.SECRET_FILE]).stdout == f"{word}\n"
    assert word not in told + lab.cluster_file.read_text()
    for host in ("salt", "host1"):
        folders = ["/var/cache/salt", "/var/log/salt", "/etc/salt"]
        assert lab.exec(host, ["grep", "-rlF", word, *folders]).returncode == 1
    code, data, told = setup(lab, "deploy=False", conf=conf.name)
    assert (code, data["done"]) == (0, []), told
    # As before it.
    conf.unlink()
    lab.exec("host1", ["rm", openstack.SECRET_FILE], check=True)
    code, _, told = setup(lab, "deploy=False")
    assert code == 0, told


def test_a_file_that_was_edited_is_left_alone(lab, site):
    text = lab.cluster_file.read_text()
    lab.cluster_file.write_text(text + "# mine\n")
    code, _, told = setup(lab, "deploy=False")
    assert code != 0 and "force=True" in told
    assert lab.cluster_file.read_text() == text + "# mine\n"
    lab.cluster_file.write_text(text)
    assert status(lab)["exit"] == 0
