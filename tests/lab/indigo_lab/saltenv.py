"""Salt in the guests: one environment for all of them, their keys and their configuration."""

from __future__ import annotations

from pathlib import Path

import tomllib

from .base import REPO, cache, digest, remove_tree, run, say, state, write
from .rootfs import VENV
from .topology import MASTER

PYTHON = "/usr/bin/python3.11"  # the guests' own, so that the environment runs there
DEFAULT = ("salt==3008.3", "netaddr==1.3.0")


def requirements(pyproject: Path = REPO / "pyproject.toml") -> list[str]:
    """The pinned packages that a Salt master and its minions need, from the repository."""
    if pyproject.is_file():
        found = tomllib.loads(pyproject.read_text()).get("project", {}).get("dependencies", [])
        if found:
            return [str(item) for item in found]
    return list(DEFAULT)


def environment() -> Path:
    """The folder that every guest sees as /opt/salt, made once per set of requirements."""
    wanted = requirements()
    target = cache("venv", digest(*wanted, VENV))
    if target.is_dir():
        return target
    say(f"salt: make the environment ({', '.join(wanted)})")
    work = target.with_name(target.name + ".new")
    remove_tree(work)
    run([PYTHON, "-m", "venv", work], step="salt: make a virtual environment")
    run(
        [work / "bin/python3", "-m", "pip", "install", "-q", "--no-compile", *wanted],
        step="salt: pip install",
    )
    for script in (work / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        text = script.read_text()
        script.write_text(text.replace(str(work), VENV))
    # Guests cannot write bytecode there: compile it now, for the path that they see.
    run(
        [work / "bin/python3", "-m", "compileall", "-q", "-j", "2", "-s", str(work), "-p", VENV,
         work / "lib"],
        step="salt: compile",
        check=False,
    )  # fmt: skip
    work.rename(target)
    return target


def keypair(folder: Path, name: str) -> str:
    """Make an RSA key pair as `salt-key --gen-keys` does, unless it is there; the public half."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    if not private.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = run(["openssl", "genrsa", "2048"], step=f"make the key {private}").stdout
        write(private, pem, 0o400)
    if not public.exists():
        text = run(["openssl", "rsa", "-in", private, "-pubout"], step=f"make {public}").stdout
        write(public, text.strip() + "\n")
    return public.read_text()


def minion_config(name: str) -> str:
    """What a provisioning tool writes on a machine: who it is and where its master is."""
    return "\n".join(
        [
            f"id: {name}",
            f"master: {MASTER}",
            "acceptance_wait_time: 1",
            # A power-off or a cut of either end is seen, and mended, within seconds.
            "recon_default: 200",
            "recon_max: 2000",
            "recon_randomize: True",
            "tcp_keepalive_idle: 5",
            "tcp_keepalive_cnt: 3",
            "tcp_keepalive_intvl: 2",
            "",
        ]
    )


# Salt joins the lists of all files in the order of their names: this file comes first, so that
# the lab's cluster.yaml is found before the repository's example.
MASTER_CONFIG = """\
interface: 0.0.0.0
pillar_roots:
  base: [/srv/indigo-site/pillar, /srv/indigo/pillar]
"""


def master_files(folder: Path, repo: Path = REPO) -> bool:
    """Copy the repository's master configuration into the guest's; whether anything changed."""
    target = folder / "master.d"
    target.mkdir(parents=True, exist_ok=True)
    wanted = {p.name: p.read_text() for p in sorted((repo / "config/master.d").glob("*.conf"))}
    wanted["00-lab.conf"] = MASTER_CONFIG
    found = {p.name: p.read_text() for p in target.glob("*.conf")}
    if found == wanted:
        return False
    for name in set(found) - set(wanted):
        (target / name).unlink()
    for name, text in wanted.items():
        write(target / name, text)
    return True


def seed_minion(folder: Path, name: str) -> str:
    """Write a minion's configuration and key under its /etc/salt; its public key."""
    write(folder / "minion.d/lab.conf", minion_config(name))
    return keypair(folder / "pki/minion", "minion")


def seed_master(folder: Path) -> str:
    """Give the master its key pair, once; its public key.

    A started Salt master renames its keys after its id and leaves symbolic links, so the original
    stays outside.
    """
    public = keypair(state("keys"), "master")
    if not (folder / "pki/master").exists():
        write(folder / "pki/master/master.pem", state("keys/master.pem").read_text(), 0o400)
        write(folder / "pki/master/master.pub", public)
        (folder / "pki/master").chmod(0o700)
    return public


#: A Salt master's folders of keys but the one of accepted keys.
_OTHERS = ("minions_pre", "minions_denied", "minions_rejected")


def accept(master: Path, name: str, public: str) -> None:
    """Put a minion's public key where the master keeps those it accepted, and nowhere else.

    A key that an earlier machine of that name left pending would count before the accepted one.
    """
    write(master / "pki/master/minions" / name, public)
    for folder in _OTHERS:
        (master / "pki/master" / folder / name).unlink(missing_ok=True)


def trust_master(folder: Path, public: str) -> None:
    """Tell a minion its master's public key, so that it trusts no other."""
    write(folder / "pki/minion/minion_master.pub", public)


def forget(master: Path, name: str) -> None:
    """Remove a minion's keys from the master's, whatever became of them."""
    for folder in ("minions", *_OTHERS):
        (master / "pki/master" / folder / name).unlink(missing_ok=True)
