"""Runs: what a training script logs is what the server gets."""

import argparse
import dataclasses
import math
import threading

import numpy as np
import pytest

import icecore
from icecore.errors import ServerUnreachable, UsageError
from icecore.events import RunDropped, RunFinished, RunStarted, RunSummarised, RunUpdated


def test_what_is_logged_arrives_in_order(server):
    """Each call without a step is a new step, and all of them arrive."""
    with icecore.init(project="p", name="first", config={"lr": 0.1}, tags=["a", "b"], group="g") as run:
        for i in range(1000):
            run.log({"loss": i / 2, "n": i, "ok": i % 2 == 0, "phase": "warm"})

    rows = server.rows(run.path)
    assert [step for step, _ in rows] == list(range(1000))
    assert rows[7][1] == {"loss": 3.5, "n": 7.0, "ok": False, "phase": "warm"}
    (started,) = server.events(RunStarted)
    assert (started.name, started.config, started.tags, started.group) == ("first", {"lr": 0.1}, ["a", "b"], "g")
    assert started.run == run.path == f"ada/p/{run.id}"
    (finished,) = server.events(RunFinished)
    assert (finished.state, finished.exit_code) == ("finished", 0)
    assert server.gaps() == {}
    assert not any((run.settings.dir / "spool").iterdir())


def test_values_of_every_kind(server):
    """Nested dicts become dotted keys; numpy scalars, one-element arrays, NaN and infinities are kept."""

    class Tensor:
        """What torch's tensors look like."""

        shape = (1,)

        def size(self):
            return self.shape

        def numel(self):
            return 1

        def item(self):
            return 2.5

    with icecore.init(project="p") as run:
        run.log({"a": {"b": {"c": 1}, "d": np.float32(0.5)}, "e": np.array([3]), "t": Tensor(), "f": np.bool_(True)})
        run.log({"nan": math.nan, "inf": math.inf, "minus": -np.inf, "huge": 2**70, "beyond": 10**400})

    first, second = (values for _, values in server.rows())
    assert first == {"a.b.c": 1.0, "a.d": 0.5, "e": 3.0, "t": 2.5, "f": True}
    assert math.isnan(second.pop("nan"))
    assert second == {"inf": math.inf, "minus": -math.inf, "huge": float(2**70), "beyond": math.inf}


def test_explicit_steps_come_in_any_order_and_counting_goes_on_after_the_highest(server):
    """Nothing is dropped because of its step; a step may be logged in several calls."""
    with icecore.init(project="p") as run:
        run.log({"a": 1}, step=100)
        run.log({"a": 2}, step=5)
        run.log({"b": 3}, step=5)
        assert run.step == 101
        run.log({"a": 4})
        run.log({"a": 5}, step=np.int64(-3))

    assert sorted((step, *values.items()) for step, values in server.rows()) == [
        (-3, ("a", 5.0)),
        (5, ("a", 2.0)),
        (5, ("b", 3.0)),
        (100, ("a", 1.0)),
        (101, ("a", 4.0)),
    ]


def test_of_a_step_that_is_logged_again_the_last_counts(server):
    """However the calls came: with a step and without, with a step before a step without."""
    with icecore.init(project="p") as run:
        for value in range(10):
            run.log({"a": value})
        run.log({"a": 100}, step=9)
        assert run.summary["a"] == 100
        run.log({"a": 200}, step=50)
        run.log({"a": 201}, step=50, commit=False)
        run.log({})
        assert run.summary["a"] == 201
        run.log({"a": 300})

    rows = [(step, values["a"]) for step, values in server.rows()]
    assert rows == [*((i, i) for i in range(10)), (9, 100), (50, 200), (50, 201), (51, 300)]


def test_rows_of_changing_keys_and_kinds(server):
    """Alternating keys, keys in another order, one key alone, and kinds that change: every row as it was logged."""
    rows = [
        {"a": 1.0, "b": 2},
        {"b": 3, "a": 4.0},
        {"c": True},
        {"a": 1.5, "b": True},
        {"a": math.inf, "c": 2.0},
        {"a": 1, "b": "two"},
        {"c": 5},
        {"a.b": 6},
        {"a": {"b": 7}},
    ] * 3
    with icecore.init(project="p") as run:
        for row in rows:
            run.log(row)

    found: dict = {}
    for step, values in server.rows():  # a key of several kinds comes in blocks of its own
        found.setdefault(step, {}).update(values)
    assert found == dict(enumerate({"a.b": 7} if row == {"a": {"b": 7}} else row for row in rows))


def test_commit_false_gathers_into_one_row(server):
    """Gathered values belong to the row that the next committing call makes, and are not lost at finish."""
    with icecore.init(project="p") as run:
        run.log({"a": 1})
        run.log({"b": 1}, commit=False)
        run.log({"c": 1}, commit=False)
        run.log({"a": 2})
        run.log({"x": 1}, step=7, commit=False)
        run.log({"y": 1})
        run.log({"z": 1}, commit=False)

    assert server.rows() == [(0, {"a": 1}), (1, {"b": 1, "c": 1, "a": 2}), (7, {"x": 1, "y": 1}), (8, {"z": 1})]


def test_what_cannot_be_logged_is_said_once_and_counted(server, capfd):
    """An unloggable value warns once per key, the rest of the row is kept, and the run tells how many were left out."""
    with icecore.init(project="p") as run:
        for _ in range(3):
            run.log({"good": 1.0, "bad": object(), "many": np.zeros(3), "none": None, "": 1})

    assert [values for _, values in server.rows()] == [{"good": 1.0}] * 3
    error = capfd.readouterr().err
    assert error.count("'bad'") == error.count("'many'") == error.count("'none'") == 1
    assert "shape (3,)" in error
    (dropped,) = server.events(RunDropped)
    assert (dropped.points, dropped.keys) == (12, ["", "bad", "many", "none"])


@pytest.mark.parametrize("data", [[1, 2], "loss", 3.0, None])
def test_a_row_must_be_a_dict(server, data):
    """Anything else is a mistake in the script, and says so."""
    with icecore.init(project="p") as run, pytest.raises(UsageError, match="expected a dict"):
        run.log(data)


def test_misuse_says_what_was_expected(server):
    """Keys that are no str, steps that are no integer, and logging after the end are refused by name."""
    with icecore.init(project="p") as run:
        with pytest.raises(UsageError, match="1 of type int"):
            run.log({1: 2.0})
        with pytest.raises(UsageError, match="step to be an integer"):
            run.log({"a": 1}, step="three")
    with pytest.raises(UsageError, match="has finished"):
        run.log({"a": 1})
    with pytest.raises(UsageError, match="has finished"):
        run.log({})


def test_rows_of_many_keys_are_split_into_events_within_the_limit(server):
    """A row of 100,000 long keys arrives whole, in several events."""
    values = {f"layer/{i:06d}/{'weight' * 5}": float(i) for i in range(100_000)}
    with icecore.init(project="p") as run:
        run.log(values)
        run.log({"one.more": 1.0})

    gathered = {}
    for step, row in server.rows():
        assert step == (1 if "one.more" in row else 0)
        gathered |= row
    assert gathered == values
    (dropped,) = server.events(RunDropped)
    assert dropped.keys == ["one.more"]


def test_many_threads_log_into_one_run(server):
    """No row is lost and no step is given twice."""
    with icecore.init(project="p") as run:
        threads = [
            threading.Thread(target=lambda t=t: [run.log({"thread": t, "i": i}) for i in range(2000)]) for t in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    rows = server.rows()
    assert [step for step, _ in rows] == list(range(16_000))
    assert len({(values["thread"], values["i"]) for _, values in rows}) == 16_000


def test_the_module_speaks_of_the_current_run(server):
    """`import icecore as wandb`: log, config, summary, run and finish follow the run."""
    wandb = icecore
    assert wandb.run is None
    with pytest.raises(UsageError, match=r"icecore\.init"):
        wandb.log({"a": 1})
    with pytest.raises(UsageError, match=r"icecore\.init"):
        wandb.config["lr"]
    with pytest.raises(UsageError, match=r"icecore\.init"):
        wandb.summary.best = 1
    run = wandb.init(project="team/project")
    assert wandb.run is run
    assert (run.entity, run.project) == ("team", "project")
    wandb.config.lr = 0.1
    wandb.log({"a": 1})
    wandb.summary["best"] = 3
    wandb.define_metric("a", summary="max")
    wandb.finish()
    assert wandb.run is None
    wandb.finish()

    updates = server.events(RunUpdated)
    assert any(event.config == {"lr": 0.1} for event in updates)
    assert any(event.metrics == {"a": {"summary": "max"}} for event in updates)
    assert [event.set for event in server.events(RunSummarised)] == [{"best": 3}]


def test_an_exception_ends_the_run_as_failed(server):
    """Its type and message are on the run, and it goes on to the caller."""
    with pytest.raises(ZeroDivisionError), icecore.init(project="p"):
        _ = 1 / 0

    (finished,) = server.events(RunFinished)
    assert (finished.state, finished.exit_code, finished.error_type) == ("failed", 1, "ZeroDivisionError")
    assert finished.error_message == "division by zero"


def test_a_second_init_finishes_or_returns_or_adds(server):
    """`reinit` decides what becomes of the run that is going on."""
    first = icecore.init(project="p")
    assert icecore.init(project="q", reinit="return_previous") is first
    second = icecore.init(project="q", reinit="create_new")
    first.log({"a": 1})
    third = icecore.init(project="r")
    assert (second._finished, first._finished) == (True, False)
    third.finish()
    assert icecore.run is first
    first.finish()

    assert len(server.events(RunFinished)) == 3
    with pytest.raises(UsageError, match="reinit"):
        icecore.init(project="p", reinit="maybe") and icecore.init(project="p", reinit="maybe")
    icecore.finish()


def test_a_disabled_run_makes_nothing(home):
    """No files, no threads, and scripts run as they are."""
    before = threading.active_count()
    with icecore.init(project="p", mode="disabled", config={"lr": 1}) as run:
        run.log({"a": 1})
        run.summary["b"] = 2
        run.log({"net": {"loss": 0.5}, "wrong": object()}, step=7)
        run.log({"a": 4}, commit=False)
        run.log({"c": "text"})
        assert run.summary.get("a") == 4
        assert (run.summary.get("net.loss"), run.summary.get("b"), run.summary.get("c")) == (0.5, 2, "text")
        assert run.step == 9
        assert run.config.lr == 1
        assert run.disabled

    assert threading.active_count() == before
    assert not home.exists()


def test_fields_may_be_set_while_it_runs(server):
    """Name, notes, tags, group and job type; many changes are few events."""
    with icecore.init(project="p", name="before", tags=["x"]) as run:
        for i in range(100):
            run.name = f"name-{i}"
        run.tags += ("y",)
        run.notes = "a\nb"

    updates = server.events(RunUpdated)
    assert len(updates) < 20
    merged = {
        field: value for event in updates for field in ("name", "tags", "notes") if (value := getattr(event, field))
    }
    assert merged == {"name": "name-99", "tags": ["x", "y"], "notes": "a\nb"}


def test_names_are_checked_where_they_are_given(server):
    """What the server would refuse is refused at once."""
    for arguments in ({"project": "a/b/c"}, {"id": "../x"}, {"project": "..", "entity": "e"}, {"tags": ["\x00"]}):
        with pytest.raises(UsageError):
            icecore.init(**{"project": "p", **arguments})
    with pytest.raises(UsageError, match="colour"):
        icecore.init(project="p", colour="red")
    with pytest.raises(UsageError, match="mode"):
        icecore.init(project="p", mode="sometimes")
    assert icecore.run is None


def test_configs_of_every_shape(server):
    """Namespaces, dataclasses and what they hold become plain JSON."""

    @dataclasses.dataclass
    class Model:
        depth: int = 3
        rate: float = math.inf

    with icecore.init(project="p", config=argparse.Namespace(lr=0.1, model=Model(), shape=(1, 2), w=np.ones(2))):
        pass

    (started,) = server.events(RunStarted)
    assert started.config == {"lr": 0.1, "model": {"depth": 3, "rate": "Infinity"}, "shape": [1, 2], "w": [1.0, 1.0]}


def test_init_returns_at_once_without_a_server(home, monkeypatch, capfd):
    """Nobody listens: the run goes on, finish says what stays and how to send it."""
    monkeypatch.setenv("ICECORE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ICECORE_FINISH_TIMEOUT", "0.3")
    with icecore.init(project="p") as run:
        run.log({"a": 1})

    error = capfd.readouterr().err
    assert "no server at http://127.0.0.1:9" in error
    assert "icecore sync" in error
    assert len(list((home / "spool").iterdir())) == 1


def test_unknown_attributes_say_so(server):
    """What icecore does not have is an AttributeError that says so."""
    with icecore.init(project="p") as run, pytest.raises(AttributeError, match=r"icecore has no Run\.watch"):
        run.watch()
    with pytest.raises(AttributeError, match=r"icecore has no"):
        icecore.Nonsense  # noqa: B018


def test_resume(server):
    """Steps go on after the last one, and the earlier config can be read; must and never are kept."""
    with icecore.init(project="p", id="r1", config={"lr": 0.1}) as run:
        for _ in range(5):
            run.log({"a": 1})
    with icecore.init(project="p", id="r1", resume="allow", config={"more": 2}) as again:
        assert again.resumed
        assert again.step == 5
        assert again.config.lr == 0.1
        again.log({"a": 2})
    with icecore.init(project="p", id="r1", resume="must") as third:
        third.log({"a": 3})

    assert [step for step, _ in server.rows("ada/p/r1")] == list(range(7))
    with pytest.raises(UsageError, match="ada/p/r1 not to exist"):
        icecore.init(project="p", id="r1", resume="never")
    with pytest.raises(UsageError, match="ada/p/r2 to exist"):
        icecore.init(project="p", id="r2", resume="must")
    icecore.init(project="p", id="r2", resume="never").finish()


def test_an_id_that_was_there_already_is_told(server, capfd):
    """Without resume two histories are mixed: one warning, when the server says so; none for a run still going on."""
    with icecore.init(project="p", id="r") as run:
        run.log({"a": 1}, step=41)
        icecore.init(project="p", id="r", reinit="create_new").finish()
    assert "was there already" not in capfd.readouterr().err
    with icecore.init(project="p", id="r") as run:
        run.log({"a": 2})
    icecore.init(project="p", id="r", resume="allow").finish()
    icecore.init(project="p", id="another").finish()

    words = capfd.readouterr().err
    assert words.count("was there already") == 1
    assert "run ada/p/r was there already (finished, last step 41)" in words
    assert len(server.events(RunFinished)) == 5


def test_a_chosen_id_waits_for_no_server(home, monkeypatch, capfd):
    """Whether it was there before is asked when there is a server: init and training go on without."""
    monkeypatch.setenv("ICECORE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ICECORE_FINISH_TIMEOUT", "0.2")
    run = icecore.init(project="p", id="r")
    run.log({"a": 1})
    run.finish()

    words = capfd.readouterr().err
    assert "no server at http://127.0.0.1:9" in words
    assert "icecore sync" in words


def test_resume_must_needs_a_server(home, monkeypatch):
    """Nobody can tell whether the run exists: that is an error, for the script asked for certainty."""
    monkeypatch.setenv("ICECORE_URL", "http://127.0.0.1:9")
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9"):
        icecore.init(project="p", id="r", resume="must")


def test_resume_auto_goes_on_with_the_run_that_did_not_finish_well(server):
    """A failed run is taken up by the next auto; after a clean finish a new one begins."""
    run = icecore.init(project="p", resume="auto")
    run.log({"a": 1})
    run.finish(exit_code=1)
    with icecore.init(project="p", resume=True) as again:
        assert again.id == run.id
        assert again.step == 1
    with icecore.init(project="p", resume="auto") as fresh:
        assert fresh.id != run.id


def test_resume_offline_goes_on_after_what_is_in_the_spool(home):
    """Without a server the unsent data of this machine tells the last step."""
    with icecore.init(project="p", id="r", mode="offline", config={"lr": 1}) as run:
        run.log({"a": 1}, step=41)
    with icecore.init(project="p", id="r", mode="offline", resume="allow") as again:
        assert again.step == 42
        assert again.config.lr == 1
