"""The data of the demo as a version: scikit-learn's handwritten digits."""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits

import icecore


def main() -> None:
    """Log it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--project", default="digits")
    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    with icecore.init(project=parser.parse_args().project, id="prepare", name="prepare", job_type="preprocess") as run:
        data = icecore.Artifact("digits", type="dataset", metadata={"images": len(labels), "classes": 10})
        with data.new_file("digits.npz", "wb") as file:
            np.savez_compressed(file, images=images.astype(np.uint8), labels=labels.astype(np.uint8))
        run.log_artifact(data)


if __name__ == "__main__":
    main()
