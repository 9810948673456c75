"""What is sealed opens with the right key alone; a tool says in one line why it failed."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from salt.exceptions import CommandExecutionError
from support import load

WHOSE = ("b: its key", "make another")


@pytest.fixture
def seal():
    return load("_modules", "indigo_seal")


@pytest.fixture
def tool():
    return load("_modules", "indigo_tool")


def pair(size: int = 2048) -> tuple[bytes, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=size)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public.decode()


def test_what_is_sealed_opens_with_the_right_key_alone(seal):
    private, public = pair()
    sealed = seal.seal({"kind": "tokens"}, {"token": "s3cr3t"}, public, *WHOSE)
    assert "s3cr3t" not in json.dumps(sealed)
    assert seal.unseal(sealed, private, "no") == {"token": "s3cr3t"}
    changed = [
        {**sealed, "header": {"kind": "authorities"}},
        {**sealed, "data": sealed["data"][:-8] + "AAAAAAA="},
        {**sealed, "key": "?"},
        {},
    ]
    for bad in changed:
        with pytest.raises(CommandExecutionError, match=r"^it does not open$"):
            seal.unseal(bad, private, "it does not open")
    for key in (pair()[0], b"nonsense"):
        with pytest.raises(CommandExecutionError, match=r"^it does not open$"):
            seal.unseal(sealed, key, "it does not open")


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN PUBLIC KEY-----\nAAAA\n"])
def test_what_is_no_public_key_is_refused_by_name(seal, text):
    with pytest.raises(
        CommandExecutionError, match="b: its key is no PEM public key; make another"
    ):
        seal.seal({}, {}, text, *WHOSE)


def test_a_short_key_is_refused_by_name(seal):
    with pytest.raises(CommandExecutionError, match="b: its key is not RSA with 2048 bits"):
        seal.fingerprint(pair(1024)[1], *WHOSE)


def test_a_fingerprint_does_not_depend_on_spaces(seal):
    public = pair()[1]
    assert seal.fingerprint(public, *WHOSE) == seal.fingerprint(f"\n{public}\n\n", *WHOSE)


def test_a_tool_gets_no_environment_but_its_own(tool, monkeypatch):
    monkeypatch.setenv("ETCDCTL_USER", "root:secret")
    etcd = {"ca": "/ca", "cert": "/cert", "key": "/key"}
    done = tool.run(["env"], tool.environment(etcd, "https://a:1"))
    told = dict(line.split("=", 1) for line in done["stdout"].splitlines())
    assert (told["ETCDCTL_KEY"], told["ETCDCTL_ENDPOINTS"]) == ("/key", "https://a:1")
    assert "ETCDCTL_USER" not in told


def test_why_a_tool_failed_is_one_line(tool):
    script = 'echo \'{"level":"warn"}\' >&2; echo Error: no space >&2; echo usage >&2; exit 3'
    done = tool.run(["sh", "-c", script], tool.environment())
    assert (done["retcode"], done["told"]) == (3, "Error: no space")
    with pytest.raises(CommandExecutionError, match="/nonexistent failed"):
        tool.run(["/nonexistent"], {})
    with pytest.raises(CommandExecutionError, match="timed out"):
        tool.run(["sleep", "5"], tool.environment(), 0.1)
