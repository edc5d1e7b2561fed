"""What differs between versions: files, metadata, and everything upstream, out of made documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from icecore.artifact_diff import ArtifactDiff, Comparison, changed_files, changes
from icecore.artifact_names import Name
from icecore.errors import NotFound
from icecore.manifest import Entry


class Made:
    """A source of documents that were made by hand: versions by name, and runs by path."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, Entry]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.used: dict[str, list[str]] = {}
        self.asked: list[str] = []

    def add(self, name: str, files: dict[str, Entry], run: str = "", **metadata: Any) -> None:
        path, _, version = name.partition(":")
        entity, project, short = path.split("/")
        self.files[name] = files
        self.versions[name] = {
            "entity": entity, "project": project, "name": short, "version": version,
            "digest": str(sorted(files.items())),
            "files": len(files), "metadata": metadata, "run": run or None,
        }  # fmt: skip

    def version(self, name: Name) -> dict[str, Any]:
        self.asked.append(str(name))
        if str(name) not in self.versions:
            raise NotFound(f"no such version: {name}")
        return self.versions[str(name)]

    def entries(self, version: Mapping[str, Any]) -> Mapping[str, Entry]:
        return self.files[f"{version['entity']}/{version['project']}/{version['name']}:{version['version']}"]

    def above(self, name: Name) -> dict[str, Any]:
        run = self.versions[str(name)]["run"]
        used = self.used.get(run, [])
        nodes = [{"id": one, "kind": "reference" if "://" in one else "version"} for one in used]
        edges = [{"from": one, "to": run, "kind": "used"} for one in used if "://" not in one]
        edges += [{"from": one, "to": str(name), "kind": "refers"} for one in used if "://" in one]
        return {"start": str(name), "nodes": nodes, "edges": edges}

    def run(self, path: str) -> dict[str, Any] | None:
        return self.runs.get(path)


def facts(commit: str, host: str = "a", torch: str = "2.3.0", **more: Any) -> dict[str, Any]:
    return {
        "git": {"commit": commit, "dirty": False},
        "packages": {"torch": torch, "numpy": "2.0"},
        "host": host,
        "python": "3.11.9",
        "gpus": [{"name": "A100", "uuid": "1"}],
        **more,
    }


def story() -> Made:
    """Two models: the second was trained on other data, by other code, with another rate and another torch."""
    made = Made()
    made.add("t/p/raw:v0", {"r": Entry("0", 9)})
    made.add("t/p/clean:v3", {"all.csv": Entry("c3", 900)}, "t/p/clean-3", rows=9000)
    made.add("t/p/clean:v4", {"all.csv": Entry("c4", 450)}, "t/p/clean-4", rows=4500)
    made.add(
        "t/p/net:v11", {"w": Entry("w11", 70), "cfg": Entry("k", 5)}, "t/p/train-11", accuracy=0.91, net={"depth": 3}
    )
    made.add(
        "t/p/net:v12", {"w": Entry("w12", 80), "cfg": Entry("k", 5)}, "t/p/train-12", accuracy=0.84, net={"depth": 3}
    )
    made.used = {
        "t/p/clean-3": ["t/p/raw:v0"],
        "t/p/clean-4": ["t/p/raw:v0"],
        "t/p/train-11": ["t/p/clean:v3", "t/p/raw:v0"],
        "t/p/train-12": ["t/p/clean:v4", "t/p/raw:v0", "s3://bucket/more/"],
    }
    made.runs = {
        "t/p/clean-3": {"config": {"min": 1}, "metadata": facts("aaa"), "summary": {}},
        "t/p/clean-4": {"config": {"min": 20}, "metadata": facts("aaa"), "summary": {}},
        "t/p/train-11": {
            "config": {"lr": 0.001, "seed": 1},
            "metadata": facts("aaa"),
            "summary": {"f1": 0.9, "_step": 3},
        },
        "t/p/train-12": {
            "config": {"lr": 0.01, "seed": 1},
            "metadata": facts("bbb", "b", "2.4.0"),
            "summary": {"f1": 0.8, "_step": 9},
        },
    }
    return made


def name(text: str) -> Name:
    path, _, ref = text.partition(":")
    return Name(*path.split("/"), ref)  # type: ignore[call-arg]


def compared(made: Made, *, lineage: bool = True) -> ArtifactDiff:
    return ArtifactDiff(Comparison(made).versions(name("t/p/net:v11"), name("t/p/net:v12"), lineage=lineage))


def test_files_by_bytes() -> None:
    """Added, removed, changed and renamed files, those with the most bytes first; empty ones have no other name."""
    before = {
        "same": Entry("s", 1),
        "big": Entry("b", 100),
        "old": Entry("o", 5),
        "gone": Entry("g", 7),
        "e": Entry("e", 0),
    }
    after = {
        "same": Entry("s", 1),
        "big": Entry("B", 90),
        "new": Entry("o", 5),
        "more": Entry("m", 8),
        "f": Entry("e", 0),
    }
    found = changed_files(before, after)

    assert found["added"] == [{"path": "more", "size": 8}, {"path": "f", "size": 0}]
    assert found["removed"] == [{"path": "gone", "size": 7}, {"path": "e", "size": 0}]
    assert found["changed"] == [{"path": "big", "before": 100, "after": 90}]
    assert found["renamed"] == [{"path": "new", "from": "old", "size": 5}]
    assert (found["unchanged"], found["bytes"]) == (1, {"added": 8, "removed": 7, "changed": 90})


@given(
    st.dictionaries(st.text(max_size=3), st.builds(Entry, st.sampled_from("abc"), st.integers(0, 3)), max_size=8),
    st.dictionaries(st.text(max_size=3), st.builds(Entry, st.sampled_from("abc"), st.integers(0, 3)), max_size=8),
)
def test_every_file_is_counted_once(before: dict[str, Entry], after: dict[str, Entry]) -> None:
    """What was there is the same, changed, removed or renamed; what is there is the same, changed, added or renamed."""
    found = changed_files(before, after)
    both, renamed = found["unchanged"] + len(found["changed"]), len(found["renamed"])

    assert both + renamed + len(found["removed"]) == len(before)
    assert both + renamed + len(found["added"]) == len(after)


def test_values_by_dotted_path() -> None:
    """Nested values one by one, lists whole; a boolean is no number, and NaN is itself."""
    nan = float("nan")
    before = {"a": {"b": 1, "c": 2}, "l": [1], "t": 1, "n": nan, "gone": None}
    after = {"a": {"b": 1, "c": 3}, "l": [1, 2], "t": True, "n": nan, "new": {"x": 0}}

    assert changes(before, after) == {
        "a.c": {"before": 2, "after": 3},
        "gone": {"before": None},
        "l": {"before": [1], "after": [1, 2]},
        "new.x": {"after": 0},
        "t": {"before": 1, "after": True},
    }


def test_what_differed_upstream() -> None:
    """Inputs with what differed in them in turn, code, config, packages, host; and what was the same."""
    found = compared(story())
    above = found.upstream or {}
    (data,) = above["inputs"]

    assert found.metadata == {"accuracy": {"before": 0.91, "after": 0.84}}
    assert [one["path"] for one in found.files["changed"]] == ["w"]
    assert (data["artifact"], data["before"], data["after"]) == ("t/p/clean", "v3", "v4")
    assert data["differs"]["metadata"] == {"rows": {"before": 9000, "after": 4500}}
    assert data["differs"]["lineage"]["config"] == {"min": {"before": 1, "after": 20}}
    assert data["differs"]["lineage"]["inputs"] == []
    assert above["references"] == [{"after": "s3://bucket/more/"}]
    assert above["code"] == {"commit": {"before": "aaa", "after": "bbb"}}
    assert above["config"] == {"lr": {"before": 0.001, "after": 0.01}}
    assert above["packages"] == {"torch": {"before": "2.3.0", "after": "2.4.0"}}
    assert above["environment"] == {"host": {"before": "a", "after": "b"}}
    assert above["results"] == {"f1": {"before": 0.9, "after": 0.8}}
    assert above["inputs_same"] == ["t/p/raw:v0"]
    assert above["environment_same"] == {"python": "3.11.9", "gpus": ["A100"]}


def test_the_words_say_why_at_a_glance() -> None:
    """The first lines say what got worse, then what may be the reason, with its own reason under it."""
    assert str(compared(story())).splitlines() == [
        "t/p/net:v11 -> v12",
        "  metadata   accuracy  0.91 -> 0.84",
        "  files      1 changed (80 B), 1 the same",
        "               ~ w  70 B -> 80 B",
        "",
        "what differed upstream: 1 input, 1 reference, code, 1 config value, 1 package, host",
        "  runs       run train-11 -> run train-12",
        "  input      clean  v3 -> v4  1 changed (450 B), 0 the same",
        "               metadata rows  9000 -> 4500",
        "               because of 1 config value, made by run clean-4",
        "      config     min  1 -> 20",
        "  reference  nothing -> s3://bucket/more/",
        "  code       commit  aaa -> bbb",
        "  config     lr  0.001 -> 0.01",
        "  packages   torch  2.3.0 -> 2.4.0",
        "  host       host  a -> b",
        "  results    f1  0.9 -> 0.8",
        '  the same   raw:v0, 1 config value, 1 package, python 3.11.9, gpus ["A100"]',
    ]


def test_what_is_gone_is_said() -> None:
    """A run that was deleted, and an input that came without one before it, end no comparison."""
    made = story()
    del made.runs["t/p/train-11"]
    made.used["t/p/train-12"].append("t/p/extra:v0")
    del made.versions["t/p/clean:v3"]
    found = compared(made)
    above = found.upstream or {}

    assert above["missing"] == ["t/p/train-11"]
    assert above["inputs"] == [
        {"artifact": "t/p/clean", "before": "v3", "after": "v4"},
        {"artifact": "t/p/extra", "after": "v0"},
    ]
    assert "extra:v0 added" in str(found)
    assert "not there any more" in str(found)


def test_without_lineage_nothing_upstream_is_asked() -> None:
    """Files and metadata need two versions only."""
    made = story()
    found = compared(made, lineage=False)

    assert found.upstream is None
    assert made.asked == ["t/p/net:v11", "t/p/net:v12"]
    assert len(str(found).splitlines()) == 4


def test_a_circle_of_inputs_ends() -> None:
    """Each pair of versions is compared once, however the runs are knotted."""
    made = story()
    made.used["t/p/clean-3"].append("t/p/net:v11")
    made.used["t/p/clean-4"].append("t/p/net:v12")
    compared(made)

    assert len(made.asked) == 4
