"""A Keras training that logs every epoch and every tenth batch."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import icecore
from icecore.integrations.keras import MetricsLogger

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
y = (x @ np.arange(8, dtype="float32") > 0).astype("float32")

with icecore.init(project="keras-loop", config={"units": 16, "epochs": 3, "batch_size": 16}) as run:
    model = keras.Sequential([keras.layers.Dense(run.config.units, "relu"), keras.layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    model.fit(
        x,
        y,
        epochs=run.config.epochs,
        batch_size=run.config.batch_size,
        validation_split=0.25,
        verbose=0,
        callbacks=[MetricsLogger(log_freq=10)],
    )
    print(f"{run.name}: validation accuracy {run.summary['epoch/val_accuracy']:.3f}")
