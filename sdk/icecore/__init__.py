"""icecore: runs, metrics and models, in which everything is an immutable event.

    import icecore

    with icecore.init(project="digits", config={"lr": 0.1}) as run:
        for step in range(100):
            run.log({"loss": 1 / (step + 1)})

Everything is imported when it is first used, so `import icecore` costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from icecore.api import Api as Api
    from icecore.artifact import Artifact as Artifact
    from icecore.bundle import Bundle as Bundle
    from icecore.config import Config as Config
    from icecore.errors import IcecoreError as IcecoreError
    from icecore.errors import UsageError as UsageError
    from icecore.init import define_metric as define_metric
    from icecore.init import finish as finish
    from icecore.init import init as init
    from icecore.init import link_model as link_model
    from icecore.init import log as log
    from icecore.init import log_artifact as log_artifact
    from icecore.init import log_model as log_model
    from icecore.init import login as login
    from icecore.init import use_artifact as use_artifact
    from icecore.init import use_model as use_model
    from icecore.run import Run as Run
    from icecore.settings import Settings as Settings
    from icecore.summary import Summary as Summary
    from icecore.util import ArtifactTTL as ArtifactTTL

    config: Config
    summary: Summary
    run: Run | None

__version__ = "0.1.0"

_HOMES: Final = {
    "Api": "icecore.api",
    "Artifact": "icecore.artifact",
    "ArtifactTTL": "icecore.util",
    "Bundle": "icecore.bundle",
    "Config": "icecore.config",
    "IcecoreError": "icecore.errors",
    "Run": "icecore.run",
    "Settings": "icecore.settings",
    "Summary": "icecore.summary",
    "UsageError": "icecore.errors",
    "define_metric": "icecore.init",
    "finish": "icecore.init",
    "init": "icecore.init",
    "link_model": "icecore.init",
    "log_artifact": "icecore.init",
    "log_model": "icecore.init",
    "login": "icecore.init",
    "use_artifact": "icecore.init",
    "use_model": "icecore.init",
}
"""Public names, and the module each is in."""

__all__ = [
    "Api",
    "Artifact",
    "ArtifactTTL",
    "Bundle",
    "Config",
    "IcecoreError",
    "Run",
    "Settings",
    "Summary",
    "UsageError",
    "config",
    "define_metric",
    "finish",
    "init",
    "link_model",
    "log",
    "log_artifact",
    "log_model",
    "login",
    "run",
    "summary",
    "use_artifact",
    "use_model",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if name == "util":
        return importlib.import_module("icecore.util")
    if home is None:
        raise AttributeError(f"icecore has no {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Icecore(ModuleType):
    """The package, whose `init`, `log`, `config`, `summary` and `run` are not its modules of these names.

    Importing a submodule sets an attribute of its name on the package; these properties stand in front of it.
    """

    @property
    def init(self) -> Any:
        return _of_init("init")

    @property
    def log(self) -> Any:
        """The current run's own `log`, as fast as it is; before init, one that finds the run when called."""
        module = sys.modules.get("icecore.init")
        run = module.current() if module else None
        return _of_init("log") if run is None else run.log

    @property
    def config(self) -> Any:
        return _of_init("config")()

    @property
    def summary(self) -> Any:
        return _of_init("summary")()

    @property
    def run(self) -> Any:
        module = sys.modules.get("icecore.init")
        return module.current() if module else None

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and isinstance(getattr(type(self), name, None), property)):
            super().__setattr__(name, value)


def _of_init(name: str) -> Any:
    return getattr(importlib.import_module("icecore.init"), name)


sys.modules[__name__].__class__ = _Icecore
