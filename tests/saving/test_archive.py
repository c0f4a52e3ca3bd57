"""Plain values survive a file, and nothing else gets in or out."""

from __future__ import annotations

import io
import json
import zipfile
from collections import deque

import numpy as np
import pytest

from core_agent.saving.archive import (
    Chunks,
    DamagedFileError,
    is_plain,
    read_archive,
    write_archive,
)

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


def test_values_survive(tmp_path):
    write_archive(tmp_path / "a.zip", TREE)
    tree = read_archive(tmp_path / "a.zip")
    assert tree.keys() == TREE.keys()
    for key in ("number", "huge", "nothing", "flag", "text", "nan"):
        assert tree[key] == TREE[key] and type(tree[key]) is type(TREE[key])
    assert tree["nested"]["list"] == [1, [2.5, "x"]]
    np.testing.assert_array_equal(tree["nested"]["array"], TREE["nested"]["array"])
    assert tree["nested"]["array"].dtype == np.uint8
    assert type(tree["scalar"]) is np.float32 and tree["scalar"] == np.float32(0.1)
    assert tree["none long"].shape == (0, 3)
    assert tree["point"].shape == () and tree["point"] == 2.5


def test_arrays_that_come_back_can_be_changed(tmp_path):
    write_archive(tmp_path / "a.zip", {"array": np.zeros(3)})
    read_archive(tmp_path / "a.zip")["array"][0] = 1.0


def test_chunks_come_back_as_one_array(tmp_path):
    chunks = Chunks([np.ones((2, 3)), np.zeros((0, 3)), np.full((1, 3), 2.0)[:, ::-1]])
    write_archive(tmp_path / "a.zip", {"chunks": chunks})
    expected = [[1.0] * 3, [1.0] * 3, [2.0] * 3]
    np.testing.assert_array_equal(read_archive(tmp_path / "a.zip")["chunks"], expected)


def test_tuples_and_deques_come_back_as_lists(tmp_path):
    write_archive(tmp_path / "a.zip", {"tuple": (1, 2), "deque": deque([3], maxlen=1)})
    assert read_archive(tmp_path / "a.zip") == {"tuple": [1, 2], "deque": [3]}


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {"__array__": 0}, np.array([object()]), [lambda: 0], {"a": set()}]
)
def test_other_values_are_refused(tmp_path, value):
    assert not is_plain(value)
    with pytest.raises(TypeError, match="only plain values can be archived"):
        write_archive(tmp_path / "a.zip", {"value": value})


def damage(path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**content, **entries}.items():
            archive.writestr(name, data)


def npy(array, **kwargs) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(2, 0), **kwargs)
    return file.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "entries",
    [
        {"0.npy": header((2**40,)) + b"\0" * 8},
        {"0.npy": header((1,)) + b"\0" * 16},
        {"0.npy": npy(np.array([{}], dtype=object), allow_pickle=True)},
        {"0.npy": b"not an array"},
        {"tree.json": b"{"},
        {"tree.json": b"[1]"},
        {"tree.json": json.dumps({"x": {"__array__": 7}}).encode()},
        {"tree.json": json.dumps({"x": {"__scalar__": ["O", 7]}}).encode()[:-3]},
    ],
)
def test_damage_and_forgery_are_told(tmp_path, entries):
    path = tmp_path / "a.zip"
    write_archive(path, {"x": np.zeros(3)})
    damage(path, entries)
    with pytest.raises(DamagedFileError, match=r"a\.zip"):
        read_archive(path)


def test_compressed_entries_are_refused_unread(tmp_path):
    path = tmp_path / "a.zip"
    write_archive(path, {"x": np.zeros(3)})
    damage(path, {"0.npy": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedFileError, match="compressed"):
        read_archive(path)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04"])
def test_what_is_no_archive_is_told(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DamagedFileError, match="damaged or no archive"):
        read_archive(tmp_path / "a.zip")
