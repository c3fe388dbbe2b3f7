"""Checkpoints: one safetensors file with a checksum over everything in it."""

import json

from ..errors import FormatError
from .configs import parse_json, short
from .safetensors import fingerprint, read_safetensors, write_safetensors


def write_checkpoint(path, arrays, state):
    """Write arrays and a JSON-able `state` as one verified safetensors file, atomically; same content, same bytes."""
    text = json.dumps(state, sort_keys=True, allow_nan=False)
    write_safetensors(path, arrays, {"lorabook": f"{fingerprint(arrays, text)} {text}"})


def read_checkpoint(path):
    """(arrays, state) of `write_checkpoint`. Raises FormatError if a single bit differs from what was written."""
    arrays, metadata = read_safetensors(path, finite=False)  # what training keeps may be any number
    if list(metadata) != ["lorabook"]:
        raise FormatError(
            f"{path} is no lorabook checkpoint: expected lorabook in its metadata, got {sorted(metadata)}"
        )
    sha256, _, text = metadata["lorabook"].partition(" ")
    if fingerprint(arrays, text) != sha256:
        raise FormatError(f"{path} is damaged: its content does not match its sha256. Restore a copy, or start over")
    try:
        state = parse_json(text)
    except ValueError as error:
        raise FormatError(f"{path}: its state is not JSON: {short(error)}") from None
    if not isinstance(state, dict):
        raise FormatError(f"{path}: expected its state to be a JSON object; got {short(state)}")
    return arrays, state
