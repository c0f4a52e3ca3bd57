"""Nested dicts, lists, numbers, strings and arrays in one file; reading it never runs code.

An archive is an uncompressed npz file of NumPy: the arrays are numbered entries, everything else is
JSON in the entry ``tree``.
"""

from __future__ import annotations

import json
import zipfile
from collections import deque
from typing import IO, Any

import numpy as np

from core_agent.saving.safe_loading import check_archive

Tree = dict[str, Any]
TREE_ENTRY = "tree"
_ARRAY, _SCALAR = "__array__", "__scalar__"


class DamagedFileError(ValueError):
    """A file that does not hold what it should."""


def _encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """``value`` as JSON knows it, its arrays moved to ``arrays``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {_SCALAR: [value.dtype.name, value.item()]}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        arrays.append(value)
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, (list, tuple, deque)):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, dict) and all(isinstance(k, str) and k[:2] != "__" for k in value):
        return {key: _encode(item, arrays) for key, item in value.items()}
    raise TypeError(f"only plain values can be archived, got {type(value).__name__}")


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        # Each array is used only once; otherwise a small file could expand into many copies.
        return arrays.pop(str(value[_ARRAY]))
    if _SCALAR in value:
        name, number = value[_SCALAR]
        return np.dtype(name).type(number)
    return {key: _decode(item, arrays) for key, item in value.items()}


def is_plain(value: Any) -> bool:
    """Whether :func:`write_archive` can take ``value``."""
    try:
        _encode(value, [])
    except TypeError:
        return False
    return True


def write_archive(file: IO[bytes], tree: Tree) -> None:
    """Write a tree of plain values.

    :param file: binary, open
    :param tree: dicts with string keys, lists, tuples and deques (read back as lists), numbers,
        strings, ``None`` and arrays
    :raises TypeError: for any other value
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_encode(tree, arrays)).encode()
    entries = {str(index): array for index, array in enumerate(arrays)}
    np.savez(file, **{TREE_ENTRY: np.frombuffer(text, np.uint8)}, **entries)  # type: ignore[arg-type]


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as entry:
        return np.lib.format.read_array(entry, allow_pickle=False)


def read_archive(file: IO[bytes]) -> Tree:
    """The tree that :func:`write_archive` wrote; tuples and deques come back as lists.

    :param file: binary, open
    :raises DamagedFileError: if it holds anything else
    """
    try:
        names = check_archive(file)
        with zipfile.ZipFile(file) as archive:
            arrays = {name.removesuffix(".npy"): _read_array(archive, name) for name in names}
        tree = _decode(json.loads(arrays.pop(TREE_ENTRY).tobytes()), arrays)
    except Exception as error:
        raise DamagedFileError(f"it is damaged or no archive ({error})") from error
    if not isinstance(tree, dict):
        raise DamagedFileError(f"it is no archive: it holds a {type(tree).__name__}")
    return tree
