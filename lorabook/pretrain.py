"""Base models that are made rather than fetched: `mlp-digits`, trained on upright digits in under a second."""

import numpy as np
from threadpoolctl import threadpool_limits

from .data import Batches
from .models import MLP
from .optim import AdamW
from .train import train


def pretrained_mlp(task, hidden=(128, 128), epochs=30, lr=3e-3, batch_size=64, seed=0):
    """An MLP trained on every parameter with AdamW and a cosine schedule; the same arguments give the same bits."""
    model = MLP((task.x_train.shape[1], *hidden, task.classes), rng=np.random.default_rng(seed))
    with threadpool_limits(1):  # small matrices gain nothing from a second thread, and the bits depend on their number
        train(model, Batches(task.x_train, task.y_train, batch_size, seed), AdamW(lr), epochs=epochs, seed=seed)
    return model
