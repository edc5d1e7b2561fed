"""The fold over registries: links, bundles, what collections ask, and promotions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from artifact_folding import NAME, commit, folded, move, reasons, stored
from icecore.artifact_events import ArtifactCommitted, ArtifactDeleted, ArtifactRestored, ArtifactUpdated, BundlePart
from icecore.errors import Invalid
from icecore.events import Envelope, Event
from icecore.position import LEDGER, Position
from icecore.registry_checks import Evidence, judge, parse_check
from icecore.registry_events import (
    ArtifactLinked,
    ArtifactUnlinked,
    CollectionSet,
    PartLogged,
    PartsFinished,
    PromotionApplied,
    PromotionApproved,
    PromotionRejected,
    PromotionRequested,
    PromotionRolledBack,
)
from icecore_projections.folds import Applied
from icecore_projections.folds.artifacts import ArtifactChanges, ArtifactState, fold
from icecore_projections.folds.retention import VersionKey

CHURN: Final = "registry/model/churn"
VQA: Final = "ann/vqa/both"


def link(version: int = 0, digest: str = "a", **fields: Any) -> ArtifactLinked:
    return ArtifactLinked(artifact=CHURN, source=NAME, source_version=version, digest=digest, **fields)


def unlink(version: int = 0, digest: str = "a", **fields: Any) -> ArtifactUnlinked:
    return ArtifactUnlinked(artifact=CHURN, source=NAME, source_version=version, digest=digest, **fields)


def bundle(*parts: BundlePart, digest: str = "b") -> ArtifactCommitted:
    return commit(digest, artifact=VQA, type="bundle", parts=list(parts))


PART: Final = BundlePart("model", NAME, 0, "a")


def asked(*checks: str, **fields: Any) -> CollectionSet:
    return CollectionSet(artifact=NAME, checks={"production": [parse_check(check) for check in checks]}, **fields)


def request(version: int = 0, promotion: str = "p1", **fields: Any) -> PromotionRequested:
    return PromotionRequested(artifact=NAME, promotion=promotion, version=version, alias="production", **fields)


def apply(promotion: str = "p1", **fields: Any) -> PromotionApplied:
    return PromotionApplied(artifact=NAME, promotion=promotion, **fields)


def as_people(*events: tuple[str, Event]) -> ArtifactChanges:
    """What events of several credentials make of nothing."""
    return fold(
        ArtifactState(),
        [
            Applied(
                Position(LEDGER, 0, offset),
                Envelope(f"id-{offset}", event.TYPE, 1, "p", offset, 0, 1000 + offset, who, f"key-{who}"),
                event.key,
                event,
            )
            for offset, (who, event) in enumerate(events)
        ],
    )


def aliases(changes: ArtifactChanges, path: str = NAME) -> dict[str, int]:
    return changes.state.collections[path].aliases


def keeps(changes: ArtifactChanges) -> list[tuple[str, str, str, bool]]:
    return [(row.key.scope, row.keep.kind, row.keep.by, row.kept) for row in changes.retention.keeps]


# --------------------------------------------------------------------------------------------------------- links


def test_a_link_is_a_version_of_the_collection_and_keeps_its_source() -> None:
    """It has a number, words and aliases of its own, says where it came from, and its source cannot be deleted."""
    changes = folded(
        commit("a", metadata={"f1": 0.9}, tags=["t"], description="d"),
        commit("b"),
        link(1, "b"),
        link(0, "a", aliases=["staging"]),
        link(0, "a"),
        ArtifactDeleted(artifact=NAME, version=0),
    )
    version = changes.state.versions[VersionKey(CHURN, 1)]
    assert (version.digest, version.metadata, version.tags, version.description) == ("a", {"f1": 0.9}, ["t"], "d")
    assert (version.sources, version.linked) == ([f"{NAME}:v0"], True)
    assert aliases(changes, CHURN) == {"latest": 1, "staging": 1}
    assert changes.state.collections[CHURN].versions == 2
    assert keeps(changes) == [(f"{NAME}:v1", "link", CHURN, True), (f"{NAME}:v0", "link", CHURN, True)]
    assert f"{CHURN}:v1" in {edge.run for edge in changes.edges if (edge.kind, edge.version) == ("linked", 0)}
    assert len(reasons(changes)) == 1
    assert CHURN in reasons(changes)[0]


def test_what_was_unlinked_is_gone_and_its_source_free() -> None:
    """The collection's version is deleted, unless an alias names it; the source can be deleted then."""
    events = [commit("a"), link(aliases=["prod"]), unlink(), unlink(with_aliases=True), unlink()]
    changes = folded(*events, ArtifactDeleted(artifact=NAME, version=0))
    assert changes.state.versions[VersionKey(CHURN, 0)].deleted
    assert aliases(changes, CHURN) == {}
    assert [("without aliases" in text, "no such link" in text) for text in reasons(changes)] == [
        (True, False),
        (False, True),
    ]
    assert changes.state.versions[VersionKey(NAME, 0)].deleted


def test_linking_again_keeps_the_words_of_the_collection() -> None:
    """What a collection says of its version is its own: another source with the same content changes none of it."""
    other = "bob/digits/cnn"
    events = [
        commit("a", metadata={"f1": 0.9}, tags=["t"], description="d"),
        commit("a", artifact=other, metadata={"f1": 0.1}, description="other"),
        link(),
        ArtifactUpdated(artifact=NAME, version=0, metadata={"f1": 0.2}),
        link(),
        ArtifactLinked(artifact=CHURN, source=other, source_version=0, digest="a"),
    ]
    words = ("a", {"f1": 0.9}, ["t"], "d")
    for more in ([], [unlink(), ArtifactUnlinked(artifact=CHURN, source=other, source_version=0, digest="a"), link()]):
        version = folded(*events, *more).state.versions[VersionKey(CHURN, 0)]
        assert (version.digest, version.metadata, version.tags, version.description) == words
        assert not version.deleted
    changed = folded(*events, ArtifactUpdated(artifact=CHURN, version=0, description="new"))
    assert changed.state.versions[VersionKey(CHURN, 0)].description == "new"


def between(source: str, artifact: str) -> ArtifactLinked:
    return ArtifactLinked(artifact=artifact, source=source, source_version=0, digest="a")


def test_links_make_no_circle(tmp_path: Path) -> None:
    """What came of a version is not linked back into it, over any number of links, so that all can be unlinked."""
    one, two, three = (f"registry/model/{name}" for name in ("one", "two", "three"))
    events: list[Event] = [
        commit("a"),
        between(NAME, one),
        between(one, two),
        between(two, three),
        between(two, one),
        between(three, one),
        between(three, NAME),
        between(one, three),
        *(
            ArtifactUnlinked(artifact=artifact, source=source, source_version=0, digest="a")
            for source, artifact in ((two, three), (one, three), (one, two), (NAME, one))
        ),
        between(NAME, three),
        between(three, one),
        ArtifactUnlinked(artifact=one, source=three, source_version=0, digest="a"),
        ArtifactUnlinked(artifact=three, source=NAME, source_version=0, digest="a"),
        ArtifactDeleted(artifact=NAME, version=0),
    ]
    changes = folded(*events)
    assert [applied.position.offset for applied, _ in changes.rejected] == [4, 5, 6]
    assert all("was linked from" in reason for reason in reasons(changes))
    assert all(version.deleted for version in changes.state.versions.values())
    (tmp_path / "single").mkdir()
    _, rejected = asyncio.run(stored(tmp_path / "single", events, range(1, len(events))))
    assert [off for off, _ in rejected] == [4, 5, 6]


def test_what_was_logged_too_stays_when_it_is_unlinked() -> None:
    """A version that a link made and a run logged again is the run's; logged after it was deleted, it has no links."""
    changes = folded(commit("a"), link(), commit("a", artifact=CHURN), unlink())
    assert reasons(changes) == []
    version = changes.state.versions[VersionKey(CHURN, 0)]
    assert (version.deleted, version.linked, version.sources) == (False, False, [])
    gone = [ArtifactDeleted(artifact=CHURN, version=0), ArtifactDeleted(artifact=NAME, version=0)]
    changes = folded(commit("a"), link(), *gone, commit("a", artifact=CHURN))
    assert reasons(changes) == []
    assert changes.state.versions[VersionKey(CHURN, 0)].sources == []


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([link()], "no such version"),
        ([commit("a"), ArtifactDeleted(artifact=NAME, version=0), link()], "deleted"),
        ([commit("a"), link(digest="other")], "found a"),
        ([commit("d", artifact=CHURN, type="dataset"), commit("a"), link()], "'dataset', as it always did"),
        ([commit("a"), ArtifactLinked(artifact=NAME, source=NAME, source_version=0, digest="a")], "another artifact"),
    ],
)
def test_what_cannot_be_linked_is_rejected(events: Sequence[Event], words: str) -> None:
    """A source that is not there, is deleted, is other than said or of another type makes no version."""
    changes = folded(*events)
    assert len(reasons(changes)) == 1
    assert words in reasons(changes)[0]


# ------------------------------------------------------------------------------------------------------- bundles


def test_a_bundle_keeps_its_parts_until_it_is_deleted() -> None:
    """Its parts cannot be deleted while it is there; restoring it asks that they are."""
    gone = ArtifactDeleted(artifact=NAME, version=0)
    changes = folded(
        commit("a"),
        bundle(PART),
        gone,
        ArtifactDeleted(artifact=VQA, version=0),
        gone,
        ArtifactRestored(artifact=VQA, version=0),
        ArtifactRestored(artifact=NAME, version=0),
        ArtifactRestored(artifact=VQA, version=0),
    )
    assert changes.state.versions[VersionKey(VQA, 0)].parts == [PART]
    assert [(edge.run, edge.artifact, edge.alias) for edge in changes.edges if edge.kind == "part"] == [
        (f"{VQA}:v0", NAME, "model")
    ]
    first, second = reasons(changes)
    assert f"the bundle {VQA}:v0" in first
    assert "it is deleted" in second
    assert [kept for _, _, _, kept in keeps(changes)] == [True, False, True]


def test_a_bundle_of_what_is_not_there_is_rejected() -> None:
    """A part that is missing, deleted, or of another digest makes no version."""
    gone = ArtifactDeleted(artifact=NAME, version=0)
    other = BundlePart("model", NAME, 0, "x")
    changes = folded(bundle(PART), commit("a"), bundle(other), gone, bundle(PART))
    assert [words in text for words, text in zip(("is none", "found a", "deleted"), reasons(changes), strict=True)]
    assert VQA not in changes.state.collections


# ---------------------------------------------------------------------------------------- what a collection asks


def test_a_collection_asks_for_metadata_and_stages() -> None:
    """A version without what is required, or an alias that is no stage, is rejected, saying which."""
    changes = folded(
        CollectionSet(artifact=NAME, type="model", required=["f1", "data.source"], stages=["dev", "prod"]),
        commit("a", metadata={"f1": 1}),
        commit("a", metadata={"f1": 1, "data": {"source": "x"}}, aliases=["best"]),
        commit("a", metadata={"f1": 1, "data": {"source": "x"}}, aliases=["dev"]),
        move("best", 0),
        move("prod", 0),
    )
    missing, *stages = reasons(changes)
    assert "found none of data.source" in missing
    assert all("one of the stages dev, prod" in text for text in stages)
    assert len(stages) == 2
    assert aliases(changes) == {"latest": 0, "dev": 0, "prod": 0}


def test_settings_that_are_left_out_stay() -> None:
    """Each change sets what it names; a collection that is not there needs a type."""
    changes = folded(
        CollectionSet(artifact=NAME, owner="ann"),
        CollectionSet(artifact=NAME, type="model", owner="ann", card="# {name}"),
        CollectionSet(artifact=NAME, description="d", tags=["x"]),
        CollectionSet(artifact=NAME, type="dataset"),
        CollectionSet(artifact=NAME, stages=["dev"], checks={"prod": [parse_check("approved")]}),
    )
    registry = changes.state.collections[NAME].registry
    assert registry is not None
    assert (registry.owner, registry.card, registry.description, registry.tags) == ("ann", "# {name}", "d", ["x"])
    assert [text.split(":")[0][:24] for text in reasons(changes)] == [
        "no such artifact",
        "expected 'ann/digits/cnn",
        "expected checks of dev o",
    ]


# ---------------------------------------------------------------------------------------------------- promotions


def test_a_promotion_without_checks_is_applied_at_once() -> None:
    """The alias moves, and its history says why and by which promotion."""
    changes = folded(commit("a"), request(reason="good"), apply())
    assert aliases(changes) == {"latest": 0, "production": 0}
    assert changes.moves[-1].reason == "good; promotion p1; asked by ann"
    assert [step.step for step in changes.steps] == ["requested", "applied"]


def test_metadata_and_evidence_are_judged() -> None:
    """A request is rejected with each check that fails and what was found; metadata counts again when it is applied."""
    ran = [Evidence("ann/digits/e1", "eval", {"f1": 0.9})]
    changes = folded(
        commit("a", metadata={"f1": 0.8}),
        asked("metadata.f1 >= 0.85", "evaluated by eval with f1 > 0.8"),
        request(),
        ArtifactUpdated(artifact=NAME, version=0, metadata={"f1": 0.86}),
        request(),
        request(evidence=ran),
        ArtifactUpdated(artifact=NAME, version=0, metadata={}),
        apply(evidence=ran),
        ArtifactUpdated(artifact=NAME, version=0, metadata={"f1": 0.86}),
        apply(evidence=ran),
    )
    first, second, third = reasons(changes)
    assert "metadata.f1 >= 0.85, found 0.8; evaluated by a run with job_type eval and f1 > 0.8, found no run" in first
    assert "metadata" not in second
    assert third.endswith("metadata.f1 >= 0.85, found nothing")
    assert aliases(changes)["production"] == 0


def test_a_stage_with_checks_moves_by_promotion_only() -> None:
    """Neither a move nor a commit nor a link gives it; taking it away is allowed."""
    changes = folded(
        commit("a", metadata={"f1": 1}),
        asked("metadata.f1 >= 0.5"),
        move("production", 0),
        commit("b", aliases=["production"]),
        request(),
        apply(),
        move("production", None),
    )
    assert all("icecore promote" in text for text in reasons(changes))
    assert len(reasons(changes)) == 2
    assert aliases(changes) == {"latest": 0}


def test_approval_needs_another_credential() -> None:
    """The requester's own is rejected, an application before it too; then who asked and who approved is kept."""
    changes = as_people(
        ("ann", commit("a")),
        ("ann", asked("approved")),
        ("ann", request(reason="f1 0.9")),
        ("ann", apply()),
        ("ann", PromotionApproved(artifact=NAME, promotion="p1")),
        ("bob", PromotionApproved(artifact=NAME, promotion="p1", reason="ok")),
        ("bob", apply()),
    )
    assert ["no approval yet" in reasons(changes)[0], "another credential" in reasons(changes)[1]] == [True, True]
    assert changes.moves[-1].reason == "f1 0.9; promotion p1; asked by ann; approved by bob"
    assert [(step.step, step.user, step.credential) for step in changes.steps] == [
        ("requested", "ann", "key-ann"),
        ("approved", "bob", "key-bob"),
        ("applied", "bob", "key-bob"),
    ]


def test_what_was_rejected_is_closed() -> None:
    """A rejected promotion can be neither approved nor applied."""
    changes = folded(
        commit("a"),
        asked("approved"),
        request(),
        PromotionRejected(artifact=NAME, promotion="p1", reason="no"),
        PromotionApproved(artifact=NAME, promotion="p1"),
        apply(),
    )
    assert [f"expected a promotion that is open, p1 of {NAME} is not"] * 2 == reasons(changes)


def test_a_promotion_is_asked_for_once() -> None:
    """The same version to the same alias is refused while a request is open, and says which; afterwards it is not."""
    reject = PromotionRejected(artifact=NAME, promotion="p1")
    changes = as_people(
        ("ann", commit("a")),
        ("ann", commit("b")),
        ("ann", asked("approved")),
        ("ann", request()),
        ("bob", request(0, "p2")),
        ("bob", request(1, "p3")),
        ("ann", reject),
        ("bob", request(0, "p4")),
    )
    (reason,) = reasons(changes)
    assert "v0 to production is asked for already: promotion p1 by ann" in reason
    registry = changes.state.collections[NAME].registry
    assert registry is not None
    assert list(registry.open) == ["p3", "p4"]


def test_rolling_back_goes_from_promotion_to_promotion() -> None:
    """Each roll back undoes one promotion that still stands, passing over deleted versions, until none is left."""

    def back(expected: int) -> PromotionRolledBack:
        return PromotionRolledBack(artifact=NAME, alias="production", expected=expected, reason="bad")

    promoted = [event for n in range(4) for event in (commit(f"d{n}"), request(n, f"p{n}"), apply(f"p{n}"))]
    changes = folded(*promoted, back(3), back(3), ArtifactDeleted(artifact=NAME, version=1), back(2), back(0))
    assert [move.version for move in changes.moves if move.alias == "production"] == [0, 1, 2, 3, 2, 0]
    assert changes.moves[-1].reason == "bad; roll back of promotion p2, p1"
    stale, none = reasons(changes)
    assert stale == "expected production to be v3, found v2"
    assert "that can be rolled back" in none


# ---------------------------------------------------------------------------------------------------- the rest


def test_the_end_of_parts_names_a_version() -> None:
    """Parts are noted as they come; an end of what is no version is rejected."""
    part = PartLogged(artifact=NAME, distributed_id="d", digest="x", run="ann/digits/r1")
    changes = folded(part, PartsFinished(artifact=NAME, distributed_id="d", upto=1, digest="a"), commit("a"))
    assert [(row.kind, row.digest) for row in changes.drafts] == [("part", "x")]
    assert len(reasons(changes)) == 1


def test_checks_are_read_as_they_are_written() -> None:
    """A check's text reads back as the same check; what is none is refused, and types never mix."""
    for text in (
        "metadata.a.b >= 1",
        'metadata.s == "x"',
        "evaluated by eval",
        "evaluated by e with k < 2",
        "approved",
    ):
        check = parse_check(text)
        assert parse_check(str(check)) == check
    for text in ("", "metadata.f1", "f1 > 1", "evaluated by", "approved by nobody"):
        with pytest.raises(Invalid):
            parse_check(text)
    found = {"a": True, "b": "2", "c": float("nan"), "d": 1}
    checks = ["metadata.a == 1", "metadata.b > 1", "metadata.c >= 0", "metadata.d == 1", "metadata.e != 1"]
    verdicts = judge([parse_check(check) for check in checks], found, [], "me", "")
    assert [verdict.ok for verdict in verdicts] == [False, False, False, True, False]


def test_it_does_not_matter_how_the_records_are_batched(tmp_path: Path) -> None:
    """One by one, with a new process for each, the store says the same as all at once."""
    events: list[Event] = [
        commit("a", metadata={"f1": 0.9}),
        link(aliases=["staging"]),
        bundle(PART),
        asked("metadata.f1 >= 0.5"),
        request(),
        apply(),
        commit("c", metadata={"f1": 0.7}),
        request(1, "p2"),
        apply("p2"),
        PromotionRolledBack(artifact=NAME, alias="production", expected=1),
        ArtifactDeleted(artifact=VQA, version=0),
        ArtifactRestored(artifact=VQA, version=0),
        unlink(with_aliases=True),
        ArtifactDeleted(artifact=NAME, version=0, with_aliases=True),
        ArtifactDeleted(artifact=VQA, version=0),
        ArtifactDeleted(artifact=NAME, version=0, with_aliases=True),
        link(1, "c"),
        ArtifactDeleted(artifact=CHURN, version=1),
        ArtifactDeleted(artifact=NAME, version=1),
        PartLogged(artifact=NAME, distributed_id="d", digest="x"),
        commit("c", artifact=CHURN),
        commit("e"),
        link(2, "e"),
        commit("e", artifact=CHURN),
        unlink(2, "e"),
        bundle(BundlePart("m", NAME, 2, "e"), digest="f"),
        commit("f", artifact=VQA, type="bundle", parts=[BundlePart("m", NAME, 2, "e")], tags=["t"]),
    ]
    for name in ("whole", "single"):
        (tmp_path / name).mkdir()
    whole, rejected = asyncio.run(stored(tmp_path / "whole", events, []))
    single, too = asyncio.run(stored(tmp_path / "single", events, range(1, len(events))))
    assert (single, too) == (whole, rejected)
    assert [off for off, _ in rejected] == [13]
