"""Config: what was asked for, once."""

import argparse

import pytest

from icecore.config import Config, plain, read_config
from icecore.errors import UsageError


@pytest.fixture
def said():
    """What the config told its run."""
    return []


@pytest.fixture
def config(said):
    """A config of two values."""
    return Config({"lr": 0.1, "model": {"depth": 3}}, lambda changes, removed: said.append((changes, removed)))


def test_it_is_a_mapping_with_attributes(config):
    """Items, attributes, get, in, len, dict()."""
    assert config["lr"] == config.lr == config.get("lr") == 0.1
    assert config.get("nothing") is None
    assert config.get("nothing", 7) == 7
    assert config.model["depth"] == 3
    assert "lr" in config
    assert dict(config) == {**config} == config.as_dict() == {"lr": 0.1, "model": {"depth": 3}}
    with pytest.raises(KeyError):
        config["nothing"]
    with pytest.raises(AttributeError, match="'nothing'"):
        config.nothing  # noqa: B018


def test_a_value_is_not_changed_by_accident(config, said):
    """Another value for a key that is set needs allow_val_change; the same value is no change."""
    with pytest.raises(UsageError, match=r"'lr' to stay 0\.1, got 0\.2"):
        config.lr = 0.2
    with pytest.raises(UsageError, match="allow_val_change"):
        config.update({"new": 1, "lr": 0.2})
    config.update({"lr": 0.1})
    assert said == []
    assert "new" not in config
    config.update({"lr": 0.2}, allow_val_change=True)
    config.batch = 32
    del config["model"]

    assert config.as_dict() == {"lr": 0.2, "batch": 32}
    assert said == [({"lr": 0.2}, []), ({"batch": 32}, []), ({}, ["model"])]


def test_what_was_inherited_may_differ(config, said):
    """A resumed run shows the earlier values, and the script may ask for others."""
    config.inherit({"lr": 9, "seed": 1, "old": 2})
    assert (config.lr, config.seed) == (0.1, 1)
    config.seed = 5
    with pytest.raises(UsageError):
        config.seed = 6

    assert said == [({"seed": 5}, [])]


def test_setdefaults_keeps_what_is_there(config):
    """Only missing keys are set."""
    assert config.setdefaults({"lr": 7, "x": 1}) == {"lr": 0.1, "model": {"depth": 3}, "x": 1}


def test_updates_take_namespaces_and_keywords(config):
    """What argparse gives, and keywords."""
    config.update(argparse.Namespace(a=1), b=2)

    assert (config.a, config.b) == (1, 2)


def test_anything_becomes_plain_json():
    """Odd values become text rather than errors, also when they hold themselves."""
    loop: dict = {}
    loop["self"] = loop
    assert plain({1: {2, 1}, "f": float("nan"), "big": 2**80, "s": "\ud800", "o": plain}) | {"o": ""} == {
        "1": [1, 2],
        "f": "NaN",
        "big": str(2**80),
        "s": "?",
        "o": "",
    }
    assert plain(loop)["self"]["self"]


def test_keys_are_made_such_as_the_server_takes():
    """Control characters become spaces, a path beyond its limit becomes text, and nothing is refused."""
    nested: dict = {"leaf": 1}
    for _ in range(100):
        nested = {"level": nested}
    made = plain({"a\nb": 1, "k" * 300: 2, "deep": nested})
    depth, value = 0, made["deep"]
    while isinstance(value, dict):
        depth, value = depth + 1, value["level"]

    assert made["a b"] == 1
    assert max(map(len, made)) == 256
    assert depth * len("level.") + len("deep") <= 256
    assert "leaf" in value


def test_limits_and_misuse_are_said():
    """Too large, and no mapping at all."""
    with pytest.raises(UsageError, match="at most"):
        read_config({"x": "y" * 2_000_000})
    with pytest.raises(UsageError, match="got int"):
        read_config(3)
