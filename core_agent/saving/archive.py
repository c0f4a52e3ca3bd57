"""Nested dicts, lists, numbers, strings and arrays in one file, from which no code is ever read.

An archive is an uncompressed zip: ``tree.json`` holds the values, with the arrays beside it in
NumPy's own format.
"""

from __future__ import annotations

import json
import zipfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

TREE_ENTRY = "tree.json"
_ARRAY, _SCALAR = "__array__", "__scalar__"


class DamagedFileError(ValueError):
    """A file that does not hold what it should."""


class Chunks(NamedTuple):
    """Arrays that are written as one, joined along their first axis, without a copy in memory."""

    arrays: Sequence[np.ndarray]


def _encode(value: Any, arrays: list[np.ndarray | Chunks]) -> Any:
    """``value`` as JSON knows it, its arrays moved to ``arrays``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {_SCALAR: [value.dtype.name, value.item()]}
    if isinstance(value, Chunks) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
        arrays.append(value)
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, (list, tuple, deque)):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, dict) and all(isinstance(k, str) and k[:2] != "__" for k in value):
        return {key: _encode(item, arrays) for key, item in value.items()}
    raise TypeError(f"only plain values can be archived, got {type(value).__name__}")


def _decode(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return arrays[value[_ARRAY]]
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


def write_archive(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree of plain values.

    :param path: file, written over
    :param tree: dicts with string keys, lists, tuples and deques (read back as lists), numbers,
        strings, ``None``, arrays and :class:`Chunks`
    :raises TypeError: for any other value
    """
    arrays: list[np.ndarray | Chunks] = []
    text = json.dumps(_encode(tree, arrays))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(TREE_ENTRY, text)
        for index, array in enumerate(arrays):
            with archive.open(f"{index}.npy", "w", force_zip64=True) as entry:
                _write_array(entry, array.arrays if isinstance(array, Chunks) else [array])


def _write_array(entry: IO[bytes], chunks: Sequence[np.ndarray]) -> None:
    first = chunks[0]
    shape = first.shape and (sum(len(chunk) for chunk in chunks), *first.shape[1:])
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_2_0(entry, header)
    for chunk in chunks:
        entry.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)


def read_archive(path: Path) -> dict[str, Any]:
    """Read what :func:`write_archive` wrote; tuples and deques come back as lists.

    :param path: file
    :raises DamagedFileError: if it is anything else
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise DamagedFileError("its entries are compressed, which archives never are")
            n_arrays = len(archive.namelist()) - 1
            arrays = [_read_array(archive, f"{index}.npy") for index in range(n_arrays)]
            tree = _decode(json.loads(archive.read(TREE_ENTRY)), arrays)
    except OSError:
        raise
    except Exception as error:
        raise DamagedFileError(f"{path} is damaged or no archive ({error})") from error
    if not isinstance(tree, dict):
        raise DamagedFileError(f"{path} is no archive: it holds a {type(tree).__name__}")
    return tree


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array whose header and size agree, so that nothing large is made for a small file."""
    with archive.open(name) as entry:
        np.lib.format.read_magic(entry)
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(entry)
        expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
        content = entry.read()
    if fortran_order or dtype.hasobject or expected != len(content):
        raise DamagedFileError(f"{name} does not hold what its header says")
    # A writable copy: what is read goes on to change.
    return np.frombuffer(bytearray(content), dtype).reshape(shape)
