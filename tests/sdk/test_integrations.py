"""Keras and scikit-learn trainings, logged with the real libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import icecore
from icecore.errors import UsageError

os.environ.setdefault("KERAS_BACKEND", "jax")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    off = {"console": "off", "git": False, "metadata": False, "packages": False, "system_seconds": 0, "silent": True}
    made = icecore.init(project="integrations", mode="offline", dir=str(tmp_path), settings=off)
    yield made
    made.finish()


class Heard:
    """A run that remembers its rows beside logging them."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []

    def log(self, row: dict[str, Any], **more: Any) -> None:
        self.rows.append(row)
        self.run.log(row, **more)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))
        self.run.define_metric(name, step_metric=step_metric)

    @property
    def config(self) -> Any:
        return self.run.config

    @property
    def summary(self) -> Any:
        return self.run.summary


@pytest.fixture
def heard(run: Any) -> Heard:
    return Heard(run)


def fit(logger: Any) -> None:
    import keras

    model = keras.Sequential([keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.SGD(0.25), "binary_crossentropy", metrics=["accuracy"])
    model.fit(X, Y, epochs=2, batch_size=8, validation_split=0.25, verbose=0, callbacks=[logger])


@pytest.mark.parametrize(("log_freq", "batches"), [("epoch", []), (4, [0, 4, 8]), ("batch", list(range(12)))])
def test_keras_logs_epochs_and_batches(heard: Heard, log_freq: Any, batches: list[int]) -> None:
    """Every epoch is logged with its validation and learning rate; batches as often as asked for."""
    from icecore.integrations.keras import MetricsLogger

    fit(MetricsLogger(log_freq, run=heard))  # type: ignore[arg-type]
    epochs = [row for row in heard.rows if "epoch/epoch" in row]

    assert [row["epoch/epoch"] for row in epochs] == [0, 1]
    assert all({"epoch/loss", "epoch/accuracy", "epoch/val_loss", "epoch/val_accuracy"} <= row.keys() for row in epochs)
    assert epochs[0]["epoch/learning_rate"] == 0.25
    assert [row["batch/batch_step"] for row in heard.rows if "batch/batch_step" in row] == batches
    assert ("epoch/*", "epoch/epoch") in heard.metrics
    assert heard.summary["epoch/epoch"] == 1


@pytest.mark.parametrize("log_freq", ["step", 0, -1, True, 1.5])
def test_keras_refuses_a_strange_frequency(run: Any, log_freq: Any) -> None:
    """What is no frequency is said to be none."""
    from icecore.integrations.keras import MetricsLogger

    with pytest.raises(UsageError, match="expected log_freq"):
        MetricsLogger(log_freq, run=run)


def test_keras_needs_a_run() -> None:
    """Without a run the callback says what to call first."""
    from icecore.integrations.keras import MetricsLogger

    with pytest.raises(UsageError, match="init"):
        MetricsLogger()


def test_sklearn_classifier(heard: Heard) -> None:
    """A classifier's parameters are in the config, its loss curve in the history, its scores in the summary."""
    from sklearn.neural_network import MLPClassifier

    from icecore.integrations.sklearn import log_estimator

    model = MLPClassifier((4,), max_iter=300, random_state=0, learning_rate_init=0.05).fit(X, Y)
    scores = log_estimator(heard, model, X, Y, prefix="test/")  # type: ignore[arg-type]

    assert [row["train/loss"] for row in heard.rows] == model.loss_curve_
    assert scores.keys() == {"test/accuracy", "test/f1", "test/precision", "test/recall"}
    assert scores["test/accuracy"] == model.score(X, Y) == heard.summary["test/accuracy"]
    assert heard.config["MLPClassifier"]["learning_rate_init"] == 0.05
    assert heard.config["MLPClassifier"]["hidden_layer_sizes"] == "(4,)"


def test_sklearn_regressor_and_cluster(heard: Heard) -> None:
    """A regressor has r2, mae and rmse; anything else its own score; what is no estimator is refused."""
    from sklearn.cluster import KMeans
    from sklearn.ensemble import GradientBoostingRegressor

    from icecore.integrations.sklearn import log_estimator, scores

    model = GradientBoostingRegressor(n_estimators=5, random_state=0).fit(X, Y)
    found = log_estimator(heard, model, X, Y)  # type: ignore[arg-type]
    assert found["r2"] == model.score(X, Y)
    assert found["rmse"] ** 2 == pytest.approx(np.mean((model.predict(X) - Y) ** 2))
    assert len(heard.rows) == 5
    assert log_estimator(heard, model) == {}  # type: ignore[arg-type]
    cluster = KMeans(2, n_init=1, random_state=0).fit(X)
    assert scores(cluster, X, Y) == {"score": cluster.score(X)}
    with pytest.raises(UsageError, match="expected a scikit-learn estimator"):
        log_estimator(heard, object())  # type: ignore[arg-type]
