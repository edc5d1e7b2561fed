"""Fixtures for all tests: nothing of the user's environment leaks in, and a real server where one is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from servers import Server, running_server

pytest_plugins = ("brokers", "s3_servers")

settings.register_profile("icecore", deadline=None)  # a busy machine decides no test
settings.load_profile("icecore")


@pytest.fixture(scope="session", autouse=True)
def _no_user_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No ICECORE_* of the user's, and config and spool folders that belong to this test session."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ICECORE_")}
    home = tmp_path_factory.mktemp("user")
    os.environ["ICECORE_CONFIG_DIR"] = str(home / "config")
    os.environ["ICECORE_DIR"] = str(home / "client")
    if "ICECORE_SOAK_ROUNDS" in kept:
        os.environ["ICECORE_SOAK_ROUNDS"] = kept["ICECORE_SOAK_ROUNDS"]
    yield
    for name in ("ICECORE_CONFIG_DIR", "ICECORE_DIR", "ICECORE_SOAK_ROUNDS"):
        os.environ.pop(name, None)
    os.environ.update(kept)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running `icecore up`, shared by the tests that only log to it and read from it."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A running `icecore up` of this test's own, to be hurt."""
    with running_server(tmp_path) as running:
        yield running
