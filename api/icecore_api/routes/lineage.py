"""Lineage: what versions were made from, what came of them, and what runs did with them."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Query
from starlette.responses import Response

from icecore_api.answers import Json
from icecore_api.deps import OfRun, Read, Reading
from icecore_api.lineage_models import ImpactAnswer, LineageAnswer, RunArtifactsAnswer
from icecore_api.queries.artifacts import Artifacts, version_answer
from icecore_api.queries.as_of import Moment
from icecore_api.queries.impact import NODES_MOST as IMPACT_MOST
from icecore_api.queries.impact import impact_answer
from icecore_api.queries.lineage import NODES_DEFAULT, NODES_MOST, Direction, VersionKey, Walk, everything_down, walk
from icecore_api.queries.lineage_edges import Edges, edges_of
from icecore_api.queries.lineage_facts import Facts
from icecore_api.routes.artifacts import OfArtifact, Ref
from icecore_api.routes.moments import Then
from icecore_api.routing import Router
from icecore_projections.schema import run_number

router: Final = Router("artifacts")

DEPTH_MOST: Final = 100


class _View:
    """One state of a store, as lineage asks it."""

    def __init__(self, reading: Reading, then: Moment | None) -> None:
        reading.begin()
        asked = then.upto.ledger if then else None
        self.edges: Edges
        self.edges, seen = edges_of(reading.store).seen_by(reading.cursor)
        self.upto = seen if asked is None else min(seen, asked)
        self.artifacts = Artifacts(reading.cursor, asked)
        self.facts = Facts(reading.cursor, self.edges, asked, reading.crashed_before_ms)

    def start(self, path: str, ref: str) -> VersionKey:
        """The version to begin at."""
        found = self.artifacts.find(path, ref, deleted=True)
        return VersionKey(found.collection.number, found.version.number)


@router.on(
    "GET",
    "/artifacts/{entity}/{project}/{name}/{ref}/lineage",
    permission="artifact:read",
    answer=LineageAnswer,
    errors=[404],
)
def get_lineage(
    at: OfArtifact,
    ref: Ref,
    reading: Read,
    direction: Annotated[Direction, Query()] = "both",
    depth: Annotated[int, Query(ge=0, le=DEPTH_MOST, description="steps from node to node")] = 5,
    limit: Annotated[
        int, Query(ge=1, le=NODES_MOST, description="nodes at most, the nearest first; `hidden` counts the others")
    ] = NODES_DEFAULT,
    then: Then = None,
) -> Response:
    """What a version was made from (up) and what was made from it (down)."""
    view = _View(reading, then)
    found = walk(view.edges, view.upto, view.start(at.path, ref), Walk(direction, depth, limit))
    return Json(view.facts.answer(found), position=reading.position)


@router.on(
    "GET",
    "/artifacts/{entity}/{project}/{name}/{ref}/impact",
    permission="artifact:read",
    answer=ImpactAnswer,
    errors=[404],
)
def get_impact(at: OfArtifact, ref: Ref, reading: Read, then: Then = None) -> Response:
    """Everything that came of a version, what is served of it by alias, and who is concerned."""
    view = _View(reading, then)
    reach = everything_down(view.edges, view.upto, view.start(at.path, ref), IMPACT_MOST)
    return Json(impact_answer(reading.cursor, view.facts, reach), position=reading.position)


@router.on("GET", "/runs/{entity}/{project}/{run_id}/artifacts", permission="run:read", answer=RunArtifactsAnswer)
def get_run_artifacts(at: OfRun, reading: Read, then: Then = None) -> Response:
    """The versions that a run logged, and those it used, each in the order it did so first; without deleted ones."""
    view = _View(reading, then)
    links = view.edges.of_run(run_number(at.path), view.upto)
    found = view.artifacts.by_number([key for kind in links for key in links[kind]])
    answer = {
        kind: [version_answer(found[key]) for key in links[kind] if key in found and not found[key].version.deleted]
        for kind in ("logged", "used")
    }
    return Json(answer, position=reading.position)
