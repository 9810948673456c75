"""The model: from the file a user edits to each host's view.

This is the edge to Salt of a pure package. On the Salt master the pillar (``pillar/view.sls``),
the orchestration and the runners call the functions below. They read ``cluster.yaml`` from the
first pillar root that has one.

Views are derived for all hosts at once, when the file or this code has changed, and are kept
under the master's ``cachedir``. A minion's pillar is then the reading of one small file, so its
cost does not grow with the number of hosts. A view holds no secret.
"""

# Submodules are imported inside the functions: Salt's loader registers a package in sys.modules
# only after it has run (salt/loader/lazy.py, LazyLoader._load_module).

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

try:
    import netaddr  # noqa: F401

    HAS_NETADDR = True
except ImportError:
    HAS_NETADDR = False

__virtualname__ = "indigo_model"
__func_alias__ = {"images_": "images", "setup_": "setup", "view_": "view"}

CLUSTER_FILE = "cluster.yaml"

#: How many runs are kept, with their pictures.
RUNS = 50


def __virtual__() -> str | tuple[bool, str]:
    if not HAS_NETADDR:
        return False, "indigo_model needs the Python library netaddr where the Salt master runs"
    return __virtualname__


def cluster_file() -> str:
    """Path of the file that declares the cluster.

    Returns:
        The first ``cluster.yaml`` found in the pillar roots of the environment ``base``.

    Raises:
        CommandExecutionError: No pillar root has the file.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.cluster_file
    """
    roots = [str(root) for root in __opts__.get("pillar_roots", {}).get("base", [])]
    for root in roots:
        path = os.path.join(root, CLUSTER_FILE)
        if os.path.isfile(path):
            return path
    raise CommandExecutionError(
        f"No {CLUSTER_FILE} found in pillar_roots ({', '.join(roots) or 'none set'}): "
        "write one from the example pillar/cluster.yaml, or add its folder to pillar_roots "
        "in the Salt master's configuration"
    )


def problems() -> list[str]:
    """Everything that is wrong with the declared cluster.

    Returns:
        One sentence a problem: the key, what was found, what is expected and what to do.
        An empty list when the cluster can be deployed.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.problems
    """
    from . import derive, validate
    from .cluster import parse

    try:
        document = _document()
    except (ValueError, OSError, CommandExecutionError) as err:
        return [str(err)]
    # While members of etcd come and go their number may be even.
    found = validate.problems(document, parity=not leaving())
    if not found:
        found = _unfinished(document)
        # What only shows when a view is derived: a checksum that nobody gave.
        try:
            cluster = parse(_remaining(document))
            seen: set[tuple[str, ...]] = set()
            for host in cluster.hosts.values():
                if host.roles not in seen:
                    seen.add(host.roles)
                    derive.pillar(cluster, host)
        except ValueError as err:
            found.append(str(err))
    return found


def pillar(minion_id: str) -> dict[str, Any]:
    """The pillar of one minion: its view, or nothing for a host that is not declared.

    Args:
        minion_id: Id of the minion, as the Salt master authenticated it.

    Returns:
        ``{"indigo": view}``, with ``x509_signing_policies`` on the CA host; ``{}`` for others, such
        as an orchestration, whose pillar is that of ``<id of the master>_master``.

    Raises:
        CommandExecutionError: The declared cluster has problems; all of them are named.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.pillar node1
    """
    # Ids are DNS names, so these are not declared. An orchestration must not fail here over a
    # mistake in the file: its preflight says what is wrong and what to do.
    if "/" in minion_id or "_" in minion_id or minion_id.startswith("."):
        return {}
    folder = _views()
    try:
        return json.loads((folder / f"{minion_id}.json").read_text())
    except FileNotFoundError:
        return {}


def view_(minion_id: str) -> dict[str, Any]:
    """The view of one declared host.

    Raises:
        CommandExecutionError: The host is not declared.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.view node1
    """
    found = pillar(minion_id)
    if not found:
        raise CommandExecutionError(
            f"{minion_id} is not declared: add it under `hosts` in {cluster_file()}"
        )
    return found["indigo"]


def plan() -> dict[str, Any]:
    """What orchestrations and runners need to know of the whole cluster.

    Returns:
        ``cluster`` (name), ``hosts`` (id to address, roles, Kubernetes ``name`` and the
        ``digest`` of its pillar), ``roles`` (role to list of ids), ``vip``, ``url`` (API through
        the VIP), ``versions``, ``identities`` (see :mod:`tokens`), ``addons`` (names), and what of
        ``backup`` and ``upgrade`` concerns orchestrations.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.plan
    """
    return json.loads((_views() / "plan").read_text())


def images_() -> list[dict[str, Any]]:
    """Images that the wanted add-ons need, see :mod:`images`.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.images
    """
    from . import images

    return images.needed(_cluster())


def host_problems(facts: dict[str, Any]) -> list[str]:
    """What preflight finds wrong about the hosts, see :mod:`preflight`.

    Args:
        facts: By minion id, the answer of ``indigo_preflight.facts``.

    Returns:
        One sentence a problem, naming the host or the key.
    """
    from . import preflight

    return preflight.host_problems(plan(), facts)


def ways() -> dict[str, list[Any]]:
    """Which host must reach which port of which other, see :mod:`survey`.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.ways
    """
    from . import survey

    return {id_: [list(way) for way in found] for id_, found in survey.ways(_cluster()).items()}


def checks(
    facts: dict[str, Any], surveys: dict[str, Any], reached: dict[str, Any]
) -> list[dict[str, Any]]:
    """What ``salt-run indigo.preflight`` makes of the hosts' answers, see :mod:`survey`."""
    from . import survey

    return survey.checks(_cluster(), plan(), facts, surveys, reached)


def hosts(*roles: str) -> list[str]:
    """Ids of the declared hosts that have any of the roles (all hosts without arguments).

    Returns:
        The ids as declared; none while the declared cluster has problems. Orchestrations name
        their targets with this before their preflight can tell the problems and stop them.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.hosts master
    """
    try:
        declared = plan()
    except (CommandExecutionError, ValueError, OSError):
        return []
    if not roles:
        return list(declared["hosts"])
    wanted = {id_ for role in roles for id_ in declared["roles"].get(role, [])}
    return [id_ for id_ in declared["hosts"] if id_ in wanted]


def tokens_plan() -> dict[str, Any]:
    """What the replication of tokens needs: masters, nodes, identities, cluster name.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.tokens_plan
    """
    declared = plan()
    return {
        "cluster": declared["cluster"],
        "masters": declared["roles"]["master"],
        "nodes": declared["roles"]["node"],
        "identities": declared["identities"],
    }


def told(
    running: dict[str, Any],
    returns: list[Any],
    title: str,
    now: float,
    zone: float,
    note: bool,
    asked: Sequence[Any] = (),
) -> dict[str, Any]:
    """A run of an orchestration in lines, and as a page; see :mod:`timeline`.

    Args:
        running, returns, now, zone, asked: See :func:`timeline.gathered`.
        title: What ran, such as ``indigo.deploy``.
        note: Keep the page, and how long it took, below the Salt master's cache.

    Returns:
        ``lines`` and ``picture`` (the page's path, or None).
    """
    from . import timeline

    run = timeline.gathered(running, returns, now, zone, asked)
    picture = None
    if note:
        folder = _runs()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(run["started"]))
        picture = folder / f"{stamp}-{title.split()[0]}.html"
        picture.write_text(timeline.page(run, title))
        good = not timeline.failures(run)
        record = {
            "hosts": len(run["hosts"] or run["asked"]),
            "seconds": run["seconds"],
            "good": good,
        }
        picture.with_suffix(".json").write_text(json.dumps(record))
        for old in sorted(folder.glob("*.html"))[:-RUNS]:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
    return {
        "lines": timeline.lines(run, title, str(picture) if picture else None),
        "picture": str(picture) if picture else None,
    }


def estimate(title: str, hosts: int | None = None) -> float | None:
    """Seconds that a run on so many hosts (None: on any) may take, from those before, if any."""
    from . import timeline

    runs = []
    for path in sorted(_runs().glob(f"*-{title}.json")):
        try:
            runs.append(json.loads(path.read_text()))
        except (OSError, ValueError):  # somebody else is writing it
            continue
    return timeline.estimate(runs, hosts)


def upgrade_course(
    facts: dict[str, Any], nodes: dict[str, Any], previews: dict[str, Any]
) -> dict[str, Any]:
    """What an upgrade would do and why it must not, see :func:`upgrade.course`."""
    from . import upgrade

    return upgrade.course(plan(), facts, nodes, previews)


def upgrade_removals(now: str, then: str) -> dict[str, Any]:
    """APIs that go between two releases of Kubernetes, see :data:`upgrade.REMOVALS`.

    Args:
        now, then: Releases, such as ``1.24``.

    Returns:
        ``removals`` and ``until``, the minor of the later one.
    """
    from dataclasses import asdict

    from . import upgrade, versions

    until = versions.parse(then)[1]
    found = upgrade.removals(versions.parse(now)[1], until)
    rows = [{**asdict(one), "resources": list(one.resources)} for one in found]
    return {"removals": rows, "until": until}


def upgrade_back(stage: str, old: dict[str, str]) -> str:
    """How one comes back from a stage, see :func:`upgrade.way_back`."""
    from . import upgrade

    return upgrade.way_back(stage, old)


def upgrade_wrong(wanted: dict[str, str], facts: dict[str, Any]) -> dict[str, str]:
    """Hosts that do not run what is declared, see :func:`upgrade.wrong_versions`."""
    from . import upgrade

    return upgrade.wrong_versions(wanted, facts)


def _runs() -> Path:
    return Path(__opts__["cachedir"]) / "indigo" / "runs"


def setup_parse(conf: str) -> dict[str, Any]:
    """What a ``setup.conf`` says, wrong lines left out; see :mod:`setup`.

    Args:
        conf: Its text.

    Returns:
        ``hosts``, ``vip`` and ``values``.
    """
    from . import setup

    said, _ = setup.parse(conf)
    return {"hosts": said.hosts, "vip": said.vip, "values": said.values}


def setup_(
    conf: str,
    master: dict[str, str],
    interfaces: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The cluster that a ``setup.conf`` declares, see :func:`setup.document`.

    Returns:
        ``document``, ``values`` (what concerns ssh and Salt), ``password`` (of OpenStack, which is
        in none of the others), ``password_file`` (where the first master has it) and
        ``problems``, all of them.
    """
    from . import openstack, setup

    said, problems = setup.parse(conf)
    document: dict[str, Any] = {}
    if not problems:
        document, problems = setup.document(said, master, interfaces, more)
    return {
        "document": document,
        "values": said.values,
        "password": said.password,
        "password_file": openstack.SECRET_FILE,
        "problems": problems,
    }


def setup_text(document: dict[str, Any], source: str) -> str:
    """The file that declares the cluster, as ``indigo.setup`` writes it."""
    from . import setup

    return setup.text(document, source)


def setup_unedited(text: str) -> bool:
    """Whether a file was written by ``indigo.setup`` and not edited since."""
    from . import setup

    return setup.unedited(text)


def setup_script(
    hosts: dict[str, str], master: str, finger: str, version: str, repository: str, key: bytes
) -> str:
    """The shell script that makes a bare host a minion, see :func:`setup.host_script`."""
    from . import setup

    return setup.host_script(hosts, master, finger, version, repository, key)


def _cluster() -> Any:
    from .cluster import parse

    return parse(_remaining(_document()))


def leaving() -> dict[str, dict[str, Any]]:
    """Hosts that ``indigo.remove`` takes out, or has taken out while the file still names them.

    For everyone else such a host is not declared any more: no other host's view names it, and it
    has none itself, so that nothing brings it back.

    Returns:
        By minion id what :func:`mark` was given.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.leaving
    """
    return {path.stem: json.loads(path.read_text()) for path in sorted(_marks().glob("*.json"))}


def mark(minion_id: str, record: dict[str, Any]) -> None:
    """Note that a host is leaving, and how far it is.

    Args:
        minion_id: Its id.
        record: JSON data; ``done`` says whether only its lines in the file are left of it.
    """
    folder = _marks()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = folder / f".{minion_id}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / f"{minion_id}.json")


def unmark(minion_id: str) -> bool:
    """A host that was leaving is what the file says of it. Returns whether it was leaving.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.unmark node3
    """
    path = _marks() / f"{minion_id}.json"
    found = path.exists()
    path.unlink(missing_ok=True)
    return found


def lines(minion_id: str) -> tuple[int, int] | None:
    """First and last line of a host's entry in the file; None where it has none.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.lines node3
    """
    from . import validate

    return validate.lines(Path(cluster_file()).read_text(encoding="utf-8"), "hosts", minion_id)


def remaining_problems(*minion_ids: str) -> list[str]:
    """What would be wrong with the cluster without some of its hosts.

    An even number of etcd members is not among it: two leave one after the other.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd indigo_model.remaining_problems lb1
    """
    from . import validate

    document = _document()
    hosts = {id_: host for id_, host in document["hosts"].items() if str(id_) not in minion_ids}
    return validate.problems(_remaining({**document, "hosts": hosts}), parity=False)


def _marks() -> Path:
    return Path(__opts__["cachedir"]) / "indigo" / "leaving"


def _remaining(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the hosts that are leaving."""
    gone = leaving()
    hosts = {id_: host for id_, host in document["hosts"].items() if str(id_) not in gone}
    return {**document, "hosts": hosts}


def _unfinished(document: dict[str, Any]) -> list[str]:
    """What a person still has to do about hosts that are leaving."""
    found = []
    members = [id_ for id_, one in _remaining(document)["hosts"].items() if "etcd" in one["roles"]]
    for id_, record in leaving().items():
        again = f"run `salt-run indigo.remove host={id_}`"
        keep = f"to keep the host, `salt-run indigo.remove host={id_} cancel=True`"
        if not record.get("done"):
            found.append(f"{id_}: its removal was begun and is not finished: {again}; {keep}")
        elif id_ in document["hosts"]:
            if "etcd" in document["hosts"][id_]["roles"] and len(members) % 2 == 0:
                # Its lines must wait until another member comes or goes.
                continue
            first, last = lines(id_) or (0, 0)
            found.append(
                f"hosts.{id_}: found a host that indigo.remove took out; expected no such host: "
                f"delete lines {first} to {last} of {cluster_file()}; {keep}"
            )
    return found


def _document() -> dict[str, Any]:
    from . import validate

    path = cluster_file()
    return validate.load(Path(path).read_bytes(), path)


def _tree() -> list[Path]:
    """Files of the state tree that hosts are deployed from, in order; none if it is not local."""
    for root in __opts__.get("file_roots", {}).get("base", []):
        if Path(root, "indigo", "host.sls").is_file():
            folders = {Path(root, "indigo"), *(sls.parent for sls in Path(root).glob("*/init.sls"))}
            return sorted(
                path
                for folder in folders
                for path in folder.rglob("*")
                if path.is_file() and not path.name.startswith(".")
            )
    return []


def _tree_digest() -> str:
    from . import derive

    return derive.digest([[str(f), hashlib.sha256(f.read_bytes()).hexdigest()] for f in _tree()])


def _stamp() -> str:
    """Changes when the file, the hosts that are leaving, this code or the state tree changes."""
    from . import derive

    files = [
        Path(cluster_file()),
        *sorted(_marks().glob("*.json")),
        *sorted(Path(__file__).parent.glob("*.py")),
        *_tree(),
    ]
    stats = [file.stat() for file in files]
    return derive.digest(
        [[str(f), s.st_mtime_ns, s.st_size, s.st_ino] for f, s in zip(files, stats, strict=True)]
    )[:16]


def _views() -> Path:
    """Folder with every host's pillar, derived anew when the stamp has changed."""
    cache = Path(__opts__["cachedir"]) / "indigo"
    folder = cache / f"views-{_stamp()}"
    if folder.is_dir():
        return folder
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One process derives, the others wait for it: all minions ask at once after a change.
    with open(cache / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _derive_all(folder)
    return folder


def _derive_all(folder: Path) -> None:
    from . import addons, derive, tokens, validate
    from .cluster import ROLES, parse

    try:
        document = _document()
        left = leaving()
        found = validate.problems(document, parity=not left)
        if left and not found:
            found = validate.problems(_remaining(document), parity=False)
        if found:
            raise ValueError("\n".join(found))
        cluster = parse(_remaining(document))
        pillars = {id_: derive.pillar(cluster, host) for id_, host in cluster.hosts.items()}
        # So that a host whose SLS have changed is not taken for deployed.
        tree = _tree_digest()
        for data in pillars.values():
            data["indigo"]["tree"] = tree
    except ValueError as err:
        raise CommandExecutionError(f"{cluster_file()} cannot be used:\n{err}") from err
    summary = {
        "cluster": cluster.name,
        "hosts": {
            id_: {
                "address": host.address,
                "roles": list(host.roles),
                "name": host.name,
                "interface": host.interface,
                "digest": derive.fingerprint(pillars[id_]),
            }
            for id_, host in cluster.hosts.items()
        },
        "roles": {role: [host.id for host in cluster.with_role(role)] for role in ROLES},
        "vip": {"address": cluster.vip.address, "interface": cluster.vip.interface},
        "url": cluster.vip.url,
        "versions": dict(cluster.versions),
        "identities": tokens.identities(cluster),
        "addons": [*addons.wanted(cluster), *addons.services(cluster)],
        "backup": {"every": cluster.backup["every"]},
        "upgrade": dict(cluster.upgrade),
    }
    made = Path(tempfile.mkdtemp(prefix="new-", dir=folder.parent))
    try:
        for id_, data in pillars.items():
            (made / f"{id_}.json").write_text(json.dumps(data))
        (made / "plan").write_text(json.dumps(summary))
        os.rename(made, folder)
    except OSError as err:
        shutil.rmtree(made, ignore_errors=True)
        raise CommandExecutionError(
            f"Views cannot be written to {folder.parent}: {err}; free space there or set "
            "`cachedir` of the Salt master"
        ) from err
    for old in folder.parent.glob("views-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    # Who took the lines of a removed host out may write them in again, for a new one.
    for id_, record in left.items():
        if record.get("done") and id_ not in document["hosts"]:
            unmark(id_)
