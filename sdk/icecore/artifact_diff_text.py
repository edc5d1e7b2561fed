"""A difference between versions in words that say at a glance what is other, and what may be the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from icecore.lineage_text import cut, legible, sized

LINES_MOST: Final = 12
"""Of one kind of change; the others are counted."""
_VALUE: Final = 48
_HEAD: Final = 11


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The whole difference."""
    before, after = document["before"], document["after"]
    yield f"{legible(before)} -> {legible(_beside(before, after))}"
    yield from _changes("metadata", document["metadata"])
    yield from _files(document)
    upstream = document.get("lineage")
    if upstream is None:
        return
    yield ""
    yield f"what differed upstream: {summary(upstream)}"
    yield from _upstream(upstream, before)


def summary(upstream: Mapping[str, Any]) -> str:
    """What differed, counted, in one line."""
    said = [
        _count(len(upstream["inputs"]), "input"),
        _count(len(upstream["references"]), "reference"),
        "code" if upstream["code"] else "",
        _count(len(upstream["config"]), "config value"),
        _count(len(upstream["packages"]), "package"),
        " and ".join(sorted(upstream["environment"])[:4]),
        "command" if upstream["command"] else "",
    ]
    return ", ".join(part for part in said if part) or "nothing that is known"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}" if number else ""


def _upstream(upstream: Mapping[str, Any], version: str) -> Iterator[str]:
    runs = upstream["runs"]
    if runs["before"] != runs["after"]:
        yield _line("runs", f"{_run(runs['before'])} -> {_run(runs['after'])}")
    elif runs["after"]:
        yield _line("runs", f"{_run(runs['after'])} made both")
    for one in upstream["inputs"]:
        yield from _input(one, version)
    for one in upstream["references"]:
        yield _line("reference", _arrow(one))
    yield from _code(upstream["code"])
    for name in ("config", "command", "packages", "environment", "results"):
        yield from _changes("host" if name == "environment" else name, upstream[name])
    for path in upstream["missing"]:
        yield _line("missing", f"the run {legible(path)} is not there any more: nothing is known of it")
    same = [
        *(_short(name, version) for name in upstream["inputs_same"][:5]),
        _count(upstream["config_same"], "config value"),
        _count(upstream["packages_same"], "package"),
        "" if upstream["code"] or not runs["after"] else "code",
        *(f"{name} {_shown(value)}" for name, value in upstream["environment_same"].items() if name in _TOLD_SAME),
    ]
    if any(same):
        yield _line("the same", ", ".join(part for part in same if part))


_TOLD_SAME: Final = ("host", "python", "gpus")


def _input(one: Mapping[str, Any], version: str) -> Iterator[str]:
    name = _short(one["artifact"], version)
    differs = one.get("differs")
    if "before" not in one or "after" not in one:
        yield _line("input", f"{name}:{one.get('after') or one['before']} {'added' if 'after' in one else 'removed'}")
        return
    files = _counted(differs["files"]) if differs else ""
    yield _line("input", f"{name}  {one['before']} -> {one['after']}{f'  {files}' if files else ''}")
    if not differs:
        return
    for path, change in list(differs["metadata"].items())[:LINES_MOST]:
        yield _line("", f"  metadata {_arrow(change, path)}")
    above = differs["lineage"]
    if above:
        yield _line("", f"  because of {summary(above)}, made by {_run(above['runs']['after'])}")
        for line in _upstream({**above, "inputs_same": [], "config_same": 0, "packages_same": 0,
                               "environment_same": {}, "results": {}}, version):  # fmt: skip
            if not line.startswith(("  runs", "  the same")):
                yield f"    {line}"


def _code(code: Mapping[str, Any]) -> Iterator[str]:
    commit, dirty = code.get("commit"), code.get("dirty")
    if commit:
        yield _line("code", _arrow({side: str(value)[:10] for side, value in commit.items()}, "commit"))
    for name in ("branch", "remote"):
        if name in code:
            yield _line("code", _arrow(code[name], name))
    if dirty or "uncommitted" in code:
        sides = [side for side in ("before", "after") if (code.get("uncommitted") or {}).get(side)]
        sides = sides or [side for side, value in (dirty or {}).items() if value]
        yield _line("code", f"uncommitted changes {' and '.join(sides) or 'gone'} (`--json` has them)")


def _files(document: Mapping[str, Any]) -> Iterator[str]:
    files = document["files"]
    if document["same_content"]:
        yield _line("files", "the same")
        return
    yield _line("files", _counted(files))
    shown = [
        *(f"+ {one['path']}  {sized(one['size'])}" for one in files["added"]),
        *(f"- {one['path']}  {sized(one['size'])}" for one in files["removed"]),
        *(f"~ {one['path']}  {sized(one['before'])} -> {sized(one['after'])}" for one in files["changed"]),
        *(f"= {one['path']}  was {one['from']}" for one in files["renamed"]),
    ]
    for text in shown[:LINES_MOST]:
        yield _line("", f"  {legible(text)}")
    if len(shown) > LINES_MOST:
        yield _line("", f"  … and {len(shown) - LINES_MOST:,} more")


def _counted(files: Mapping[str, Any]) -> str:
    said = [
        f"{len(files[name]):,} {name} ({sized(files['bytes'][name])})"
        for name in ("added", "removed", "changed")
        if files[name]
    ]
    if files["renamed"]:
        said.append(f"{len(files['renamed']):,} renamed")
    return ", ".join([*said, f"{files['unchanged']:,} the same"])


def _changes(head: str, changed: Mapping[str, Any]) -> Iterator[str]:
    for number, (path, change) in enumerate(changed.items()):
        if number == LINES_MOST:
            yield _line("", f"… and {len(changed) - LINES_MOST:,} more")
            return
        yield _line(head if number == 0 else "", _arrow(change, path))


def _arrow(change: Mapping[str, Any], path: str = "") -> str:
    before, after = (_shown(change[side]) if side in change else "nothing" for side in ("before", "after"))
    return f"{legible(path)}  {before} -> {after}" if path else f"{before} -> {after}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return cut(legible(text), _VALUE)


def _line(head: str, text: str) -> str:
    return f"  {head:<{_HEAD}}{text}".rstrip()


def _run(path: str | None) -> str:
    return f"run {legible(path.rpartition('/')[2])}" if path else "no run"


def _short(name: str, version: str) -> str:
    """A name without the entity and project that the version has, too."""
    place = version.rpartition("/")[0]
    return legible(name.removeprefix(f"{place}/"))


def _beside(before: str, after: str) -> str:
    """The second name, short where it is the same artifact."""
    path, _, ref = after.rpartition(":")
    return ref if before.rpartition(":")[0] == path else after
