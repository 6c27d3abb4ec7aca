"""A Keras model on the torch backend, trained by `fit`. Knows no relume.

relume run examples/scripts/keras_digits.py [FILE]
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from sklearn.datasets import load_digits

keras.utils.set_random_seed(0)
torch.set_num_threads(1)
digits = load_digits()
x, y = digits.images[..., None].astype("float32") / 16, digits.target
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(48),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
history = model.fit(x, y, batch_size=32, epochs=3, validation_split=0.2, verbose=0)
print(f"loss {history.history['loss'][-1]:.6f}, right {history.history['val_accuracy'][-1]:.4f}")
if len(sys.argv) > 1:
    torch.save([torch.tensor(w) for w in model.get_weights()], sys.argv[1])
