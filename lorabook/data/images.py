"""Handwritten digits, upright or shifted: real images, pretrained upright and adapted to a shift."""

import numpy as np

from ..errors import InputError
from .tabular import NumberTask


def _rotate(images, degrees):
    from scipy import ndimage

    return ndimage.rotate(images, degrees, axes=(1, 2), reshape=False, order=1)


def _permute(images):
    order = np.random.default_rng(0).permutation(64)
    return images.reshape(-1, 64)[:, order].reshape(-1, 8, 8)


SHIFTS = {
    "digits": ("upright, as scanned", lambda images: images),
    "digits-rotated": ("turned by 90 degrees", lambda images: np.rot90(images, axes=(1, 2))),
    "digits-tilted": ("turned by 45 degrees, interpolated", lambda images: _rotate(images, 45)),
    "digits-mirrored": ("left and right exchanged", lambda images: images[:, :, ::-1]),
    "digits-permuted": ("the 64 pixels in one fixed random order", _permute),
}


def digits(name="digits", seed=0, test_share=1 / 3):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 grey values in 0 .. 1, under one of SHIFTS.

    The same seed gives the same stratified split for every shift, so no test digit is seen in pretraining either.
    """
    if name not in SHIFTS:
        raise InputError(
            f"unknown data {name!r}; expected one of {', '.join(SHIFTS)}, or the path of a .csv, .tsv or .jsonl file"
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = SHIFTS[name][1](images.reshape(-1, 8, 8) / 16)
    x = np.ascontiguousarray(images.reshape(-1, 64), dtype=np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        x, labels.astype(np.int64), test_size=test_share, random_state=seed, stratify=labels
    )
    return NumberTask(name, x_train, y_train, x_test, y_test)
