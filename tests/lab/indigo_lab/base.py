"""What every part of the lab uses: errors, progress lines, commands, places."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
_STARTED = time.monotonic()


class LabError(Exception):
    """A failure that names the step, what was found and what to do."""


def say(text: str) -> None:
    """Print one progress line with the seconds since the command started."""
    print(f"[{time.monotonic() - _STARTED:6.1f}s] {text}", file=sys.stderr, flush=True)


def cache(*parts: str) -> Path:
    """A path in the lab's cache, which survives `down` (XDG_CACHE_HOME is respected)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "indigo-lab", *parts)


def state(*parts: str) -> Path:
    """A path in the lab's run state, which `down` removes."""
    return Path("/var/lib/indigo-lab", *parts)


def run(
    argv: Sequence[str | Path],
    *,
    step: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    log: Path | None = None,
    check: bool = True,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return it with its output.

    Args:
        argv: the command.
        step: what it is for, in the words of the error message.
        env: variables added to the process's own.
        stdin: text for its standard input; none by default.
        log: a file that receives the output instead of the result.
        check: raise LabError on a non-zero exit.
        timeout: seconds.
    """
    words = [str(word) for word in argv]
    step = step or " ".join(words[:3])
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("w")) if log else subprocess.PIPE
            done = subprocess.run(
                words,
                cwd=cwd,
                env=environment,
                input=stdin if stdin is not None else None,
                stdin=subprocess.DEVNULL if stdin is None else None,
                stdout=out,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
    except FileNotFoundError as exc:
        raise LabError(f"{step}: the program {words[0]} is missing; install it") from exc
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"{step}: no end after {timeout} s: {' '.join(words)}") from exc
    if check and done.returncode:
        said = (
            log.read_text(errors="replace")[-2000:]
            if log
            else ((done.stderr or "") + (done.stdout or ""))[-2000:]
        )
        where = f" (whole log: {log})" if log else ""
        raise LabError(
            f"{step}: exit {done.returncode} from: {' '.join(words)}\n{said.strip()}{where}"
        )
    return done


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: str | bytes) -> str:
    """A short name for a set of inputs: 12 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:12]


@contextlib.contextmanager
def locked(name: str = "lock", what: str = "run of the lab") -> Iterator[None]:
    """One `up` or `down` at a time, or one of something else with a lock of its own.

    Args:
        name: of the lock's file in the cache.
        what: is waited for, in words.
    """
    path = cache(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole (folders made, replaced by rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    temporary.replace(path)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, on its own file system only."""
    if path.exists():
        run(["rm", "-rf", "--one-file-system", path], step=f"remove {path}")
