"""The description's autoencoder in Keras, in a process of its own that works when it is told to: `python keras_peer.py T F ENCODER DECODER DROPOUT BATCH`.

ENCODER and DECODER are units joined by commas. Runs in the virtual environment of `requirements-keras.txt`, so it imports nothing of this
product. On standard output it first says `{"version": ..., "parameters": ...}`, or `{"failed": why}`; then it answers each line
`{"work": "train"|"score", "windows": N}` on standard input with `{"windows": N, "seconds": ...}`. Windows are drawn beforehand.

It does what the description's scripts do in the way that is fastest in Keras: `train_on_batch` with Adam and `clipnorm`, and `predict_on_batch`
with the mean squared error of each window; both run as one compiled graph.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

POOL = 8
"""Batches drawn beforehand, which are used in turn."""


def build(length: int, features: int, encoder: list[int], decoder: list[int], dropout: float) -> Any:
    """The autoencoder, compiled, on one thread."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import keras  # type: ignore[import-not-found]  # of the other environment
    import tensorflow as tf  # type: ignore[import-not-found]

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    layers = keras.layers
    model = keras.Sequential([keras.Input((length, features))])
    for place, units in enumerate(encoder):
        model.add(layers.LSTM(units, return_sequences=place < len(encoder) - 1, dropout=dropout))
    model.add(layers.RepeatVector(length))
    for units in decoder:
        model.add(layers.LSTM(units, return_sequences=True, dropout=dropout))
    model.add(layers.TimeDistributed(layers.Dense(features, activation="linear")))
    model.compile(optimizer=keras.optimizers.Adam(1e-3, clipnorm=1.0), loss="mse")
    model.version = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    return model


def main() -> None:
    """Build, and answer until the input ends."""
    length, features, batch = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[6])
    encoder, decoder = ([int(units) for units in word.split(",")] for word in sys.argv[3:5])
    try:
        model = build(length, features, encoder, decoder, float(sys.argv[5]))
    except Exception as error:
        print(json.dumps({"failed": f"{error.__class__.__name__}: {error}"}), flush=True)
        return
    import numpy as np

    rng = np.random.default_rng(0)
    pool = [rng.standard_normal((batch, length, features)).astype(np.float32) for _ in range(POOL)]
    print(json.dumps({"version": model.version, "parameters": int(model.count_params())}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        batches = -(-asked["windows"] // batch)
        began = time.perf_counter()
        for place in range(batches):
            windows = pool[place % POOL]
            if asked["work"] == "train":
                model.train_on_batch(windows, windows)
            else:
                ((model.predict_on_batch(windows) - windows) ** 2).mean(axis=(1, 2))
        print(json.dumps({"windows": batches * batch, "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
