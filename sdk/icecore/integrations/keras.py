"""A Keras callback: `model.fit(…, callbacks=[MetricsLogger()])` logs every epoch, every batch, or every n batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from icecore.errors import UsageError

if TYPE_CHECKING:
    from icecore.run import Run

try:
    import keras
except ImportError as missing:  # pragma: no cover - the tests have Keras
    raise UsageError("expected Keras to be installed, got none", hint="pip install keras") from missing

_Callback: Any = keras.callbacks.Callback


class MetricsLogger(_Callback):  # type: ignore[misc] # Keras has no types
    """Logs what Keras reports, as `epoch/loss`, `epoch/val_loss`, `epoch/learning_rate` … and `batch/loss` ….

    The x axis of the epochs' metrics is `epoch/epoch`, that of the batches' `batch/batch_step`.

    Args:
        log_freq: `epoch`, `batch`, or a number n: every n batches. Epochs are logged always.
        run: the run to log to; by default the one of `icecore.init`.
        initial_global_step: the first batch's number, for a training that goes on.

    Raises:
        UsageError: `log_freq` makes no sense, or there is no run.
    """

    def __init__(
        self, log_freq: Literal["epoch", "batch"] | int = "epoch", run: Run | None = None, initial_global_step: int = 0
    ) -> None:
        super().__init__()
        self._every = _batches_between(log_freq)
        self._run = _run_or_current(run)
        self._batches = initial_global_step
        self._run.define_metric("epoch/*", step_metric="epoch/epoch")
        if self._every:
            self._run.define_metric("batch/*", step_metric="batch/batch_step")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's name
        """Log the running metrics of the epoch, every n batches."""
        if self._every and self._batches % self._every == 0:
            values = {f"batch/{name}": value for name, value in (logs or {}).items()}
            self._run.log({"batch/batch_step": self._batches, **self._learning_rate("batch"), **values})
        self._batches += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the epoch's metrics."""
        values = {f"epoch/{name}": value for name, value in (logs or {}).items()}
        self._run.log({"epoch/epoch": epoch, **self._learning_rate("epoch"), **values})

    def _learning_rate(self, prefix: str) -> dict[str, float]:
        rate = getattr(getattr(self.model, "optimizer", None), "learning_rate", None)
        try:
            return {} if rate is None else {f"{prefix}/learning_rate": float(rate)}
        except (TypeError, ValueError):  # a schedule of a backend that only tells within a step
            return {}


def _batches_between(log_freq: object) -> int:
    """0 for no batches."""
    if log_freq == "epoch":
        return 0
    if log_freq == "batch":
        return 1
    if isinstance(log_freq, int) and not isinstance(log_freq, bool) and log_freq >= 1:
        return log_freq
    raise UsageError(f"expected log_freq to be 'epoch', 'batch' or a number of batches, got {log_freq!r}")


def _run_or_current(run: Run | None) -> Run:
    import icecore

    found = run or icecore.run
    if found is None:
        raise UsageError("expected a run to log to, got none", hint="call icecore.init() before, or give run=")
    return found
