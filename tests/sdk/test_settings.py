"""Settings: one table, three sources, and the user's saved keys."""

import stat
from dataclasses import fields

import pytest

from icecore.errors import SettingsError
from icecore.settings import SETTINGS, Settings, load_credentials, save_credentials


def test_every_field_has_its_row():
    """The table and the fields are the same list."""
    assert [setting.field for setting in SETTINGS] == [field.name for field in fields(Settings)]
    assert all(setting.name.startswith("ICECORE_") and setting.meaning for setting in SETTINGS)


def test_given_wins_over_the_environment_and_that_over_the_default():
    """A given value goes before the environment's, and that before the default."""
    settings = Settings.load({"project": "mine"}, {"ICECORE_PROJECT": "theirs", "ICECORE_NAME": "named"})

    assert (settings.project, settings.name, settings.notes) == ("mine", "named", "")


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 << 30), ("500 mb", 500 << 20), ("1k", 1024), ("77", 77), (1.5e3, 1500)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    """Sizes take units, any case, spaces."""
    assert Settings.load({"spool_max": text}, {}).spool_max == size


def test_lists_truths_and_folders(tmp_path):
    """Tags are split at commas, truths read as people write them, folders made absolute."""
    settings = Settings.load(
        {}, {"ICECORE_TAGS": "a, b,,c", "ICECORE_SILENT": "yes", "ICECORE_DIR": "~/x", "ICECORE_CONSOLE": "off"}
    )

    assert settings.tags == ("a", "b", "c")
    assert settings.silent
    assert settings.console == "off"
    assert settings.dir.is_absolute()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"url": "127.0.0.1:8700"}, "url"),
        ({"mode": "of line"}, "online"),
        ({"spool_max": "much"}, "size"),
        ({"finish_timeout": -1}, "seconds"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_nonsense_is_refused_by_name(given, word):
    """A setting that makes no sense says which and what was expected."""
    with pytest.raises(SettingsError, match=word):
        Settings.load(given, {})


def test_credentials_are_kept_by_server_and_for_this_user_only(tmp_path):
    """Keys are kept apart by server, in a file nobody else can read."""
    path = save_credentials("http://127.0.0.1:8700", "key-one", "ada", tmp_path / "c")
    save_credentials("https://tracker.example", "key-two", "bob", tmp_path / "c")

    assert load_credentials("http://localhost:8700/", tmp_path / "c") == {"api_key": "key-one", "user": "ada"}
    assert load_credentials("https://tracker.example:443/x", tmp_path / "c")["api_key"] == "key-two"
    assert load_credentials("http://127.0.0.1:9999", tmp_path / "c") == {}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_key_and_user_come_from_the_saved_credentials(tmp_path):
    """Settings find the key and the user saved for their URL; given ones win."""
    save_credentials("http://127.0.0.1:8700", "saved", "ada", tmp_path)
    settings = Settings.load({"config_dir": tmp_path}, {})

    assert (settings.key, settings.user) == ("saved", "ada")
    assert settings.replace(api_key="given", entity="team").key == "given"
    assert settings.replace(entity="team").user == "team"


def test_a_damaged_credentials_file_is_no_key(tmp_path):
    """A file that is not JSON gives no key and no crash, and is written anew by the next login."""
    (tmp_path / "credentials.json").write_text("{nonsense")

    assert load_credentials("http://127.0.0.1:8700", tmp_path) == {}
    save_credentials("http://127.0.0.1:8700", "k", "u", tmp_path)
    assert load_credentials("http://127.0.0.1:8700", tmp_path)["api_key"] == "k"
