"""One training of the demo: a small network on scikit-learn's handwritten digits, logged at every step.

It is also what a training script with icecore looks like: everything about icecore is in `init` and `log`, and in
`use_artifact` and `log_artifact` for the data and the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import icecore


def arguments() -> argparse.Namespace:
    """What the demo varies."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden", default="64", help="layer widths, as 64 or 64x32")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--project", default="digits")
    parser.add_argument("--id", default=None)
    parser.add_argument("--resume", default=None)
    parser.add_argument("--mode", default="online")
    parser.add_argument("--checkpoint", type=Path, help="keep the model here at every step, and go on from it")
    return parser.parse_args()


def main() -> None:
    """Train one model."""
    args = arguments()
    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    x_train, x_val, y_train, y_val = train_test_split(
        images / 16.0, labels, test_size=0.25, random_state=0, stratify=labels
    )
    layers = tuple(int(width) for width in args.hidden.split("x"))
    model = MLPClassifier(
        layers, solver="sgd", learning_rate_init=args.lr, momentum=0.9, batch_size=args.batch_size, random_state=0
    )
    if args.checkpoint and args.checkpoint.exists():
        model = joblib.load(args.checkpoint)
    classes = np.unique(labels)

    online = args.mode == "online"  # artifacts need a server
    with icecore.init(
        project=args.project,
        job_type="train",
        id=args.id,
        resume=args.resume,
        mode=args.mode,
        group=f"hidden-{args.hidden}",
        tags=["demo", "resumed"] if args.resume else ["demo"],
        config={"lr": args.lr, "batch_size": args.batch_size, "hidden": list(layers), "steps": args.steps},
    ) as run:
        run.define_metric("val/accuracy", summary="max")
        if online:
            run.use_artifact("digits:latest")
        # each step has its own random batch, so a resumed run goes on with the batches it has not seen
        for step in range(run.step, args.steps):
            batch = np.random.default_rng(step).choice(len(x_train), args.batch_size, replace=False)
            model.partial_fit(x_train[batch], y_train[batch], classes=classes)
            probabilities = np.asarray(model.predict_proba(x_val))
            if args.checkpoint:
                joblib.dump(model, args.checkpoint.with_suffix(".part"))
                args.checkpoint.with_suffix(".part").replace(args.checkpoint)
            likely = probabilities[np.arange(len(y_val)), y_val]
            run.log(
                {
                    "train/loss": float(model.loss_),
                    "train/accuracy": float(np.mean(model.predict(x_train[batch]) == y_train[batch])),
                    "val/loss": float(-np.mean(np.log(likely + 1e-12))),
                    "val/accuracy": float(np.mean(probabilities.argmax(axis=1) == y_val)),
                },
                step=step,
            )
        accuracy = float(np.mean(model.predict(x_val) == y_val))
        if online:
            artifact = icecore.Artifact("net", type="model", metadata={"accuracy": round(accuracy, 4), "lr": args.lr})
            with artifact.new_file("model.joblib", "wb") as file:
                joblib.dump(model, file)
            run.log_artifact(artifact)
        sys.stdout.write(f"validation accuracy {accuracy:.3f} after {args.steps} steps\n")


if __name__ == "__main__":
    main()
