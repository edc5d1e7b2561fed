"""`as_of`: a read's answer at an earlier position or time."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import Depends, Query

from icecore_api.context import Context
from icecore_api.deps import Process, Read, Reading, wait_for
from icecore_api.queries.as_of import Moment, look_back, moment_of
from icecore_projections.schema import run_number

AS_OF: Final = (
    "Answer as of this moment: a position (an `Icecore-Position` of any time), an ISO-8601 time, or seconds since "
    "1970 UTC. As of a time is everything accepted until then."
)


async def moment(context: Context, reading: Reading, as_of: str | None) -> Moment | None:
    """The moment asked for, once the store has folded it; None for now.

    Raises:
        BadRequest, Invalid: neither a position nor a time. NotYet: the store is not there yet.
    """
    if not as_of:
        return None
    found = await moment_of(context.log, as_of)
    await wait_for(reading.store, found.token, context.wait_within_s)
    return found


async def _moment(
    context: Process,
    reading: Read,
    as_of: Annotated[str | None, Query(max_length=4096, description=AS_OF)] = None,
) -> Moment | None:
    return await moment(context, reading, as_of)


Then = Annotated[Moment | None, Depends(_moment)]


def back_then(reading: Reading, then: Moment | None, where: str, parameters: dict[str, Any]) -> Reading:
    """The reading, within its transaction, as of a moment.

    Args:
        reading: has begun.
        then: None for now.
        where: which runs will be looked at, a condition over `c`, which is `current_runs`.
        parameters: of `where`.
    """
    if then is None:
        return reading
    look_back(reading.cursor, then.upto, where, parameters, then.ts)
    silence = reading.now_ms - reading.crashed_before_ms
    return replace(reading, now_ms=then.ts, crashed_before_ms=then.ts - silence)


def of_project(entity: str, project: str) -> tuple[str, dict[str, Any]]:
    """The condition of a project's runs."""
    return "c.entity = $of_entity AND c.project = $of_project", {"of_entity": entity, "of_project": project}


def of_run(path: str) -> tuple[str, dict[str, Any]]:
    """The condition of one run."""
    return "c.run = $of_run", {"of_run": run_number(path)}
