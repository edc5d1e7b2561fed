"""What a run does with artifacts: logging them, and taking them as inputs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from icecore.errors import IcecoreError, UsageError
from icecore.notes import say, warn

if TYPE_CHECKING:
    from icecore.artifact import Artifact
    from icecore.artifact_home import Home
    from icecore.artifact_names import Name
    from icecore.pending import Pending
    from icecore.settings import Settings

_SHOWN_AFTER_S: Final = 0.5
_KILLED_S: Final = 10.0


class RunArtifacts:
    """The part of `icecore.Run` that is about artifacts."""

    _settings: Settings
    _parts: tuple[str, str, str]
    _pid: int
    _home: Home | None = None
    _uploads: tuple[int, list[tuple[Artifact, Pending]]] = (0, [])
    """The process that began them, and artifacts on their way."""

    def log_artifact(
        self,
        artifact_or_local_path: Artifact | str | os.PathLike[str],
        name: str | None = None,
        type: str | None = None,  # noqa: A002 - the name people know
        aliases: Sequence[str] | str | None = None,
        tags: Sequence[str] | str | None = None,
    ) -> Artifact:
        """Make a version of an artifact, as an output of this run. Returns at once; `wait()` and `finish()` wait.

        Args:
            artifact_or_local_path: an artifact with its files, or a file, folder or URI.
            name: of a file or folder: the artifact's name; by default made of the run's id and the path.
            type: of a file or folder: what it is.
            aliases: names that this version is to have, besides `latest`.
            tags: short labels.

        Raises:
            UsageError: an argument makes no sense, the run is offline or has finished, or a file cannot be read.
        """
        from icecore.artifact import Artifact
        from icecore.artifact_names import LATEST
        from icecore.fields import check_tags

        artifact = artifact_or_local_path
        if not isinstance(artifact, Artifact):
            artifact = self._of_path(os.fspath(artifact), name, type or "unspecified")
        elif (name or artifact.collection_name) != artifact.collection_name or (type or artifact.type) != artifact.type:
            raise UsageError(
                f"expected name and type of a path only, got them with {artifact!r}",
                hint="give them to icecore.Artifact(name, type)",
            )
        self._expect_server("log_artifact", going=True)
        chosen = [alias for alias in check_tags(aliases) if alias != LATEST]
        uploads = self._begun()
        name = artifact.collection_name
        pending = artifact.log_to(
            self._artifacts(),
            self._parts,
            chosen,
            check_tags(tags),
            logged=self._settings.mode != "disabled",
            after=next((earlier for one, earlier in reversed(uploads) if one.collection_name == name), None),
        )
        if pending is not None:
            uploads.append((artifact, pending))
            self._uploads = (os.getpid(), uploads)
        return artifact

    def use_artifact(
        self,
        artifact_or_name: Artifact | str,
        type: str | None = None,  # noqa: A002 - the name people know
        aliases: Sequence[str] | None = None,
        use_as: str | None = None,
    ) -> Artifact:
        """Take a version as an input of this run, by `name`, `name:alias`, `project/name:v3` or in full.

        Where this run is logging versions of that name, it waits for them.

        Args:
            artifact_or_name: which; `latest` where no alias or version is named.
            type: what it must be.
            aliases: accepted for scripts that give it.
            use_as: accepted for scripts that give it.

        Raises:
            NotFound: there is none of that name.
            UsageError: it is of another type, or the run is offline.
        """
        from icecore.artifact import Artifact
        from icecore.artifact_names import parse_name

        del aliases, use_as
        self._expect_server("use_artifact")
        home = self._artifacts()
        text = artifact_or_name.qualified_name if isinstance(artifact_or_name, Artifact) else str(artifact_or_name)
        name = parse_name(text, self._parts[0], self._parts[1])
        for artifact in self._on_their_way(name):
            artifact.wait()
        found = home.version(name)
        if type is not None and found["type"] != type:
            raise UsageError(f"expected {name} to be of type {type!r}, got {found['type']!r}")
        if self._settings.mode != "disabled":
            found = home.use(name, "/".join(self._parts))  # this one counts: the alias could have moved
        return Artifact.of(home, found)

    def log_model(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        aliases: Sequence[str] | str | None = None,
    ) -> Artifact:
        """Log a file or folder as an artifact of type model."""
        return self.log_artifact(path, name, "model", aliases)

    def use_model(self, name: str) -> str:
        """Take a model as an input, and download it; the path of its file, or of its folder where it has several.

        Raises:
            UsageError: it is no model.
        """
        artifact = self.use_artifact(name)
        if "model" not in artifact.type:
            raise UsageError(f"expected {name} to be a model, got a {artifact.type!r}", hint="use_artifact takes any")
        folder = artifact.download()
        files = artifact.files()
        return str(Path(folder) / files[0].path) if len(files) == 1 else folder

    def link_artifact(
        self, artifact: Artifact, target_path: str, aliases: Sequence[str] | str | None = None
    ) -> Artifact:
        """Put a version into a collection of a registry, too, without copying a byte; a draft is logged first.

        Args:
            artifact: which.
            target_path: the collection, e.g. `registry/model/churn`; `churn` alone is in `registry/TYPE`.
            aliases: names that it is to have there, besides `latest`.

        Returns:
            The version as it is in the collection.

        Raises:
            Conflict: the collection refuses it; the message says why.
        """
        self._expect_server("link_artifact")
        if self._settings.mode == "disabled":
            return artifact
        if artifact.is_draft():
            self.log_artifact(artifact).wait()
        return artifact.link(target_path, aliases)

    def link_model(
        self,
        path: str | os.PathLike[str],
        registered_model_name: str,
        name: str | None = None,
        aliases: Sequence[str] | str | None = None,
    ) -> Artifact:
        """Log a file or folder as a model, and put it into the collection `registry/model/REGISTERED_MODEL_NAME`.

        Args:
            path: the file or folder.
            registered_model_name: the collection, by its name or path.
            name: the artifact's name; by default made of the run's id and the path.
            aliases: names that it is to have in the collection, besides `latest`.
        """
        return self.link_artifact(self.log_model(path, name).wait(), registered_model_name, aliases)

    def upsert_artifact(
        self,
        artifact_or_local_path: Artifact | str | os.PathLike[str],
        name: str | None = None,
        type: str | None = None,  # noqa: A002 - the name people know
        distributed_id: str | None = None,
    ) -> Artifact:
        """Send the files of this process for a version that several put together; `finish_artifact` makes it.

        The same files again change nothing, so that a process that was killed may begin anew.

        Args:
            artifact_or_local_path: a draft with its files, or a file, folder or URI.
            name: of a file or folder: the artifact's name.
            type: of a file or folder: what it is.
            distributed_id: what all its writers call the version to be; by default the run's group.

        Returns:
            The draft; its files are on the server, durably.

        Raises:
            UsageError: an argument makes no sense, or there is neither an id nor a group.
        """
        draft, shared = self._shared("upsert_artifact", artifact_or_local_path, name, type, distributed_id)
        if self._settings.mode != "disabled":
            draft.send_part(self._artifacts(), self._parts, shared)
        return draft

    def finish_artifact(
        self,
        artifact_or_local_path: Artifact | str | os.PathLike[str],
        name: str | None = None,
        type: str | None = None,  # noqa: A002 - the name people know
        aliases: Sequence[str] | str | None = None,
        distributed_id: str | None = None,
    ) -> Artifact:
        """Send this process's files, and make one version of those of all processes.

        Args:
            artifact_or_local_path: a draft, with or without files of its own, or a file, folder or URI.
            name: of a file or folder: the artifact's name.
            type: of a file or folder: what it is.
            aliases: names that the version is to have, besides `latest`.
            distributed_id: as of `upsert_artifact`.

        Raises:
            Conflict: two writers have other bytes at one path; the message names both, and no version is made.
        """
        from icecore.artifact_names import LATEST
        from icecore.fields import check_tags

        draft, shared = self._shared("finish_artifact", artifact_or_local_path, name, type, distributed_id)
        chosen = [alias for alias in check_tags(aliases) if alias != LATEST]
        if self._settings.mode != "disabled":
            draft.send_part(self._artifacts(), self._parts, shared, finish=chosen)
        return draft

    def _shared(
        self,
        call: str,
        given: Artifact | str | os.PathLike[str],
        name: str | None,
        kind: str | None,
        shared: str | None,
    ) -> tuple[Artifact, str]:
        """The draft, and what its writers call it."""
        from icecore.artifact import Artifact

        self._expect_server(call, going=True)
        shared = shared or str(getattr(self, "group", "") or self._settings.run_group)
        if not shared:
            raise UsageError(f"expected a distributed_id for {call}, got none", hint="or give the run a group")
        draft = given if isinstance(given, Artifact) else self._of_path(os.fspath(given), name, kind or "unspecified")
        if not draft.is_draft():
            raise UsageError(f"expected a draft for {call}, got {draft.name}, which was logged")
        return draft, shared

    def _of_path(self, path: str, name: str | None, kind: str) -> Artifact:
        from icecore.artifact import Artifact

        stem = Path(path.rstrip("/")).name or "root"
        artifact = Artifact(name or f"run-{self._parts[2]}-{stem}", kind)
        artifact.put_home(self._artifacts())
        if "://" in path:
            artifact.add_reference(path)
        elif Path(path).is_dir():
            artifact.add_dir(path)
        else:
            artifact.add_file(path)
        return artifact

    def _expect_server(self, call: str, *, going: bool = False) -> None:
        if self._settings.mode == "offline":
            raise UsageError(
                f"expected a run with a server for {call}, got one in offline mode",
                hint="artifacts need a server: use mode='online', or log the artifact from another run",
            )
        if going and self._is_finished():
            raise UsageError(
                f"expected a run that is going on, got {'/'.join(self._parts)}, which has finished",
                hint="log before finish(), or begin another run with icecore.init()",
            )

    def _begun(self) -> list[tuple[Artifact, Pending]]:
        """What this process has begun to log."""
        pid, uploads = self._uploads
        return uploads if pid == os.getpid() else []

    def _on_their_way(self, name: Name) -> list[Artifact]:
        """What this run logs under a name, and nobody has been told how that ended."""
        if (name.entity, name.project) != self._parts[:2]:
            return []
        return [one for one, sent in self._begun() if one.collection_name == name.name and not sent.told]

    def _is_finished(self) -> bool:
        return bool(getattr(self, "_finished", False))

    def _artifacts(self) -> Home:
        if self._home is None:
            from icecore.artifact_home import Home

            self._home = Home(self._settings)
        return self._home

    # ---- the end

    def _finish_uploads(self, *, killed: bool, silent: bool) -> list[IcecoreError]:
        """Wait for what is on its way; the errors that nobody was told of."""
        pid, uploads = self._uploads
        if pid != os.getpid():
            return []
        deadline = time.monotonic() + _KILLED_S if killed else None
        progress = not silent and sys.stderr is not None and sys.stderr.isatty()
        errors = []
        for artifact, pending in uploads:
            began = time.monotonic()
            shown = False
            while not pending.ended(0.05):
                if deadline is not None and time.monotonic() > deadline:
                    errors.append(IcecoreError(f"expected {artifact.name} to be logged, got the process's end first"))
                    break
                if progress and time.monotonic() - began > _SHOWN_AFTER_S:
                    shown = True
                    _line(f"icecore: sending {artifact.name}: {pending.progress}")
            else:
                if pending.error is not None and not pending.told:
                    errors.append(pending.error)
                elif pending.error is None and not silent:
                    say(f"logged {artifact.name}")
            if shown:
                _line("")
        self._uploads = (0, [])
        return errors

    @staticmethod
    def _tell_uploads(errors: Sequence[IcecoreError], *, ended_well: bool) -> None:
        """Raise the first error where nothing else is being raised; say the others."""
        for error in errors[ended_well:]:
            warn(f"an artifact was not logged: {error}")
        if errors and ended_well:
            raise errors[0]


def _line(text: str) -> None:
    stream: Any = sys.__stderr__
    if stream is not None:
        stream.write(f"\r\x1b[2K{text}")
        stream.flush()
