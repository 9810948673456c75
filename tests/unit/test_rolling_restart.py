"""What a rolling restart does, in which order, and when it does not; the state that asks for it."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load
from test_service_units import host  # noqa: F401  a host with a small systemd in memory

ETCD = {
    "name": "etcd",
    "own": "a",
    "members": {name: f"https://{name}/health" for name in "abc"},
    "need": "majority",
    "url": "https://a/health",
    "check": {"expect": "true"},
    "timeout": 0.2,
}

LB = {
    "name": "lb",
    "own": "a",
    "ask": "salt",
    "members": {"a": "A", "b": "B"},
    "need": "any",
    "url": "unix:/alive",
    "units": ["haproxy", "keepalived"],
    "settle": 2,
    "timeout": 0.2,
    "address": {"address": "10.0.0.10", "port": 8443},
    "yields": {"unit": "keepalived", "address": "10.0.0.10", "port": 8443},
}


class Lock:
    def __init__(self, log) -> None:
        self.log = log
        self.fails: dict[str, Exception] = {}
        self.kept = True
        self.queued: list[int] = []

    def _do(self, word) -> None:
        self.log.append(word)
        if word in self.fails:
            raise self.fails[word]

    def acquire(self, timeout, grace):
        self._do("acquire")

    def confirm(self):
        self._do("confirm")

    def keep(self):
        self._do("keep")

    def release(self):
        self._do("release")

    def others(self):
        return self.queued.pop(0) if self.queued else 0

    def again(self):
        self._do("again")

    def lasted(self):
        return self.kept


@pytest.fixture
def site():
    """This host ``a``, with others whose health is what ``bad`` says."""
    module = load("_modules", "indigo_rolling")
    module.LOOK, module.LAST = 0.01, 0.02
    log: list[str] = []
    here = SimpleNamespace(
        module=module,
        log=log,
        lock=Lock(log),
        bad={},
        dead=set(),
        stamped=True,
        stale=True,
        serves_after=True,
        vip_here=False,
        vip_moves=True,
        started={"etcd": 1.0, "haproxy": 1.0, "keepalived": 1.0},
        invocation=1,
        starts=1,
        peers=None,
    )
    module._lock = lambda tier: here.lock

    def check(url, **_):
        name = url.removeprefix("https://").partition("/")[0].replace("unix:", "a")
        problem = here.bad.get(name, "")
        return {"ok": not problem, "url": url, "problem": problem}

    def show(unit):
        return {
            "ActiveState": "inactive" if unit in here.dead else "active",
            "InvocationID": str(here.invocation),
            "ExecMainStartTimestampMonotonic": str(int(here.started[unit] * 1e6)),
        }

    def restart(unit, files, wait):
        log.append(f"restart {unit} wait={wait}")
        here.invocation += 1
        if not here.serves_after:
            here.bad["a"] = "status 500, expected 200"

    def wait_unit(unit, url, **_):
        log.append(f"wait {unit}")
        answer = check(url)
        return {"ok": answer["ok"], "last": answer, "unit": show(unit), "starts": here.starts}

    def pause(unit):
        log.append(f"pause {unit}")
        here.vip_here = not here.vip_moves

    def publish(minions, function, arg, tgt_type, timeout):
        log.append(f"publish {','.join(minions)} {function} {arg}")
        if here.peers is not None:
            return here.peers
        return {minion: {"ok": True, "problem": ""} for minion in minions}

    module.__salt__ = {
        "indigo_health.check": check,
        "indigo_health.wait_unit": wait_unit,
        "indigo_health.open_port": lambda address, port: here.vip_moves or here.vip_here,
        "indigo_host.holds": lambda address: here.vip_here,
        "indigo_service.show": show,
        "indigo_service.active": lambda unit: unit not in here.dead,
        "indigo_service.stale": lambda unit, files: {"unit": ["x"] * here.stale, "files": []},
        "indigo_service.stamped": lambda unit: here.stamped,
        "indigo_service.restart": restart,
        "indigo_service.pause": pause,
        "indigo_service.resume": lambda unit: log.append(f"resume {unit}"),
        "publish.publish": publish,
    }
    return here


def restart(site, unit="etcd", tier=ETCD, **limits):
    return site.module.restart(unit, ["/f"], tier, **{"patience": 0.1, **limits})


RESTARTED = "restart etcd wait=False"


def test_lock_look_restart_wait_release(site):
    done = restart(site)
    assert (done["restarted"], done["ok"]) == (True, True)
    assert "3 members, quorum 2: 3 healthy, one may go; it serves again" in done["comment"]
    steps = [word for word in site.log if word != "keep"]
    assert steps == ["acquire", "confirm", RESTARTED, "wait etcd", "release"]


def test_who_has_the_address_lets_the_others_go_first(site):
    site.vip_here, site.lock.queued = True, [2, 1, 0]
    assert restart(site, "haproxy", LB)["ok"] is True
    steps = [word for word in site.log if word in ("acquire", "again", "confirm")]
    assert steps == ["acquire", "again", "acquire", "again", "acquire", "confirm"]


def test_packages_are_exchanged_once_the_address_is_elsewhere(site):
    site.vip_here, site.stale = True, False
    packages = {"haproxy": "2"}
    site.module.__salt__ |= {
        "indigo_package.differing": lambda declared: declared,
        "indigo_package.exchange": lambda declared: site.log.append(f"exchange {declared}"),
    }
    assert restart(site, "haproxy", LB, packages=packages)["ok"] is True
    steps = [word for word in site.log if not word.startswith(("publish", "keep"))]
    assert steps[steps.index("confirm") :] == [
        "confirm", "pause keepalived", "exchange {'haproxy': '2'}",
        # The package started it, and it must not take the address from a host that serves.
        "pause keepalived", "restart haproxy wait=False", "wait haproxy", "resume keepalived",
        "release",
    ]  # fmt: skip


def test_packages_that_another_exchanged_meanwhile_are_left_alone(site):
    site.stale = False
    site.module.__salt__["indigo_package.differing"] = lambda declared: {}
    done = restart(site, packages={"haproxy": "2"})
    assert (done["restarted"], done["ok"]) == (False, True)


def test_who_has_the_address_does_not_stand_back_for_ever(site):
    site.vip_here, site.lock.queued = True, [1] * 99
    assert restart(site, "haproxy", LB)["ok"] is True
    assert site.log.count("again") == len(LB["members"])


def test_who_does_not_have_the_address_goes_in_its_turn(site):
    site.lock.queued = [1] * 99
    assert restart(site, "haproxy", LB)["ok"] is True
    assert "again" not in site.log


def test_the_others_are_waited_for(site):
    site.bad["b"] = "refused"
    looks = []
    check = site.module.__salt__["indigo_health.check"]

    def mends(url, **more):
        looks.append(url)
        if len(looks) > 9:
            site.bad.clear()
        return check(url, **more)

    site.module.__salt__["indigo_health.check"] = mends
    assert restart(site, patience=5)["ok"] is True
    assert "keep" in site.log


@pytest.mark.parametrize("down", [0, 3])
def test_one_that_came_back_must_serve_for_as_long_as_after_a_restart(site, down):
    tier = {**ETCD, "settle": 0.2}
    looks = []

    def check(url, **_):
        served = "//b/" not in url or len(looks) >= down
        looks.extend([url] if "//b/" in url and RESTARTED not in site.log else [])
        return {"ok": served, "url": url, "problem": "" if served else "refused"}

    site.module.__salt__["indigo_health.check"] = check
    assert restart(site, tier=tier, patience=5)["restarted"] is True
    enough = site.module.tries(0.2, site.module.LOOK) if down else site.module.SEEN
    assert len(looks) - down == enough


def test_nothing_restarts_while_another_does_not_serve(site):
    site.bad["b"] = "ConnectionRefusedError: refused"
    done = restart(site)
    assert (done["restarted"], done["ok"]) == (False, False)
    assert "3 members, quorum 2: 2 healthy, none may go: b (https://b/health: " in done["comment"]
    assert "cluster.yaml" in done["comment"]
    assert RESTARTED not in site.log
    assert site.log[-1] == "release"


def test_what_does_not_serve_is_restarted_whatever_the_others_do(site):
    site.bad.update(a="status 503", b="refused")
    site.module.__salt__["indigo_service.restart"] = lambda *_, **__: site.bad.pop("a")
    done = restart(site, patience=5)
    assert done["restarted"] is True
    assert "1 healthy, a is not, so nothing is taken away" in done["comment"]


def test_one_that_does_not_serve_for_a_moment_waits_like_others(site):
    site.bad.update(a="status 503", b="refused")
    check = site.module.__salt__["indigo_health.check"]
    own = itertools.count(1)

    def flaps(url, **more):
        if "//a/" in url and next(own) % 3 == 0:
            return {"ok": True, "url": url, "problem": ""}
        return check(url, **more)

    site.module.__salt__["indigo_health.check"] = flaps
    assert restart(site, patience=0.3)["restarted"] is False


def test_without_a_quorum_what_serves_is_left_alone(site):
    site.lock.fails["acquire"] = site.module.Unreachable("etcd does not answer: e1")
    done = restart(site)
    assert (done["restarted"], done["ok"]) == (False, False)
    assert "nobody can take its lock. etcd does not answer: e1" in done["comment"]
    assert site.log == ["acquire", "release"]


def test_without_a_quorum_what_does_not_serve_is_mended(site):
    site.lock.fails["acquire"] = site.module.Unreachable("etcd does not answer")
    site.bad["a"] = "status 503"
    site.module.__salt__["indigo_service.restart"] = lambda *_, **__: (
        site.bad.clear(),
        setattr(site, "invocation", 9),
    )
    done = restart(site)
    assert (done["restarted"], done["ok"]) == (True, True)
    assert "restarted without a lock, for etcd has no quorum" in done["comment"]
    assert "confirm" not in site.log


@pytest.mark.parametrize("step", ["acquire", "confirm"])
def test_a_lock_that_is_not_had_restarts_nothing(site, step):
    site.lock.fails[step] = CommandExecutionError("lost")
    with pytest.raises(CommandExecutionError, match="lost"):
        restart(site)
    assert RESTARTED not in site.log
    assert site.log[-1] == "release"


def test_a_lock_that_is_lost_on_the_way_is_told(site):
    site.lock.kept = False
    done = restart(site)
    assert done["restarted"] is True
    assert "The lock was lost on the way" in done["comment"]


def test_who_was_restarted_meanwhile_is_left_alone(site):
    site.stale = False
    done = restart(site)
    assert (done["restarted"], done["ok"]) == (False, True)
    assert RESTARTED not in site.log
    site.dead.add("etcd")  # or it died: then it has to be started
    assert restart(site)["restarted"] is True


def test_one_that_does_not_come_back_is_told_and_frees_the_lock(site):
    site.serves_after = False
    done = restart(site)
    assert (done["restarted"], done["ok"]) == (True, False)
    assert "does not serve again: https://a/health: status 500" in done["comment"]
    assert "journalctl -u etcd" in done["comment"]
    assert site.log[-1] == "release"


def test_one_that_ends_again_and_again_is_told_so(site):
    site.serves_after, site.starts = False, site.module.STARTS + 1
    done = restart(site)
    assert done["ok"] is False
    assert "does not serve again: it ends soon after each start, and was st" in done["comment"]


def test_the_old_process_does_not_count(site):
    site.module.__salt__["indigo_service.restart"] = lambda *_, **__: None
    done = restart(site)
    assert done["ok"] is False
    assert "the old process runs on" in done["comment"]


def test_what_a_package_started_is_no_member_yet_and_waits_for_nobody(site):
    site.stamped = False
    site.bad["a"] = "FileNotFoundError"
    done = restart(site, "haproxy", LB, wait=True)
    assert (done["restarted"], done["ok"]) == (True, True)
    assert site.log == ["restart haproxy wait=True"]


def test_after_a_boot_a_member_that_serves_is_one(site):
    site.stamped = False
    restart(site)
    assert site.log[0] == "acquire"


# --- load balancers ------------------------------------------------------------------------------


def test_the_address_is_given_up_first_and_not_by_one_that_does_not_have_it(site):
    site.vip_here = True
    done = restart(site, "haproxy", LB)
    assert done["ok"] is True
    assert "10.0.0.10 was given to another host before" in done["comment"]
    steps = [word for word in site.log if not word.startswith(("publish", "keep"))]
    assert steps == [
        "acquire",
        "confirm",
        "pause keepalived",
        "restart haproxy wait=False",
        "wait haproxy",
        "resume keepalived",
        "release",
    ]
    site.log.clear()
    done = restart(site, "haproxy", LB)
    assert "given" not in done["comment"]
    assert not [word for word in site.log if "keepalived" in word]


def test_nobody_takes_the_address(site, monkeypatch):
    site.vip_here, site.vip_moves = True, False
    real = site.module._yielded
    monkeypatch.setattr(site.module, "_yielded", lambda tier: real(tier, timeout=0.1))
    with pytest.raises(CommandExecutionError, match=r"no other host took 10\.0\.0\.10"):
        restart(site, "haproxy", LB)
    assert site.log[-2:] == ["resume keepalived", "release"]
    assert "restart haproxy wait=False" not in site.log


def test_peers_are_asked_through_the_salt_master(site):
    restart(site, "haproxy", LB)
    assert "publish B indigo_rolling.serves ['haproxy']" in site.log


@pytest.mark.parametrize(
    ("peers", "told"),
    [
        ({"B": {"ok": False, "problem": "keepalived is inactive"}}, "b (keepalived is inactive)"),
        ({}, "b (its minion says nothing)"),
        ("'x' publish timed out", "b (its minion says nothing)"),
        ({"B": "'indigo_rolling.serves' is not available."}, "is not available"),
    ],
)
def test_a_peer_that_does_not_say_that_it_serves_does_not(site, peers, told):
    site.peers = peers
    done = restart(site, "haproxy", LB)
    assert done["restarted"] is False
    assert told in done["comment"]


def test_a_minion_without_a_master_cannot_ask(site):
    del site.module.__salt__["publish.publish"]
    assert "there is no Salt master" in restart(site, "haproxy", LB)["comment"]


def test_what_a_peer_says_of_itself(site):
    site.module.__pillar__ = {"indigo": {"rolling": {"haproxy": LB}}}
    serves = site.module.serves
    assert serves("haproxy") == {"ok": True, "problem": ""}
    assert "no tier of kubelet" in serves("kubelet")["problem"]
    site.started["keepalived"] = time.monotonic()
    assert serves("haproxy")["problem"] == "keepalived has just started"
    site.dead.add("keepalived")
    assert serves("haproxy")["problem"] == "keepalived is inactive"
    site.dead.clear()
    site.started["keepalived"] = 1.0
    site.vip_moves = False
    assert serves("haproxy")["problem"] == "nobody answers at 10.0.0.10:8443"
    site.bad["a/alive"] = site.bad["a"] = "FileNotFoundError"
    assert serves("haproxy")["ok"] is False

    def broken(_):
        raise CommandExecutionError("no systemd")

    site.bad.clear()
    site.module.__salt__["indigo_service.show"] = broken
    assert serves("haproxy") == {"ok": False, "problem": "no systemd"}


def test_hosts_with_a_certificate_ask_etcd_and_others_a_minion():
    module = load("_modules", "indigo_rolling")
    direct = {"endpoints": ["https://e:2379"], "ca": "", "cert": "", "key": ""}
    module.__salt__ = {"publish.publish": None}
    module.__pillar__ = {"indigo": {"id": "a", "lock": direct}}
    assert isinstance(module._lock(ETCD), module.Lock)
    module.__pillar__ = {"indigo": {"id": "a", "lock": {"through": ["e1"]}}}
    assert isinstance(module._lock(LB), module.Relay)
    module.__salt__ = {}
    with pytest.raises(CommandExecutionError, match="through a Salt master"):
        module._lock(LB)


# --- the state -----------------------------------------------------------------------------------


@pytest.fixture
def member(host):  # noqa: F811
    """The host of the other tests, as a member of a tier."""
    host.asked = []
    answer = {"restarted": True, "ok": True, "comment": "3 healthy, one may go"}
    host.answer = answer

    def rolled(name, files, tier, wait):
        host.asked.append((name, files, tier["name"], wait))
        return host.answer

    host.state.__salt__["indigo_rolling.restart"] = rolled
    host.state.__salt__["indigo_rolling.describe"] = load("_modules", "indigo_rolling").describe
    return host


def test_only_the_restart_of_a_running_unit_waits_for_its_turn(member):
    assert set(member.running(tier=ETCD)["changes"]) == {"enabled", "started"}
    assert member.running(tier=ETCD)["changes"] == {}
    member.config.write_text("two")
    assert set(member.running(tier=ETCD, reload=True)["changes"]) == {"reloaded"}
    assert member.asked == []
    member.config.write_text("three")
    ret = member.running(tier=ETCD, wait=False)
    assert ret["result"] is True
    assert ret["changes"] == {"restarted": [str(member.config)]}
    assert ret["comment"].endswith(f"restarted for {member.config}: 3 healthy, one may go")
    assert member.asked == [("etcd", [str(member.config)], "etcd", False)]
    member.unit.update(ActiveState="inactive", SubState="dead")
    assert set(member.running(tier=ETCD)["changes"]) == {"started"}
    assert len(member.asked) == 1


def test_in_test_mode_it_says_what_the_restart_would_keep_to(member):
    member.running(tier=ETCD)
    member.config.write_text("two")
    ret = member.running(tier=ETCD, test=True)
    assert ret["result"] is None
    assert "would be restarted" in ret["comment"]
    assert "one host at a time in the tier etcd: 3 members, quorum 2" in ret["comment"]
    assert member.asked == []


def test_a_refused_restart_fails_and_changes_nothing(member):
    member.running(tier=ETCD)
    member.config.write_text("two")
    member.answer = {"restarted": False, "ok": False, "comment": "none may go: b"}
    ret = member.running(tier=ETCD)
    assert (ret["result"], ret["changes"], ret["comment"]) == (False, {}, "none may go: b")


def test_a_restart_after_which_it_does_not_serve_fails_and_is_told(member):
    member.running(tier=ETCD)
    member.config.write_text("two")
    member.answer = {"restarted": True, "ok": False, "comment": "does not serve again"}
    ret = member.running(tier=ETCD)
    assert ret["result"] is False
    assert ret["changes"] == {"restarted": [str(member.config)]}


def test_without_a_tier_nothing_is_asked(member):
    member.running()
    member.config.write_text("two")
    for tier in (None, {}):
        assert set(member.running(tier=tier)["changes"]) <= {"restarted"}
    assert member.asked == []


def test_a_pause_is_no_end(host):  # noqa: F811
    host.running()
    host.unit["UnitFileState"] = "enabled"
    assert host.module.stamped("etcd")
    host.module.pause("etcd")
    assert host.systemd.log[-1] == "stop etcd.service"
    assert host.unit["UnitFileState"] == "enabled"
    assert host.module.stamped("etcd")
    host.module.resume("etcd")
    assert host.systemd.log[-1] == "start etcd.service"
    host.systemd.fails.add("start")
    with pytest.raises(CommandExecutionError, match="journalctl -u etcd"):
        host.module.resume("etcd")
    host.module.stop("etcd")
    assert not host.module.stamped("etcd")
