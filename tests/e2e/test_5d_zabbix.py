"""Zabbix by one key under `services`: agents of all hosts are heard of, pods go, the key goes.

Images are made of Debian's packages (6.0) when this file runs, and by nobody else.
"""

from __future__ import annotations

import base64
import json
import subprocess

import pytest
import yaml
from browser import PACKAGES
from cluster import changes, deploy, kubectl, put_back, status, until
from indigo_lab import debian, zabbix
from indigo_lab.base import REPO
from indigo_lab.topology import VIP

pytestmark = pytest.mark.slow

PROFILE = "compact"
MASTER = "host1"
HOSTS = ("salt", "host1", "host2", "host3")
NAME = "zabbix.example.org"
SETTINGS = {"size": "1Gi", "memory": "512Mi", "host": NAME}

#: The front end as a person sees it after logging in: a page that sends the form.
FORM = """<!DOCTYPE html><form method="post" action="https://{name}/index.php">
<input name="name" value="Admin"><input name="password" value="{password}">
<input name="autologin" value="1"><input name="enter" value="Sign in">
<input name="request" value="{request}"></form>
<script>document.forms[0].submit()</script>"""


def declare(lab, wanted):
    """Want it, with the way in through the virtual address, or neither."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    for key in ("addons", "services"):
        document.pop(key, None)
    for host in document["hosts"].values():
        host.pop("labels", None)
    if wanted:
        document["services"] = {"zabbix": SETTINGS}
        document["addons"] = {"ingress": {"names": ["*.example.org"]}}
        for id_ in ("host2", "host3"):
            document["hosts"][id_]["labels"] = {"role": "loadbalancer"}
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")


def works(lab):
    """What its check says: empty when it works."""
    done = lab.salt(MASTER, "indigo_addon.works", "--out=json", timeout=90)
    return json.loads(done.stdout)[MASTER].get("zabbix", "it is not declared")


def password(lab, key):
    """A password out of its Secret."""
    data = kubectl(lab, "get", "secret", "-n", "zabbix", "zabbix")["data"]
    return base64.b64decode(data[key]).decode()


def api(lab, method, parameters, session=None):
    """Zabbix' API as a host asks a pod of the front end."""
    pods = kubectl(lab, "get", "pods", "-n", "zabbix")["items"]
    address = next(
        pod["status"]["podIP"] for pod in pods if pod["metadata"]["name"].startswith("web-")
    )
    call = {"jsonrpc": "2.0", "method": method, "params": parameters, "id": 1}
    ask = (
        "import sys, urllib.request as r; print(r.urlopen(r.Request("
        f"'http://{address}:8080/api_jsonrpc.php', sys.stdin.read().encode(), "
        "{'Content-Type': 'application/json-rpc'}), timeout=10).read().decode())"
    )
    text = json.dumps(call | ({"auth": session} if session else {}))
    done = lab.exec("host3", ["python3", "-c", ask], stdin=text, timeout=30, check=True)
    return json.loads(done.stdout)


def logged_in(lab):
    """A session of Admin."""
    found = api(lab, "user.login", {"username": "Admin", "password": password(lab, "admin")})
    return found["result"]


def values(lab, host):
    """How many values of its agent's pulse the server has of a host."""
    session = logged_in(lab)
    query = {"host": host, "filter": {"key_": "agent.ping"}, "output": ["itemid"]}
    items = api(lab, "item.get", query, session)["result"]
    history = {"itemids": [one["itemid"] for one in items], "history": 3, "countOutput": True}
    return int(api(lab, "history.get", history, session)["result"])


def left(lab):
    """Whatever of it is still in the cluster and on hosts."""
    kinds = "namespace,configmap,secret,pod,persistentvolumeclaim,persistentvolume,ingress,service"
    done = lab.kubectl("get", kinds, "-A", "-o", "name", timeout=60)
    assert done.returncode == 0, done.stderr
    look = (
        "ls -d /etc/systemd/system/zabbix* /etc/indigo/zabbix /etc/zabbix /usr/sbin/zabbix_agentd "
        "2>/dev/null; pgrep -l zabbix; grep -o zabbix /etc/haproxy/haproxy.cfg 2>/dev/null; "
        "ss -Hlnt | grep -E ':(10050|10051|30051) '"
    )
    found = [name for name in done.stdout.split() if "zabbix" in name]
    return found + [
        f"{host}: {line}"
        for host in HOSTS
        for line in lab.exec(host, ["sh", "-c", look]).stdout.splitlines()
    ]


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    brought = zabbix.published(debian.architecture())
    document = yaml.safe_load(lab.cluster_file.read_text())
    before = lab.cluster_file.read_text()
    document["images"]["use"].update(brought.use)
    names = {one["name"] for one in brought.images}
    others = [one for one in document["images"]["archives"] if one["name"] not in names]
    document["images"]["archives"] = others + brought.images
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring it to: {done.told}")
    yield
    put_back(lab, before, left)


@pytest.mark.foundation
def test_one_key_and_a_deploy_bring_it(lab, figure):
    declare(lab, True)
    done = deploy(lab)
    assert done.code == 0, done.told
    figure(f"Zabbix, from one key to all hosts heard of: {done.seconds:.1f} s")
    found = status(lab)
    assert found["addons"] == {"ingress": "ok", "zabbix": "ok"}
    assert found["exit"] == 0, found["problems"]


def test_hosts_without_any_role_of_a_node_are_seen_too(lab):
    query = {"output": ["host"], "selectInterfaces": ["ip"], "filter": {"status": 0}}
    found = api(lab, "host.get", query, logged_in(lab))["result"]
    declared = yaml.safe_load(lab.cluster_file.read_text())["hosts"]
    assert {one["host"]: one["interfaces"][0]["ip"] for one in found} == {
        id_: host["address"] for id_, host in declared.items()
    }
    assert all(values(lab, host) for host in HOSTS)


def test_nobody_comes_in_with_the_password_that_everybody_knows(lab):
    found = api(lab, "user.login", {"username": "Admin", "password": "zabbix"})
    assert "result" not in found and "Incorrect user name or password" in str(found["error"])


def test_passwords_are_in_the_cluster_alone(lab):
    for key in ("database", "admin"):
        secret = password(lab, key)
        assert len(secret) == 32
        # The command line is not in the list of processes when grep reads its pattern.
        look = "grep -rlF -f - /etc /var/cache/salt /var/log/salt /proc/[0-9]*/cmdline 2>/dev/null"
        for host in ("salt", MASTER):
            seen = lab.exec(host, ["sh", "-c", f"{look}; true"], stdin=f"{secret}\n", timeout=120)
            assert seen.stdout == "", f"{host}: {seen.stdout}"


def test_the_front_end_opens_in_a_browser_through_the_virtual_address(lab, tmp_path):
    debian.ensure(PACKAGES)
    page, picture = tmp_path / "login.html", tmp_path / "zabbix.png"
    request = "zabbix.php?action=host.view&filter_name=&sort=name&sortorder=ASC"
    page.write_text(FORM.format(name=NAME, password=password(lab, "admin"), request=request))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--hide-scrollbars", "--ignore-certificate-errors",
        f"--host-resolver-rules=MAP {NAME} {VIP}, MAP * ~NOTFOUND, EXCLUDE {VIP}",
        "--virtual-time-budget=15000", "--window-size=1400,640",
    ]  # fmt: skip
    opened = {}
    for number, more in enumerate(("--dump-dom", f"--screenshot={picture}")):
        profile = f"--user-data-dir={tmp_path / f'profile{number}'}"
        done = subprocess.run(
            [*command, profile, more, page.as_uri()],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        opened[number] = done.stdout
    assert all(host in opened[0] for host in HOSTS), opened[0][-3000:]
    assert "Sign in" not in opened[0]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size < 200_000
    (REPO / "docs/figures/zabbix.png").write_bytes(picture.read_bytes())


def test_a_second_run_changes_nothing(lab):
    done = deploy(lab, 'pillar={"everywhere": true}')
    assert (done.code, done.changes) == (0, {}), done.told


def test_no_pod_has_more_rights_than_it_needs(lab):
    space = kubectl(lab, "get", "namespace", "zabbix")["metadata"]["labels"]
    assert space["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = kubectl(lab, "get", "pods", "-n", "zabbix")["items"]
    assert len(pods) == 4
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
    for name in ("web", "server", "database"):
        budget = kubectl(lab, "get", "poddisruptionbudget", "-n", "zabbix", name)
        assert budget["status"]["disruptionsAllowed"] == 1, name


def test_the_loss_of_the_servers_pod_loses_nothing_that_was_kept(lab):
    before = {host: values(lab, host) for host in HOSTS}
    pods = ("pods", "-n", "zabbix", "-l", "app.kubernetes.io/name=zabbix-server")
    (old,) = kubectl(lab, "get", *pods)["items"]
    name = old["metadata"]["name"]
    command = ("delete", "pod", "-n", "zabbix", name, "--force", "--grace-period=0")
    assert lab.kubectl(*command, timeout=90).returncode == 0
    assert until(lambda: works(lab) == "", 120, 2), works(lab)
    (new,) = kubectl(lab, "get", *pods)["items"]
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert all(values(lab, host) >= before[host] > 0 for host in HOSTS)
    # And it goes on.
    assert until(lambda: all(values(lab, host) > before[host] for host in HOSTS), 150, 5)


def test_a_host_whose_agent_cannot_register_is_told_by_name(lab):
    session = logged_in(lab)
    lab.exec("salt", ["systemctl", "stop", "zabbix-agent"], check=True)
    (host,) = api(lab, "host.get", {"filter": {"host": "salt"}}, session)["result"]
    assert api(lab, "host.delete", [host["hostid"]], session)["result"]
    assert until(lambda: "no agent has registered from salt" in works(lab), 30, 2), works(lab)
    problems = until(lambda: [p for p in status(lab)["problems"] if "zabbix" in p], 30, 2)
    assert problems and "no agent has registered from salt" in problems[0]
    done = lab.salt("salt", "state.apply", "common", "--out=json", timeout=120)
    (change,) = changes(json.loads(done.stdout)["salt"]).values()
    assert set(change["changes"]) == {"started"}, change
    assert until(lambda: works(lab) == "", 300, 5), works(lab)


def test_it_goes_whole(lab):
    declare(lab, False)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []
    done = deploy(lab, 'pillar={"everywhere": true}')
    assert (done.code, done.changes) == (0, {}), done.told
