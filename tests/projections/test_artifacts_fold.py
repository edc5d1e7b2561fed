"""The fold over artifacts: numbers, aliases, lineage, and what it decides against."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact_folding import NAME, RUN, commit, folded, move, reasons, stored
from icecore.artifact_events import (
    AliasMoved,
    ArtifactCommitted,
    ArtifactDeleted,
    ArtifactRestored,
    ArtifactUpdated,
    ArtifactUsed,
)
from icecore.events import ArtifactEvent
from icecore_projections.folds.artifacts import ArtifactChanges
from icecore_projections.folds.retention import VersionKey


def aliases(changes: ArtifactChanges) -> dict[str, int]:
    return changes.state.collections[NAME].aliases


# ------------------------------------------------------------------------------------------------------ versions


def test_each_new_digest_is_the_next_version() -> None:
    """Versions count from 0, and `latest` and the aliases named go to the one committed last."""
    changes = folded(commit("a", aliases=["best"]), commit("b"), commit("c", aliases=["best", "old"]))
    assert [version.number for version in changes.versions] == [0, 1, 2]
    assert aliases(changes) == {"latest": 2, "best": 2, "old": 2}
    assert [(edge.run, edge.version, edge.kind) for edge in changes.edges] == [(RUN, n, "logged") for n in range(3)]


def test_the_same_digest_is_the_same_version() -> None:
    """Committing what is there already makes no version: its aliases and tags are added, and it is the latest."""
    changes = folded(commit("a", tags=["x"]), commit("b"), commit("a", tags=["y", "x"], aliases=["best"]))
    assert changes.state.collections[NAME].versions == 2
    assert aliases(changes) == {"latest": 0, "best": 0}
    assert changes.state.versions[VersionKey(NAME, 0)].tags == ["x", "y"]


def test_an_artifact_keeps_its_type() -> None:
    """A commit of another type is rejected, and changes nothing."""
    changes = folded(commit("a"), commit("b", type="dataset"))
    assert reasons(changes) == [f"expected {NAME!r} to get a 'model', as it always did, got 'dataset'"]
    assert changes.state.collections[NAME].versions == 1


def test_what_people_say_of_a_version_changes() -> None:
    """Description, metadata and tags are replaced where they are given, and kept where not."""
    first = commit("a", description="one", metadata={"f1": 0.5}, tags=["t"])
    changes = folded(first, ArtifactUpdated(artifact=NAME, version=0, metadata={"f1": 0.9}, tags=[]))
    version = changes.state.versions[VersionKey(NAME, 0)]
    assert (version.description, version.metadata, version.tags) == ("one", {"f1": 0.9}, [])
    assert (version.created_ts, version.updated_ts) == (1000, 1001)


# ------------------------------------------------------------------------------------------------------- aliases


def test_an_alias_moves_and_its_way_is_kept() -> None:
    """Each move says from where, to where, who, with which key and why; taking it away is a move to none."""
    changes = folded(commit("a"), commit("b"), move("prod", 0), move("prod", 1, reason="better"), move("prod", None))
    moves = [(m.before, m.version, m.user, m.credential, m.reason) for m in changes.moves if m.alias == "prod"]
    assert moves == [(None, 0, "ann", "key-1", ""), (0, 1, "ann", "key-1", "better"), (1, None, "ann", "key-1", "")]
    assert aliases(changes) == {"latest": 1}


def test_an_alias_moves_only_from_what_was_expected() -> None:
    """With an expectation that does not hold, the move is rejected, saying what was found."""
    changes = folded(
        commit("a"),
        commit("b"),
        move("prod", 0, conditional=True),
        move("prod", 1, conditional=True, expected=1),
        move("prod", 1, conditional=True),
        move("prod", 1, conditional=True, expected=0),
    )
    assert reasons(changes) == ["expected prod to be v1, found v0", "expected prod to be no version, found v0"]
    assert aliases(changes)["prod"] == 1


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (move("prod", 7), f"no such version: expected {NAME}:v7, found none"),
        (move("prod", None), "expected prod to name a version, found none"),
        (move("latest", 0), "expected an alias that people move, got 'latest', which names what was committed last"),
        (ArtifactUsed(artifact=NAME, version=3, run=RUN), f"no such version: expected {NAME}:v3, found none"),
        (ArtifactRestored(artifact=NAME, version=0), f"expected a version that is deleted, {NAME}:v0 is there"),
        (AliasMoved(artifact="a/b/c", alias="x", version=0), "no such artifact: expected 'a/b/c', found none"),
    ],
)
def test_what_cannot_be_is_rejected(event: ArtifactEvent, reason: str) -> None:
    """An event about what is not there changes nothing, and says what was expected."""
    changes = folded(commit("a"), event)
    assert reasons(changes) == [reason]
    assert aliases(changes) == {"latest": 0}


# ------------------------------------------------------------------------------------------------------ deletion


def test_a_deleted_version_is_not_the_latest() -> None:
    """`latest` falls back to the highest version that is left, and to none; restoring brings it back."""
    gone = [ArtifactDeleted(artifact=NAME, version=n) for n in (1, 0)]
    changes = folded(commit("a"), commit("b"), gone[0])
    assert aliases(changes) == {"latest": 0}
    changes = folded(commit("a"), commit("b"), *gone)
    assert aliases(changes) == {}
    changes = folded(commit("a"), commit("b"), *gone, ArtifactRestored(artifact=NAME, version=1))
    assert aliases(changes) == {"latest": 1}
    assert not changes.state.versions[VersionKey(NAME, 1)].deleted


def test_a_version_with_an_alias_is_deleted_only_with_it() -> None:
    """Somebody resolves the alias: it goes in the same event, or the version stays."""
    start = (commit("a"), commit("b"), move("prod", 0))
    kept = folded(*start, ArtifactDeleted(artifact=NAME, version=0))
    assert reasons(kept) == [f"expected a version without aliases, {NAME}:v0 is prod"]
    gone = folded(*start, ArtifactDeleted(artifact=NAME, version=0, with_aliases=True), move("prod", 0))
    assert aliases(gone) == {"latest": 1}
    assert reasons(gone) == [f"expected a version that is there, {NAME}:v0 is deleted"]


def test_a_deleted_digest_comes_back_when_it_is_committed_again() -> None:
    """The same bytes are the same version, deleted or not."""
    changes = folded(commit("a"), ArtifactDeleted(artifact=NAME, version=0), commit("a"))
    assert aliases(changes) == {"latest": 0}
    assert changes.state.collections[NAME].deleted == []


# --------------------------------------------------------------------------------------------------- in the store

NAMES = st.sampled_from(["a/b/x", "a/b/y"])
NUMBERS = st.integers(0, 3)
EVENTS_ = st.one_of(
    st.builds(
        ArtifactCommitted,
        artifact=NAMES,
        type=st.sampled_from(["model", "model", "data"]),
        digest=st.sampled_from("abcd"),
        files=st.just(1),
        size=st.just(1),
        aliases=st.lists(st.sampled_from(["p", "q"]), max_size=2),
        tags=st.lists(st.sampled_from("st"), max_size=2),
        run=st.sampled_from(["", RUN]),
    ),
    st.builds(ArtifactUsed, artifact=NAMES, version=NUMBERS, run=st.just(RUN)),
    st.builds(ArtifactUpdated, artifact=NAMES, version=NUMBERS, metadata=st.none() | st.just({"k": 1})),
    st.builds(
        AliasMoved,
        artifact=NAMES,
        alias=st.sampled_from(["p", "q"]),
        version=st.none() | NUMBERS,
        expected=st.none() | NUMBERS,
        conditional=st.booleans(),
    ),
    st.builds(ArtifactDeleted, artifact=NAMES, version=NUMBERS, with_aliases=st.booleans()),
    st.builds(ArtifactRestored, artifact=NAMES, version=NUMBERS),
)


@settings(max_examples=25, deadline=None)
@given(events=st.lists(EVENTS_, min_size=1, max_size=25), cuts=st.lists(st.integers(0, 25), max_size=3))
def test_batches_do_not_matter(
    events: list[ArtifactEvent], cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the records are batched, and whatever is loaded again between, the store says the same."""
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    at = [cut for cut in cuts if cut < len(events)]
    assert asyncio.run(stored(one, events, [])) == asyncio.run(stored(many, events, at))


@settings(max_examples=200, deadline=None)
@given(events=st.lists(EVENTS_, max_size=40))
def test_aliases_name_versions_that_are_there(events: list[ArtifactEvent]) -> None:
    """After any events, each alias names a version that is not deleted, and moves told in order give the aliases."""
    changes = folded(*events)
    told: dict[tuple[str, str], int | None] = {}
    for one in changes.moves:
        assert told.get((one.artifact, one.alias)) == one.before
        told[one.artifact, one.alias] = one.version
    now = {(path, alias): n for path, row in changes.state.collections.items() for alias, n in row.aliases.items()}
    assert {key: n for key, n in told.items() if n is not None} == now
    for (path, _), number in now.items():
        assert not changes.state.versions[VersionKey(path, number)].deleted
        assert number not in changes.state.collections[path].deleted
