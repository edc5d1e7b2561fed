"""How the log is: one named trouble or none, found while something is stuck and gone by itself when it is well."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from icecore.errors import LogDrift, LogError, LogTopicMissing
from icecore.position import Place
from icecore_ingest.logs import kafka_failures as failures
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka_client import EARLIEST, KafkaClient, Topics
from icecore_ingest.logs.kafka_settings import KafkaSettings
from icecore_ingest.logs.kafka_writer import Writer

_EVERY_S: Final = 1.0
_STUCK_S: Final = 1.0
"""A batch on its way for longer is looked into."""
_LONG_S: Final = 5.0
"""A batch on its way for longer is a trouble even where no cause is found."""
_CHECK_S: Final = 15.0
"""How often a log that is well is looked at."""

_log = logging.getLogger(__name__)


class Health:
    """Looks after an open log. Belongs to the one event loop it was begun in; `trouble` may be read from anywhere.

    Args:
        client: asks the brokers.
        settings: what the topics must be.
        partitions: how many partitions each stream had when the log was opened.
        log_id: the log that was opened.
        writers: told what they cannot know; may grow.
    """

    def __init__(
        self,
        client: KafkaClient,
        settings: KafkaSettings,
        partitions: Mapping[str, int],
        log_id: str,
        writers: Collection[Writer],
    ) -> None:
        self._client = client
        self._settings = settings
        self._partitions = partitions
        self._log_id = log_id
        self._writers = writers
        self._lost: LogError | None = None
        self._task: asyncio.Task[None] | None = None
        self.trouble: LogError | None = None

    def begin(self) -> None:
        """Look after the log from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def lost(self, error: LogError) -> LogError:
        """Records were lost: nothing is right again until the log is opened anew. Answers with the error."""
        self._lost = self.trouble = error
        for writer in self._writers:
            writer.refuse(error)
        return error

    async def _run(self) -> None:
        checked = time.monotonic()
        while self._lost is None:
            await asyncio.sleep(_EVERY_S)
            stuck = any(writer.oldest_s() > _STUCK_S for writer in self._writers)
            if not stuck and self.trouble is None and time.monotonic() - checked < _CHECK_S:
                continue
            found = await self._look()
            found = found or self._unexplained()
            checked = time.monotonic()
            if self._lost is None:
                self._note(found)

    def _note(self, found: LogError | None) -> None:
        if found is not None and (self.trouble is None or self.trouble.code != found.code):
            _log.error("the log is in trouble: %s", found)
        elif found is None and self.trouble is not None:
            _log.warning("the log is well again, after: %s", self.trouble.message)
        self.trouble = found
        if isinstance(found, LogTopicMissing):
            for writer in self._writers:
                writer.give_up(found)  # or it would be written into the next topic of that name

    async def _look(self) -> LogError | None:
        """What is wrong now, or None."""
        try:
            topics = await self._client.topics()
            for topic in self._settings.topics.values():
                if topic not in topics.ids:
                    return failures.topic_missing(topic)
            if topics.log_id() != self._log_id:
                return self.lost(failures.topic_replaced(", ".join(self._settings.topics.values())))
            held = {state for partitions in topics.partitions.values() for state in partitions.values()}
            nodes = {node for state in held for node in (*state.in_sync, state.leader) if node >= 0}
            wrong = self._state(topics, await self._client.answering(nodes))
            if wrong is not None:
                return wrong
            places = [Place(stream, n) for stream, count in self._partitions.items() for n in range(count)]
            kafka_topics.check_starts(await self._client.offsets(places, EARLIEST))
        except Exception as error:  # noqa: BLE001 - who looks after the log must not end by what it sees
            return failures.translate(error, ", ".join(self._settings.topics.values()))
        return None

    def _unexplained(self) -> LogError | None:
        """Something is on its way for long, and nothing is known to be wrong."""
        longest = max((writer.oldest_s() for writer in self._writers), default=0.0)
        where = ", ".join(self._settings.topics.values())
        return failures.away(where, f"no acknowledgement for {longest:.0f} s") if longest > _LONG_S else None

    def _state(self, topics: Topics, answering: AbstractSet[int]) -> LogError | None:
        """What the partitions' replicas say, of those brokers that answer."""
        for stream, topic in self._settings.topics.items():
            held = topics.partitions[topic]
            if len(held) != self._partitions[stream]:
                count = str(self._partitions[stream])
                return LogDrift(
                    f"expected {topic} to have {count} partitions as when it was opened, got {len(held)}",
                    hint="keys now go to other partitions: restart every gateway, and the store",
                    drift=[{"topic": topic, "setting": "partitions", "found": str(len(held)), "expected": count}],
                )
            for number, state in sorted(held.items()):
                alive = sorted(set(state.in_sync) & answering)
                if len(alive) < self._settings.replicas_in_sync:
                    said = f"{len(alive)} of {len(state.replicas)} (brokers {alive}; at least "
                    return failures.not_replicated(f"{topic}:{number}", f"{said}{self._settings.replicas_in_sync})")
                if state.leader not in answering:
                    return failures.away(f"{topic}:{number}", "no leader that answers")
        return None
