"""Where a secret could have left a trace, and a search that finds it in any usual disguise."""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Iterable, Mapping

from indigo_lab.lab import Lab

#: Secrets this short would be found by chance.
_SHORTEST = 24


def tokens(lab: Lab, master: str) -> dict[str, str]:
    """Identity to token, from a master's token file."""
    text = lab.exec(master, ["cat", "/etc/kubernetes/tokens.csv"], check=True).stdout
    return {row[2]: row[0] for row in csv.reader(text.splitlines())}


def secrets(lab: Lab, master: str) -> dict[str, str]:
    """All shared secrets of the masters by a name: tokens, lines of the signing key, the key that
    encrypts Secrets."""
    found = {f"token {name}": token for name, token in tokens(lab, master).items()}
    key = lab.exec(master, ["cat", "/etc/kubernetes/pki/sa.key"], check=True).stdout
    body = [line for line in key.splitlines() if line and not line.startswith("-----")]
    # The first line of a key of that size is nearly the same in all keys.
    found |= {f"sa.key line {n}": line for n, line in enumerate(body) if n and len(line) > 40}
    encryption = lab.exec(master, ["cat", "/etc/kubernetes/encryption.yaml"], check=True).stdout
    found |= {
        f"encryption key {n}": key for n, key in enumerate(re.findall(r"secret: (\S+)", encryption))
    }
    assert len(found) > 20
    assert all(len(value) >= _SHORTEST for value in found.values())
    return found


def disguises(secret: str) -> set[str]:
    """A secret as it is, in hexadecimal, and as base64 at any offset of a longer text.

    >>> base64.b64encode(b"x" + b"s3cr3t-s3cr3t-s3cr3t-s3cr3t" + b"y").decode()[3:9]
    'NjcjN0'
    >>> any("NjcjN0" in form for form in disguises("s3cr3t-s3cr3t-s3cr3t-s3cr3t"))
    True
    """
    data = secret.encode()
    forms = {secret, data.hex(), data.hex().upper()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        # The first and last characters depend on the neighbours.
        forms.add(encoded[0 if before == 0 else before + 1 : -1])
    if re.fullmatch(r"[A-Za-z0-9+/]{43}=", secret):  # the bytes behind a key in base64
        forms.add(base64.b64decode(secret).hex())
        forms.add(secret.rstrip("="))
    return forms


def patterns(secrets: Iterable[str]) -> str:
    """The disguises of all secrets, a line each, as ``grep -F -f`` takes them."""
    return "\n".join(sorted({form for secret in secrets for form in disguises(secret)})) + "\n"


def found_in(text: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Names of the secrets that occur in a text."""
    return [
        name
        for name, secret in secrets.items()
        if any(form.encode() in text for form in disguises(secret))
    ]


# Patterns come by standard input: they must not be in any command line.
_SEARCH = r"""
cat > /dev/shm/patterns && chmod 0600 /dev/shm/patterns
# The whole disk, what the lab mounts from elsewhere, and memory-backed folders.
find / /run /tmp /etc/salt /var/lib/containerd /var/lib/kubelet -xdev -type f -size +0 -print0 |
    xargs -0 grep -slaF -f /dev/shm/patterns --
# Journals are compressed in their files.
journalctl --no-pager --all --output=export | grep -qaF -f /dev/shm/patterns && echo journal
for process in /proc/[0-9]*; do
    for part in cmdline environ; do
        tr '\0' '\n' < $process/$part 2>/dev/null | grep -qaF -f /dev/shm/patterns \
            && echo "process $(tr '\0' ' ' < $process/cmdline | cut -c1-60)"
    done
done
rm /dev/shm/patterns
"""


def traces(lab: Lab, host: str, secrets: Iterable[str]) -> set[str]:
    """Where secrets are on a host now: files (all of them), ``journal``, ``process …``."""
    done = lab.exec(host, ["sh", "-c", _SEARCH], stdin=patterns(secrets), timeout=300)
    # Files come and go while the search runs.
    errors = [line for line in done.stderr.splitlines() if "No such file" not in line]
    assert not errors, done.stderr
    return set(done.stdout.splitlines())
