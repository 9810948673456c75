"""From ``setup.conf`` and hosts with nothing but ssh to a cluster: ``salt-run indigo.setup``.

Hosts that answer as minions already are left as they are; the others are made minions over
salt-ssh, with a roster that lives as long as the run. A minion's key is accepted because it is the
one that its host, reached over ssh, says it has. Killed at any moment and run again, it goes on.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import salt.client
import salt.config
import salt.key
import salt.loader
import salt.utils.crypt
import salt.version
import yaml
from salt.exceptions import CommandExecutionError

#: Seconds until a new minion must have shown its key, and then until it must answer.
MINION = 120

#: Keys that ssh itself would try, where setup.conf names none.
SSH_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


def __virtual__() -> str:
    return "indigo_setup"


def run(
    conf: str,
    more: str | None = None,
    force: bool = False,
    test: bool = False,
    deploy: bool = True,
) -> dict[str, Any]:
    """Declare, bootstrap and deploy what a ``setup.conf`` names; see ``indigo.setup``."""
    begun = time.monotonic()

    def say(told: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {told}", file=sys.stderr, flush=True)

    model = salt.loader.minion_mods({**__opts__, "grains": {}, "pillar": {}})
    said = _read(conf)
    extra = _mapping(more)
    found = model["indigo_model.setup"](said, _own(said, model), None, extra)
    problems = list(found["problems"])
    target = _target(model)
    problems += _refused(model, target, force) + _key_files(found["values"])
    problems += _readable(conf) if found["password"] else []
    if problems:
        raise CommandExecutionError(
            f"{conf} cannot be used. Nothing was changed.\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    hosts = {id_: one["address"] for id_, one in found["document"]["hosts"].items()}
    masters = [i for i, one in found["document"]["hosts"].items() if "master" in one["roles"]]
    with salt.client.get_local_client(mopts=__opts__) as client:
        missing = [id_ for id_ in hosts if id_ not in _answering(client, hosts)]
        if test:
            if "interface" not in model["indigo_model.setup_parse"](said)["vip"]:
                found["document"]["vip"]["interface"] = "looked up on the load balancers"
            return {
                "would": [
                    *(f"make {id_} ({hosts[id_]}) a minion, over ssh" for id_ in missing),
                    f"write {target}",
                    *([f"put OPENSTACK_PASS on {masters[0]}"] if found["password"] else []),
                    *(["deploy"] if deploy else []),
                ],
                "cluster": found["document"],
            }
        say(f"{len(hosts) - len(missing)} of {len(hosts)} hosts answer as minions")
        done = _bootstrapped(model, found, {id_: hosts[id_] for id_ in missing}, say)
        late = _waited(client, hosts)
        if late:
            raise CommandExecutionError(
                f"{', '.join(late)}: no answer from the minion after {MINION} s; see "
                "`journalctl -u salt-minion` there, and that it reaches ports 4505 and 4506 here. "
                "Then run this again"
            )
        balancers = [i for i, one in found["document"]["hosts"].items() if "lb" in one["roles"]]
        interfaces = _interfaces(client, balancers, found["document"]["vip"]["address"], hosts)
        if found["password"] and _kept(model, client, masters[0], found):
            done.append(f"put OPENSTACK_PASS on {masters[0]}")
            say(done[-1])
    found = model["indigo_model.setup"](said, _own(said, model), interfaces, extra)
    if found["problems"]:
        raise CommandExecutionError("\n".join(found["problems"]))
    if _written(target, model["indigo_model.setup_text"](found["document"], conf)):
        done.append(f"wrote {target}")
        say(done[-1])
    if not deploy:
        return {"done": done, "next": "salt-run state.orchestrate indigo.deploy"}
    say("deploy")
    runners = salt.loader.runner(__opts__, context=__context__)
    if wrong := runners["indigo_hosts.deploy"]():
        raise CommandExecutionError(
            f"{'; '.join(done) or 'Nothing was left to set up'}. The deploy failed: mend it and "
            f"run `salt-run state.orchestrate indigo.deploy`. {'; '.join(wrong)}"
        )
    return {"done": [*done, "deployed"], "next": "salt-run indigo.status"}


# --- reading -----------------------------------------------------------------------------------


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise CommandExecutionError(
            f"conf: {path} cannot be read ({err}); expected a file with lines such as "
            "LB1=192.0.2.11 name=lb1, see docs/operations/setup.md"
        ) from err


def _mapping(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = yaml.safe_load(_read(path))
    except yaml.YAMLError as err:
        raise CommandExecutionError(f"more: {path} is not YAML: {err}") from err
    if not isinstance(found, dict):
        raise CommandExecutionError(
            f"more: {path}: found {type(found).__name__}; expected keys as in docs/pillar.md"
        )
    return found


def _own(conf: str, model: Any) -> dict[str, str]:
    """Minion id of the Salt master's own host, and the address by which hosts reach it."""
    said = model["indigo_model.setup_parse"](conf)
    vip = said["vip"].get("address", "192.0.2.1")
    own = next((one for one in said["hosts"].items() if "ca" in one[1]["roles"]), None)
    if own:
        return {"id": own[0], "address": own[1]["address"]}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((vip, 9))  # sends nothing: it asks the kernel for the way
            address = way.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    folder = os.path.dirname(__opts__["conf_file"])
    minion = salt.config.minion_config(os.path.join(folder, "minion"), ignore_config_errors=True)
    return {"id": minion["id"], "address": address}


def _target(model: Any) -> Path:
    """Where the cluster's file is to be: in the first pillar root."""
    roots = __opts__.get("pillar_roots", {}).get("base", [])
    if not roots:
        raise CommandExecutionError(
            "pillar_roots: found none; expected config/master.d/indigo.conf"
        )
    return Path(roots[0]) / "cluster.yaml"


def _refused(model: Any, target: Path, force: bool) -> list[str]:
    """Why the cluster's file must not be written."""
    if not target.exists() or force:
        return []
    written = target.read_text("utf-8", errors="replace")
    # The example of the tree declares documentation's addresses, which nobody has.
    if model["indigo_model.setup_unedited"](written) or "192.0.2.10," in written:
        return []
    return [
        f"{target}: found a file that indigo.setup did not write, or that was edited since. Edit "
        "it and deploy, or add force=True: then it is kept beside under another name"
    ]


def _key_files(values: Mapping[str, str]) -> list[str]:
    return [
        f"{key}: found no file {values[key]} on the Salt master"
        for key in ("SSH_KEY", "SALT_REPOSITORY_KEY")
        if key in values and not os.path.isfile(values[key])
    ]


def _readable(conf: str) -> list[str]:
    """Whether a file with a password is for its owner's eyes alone."""
    mode = stat.S_IMODE(os.stat(conf).st_mode)
    if not mode & 0o077:
        return []
    return [
        f"OPENSTACK_PASS: found it in {conf}, which has mode {mode:04o}; expected 0600: "
        f"`chmod 0600 {conf}`"
    ]


# --- hosts -------------------------------------------------------------------------------------


def _answering(client: Any, ids: Iterable[str], patience: int | None = None) -> set[str]:
    """Minions that answer, of those whose keys are accepted.

    Args:
        patience: Seconds for a minion that says nothing at all; by default the Salt master's.
    """
    with salt.key.get_key(__opts__) as keys:
        accepted = set(keys.list_keys()["minions"]) & set(ids)
    if not accepted:
        return set()
    more = {} if patience is None else {"gather_job_timeout": patience}
    found = client.cmd(sorted(accepted), "test.ping", tgt_type="list", timeout=5, **more)
    return {id_ for id_, answer in found.items() if answer is True}


def _waited(client: Any, ids: Iterable[str]) -> list[str]:
    """Wait for minions; those that do not answer after all."""
    missing = set(ids)
    deadline = time.monotonic() + MINION
    while missing and time.monotonic() < deadline:
        missing -= _answering(client, missing, patience=1)
        if missing:
            time.sleep(0.5)
    return sorted(missing)


def _interfaces(
    client: Any, balancers: list[str], vip: str, hosts: Mapping[str, str]
) -> dict[str, str]:
    """By load balancer, the interface that has its address, which takes the virtual one, too."""
    found = client.cmd(balancers, "grains.get", ["ip4_interfaces"], tgt_type="list", timeout=15)
    return {
        id_: name
        for id_, interfaces in found.items()
        if isinstance(interfaces, Mapping)
        for name, addresses in interfaces.items()
        if hosts[id_] in addresses
    }


def _kept(model: Any, client: Any, host: str, found: Mapping[str, Any]) -> bool:
    """Bring OpenStack's password to a host, sealed for its minion; whether that changed anything.

    Only ciphertext is in the job, the event and the argument.
    """
    with salt.key.get_key(__opts__) as keys:
        folder, public = _held(keys, host)
    remedy = f"accept its minion's key: `salt-key -a {host}`, and run this again"
    if folder != "minions":
        raise CommandExecutionError(f"OPENSTACK_PASS: {host}: no accepted key; {remedy}")
    header = {"recipient": host, "file": found["password_file"]}
    whose = f"{host}: its Salt public key"
    sealed = model["indigo_seal.seal"](header, found["password"], public, whose, remedy)
    # A new minion has none of our modules yet.
    client.cmd(host, "saltutil.sync_modules", timeout=60)
    answer = client.cmd(host, "indigo_cloud.keep", [sealed], timeout=60).get(host)
    if not isinstance(answer, Mapping) or "changed" not in answer:
        raise CommandExecutionError(
            f"OPENSTACK_PASS: {host} did not take it: {answer or 'no answer'}. Run this again"
        )
    return bool(answer["changed"])


def _bootstrapped(
    model: Any, found: Mapping[str, Any], hosts: Mapping[str, str], say: Any
) -> list[str]:
    """Make hosts minions with accepted keys; what was done, in words."""
    if not hosts:
        return []
    values = found["values"]
    public = Path(__opts__["pki_dir"], "master.pub")
    master = next(
        one["address"] for one in found["document"]["hosts"].values() if "ca" in one["roles"]
    )
    key_file = values.get("SALT_REPOSITORY_KEY")
    script = model["indigo_model.setup_script"](
        dict(hosts),
        master,
        salt.utils.crypt.pem_finger(str(public), sum_type=__opts__["hash_type"]),
        values.get("SALT_VERSION", salt.version.__version__),
        values.get("SALT_REPOSITORY", ""),
        Path(key_file).read_bytes() if key_file else b"",
    )
    say(f"make minions over ssh: {', '.join(hosts)}")
    answers = _over_ssh(hosts, script, values)
    shown, problems = judged(hosts, answers)
    done = []
    for id_, pem in shown.items():
        try:
            fingerprint = _accepted(id_, pem)
        except CommandExecutionError as err:
            problems.append(str(err))
            continue
        done.append(f"{id_} is a minion; its key {fingerprint} is accepted")
        say(done[-1])
    if problems:
        raise CommandExecutionError(
            "Not every host became a minion. Mend it and run this again: what is done stays.\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    return done


def _over_ssh(hosts: Mapping[str, str], script: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Run a shell script on hosts, as root; by id what salt-ssh says of it."""
    user = values.get("SSH_USER", "root")
    key = values.get("SSH_KEY") or next(
        (path for name in SSH_KEYS if os.path.isfile(path := os.path.expanduser(f"~/.ssh/{name}"))),
        None,
    )
    if key is None:
        raise CommandExecutionError(
            "SSH_KEY: found no key of ssh in ~/.ssh; expected one that the hosts take: make it "
            "with `ssh-keygen`, bring it with `ssh-copy-id` to every host, or name another file"
        )
    roster = {
        id_: {"host": address, "user": user, "priv": key, "timeout": 15}
        for id_, address in hosts.items()
    }
    # In base64, so that no shell on the way reads anything into it.
    coded = base64.b64encode(script.encode()).decode()
    shell = "sh -s" if user == "root" else "sudo -n sh -s"
    folder = os.path.dirname(__opts__["conf_file"])
    with tempfile.TemporaryDirectory(prefix="indigo-setup-") as work:
        path = Path(work, "roster")
        path.write_text(yaml.safe_dump(roster))
        command = [
            *(_program("salt-ssh"), "-c", folder, "--roster-file", str(path), "--priv", key),
            *("--out", "json", "--static", "--raw", "*"),
            f"echo {coded} | base64 -d | {shell}",
        ]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            found = json.loads(done.stdout[done.stdout.index("{") :])
        except (OSError, ValueError) as err:
            told = done.stderr.strip()[-800:] if "done" in locals() else ""
            raise CommandExecutionError(
                f"{shlex.join(command[:6])}: {err}; {told}. salt-ssh needs the program ssh here"
            ) from err
    return dict(found)


def _program(name: str) -> str:
    """One of Salt's programs, from where this one is."""
    beside = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), name)
    return beside if os.path.isfile(beside) else name


def judged(
    hosts: Mapping[str, str], answers: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Public keys that hosts said their minions have, and what went wrong on the others.

    Args:
        hosts: Minion id to address.
        answers: By id, ``stdout``, ``stderr`` and ``retcode`` of the script over salt-ssh.

    Example:
        >>> judged({"a": "10.0.0.1"}, {})
        ({}, ['a (10.0.0.1): no answer over ssh'])
    """
    shown: dict[str, str] = {}
    problems: list[str] = []
    for id_, address in hosts.items():
        answer = answers.get(id_)
        where = f"{id_} ({address})"
        if not isinstance(answer, Mapping):
            problems.append(f"{where}: {answer or 'no answer over ssh'}")
            continue
        told = f"{answer.get('stdout') or ''}\n{answer.get('stderr') or ''}"
        coded = [line.split()[1] for line in told.splitlines() if line.startswith("indigo-key ")]
        if answer.get("retcode") or not coded:
            problems.append(f"{where}: {_reason(told, address)}")
            continue
        try:
            shown[id_] = base64.b64decode(coded[-1], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            problems.append(f"{where}: showed no public key")
    return shown, problems


def _reason(told: str, address: str) -> str:
    if "host key needs to be accepted" in told or "Host key verification failed" in told:
        return (
            "ssh does not know the host's key: compare it, and let ssh remember it with "
            f"`ssh {address} true`"
        )
    if "Permission denied" in told or "authentication" in told.lower():
        return (
            "ssh is not let in: bring the key with `ssh-copy-id`, or set SSH_USER and SSH_KEY "
            "in setup.conf"
        )
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "the script failed and said nothing"


def _accepted(id_: str, pem: str) -> str:
    """Accept a minion's key if it is the one that its host has; its fingerprint."""
    deadline = time.monotonic() + MINION
    wanted = _bare(pem)
    while True:
        with salt.key.get_key(__opts__) as keys:
            folder, held = _held(keys, id_)
            if held and _bare(held) != wanted:
                raise CommandExecutionError(
                    f"{id_}: the Salt master has another key under that id ({folder}); the host "
                    f"itself has {_finger(pem)}. If the host is new, delete the other with "
                    f"`salt-key -d {id_}` and run this again; if not, somebody else uses that id"
                )
            if folder == "minions_pre":
                keys.accept(match_dict={"minions_pre": [id_]})
                return _finger(pem)
            if folder == "minions":
                return _finger(pem)
        if time.monotonic() > deadline:
            raise CommandExecutionError(
                f"{id_}: its minion did not show its key here for {MINION} s: see "
                "`journalctl -u salt-minion` there, and that it reaches ports 4505 and 4506 here"
            )
        time.sleep(0.5)


def _held(keys: Any, id_: str) -> tuple[str, str]:
    """Where the Salt master has a key of that id, and the key; empty where it has none."""
    listed = keys.list_keys()
    for folder in ("minions_denied", "minions_rejected", "minions", "minions_pre"):
        if id_ in listed.get(folder, []):
            return folder, str(keys.key_str(id_).get(folder, {}).get(id_, ""))
    return "", ""


def _bare(pem: str) -> str:
    """A key's own characters, without what files and systems put around them."""
    return "".join(line.strip() for line in pem.splitlines() if "-----" not in line)


def _finger(pem: str) -> str:
    body = "".join(f"{line}\n" for line in pem.strip().splitlines()[1:-1])
    return str(salt.utils.crypt.pem_finger(key=body.encode(), sum_type=__opts__["hash_type"]))


# --- the file ----------------------------------------------------------------------------------


def _written(target: Path, text: str) -> bool:
    """Put the cluster's file in place in one move; False when it says so already."""
    try:
        before = target.read_text("utf-8") if target.exists() else None
        # The first line names the source; what counts is what it declares.
        if before is not None and before.split("\n", 1)[-1] == text.split("\n", 1)[-1]:
            return False
        partial = target.with_name(f".{target.name}.partial")
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            kept = target.with_name(
                f"{target.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
            )
            os.link(target, kept)
        partial.replace(target)
    except OSError as err:
        raise CommandExecutionError(
            f"{target} cannot be written: {err}; name a folder that can, first in pillar_roots"
        ) from err
    return True
