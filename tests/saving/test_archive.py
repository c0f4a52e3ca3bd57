"""Plain values survive a file, and nothing else gets in or out."""

from __future__ import annotations

import io
import json
import zipfile
from collections import deque

import numpy as np
import pytest

from core_agent.saving.archive import DamagedFileError, is_plain, read_archive, write_archive

TREE = {
    "number": 1.1,
    "huge": 2**127 + 1,
    "nothing": None,
    "flag": True,
    "text": "Ω",
    "nan": float("inf"),
    "nested": {"list": [1, [2.5, "x"]], "array": np.arange(6, dtype=np.uint8).reshape(2, 3)},
    "scalar": np.float32(0.1),
    "none long": np.zeros((0, 3), np.float32),
    "point": np.array(2.5),
}


def written(tree) -> io.BytesIO:
    file = io.BytesIO()
    write_archive(file, tree)
    return file


def test_values_survive():
    tree = read_archive(written(TREE))
    assert tree.keys() == TREE.keys()
    for key in ("number", "huge", "nothing", "flag", "text", "nan"):
        assert tree[key] == TREE[key] and type(tree[key]) is type(TREE[key])
    assert tree["nested"]["list"] == [1, [2.5, "x"]]
    np.testing.assert_array_equal(tree["nested"]["array"], TREE["nested"]["array"])
    assert tree["nested"]["array"].dtype == np.uint8
    assert type(tree["scalar"]) is np.float32 and tree["scalar"] == np.float32(0.1)
    assert tree["none long"].shape == (0, 3)
    assert tree["point"].shape == () and tree["point"] == 2.5
    tree["nested"]["array"][0] = 1  # It can be changed.


def test_tuples_and_deques_come_back_as_lists():
    tree = {"tuple": (1, 2), "deque": deque([3], maxlen=1)}
    assert read_archive(written(tree)) == {"tuple": [1, 2], "deque": [3]}


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {"__array__": 0}, np.array([object()]), [lambda: 0], {"a": set()}]
)
def test_other_values_are_refused(value):
    assert not is_plain(value)
    with pytest.raises(TypeError, match="only plain values can be archived"):
        write_archive(io.BytesIO(), {"value": value})


def changed(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    with zipfile.ZipFile(written({"x": np.zeros(3)})) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in {**content, **entries}.items():
            archive.writestr(name, data)
    return file


def npy(array, **kwargs) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


def tree(text: bytes) -> bytes:
    return npy(np.frombuffer(text, np.uint8))


def header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "entries",
    [
        {"0.npy": header((2**60,)) + b"\0" * 8},
        {"0.npy": header((2,)) + b"\0" * 8},
        {"0.npy": npy(np.array([{}], dtype=object), allow_pickle=True)},
        {"0.npy": b"not an array"},
        {"tree.npy": tree(b"{")},
        {"tree.npy": tree(b"[1]")},
        {"tree.npy": tree(json.dumps({"x": {"__array__": 7}}).encode())},
        {"tree.npy": tree(json.dumps([{"__array__": 0}] * 2).encode())},
        {"tree.npy": tree(json.dumps({"x": {"__scalar__": ["O"]}}).encode())},
    ],
)
def test_damage_and_forgery_are_reported(entries):
    with pytest.raises(DamagedFileError, match="archive"):
        read_archive(changed(entries))


def test_a_bomb_is_refused_before_it_is_unpacked():
    bomb = changed({"0.npy": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedFileError, match="its entries unpack to 50"):
        read_archive(bomb)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04"])
def test_any_other_file_is_reported(content):
    with pytest.raises(DamagedFileError, match="damaged or no archive"):
        read_archive(io.BytesIO(content))
