"""Logging a scikit-learn estimator: its parameters, its scores and its loss curve.

Works with anything that has scikit-learn's methods; scikit-learn itself is imported for the scores only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from icecore.errors import UsageError

if TYPE_CHECKING:
    from icecore.run import Run

_PLAIN = (str, int, float, bool, type(None))


def log_estimator(
    run: Run, model: Any, x_test: Any = None, y_test: Any = None, *, prefix: str = "", params: bool = True
) -> dict[str, float]:
    """Log a fitted estimator: parameters to the config, scores to the summary, the loss curve to the history.

    Args:
        run: the run to log to.
        model: a fitted estimator, or a pipeline of them.
        x_test: what to score on, shape (samples, features); no scores without it.
        y_test: the truth, shape (samples,).
        prefix: put before the names of the scores, such as `val/`.
        params: whether to put `model.get_params()` into `run.config`.

    Returns:
        The scores: accuracy, f1, precision and recall (macro) of a classifier; r2, mae and rmse of a regressor; the
        model's own `score` of anything else.

    Raises:
        UsageError: it is no estimator.
    """
    if not hasattr(model, "get_params"):
        raise UsageError(f"expected a scikit-learn estimator, got {type(model).__name__}")
    if params:
        run.config.update({type(model).__name__: parameters(model)}, allow_val_change=True)
    log_curves(run, model)
    if x_test is None or y_test is None:
        return {}
    found = {f"{prefix}{name}": value for name, value in scores(model, x_test, y_test).items()}
    for name, value in found.items():
        run.summary[name] = value
    return found


def parameters(model: Any) -> dict[str, Any]:
    """`model.get_params()` with what is no plain value by its repr."""
    return {name: value if isinstance(value, _PLAIN) else repr(value) for name, value in model.get_params().items()}


def log_curves(run: Run, model: Any) -> int:
    """Log what an estimator kept of its fitting: `loss_curve_`, `validation_scores_`, `train_score_`. Rows logged."""
    names = {"loss_curve_": "train/loss", "validation_scores_": "val/score", "train_score_": "train/score"}
    curves = {shown: list(found) for kept, shown in names.items() if (found := getattr(model, kept, None)) is not None}
    rows = max(map(len, curves.values()), default=0)
    for row in range(rows):
        run.log({shown: float(curve[row]) for shown, curve in curves.items() if row < len(curve)})
    return rows


def scores(model: Any, x_test: Any, y_test: Any) -> dict[str, float]:
    """The usual scores of a fitted estimator on a test set."""
    try:
        from sklearn import base, metrics
    except ImportError as missing:
        raise UsageError("expected scikit-learn, got none", hint="pip install scikit-learn") from missing

    if base.is_classifier(model):
        predicted = model.predict(x_test)
        nothing: Any = 0.0  # a class that was never predicted
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            y_test, predicted, average="macro", zero_division=nothing
        )
        accuracy = metrics.accuracy_score(y_test, predicted)
        found = {"accuracy": accuracy, "f1": f1, "precision": precision, "recall": recall}
    elif base.is_regressor(model):
        predicted = model.predict(x_test)
        found = {
            "r2": metrics.r2_score(y_test, predicted),
            "mae": metrics.mean_absolute_error(y_test, predicted),
            "rmse": metrics.mean_squared_error(y_test, predicted) ** 0.5,
        }
    else:
        found = {"score": model.score(x_test, y_test)}
    return {name: float(value) for name, value in found.items()}
