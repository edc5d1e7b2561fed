"""What git knows of the code that runs: commit, branch, remote, and what is not committed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import orjson

GIT_TIMEOUT_S: Final = 10.0
_TOKEN: Final = re.compile(
    r"(gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|x-token-auth|oauth2)"
)


def git_facts(folder: Path, diff_bytes_most: int) -> dict[str, Any]:
    """The state of the repository that `folder` is in; empty where there is none, or no git.

    Args:
        folder: a folder of the work tree.
        diff_bytes_most: how much of the uncommitted diff to keep; 0 keeps none of it.

    Returns:
        `root`, `commit`, `branch`, `remote` (no credentials), `dirty`, `diff` and `diff_truncated`, as far as known.
    """
    root = _git(folder, "rev-parse", "--show-toplevel")
    if not root:
        return {}
    facts: dict[str, Any] = {"root": root}
    _put(facts, "commit", _git(folder, "rev-parse", "--verify", "--quiet", "HEAD"))
    _put(facts, "branch", _git(folder, "symbolic-ref", "--short", "--quiet", "HEAD"))
    remote = _git(folder, "config", "--get", "remote.origin.url") or _first_remote(folder)
    _put(facts, "remote", without_credentials(remote))
    facts["dirty"] = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    if facts["dirty"] and diff_bytes_most > 0 and "commit" in facts:
        diff, cut = _diff(folder, diff_bytes_most)
        facts["diff"] = diff
        if cut:
            facts["diff_truncated"] = True
    return facts


def without_credentials(url: str) -> str:
    """A remote's URL without user, password, query or anything that looks like a token.

    The user `git` stays (`git@host:path`, `ssh://git@host/path`): it is the same for everybody.
    """
    if "://" not in url:
        user, at, rest = url.rpartition("@")
        kept = url if not at or user == "git" else rest
        return _TOKEN.sub("***", kept)
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"git@{host}" if user == "git" else host
    return _TOKEN.sub("***", urlunsplit((parts.scheme, netloc, parts.path, "", "")))


def _put(facts: dict[str, Any], name: str, value: str) -> None:
    if value:
        facts[name] = value


def _first_remote(folder: Path) -> str:
    names = _git(folder, "remote").splitlines()
    return _git(folder, "config", "--get", f"remote.{names[0]}.url") if names else ""


def _command(arguments: tuple[str, ...]) -> list[str]:
    # no hooks, no monitors, no external programs that the repository's configuration could name
    return ["git", "-c", "core.fsmonitor=false", "-c", "core.pager=cat", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def _git(folder: Path, *arguments: str) -> str:
    """The command's output without the last line end; empty on any failure."""
    try:
        done = subprocess.run(
            _command(arguments),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


def _diff(folder: Path, most: int) -> tuple[str, bool]:
    """The diff of the work tree against HEAD, and whether it had to be cut at `most` bytes."""
    arguments = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short", "HEAD")
    try:
        with subprocess.Popen(
            _command(arguments),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            stdout = process.stdout
            raw = stdout.read(most + 1) if stdout is not None else b""
            process.kill()
    except OSError:
        return "", False
    text = raw[:most].decode("utf-8", "replace")
    cut = len(raw) > most
    while len(orjson.dumps(text)) > 2 * most:  # control characters grow sixfold in JSON
        text, cut = text[: len(text) * 3 // 4], True
    return text, cut
