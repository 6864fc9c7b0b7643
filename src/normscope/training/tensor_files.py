"""Weights and checkpoints on disk: safetensors files that say of themselves whether they are whole.

The header's metadata is one text, `run`: a JSON object with what the file is about and `sha256`, that of all bytes of
the file with zeros in its own place. Files from before there were checksums have none, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from normscope.results import read_bytes

_ZEROS = "0" * 64

_LARGEST_HEADER = 2**26


def encoded_tensors(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The file that holds these tensors and, in plain values, what they are about; with its checksum."""
    content = save_tensors(tensors, {"run": json.dumps({**about, "sha256": _ZEROS})})
    return _with_digest(content, _ZEROS, hashlib.sha256(content).hexdigest())


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what the file says that they are about: nothing in older files of weights.

    Raises:
        Exception: of any type, where it cannot be read or its checksum differs.
    """
    content = read_bytes(path)
    about = _checked(content)
    return load_tensors(content), about


def _checked(content: bytes) -> dict[str, Any]:
    """What the file is about, its checksum compared."""
    length = int.from_bytes(content[:8], "little")
    if length > min(len(content), _LARGEST_HEADER):
        raise ValueError("its end is missing")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if not metadata:
        return {}
    about = json.loads(metadata["run"])
    digest = about.pop("sha256", None)
    if digest is not None and hashlib.sha256(_with_digest(content, digest, _ZEROS)).hexdigest() != digest:
        raise ValueError("its checksum differs")
    return about


def _with_digest(content: bytes, old: str, new: str) -> bytes:
    """With another checksum in its place, which is a text in JSON in a text in JSON."""
    place = rb"\"sha256\": \"%b\""
    return content.replace(place % old.encode(), place % new.encode(), 1)
