"""Certificates on hosts: the modules and states with real keys, x509 and files, without Salt's
daemons. Publishing is a function call that does what the master does: it states who asks.
"""

from __future__ import annotations

import copy
import datetime
import fnmatch
import grp
import os
import pwd
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import salt.modules.x509_v2 as salt_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from salt.exceptions import CommandExecutionError
from support import load

USER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name
PEM = serialization.Encoding.PEM


class Site:
    """One host and the CA host, in folders of their own."""

    def __init__(self, root):
        self.root = root
        self.asked = []  # arguments of every request that reached the CA minion
        self.caller = "n1"
        self.pki = load("_modules", "indigo_pki")
        self.ca = load("_modules", "indigo_ca")
        self.state = load("_states", "indigo_pki")
        self.held = [
            {
                "name": name,
                "key": str(root / "ca" / name / "ca.key"),
                "certificate": str(root / "ca" / name / "ca.crt"),
                "common_name": f"trial {name} CA",
                "days": 3650,
                "renew_before": 730,
            }
            for name in ("kubernetes", "etcd")
        ]
        self.authorities = [
            {"name": "kubernetes", "path": str(root / "pki" / "ca.crt")},
            {"name": "etcd", "path": str(root / "pki" / "etcd-ca.crt")},
        ]
        self.server = self.declare("server", "kubernetes", ["DNS:n1", "IP:10.0.0.1"], "serverAuth")
        self.client = self.declare("client", "etcd", [], "clientAuth")
        self.certificates = [self.server, self.client]
        self.policies = {row["policy"]: self.policy("n1", row) for row in self.certificates}
        self.policies["n2.server"] = {**self.policies["n1.server"], "minions": "n2"}
        self.ca_pillar = {
            "indigo": {"pki": {"held": self.held}},
            "x509_signing_policies": self.policies,
        }
        self.pillar = {
            "indigo": {
                "pki": {
                    "ca": "salt",
                    "authorities": self.authorities,
                    "certificates": self.certificates,
                }
            }
        }
        self.opts = {"test": False}

    def declare(self, name, authority, sans, *usages):
        return {
            "name": name,
            "policy": f"n1.{name}",
            "authority": authority,
            "path": str(self.root / "pki" / f"{name}.crt"),
            "key": str(self.root / "pki" / f"{name}.key"),
            "user": USER,
            "group": GROUP,
            "common_name": f"the {name}",
            "organization": None,
            "sans": sans,
            "usages": list(usages),
            "days": 365,
            "renew_before": 60,
        }

    def policy(self, minion, row):
        folder = self.root / "ca" / row["authority"]
        return {
            "minions": minion,
            "signing_private_key": str(folder / "ca.key"),
            "signing_cert": str(folder / "ca.crt"),
            "CN": row["common_name"],
            "basicConstraints": "critical, CA:FALSE",
            "keyUsage": "critical, digitalSignature",
            "extendedKeyUsage": ", ".join(row["usages"]),
            "subjectAltName": list(row["sans"]) or None,
            "days_valid": row["days"],
        }

    def publish(self, target, function, arg, tgt_type, timeout):
        assert (target, function, tgt_type) == ("salt", "indigo_ca.sign", "list")
        self.asked.append(arg)
        return {"salt": self.ca.sign(*arg, wait=0, __pub_id=self.caller)}

    def run(self, test=False, certificates=None):
        self.opts["test"] = test
        wanted = self.certificates if certificates is None else certificates
        return self.state.certificates_managed("s", "salt", self.authorities, wanted)

    def establish(self):
        self.opts["test"] = False
        ret = self.state.authorities_managed("a", self.held)
        assert ret["result"] is True, ret
        return ret

    def files(self):
        return {
            str(path): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def replace(self, row, days=365, **changes):
        """Put a certificate in place that another declaration would have yielded."""
        key = serialization.load_pem_private_key(Path(row["key"]).read_bytes(), None)
        authority = next(a for a in self.held if a["name"] == changes.get("by", row["authority"]))
        signer = serialization.load_pem_private_key(Path(authority["key"]).read_bytes(), None)
        issuer = x509.load_pem_x509_certificate(Path(authority["certificate"]).read_bytes())
        now = datetime.datetime.now(datetime.timezone.utc)
        name = x509.Name(
            [x509.NameAttribute(x509.NameOID.COMMON_NAME, changes.get("cn", row["common_name"]))]
        )
        since = changes.get("since", now - datetime.timedelta(days=400))
        usages = [
            {
                "serverAuth": x509.ExtendedKeyUsageOID.SERVER_AUTH,
                "clientAuth": x509.ExtendedKeyUsageOID.CLIENT_AUTH,
            }[usage]
            for usage in changes.get("usages", row["usages"])
        ]
        builder = (
            x509.CertificateBuilder(issuer.subject, name, changes.get("key", key).public_key())
            .serial_number(4711)
            .not_valid_before(since)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.ExtendedKeyUsage(usages), False)
        )
        sans = changes.get("sans", [x509.DNSName("n1")])
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), False)
        with open(row["path"], "wb") as file:
            file.write(builder.sign(signer, hashes.SHA256()).public_bytes(PEM))


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A site on which nothing was done yet."""
    site = Site(tmp_path)
    salt = {
        # A copy, as Salt's unmasking makes one: x509 takes `minions` out of the policy it uses.
        "pillar.get": lambda key, default=None, unmask=False: copy.deepcopy(
            site.ca_pillar.get(key, default)
        ),
        "config.get": lambda key, default=None: default,
        "match.glob": lambda pattern, id_: fnmatch.fnmatch(id_, pattern),
    }
    monkeypatch.setattr(salt_x509, "__salt__", salt, raising=False)
    for module, dunders in (
        (site.pki, {"__salt__": {"publish.publish": site.publish}, "__pillar__": site.pillar}),
        (
            site.ca,
            {
                "__salt__": {"x509.sign_remote_certificate": salt_x509.sign_remote_certificate},
                "__pillar__": site.ca_pillar,
            },
        ),
        (
            site.state,
            {
                "__salt__": {
                    f"indigo_pki.{name}": getattr(site.pki, name)
                    for name in (
                        "authority_problem",
                        "certificate_problem",
                        "ownership_problem",
                        "mend_ownership",
                        "issue",
                        "held_problem",
                        "establish",
                    )
                },
                "__opts__": site.opts,
            },
        ),
    ):
        for name, value in dunders.items():
            setattr(module, name, value)
    return site


@pytest.fixture
def site(bare):
    """A site whose CA host is ready."""
    bare.establish()
    return bare


@pytest.fixture
def issued(site):
    """A site whose host has its certificates."""
    ret = site.run()
    assert ret["result"] is True, ret
    site.asked.clear()
    return site


def loaded(path):
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


# Issuing


def test_one_request_brings_everything(site):
    ret = site.run()

    assert ret["result"] is True
    assert len(site.asked) == 1
    expected = [row["path"] for row in site.authorities]
    for row in site.certificates:
        expected += [row["key"], row["path"]]
    assert list(ret["changes"]) == expected
    assert ret["changes"][site.server["path"]]["old"] is None
    assert ret["changes"][site.server["path"]]["new"].startswith("serial ")
    for row in site.certificates:
        assert mode(row["key"]) == 0o600
        assert mode(row["path"]) == 0o644


def test_a_certificate_says_what_was_declared(issued):
    found = loaded(issued.server["path"])
    assert found.subject.rfc4514_string() == "CN=the server"
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    usage = found.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature) == (True, True)
    assert not usage.value.key_cert_sign
    with pytest.raises(x509.ExtensionNotFound):
        loaded(issued.client["path"]).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )


def test_a_second_run_changes_nothing_and_asks_nobody(issued):
    before = issued.files()
    ret = issued.run()
    assert (ret["result"], ret["changes"]) == (True, {})
    assert issued.asked == []
    assert issued.files() == before
    assert issued.run(test=True)["result"] is True


def test_mode_says_what_would_be_issued_and_why(bare):
    bare.server["user"] = "nobody-made-this-account-yet"
    ret = bare.run(test=True)
    assert ret["result"] is None
    assert ret["changes"] == {}
    for path in (bare.server["path"], bare.client["path"], bare.authorities[0]["path"]):
        assert path in ret["comment"]
    assert f"{bare.server['key']} is missing" in ret["comment"]
    assert bare.files() == {}
    assert bare.asked == []


def test_only_what_is_missing_is_asked_for(issued):
    os.unlink(issued.client["path"])
    ret = issued.run()
    assert list(ret["changes"]) == [issued.client["path"]]
    assert [request["policy"] for request in issued.asked[0][0]] == ["n1.client"]


def test_a_lost_key_brings_a_new_pair(issued):
    os.unlink(issued.client["key"])
    ret = issued.run()
    assert set(ret["changes"]) == {issued.client["key"], issued.client["path"]}
    assert ret["changes"][issued.client["key"]]["old"] is None


def test_a_broken_key_brings_a_new_pair(issued):
    with open(issued.client["key"], "w") as file:
        file.write("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    ret = issued.run()
    assert ret["result"] is True
    assert ret["changes"][issued.client["key"]]["old"] == "unusable key"
    assert issued.run()["changes"] == {}


def test_a_key_written_before_a_kill_is_used(site):
    os.makedirs(os.path.dirname(site.client["key"]))
    key = ec.generate_private_key(ec.SECP256R1())
    with open(site.client["key"], "wb") as file:
        file.write(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
    os.chmod(site.client["key"], 0o600)
    ret = site.run()
    assert ret["result"] is True
    assert site.client["key"] not in ret["changes"]
    assert loaded(site.client["path"]).public_key() == key.public_key()


def other_key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        ({"days": 59}, "within 60 days"),
        ({"days": -1}, "it expired on"),
        ({"cn": "another"}, "its subject is CN=another, not CN=the client"),
        ({"usages": ["serverAuth"]}, "its usages are serverAuth, not clientAuth"),
        ({"usages": ["clientAuth", "serverAuth"]}, "its usages are clientAuth, serverAuth"),
        ({"sans": [x509.DNSName("n9")]}, "its names are DNS:n9, not none"),
        ({"by": "kubernetes"}, "was not issued by the etcd authority"),
        ({"key": other_key()}, "does not belong to the key"),
        (
            {"since": datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)},
            "not valid before",
        ),
    ],
)
def test_every_difference_brings_a_new_certificate(issued, difference, reason):
    issued.replace(issued.client, **{"sans": [], **difference})

    assert reason in issued.run(test=True)["comment"]
    ret = issued.run()

    assert ret["result"] is True, ret
    assert list(ret["changes"]) == [issued.client["path"]]
    assert ret["changes"][issued.client["path"]]["old"].startswith(f"serial {4711:x}, not after")
    assert issued.run()["changes"] == {}


def test_a_certificate_that_will_do_is_left_alone(issued):
    issued.replace(issued.client, days=61, sans=[])
    assert issued.run()["changes"] == {}


def test_names_are_compared_without_order_and_case(issued):
    issued.server["sans"] = ["IP:10.0.0.1", "DNS:N1"]
    assert issued.run()["changes"] == {}


def test_renewal_keeps_the_old_pair_if_the_answer_is_unfit(issued):
    issued.replace(issued.client, days=10, sans=[])
    before = issued.files()
    issued.policies["n1.client"]["CN"] = "someone else"
    issued.ca.__salt__["pillar.items"] = lambda unmask: issued.ca_pillar

    ret = issued.run()

    assert ret["result"] is False
    assert ret["changes"] == {}
    assert "issued certificate is unfit: its subject is CN=someone else" in ret["comment"]
    assert issued.files() == before


def test_a_changed_cluster_is_noticed_by_the_ca_host(issued):
    """Its minion keeps the pillar it has until it is refreshed; the second request says so."""
    issued.server["sans"] = ["DNS:n1", "IP:10.0.0.1", "IP:10.0.0.2"]
    fresh = {"x509_signing_policies": {"n1.server": issued.policy("n1", issued.server)}}

    def items(unmask):
        assert unmask is True
        issued.policies.update(fresh["x509_signing_policies"])
        return fresh

    issued.ca.__salt__["pillar.items"] = items
    ret = issued.run()
    assert ret["result"] is True, ret
    assert [arg[2] for arg in issued.asked] == [False, True]
    assert list(ret["changes"]) == [issued.server["path"]]


def test_what_could_be_issued_is_kept_and_reported(site):
    del site.policies["n1.client"]
    site.ca.__salt__["pillar.items"] = lambda unmask: site.ca_pillar
    ret = site.run()
    assert ret["result"] is False
    assert "'n1.client' is not in the pillar of the CA minion" in ret["comment"]
    assert site.server["path"] in ret["changes"]
    assert site.client["path"] not in ret["changes"]
    assert not os.path.exists(site.client["key"])


def test_a_host_with_an_authority_and_no_certificate(site):
    ret = site.run(certificates=[])
    assert list(ret["changes"]) == [row["path"] for row in site.authorities]
    assert site.run(certificates=[])["changes"] == {}


def test_another_authority_replaces_all_that_the_old_one_issued(issued):
    for row in issued.held:
        os.unlink(row["key"])
        os.unlink(row["certificate"])
    issued.establish()
    os.unlink(issued.server["path"])

    ret = issued.run()

    assert ret["result"] is True, ret
    wanted = {row["path"] for row in [*issued.authorities, *issued.certificates]}
    assert set(ret["changes"]) == wanted
    assert issued.run()["changes"] == {}


def test_old_and_new_authority_in_one_file(issued):
    """While an authority is exchanged, both are trusted."""
    path = issued.authorities[1]["path"]
    old = Path(path).read_text()
    for kind in ("key", "certificate"):
        os.unlink(issued.held[1][kind])
    issued.establish()
    new = Path(issued.held[1]["certificate"]).read_text()
    with open(path, "w") as file:
        file.write(new + old)
    assert issued.run()["changes"] == {}


@pytest.fixture
def later(issued, monkeypatch):
    """The CA host's and the host's own part of an exchange, a minute after all was issued."""
    issued.pki.__pillar__ = {
        "indigo": {"pki": {**issued.pillar["indigo"]["pki"], "held": issued.held}}
    }
    now = issued.pki._now() + datetime.timedelta(minutes=1)
    monkeypatch.setattr(issued.pki, "_now", lambda: now)
    return issued


def blocks(path) -> set[str]:
    return {it.strip() for it in Path(path).read_text().split("-----BEGIN ") if it.strip()}


def test_an_authority_is_exchanged_while_all_trust_both(later):
    trust, held = [row["path"] for row in later.authorities], later.held
    old = [loaded(row["certificate"]) for row in held]
    keys = [Path(row["key"]).read_text() for row in held]
    leaves = [Path(row["path"]).read_text() for row in later.certificates]

    def quiet():
        """A plain deploy in between keeps the phase."""
        assert later.establish()["changes"] == {}
        assert later.run()["changes"] == {}
        assert not [row for row in later.pki.status() if row["problem"]]

    assert later.pki.exchanged() is None
    said = later.pki.exchange("trusted")
    assert said["rotation"]["phase"] == later.pki.exchanged()["phase"] == "trusted"
    assert "PRIVATE" not in str(said)
    quiet()
    later.pki.trust()
    # The old one signs; hosts know both.
    assert [len(blocks(path)) for path in trust] == [2, 2]
    assert [Path(row["key"]).read_text() for row in held] == keys
    assert [Path(row["path"]).read_text() for row in later.certificates] == leaves
    assert mode(Path(held[0]["key"]).parent / "exchange") == 0o700
    # Once more, as a run that was killed does.
    assert later.pki.exchange("trusted")["changes"] == {}

    later.pki.exchange("used")
    quiet()
    assert set(later.pki.follow()) == {
        it for row in later.certificates for it in (row["path"], row["key"])
    }
    assert later.pki.follow() == {}
    assert [len(blocks(path)) for path in trust] == [2, 2]
    new = [loaded(row["certificate"]) for row in held]
    for one, before, authority in zip(later.certificates, old, (0, 1), strict=True):
        assert new[authority].public_key() != before.public_key()
        loaded(one["path"]).verify_directly_issued_by(new[authority])
    quiet()

    later.pki.exchange("dropped")
    later.pki.trust()
    assert [loaded(path) for path in trust] == new
    assert [len(blocks(path)) for path in trust] == [1, 1]
    quiet()
    later.pki.exchange(None)
    assert later.pki.exchanged() is None
    assert not list((later.root / "ca").rglob("exchange*"))
    assert later.pki.exchange(None)["changes"] == {}


def test_two_jobs_at_once_make_one_new_authority(later, monkeypatch):
    write = later.pki._write

    def slowly(*words):
        time.sleep(0.01)
        write(*words)

    monkeypatch.setattr(later.pki, "_write", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: later.pki.exchange("trusted"), range(4)))
    assert [bool(one["changes"]) for one in found].count(True) == 1
    later.pki.exchange("used")
    assert [later.pki.held_problem(row) for row in later.held] == [None, None]


def test_an_exchange_leaves_out_no_phase_and_survives_a_kill_at_any_write(later, monkeypatch):
    with pytest.raises(CommandExecutionError, match="cannot be used now: the exchange is not beg"):
        later.pki.exchange("used")
    write = later.pki._write
    for phase in later.pki.PHASES:
        for allowed in range(20):
            left = [allowed]

            def killed(*words, left=left):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                write(*words)

            monkeypatch.setattr(later.pki, "_write", killed)
            try:
                later.pki.exchange(phase)
                break
            except KeyboardInterrupt:
                continue
        monkeypatch.setattr(later.pki, "_write", write)
        assert later.pki.exchanged()["phase"] == phase
        assert later.pki.exchange(phase)["changes"] == {}
        for row in later.held:
            assert later.pki.held_problem(row) is None
            assert len(blocks(row["certificate"])) == (1 if phase == "dropped" else 2)
    with pytest.raises(CommandExecutionError, match="expected one of trusted"):
        later.pki.exchange("done")


def test_the_end_of_an_exchange_survives_a_kill(later, monkeypatch):
    for phase in later.pki.PHASES:
        later.pki.exchange(phase)
    # Killed after the first of the authorities.
    gone = later.pki.shutil.rmtree

    def killed(folder):
        gone(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(later.pki.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        later.pki.exchange(None)
    monkeypatch.setattr(later.pki.shutil, "rmtree", gone)
    # What the orchestration does when it is run again.
    assert later.pki.exchanged()["phase"] == "dropped"
    assert later.pki.exchange("dropped")["changes"] == {}
    later.pki.exchange(None)
    assert later.pki.exchanged() is None
    assert not list((later.root / "ca").rglob("exchange*"))
    assert not [row for row in later.pki.status() if row["problem"] and "held" in row["name"]]


def test_what_was_issued_lately_is_left_alone_and_new_keys_come_when_asked_for(issued):
    key = Path(issued.client["key"]).read_text()
    assert issued.pki.renew(new_keys=True, older_than=60) == {}
    changes = issued.pki.renew(names="client", new_keys=True)
    assert set(changes) == {issued.client["path"], issued.client["key"]}
    assert Path(issued.client["key"]).read_text() != key
    assert issued.run()["changes"] == {}


def test_the_schedule_renews_what_is_due_and_nothing_else(issued):
    applied = []

    def apply(sls, queue):
        applied.append(sls)
        return {"s": issued.run()}

    issued.pki.__salt__ = {**issued.pki.__salt__, "state.apply": apply}
    assert issued.pki.keep() == {}
    assert not applied
    for row in issued.certificates:
        row["renew_before"] = 364
        row["days"] = 365
    issued.client["renew_before"] = 366
    issued.client["days"] = issued.policies["n1.client"]["days_valid"] = 400
    before = Path(issued.server["path"]).read_text()
    assert list(issued.pki.keep()) == [issued.client["path"]]
    assert applied == ["indigo.host"]
    assert Path(issued.server["path"]).read_text() == before
    assert issued.pki.keep() == {}
    # A renewal that does not succeed is an error, with what the states say.
    os.unlink(issued.client["path"])
    issued.pki.__salt__["state.apply"] = lambda sls, queue: {
        "s": {"result": False, "comment": "the CA minion is away"}
    }
    with pytest.raises(CommandExecutionError, match=r"still due: .*the CA minion is away"):
        issued.pki.keep()


# Owners and modes


@pytest.mark.parametrize(
    ("kind", "wrong", "right"), [("key", 0o644, "0600"), ("path", 0o600, "0644")]
)
def test_modes_are_mended_and_reported(issued, kind, wrong, right):
    path = issued.client[kind]
    os.chmod(path, wrong)
    preview = issued.run(test=True)
    assert preview["result"] is None
    assert f"{wrong:04o}" in preview["comment"]
    assert mode(path) == wrong

    ret = issued.run()

    assert ret["changes"] == {
        path: {"old": f"{USER}:{GROUP} {wrong:04o}", "new": f"{USER}:{GROUP} {right}"}
    }
    assert issued.asked == []
    assert issued.run()["changes"] == {}


def test_the_mode_of_an_authority_is_mended(issued):
    path = issued.authorities[0]["path"]
    os.chmod(path, 0o666)
    assert list(issued.run()["changes"]) == [path]
    assert (mode(path), issued.asked) == (0o644, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners_are_mended_and_reported(issued):
    os.chown(issued.client["key"], 65534, 65534)
    ret = issued.run()
    assert ret["changes"][issued.client["key"]]["new"] == f"{USER}:{GROUP} 0600"
    assert os.stat(issued.client["key"]).st_uid == 0


def test_a_missing_account_is_named_before_anything_is_asked(site):
    site.client["user"] = "nobody-made-this-account"
    ret = site.run()
    assert ret["result"] is False
    assert "account nobody-made-this-account" in ret["comment"]
    assert "common" in ret["comment"]
    assert site.asked == []


def test_no_temporary_file_is_left(issued):
    assert [name for name in os.listdir(issued.root / "pki") if name.startswith(".")] == []


def test_a_failed_write_leaves_the_old_file(issued, monkeypatch):
    issued.replace(issued.client, days=10, sans=[])
    before = issued.files()

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(issued.pki, "os", SimpleNamespace(**{**vars(os), "replace": fail}))
    with pytest.raises(OSError, match="No space"):
        issued.run()
    assert issued.files() == before


# A CA minion that does not answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({}, "peer: {'.*': [indigo_ca.sign]}"),
        (None, "knows no minion salt"),
        ({"salt": "'indigo_ca.sign' is not available."}, "is not available"),
        ("'indigo_ca.sign' publish timed out", "timed out"),
        ({"salt": False}, "did not answer within 120 s"),
    ],
)
def test_a_failed_request_says_what_to_do(site, answer, text):
    site.pki.__salt__ = {"publish.publish": lambda *args, **kwargs: answer}
    ret = site.run()
    assert ret["result"] is False
    assert text in ret["comment"]
    assert "salt" in ret["comment"]
    assert ret["changes"] == {}


def test_without_a_master_nothing_is_issued(site):
    site.pki.__salt__ = {}
    assert "this minion has none" in site.run()["comment"]


def test_silence_is_told_from_refusal(site, monkeypatch):
    clock = iter([0.0, 121.0])
    monkeypatch.setattr(site.pki, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    site.pki.__salt__ = {"publish.publish": lambda *args, **kwargs: {}}
    assert "did not answer within 120 s" in site.run()["comment"]


# The CA minion's side


def request(policy, key=None):
    public = (key or ec.generate_private_key(ec.SECP256R1())).public_key()
    pem = public.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {"policy": policy, "public_key": pem.decode()}


def test_minions_can_reach_nothing_else_in_that_module(site):
    """The master matches what it lets minions call by prefix: sign would let sign_all through."""
    own = [
        name
        for name, value in vars(site.ca).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == site.ca.__name__
    ]
    assert own == ["sign"]


def test_another_minions_policy_is_refused(site):
    answer = site.ca.sign([request("n2.server")], wait=0, __pub_id="n1")
    assert answer["certificates"] == {}
    assert answer["errors"] == [
        "minion 'n1' may not use signing policy 'n2.server': it is another minion's"
    ]


def test_who_asks_is_told_by_the_master_alone(site):
    with pytest.raises(CommandExecutionError, match="the minion that asks is unknown"):
        site.ca.sign([request("n1.server")])


def test_the_identity_reaches_x509_untouched(site):
    seen = []

    def spy(policy, kwargs, **more):
        seen.append((policy, sorted(kwargs), more))
        return {"data": None, "errors": ["spied"]}

    site.ca.__salt__ = {"x509.sign_remote_certificate": spy}
    site.ca.sign([request("n1.server")], wait=0, __pub_id="n1", __pub_jid="1", __pub_fun="x")
    assert seen == [("n1.server", ["not_before", "public_key"], {"__pub_id": "n1"})]


def test_a_policy_that_names_no_minion_is_refused(site):
    del site.policies["n1.server"]["minions"]
    answer = site.ca.sign([request("n1.server")], wait=0, __pub_id="n1")
    assert "may not use" in answer["errors"][0]


def test_a_request_adds_nothing_but_its_key(site):
    asked = {**request("n1.client"), "CN": "system:masters", "O": "system:masters", "days_valid": 9}
    asked["subjectAltName"] = "DNS:evil"
    answer = site.ca.sign([asked], wait=0, __pub_id="n1")
    found = x509.load_pem_x509_certificate(answer["certificates"]["n1.client"].encode())
    assert found.subject.rfc4514_string() == "CN=the client"
    with pytest.raises(x509.ExtensionNotFound):
        found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert (found.not_valid_after_utc - found.not_valid_before_utc).days == 365


@pytest.mark.parametrize("text", [None, "", "/etc/hostname", "-----BEGIN PUBLIC KEY-----"])
def test_a_public_key_must_be_one(site, text):
    asked = {"policy": "n1.client", "public_key": text}
    answer = site.ca.sign([asked], wait=0, __pub_id="n1")
    assert answer["errors"] == ["n1.client: public_key is not a public key in PEM"]


def test_an_unusual_key_is_refused(site):
    asked = request("n1.client", ed25519.Ed25519PrivateKey.generate())
    assert "neither an elliptic curve" in site.ca.sign([asked], __pub_id="n1")["errors"][0]


def test_one_bad_request_does_not_spoil_the_others(site):
    answer = site.ca.sign(
        [request("n2.server"), request("n1.client"), request("gone")],
        ["etcd", "none"],
        __pub_id="n1",
    )
    assert list(answer["certificates"]) == ["n1.client"]
    assert list(answer["authorities"]) == ["etcd"]
    assert len(answer["errors"]) == 3


def test_a_host_that_holds_nothing_signs_nothing(site):
    site.ca.__pillar__ = {"indigo": {"pki": {}}}
    with pytest.raises(CommandExecutionError, match="holds no authority"):
        site.ca.sign([request("n1.server")], __pub_id="n1")


def test_an_authority_that_never_comes(bare):
    answer = bare.ca.sign([request("n1.server")], ["etcd"], wait=0, __pub_id="n1")
    assert answer["certificates"] == {}
    assert len(answer["errors"]) == 2
    assert all("apply the state ca.configured" in text for text in answer["errors"])


def test_an_authority_that_is_just_being_made(bare, monkeypatch):
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        bare.establish()

    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep)
    monkeypatch.setattr(bare.ca, "time", clock)
    answer = bare.ca.sign([request("n1.server")], ["etcd"], __pub_id="n1")
    assert answer["errors"] == []
    assert len(waits) == 1


# The authorities


def test_authorities_are_made_once(bare):
    ret = bare.establish()
    assert len(ret["changes"]) == 4
    before = bare.files()
    assert bare.establish()["changes"] == {}
    assert bare.files() == before
    for row in bare.held:
        assert mode(row["key"]) == 0o600
        assert mode(os.path.dirname(row["key"])) == 0o700
        found = loaded(row["certificate"])
        found.verify_directly_issued_by(found)
        assert found.subject.rfc4514_string() == f"CN={row['common_name']}"
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value.ca) == (True, True)


def test_making_authorities_is_previewed(bare):
    bare.opts["test"] = True
    ret = bare.state.authorities_managed("a", bare.held)
    assert (ret["result"], ret["changes"]) == (None, {})
    assert all(row["certificate"] in ret["comment"] for row in bare.held)
    assert bare.files() == {}


def test_an_authority_without_its_key_is_left_alone(site):
    os.unlink(site.held[0]["key"])
    before = site.files()
    ret = site.state.authorities_managed("a", site.held)
    assert ret["result"] is False
    assert "restore" in ret["comment"]
    assert site.held[0]["key"] in ret["comment"]
    assert site.files() == before


def test_an_authority_with_another_key_is_left_alone(site):
    os.replace(site.held[0]["key"], site.held[1]["key"])
    before = site.files()
    for row in site.held:
        ret = site.state.authorities_managed("a", [row])
        assert ret["result"] is False
        assert "backup" in ret["comment"]
    assert site.files() == before


def test_a_renamed_cluster_keeps_its_authorities(site):
    before = site.files()
    for row in site.held:
        row["common_name"] = row["common_name"].replace("trial", "renamed")
    assert site.establish()["changes"] == {}
    assert site.files() == before


@pytest.mark.parametrize("event", ["near its end", "killed after its key was written"])
def test_an_authority_signs_itself_anew(issued, event):
    """What it issued stays valid, for it is the same key and name."""
    if event == "near its end":
        for row in issued.held:
            row["renew_before"] = 3650
        ret = issued.establish()
        for row in issued.held:
            row["renew_before"] = 730
    else:
        for row in issued.held:
            os.unlink(row["certificate"])
        ret = issued.establish()
    assert set(ret["changes"]) == {row["certificate"] for row in issued.held}
    loaded(issued.client["path"]).verify_directly_issued_by(loaded(issued.held[1]["certificate"]))
    assert issued.run()["changes"] == {}

    # With the next certificate the hosts get the renewed authority; nothing else is issued.
    os.unlink(issued.client["path"])
    changes = issued.run()["changes"]
    assert issued.server["path"] not in changes
    assert (
        Path(issued.authorities[1]["path"]).read_text()
        == Path(issued.held[1]["certificate"]).read_text()
    )


def test_the_mode_of_an_authoritys_key_is_mended(site):
    os.chmod(site.held[0]["key"], 0o644)
    ret = site.establish()
    assert list(ret["changes"]) == [site.held[0]["key"]]
    assert mode(site.held[0]["key"]) == 0o600


@pytest.mark.parametrize("confirm", ["", "lab", "tria"])
def test_removing_authorities_needs_the_clusters_name(site, confirm):
    before = site.files()
    ret = site.state.authorities_absent("a", site.held, confirm)
    assert ret["result"] is False
    assert "must be the cluster's name" in ret["comment"]
    assert site.files() == before


def test_removing_authorities(site):
    site.opts["test"] = True
    assert site.state.authorities_absent("a", site.held, "trial")["result"] is None
    assert os.path.exists(site.held[0]["key"])
    site.opts["test"] = False
    ret = site.state.authorities_absent("a", site.held, "trial")
    assert len(ret["changes"]) == 4
    assert site.files() == {}
    again = site.state.authorities_absent("a", site.held)
    assert (again["result"], again["changes"]) == (True, {})


# Absence and reports


def test_removing_certificates(issued):
    issued.opts["test"] = True
    args = ("s", issued.authorities, issued.certificates)
    assert issued.state.certificates_absent(*args)["result"] is None
    issued.opts["test"] = False
    assert len(issued.state.certificates_absent(*args)["changes"]) == 6
    assert list((issued.root / "pki").iterdir()) == []
    assert issued.state.certificates_absent(*args)["changes"] == {}


def test_terms_that_would_renew_in_every_run_are_refused(site):
    site.client["renew_before"] = 365
    ret = site.run()
    assert ret["result"] is False
    assert "certificates.renew_before is 365 days" in ret["comment"]
    assert site.asked == []


def test_status_of_a_host_in_order(issued):
    rows = {row["path"]: row for row in issued.pki.status()}
    assert len(rows) == 4
    assert all(row["problem"] is None for row in rows.values())
    assert rows[issued.client["path"]]["days_left"] == 364
    assert rows[issued.authorities[0]["path"]]["name"] == "kubernetes authority"


def test_status_names_problems(issued):
    issued.replace(issued.client, days=10, sans=[])
    os.chmod(issued.server["key"], 0o644)
    os.unlink(issued.authorities[0]["path"])
    issued.pillar["indigo"]["pki"]["held"] = issued.held
    os.unlink(issued.held[0]["key"])
    rows = {row["path"]: row for row in issued.pki.status()}
    assert rows[issued.client["path"]]["days_left"] == 9
    assert "within 60 days" in rows[issued.client["path"]]["problem"]
    assert "ca.crt is missing" in rows[issued.server["path"]]["problem"]
    assert rows[issued.authorities[0]["path"]]["days_left"] is None
    assert rows[issued.held[0]["certificate"]]["problem"].endswith("ca.key is missing")
    assert rows[issued.held[1]["certificate"]]["problem"] is None


def test_status_of_a_bare_host_and_of_none(bare):
    assert all(row["problem"] for row in bare.pki.status())
    bare.pki.__pillar__ = {}
    assert bare.pki.status() == []


def test_renewing_on_request(issued):
    changes = issued.pki.renew("client")
    assert list(changes) == [issued.client["path"]]
    assert len(issued.pki.renew()) == 2
    with pytest.raises(CommandExecutionError, match=r"no certificate named nothing .* server"):
        issued.pki.renew(["nothing"])
