"""Loading files without running code in them.

A model file of Stable-Baselines3 holds pickled objects, and unpickling can call anything. The
restricted unpickler here knows the names that a model of this package needs, such as spaces,
arrays, schedules and noise, and refuses all others; it calls only a few of them. An archive that
would unpack to much more than its own size is refused before it is unpacked.
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import pickle
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import BuiltinFunctionType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np
import torch
from gymnasium import spaces
from numpy.random import bit_generator
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import open_path

from core_agent.replay.episode import Episode

ALLOWED: dict[str, set[str]] = {
    "collections": {"OrderedDict", "deque"},
    "core_agent.agents.collection": {"Progress"},
    "numpy": {"dtype", "float32", "float64", "int64", "uint8", "bool"},
    "numpy._core.multiarray": {"scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.random._pcg64": {"PCG64"},
    "numpy.random._pickle": {"__bit_generator_ctor", "__generator_ctor"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "rl_zoo3.utils": {"SimpleLinearSchedule"},
    "stable_baselines3.common.type_aliases": {"TrainFreq", "TrainFrequencyUnit"},
    "stable_baselines3.common.utils": {"ConstantSchedule", "FloatSchedule", "LinearSchedule"},
    "torch": {"device", "Size"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"},
}
"""Names that loading may look up, by module, and call. None of them runs code from the file."""

STAND_INS: dict[str, Any] = {
    # What protocol 2 writes for bytes; other encodings take long.
    "_codecs.encode": lambda text, _: text.encode("latin1"),
    # An array is created empty; its size then follows from its content. If the class were called,
    # the file could ask for any size. The same holds for the pool of a SeedSequence.
    "numpy.ndarray": "ndarray",
    "numpy._core.multiarray._reconstruct": lambda *_: np.empty(0),
    "numpy.random.bit_generator.SeedSequence": "SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": lambda _, *rest: (
        bit_generator.__pyx_unpickle_SeedSequence(np.random.SeedSequence, *rest)  # type: ignore[attr-defined]
    ),
}
"""Replacements for names that could do harm if they were called with unusual arguments."""

LOADED_BASES = (BasePolicy, BaseBuffer, Episode, ActionNoise, spaces.Space)
"""Subclasses of these are allowed if their module has already been imported. They are not called;
an object is created without its constructor and given its state, because a constructor could be
asked for any amount of memory."""

SHARED = (type, Enum, FunctionType, BuiltinFunctionType, ModuleType)
"""What the process shares, and no file may therefore change."""

MAX_EXPANSION = 10
"""How many times its own size an archive may unpack to. Stable-Baselines3 and PyTorch store
without compressing; weights that someone has compressed hardly get smaller."""


class UnsafeFileError(ValueError):
    """A file asks for something that loading does not allow, or is not what it should be."""


_PythonUnpickler: Any = pickle._Unpickler


class RestrictedUnpickler(_PythonUnpickler):
    """Unpickles what a model needs and refuses the rest.

    It extends Python's own implementation of ``pickle``, not the one in C: Python's asks
    :meth:`load_reduce` before it calls anything, and allocates no memory for content that a damaged
    file only announces.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._callable: set[int] = set()

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # As NumPy 1 has it.
        known = getattr(sys.modules.get(module), name, None)
        if f"{module}.{name}" in STAND_INS:
            known = STAND_INS[f"{module}.{name}"]
            self._callable.add(id(known))
        elif name in ALLOWED.get(module, ()):
            known = super().find_class(module, name)
            self._callable.add(id(known))
        elif not (isinstance(known, type) and issubclass(known, LOADED_BASES)):
            raise UnsafeFileError(f"it asks for {module}.{name}")
        return known

    def load_reduce(self) -> None:
        if id(function := self.stack[-2]) not in self._callable:
            raise UnsafeFileError(f"it calls {getattr(function, '__name__', function)}")
        super().load_reduce()

    def load_build(self) -> None:
        if isinstance(self.stack[-2], SHARED):
            raise UnsafeFileError(f"it changes {self.stack[-2]!r}")
        super().load_build()

    def _instantiate(self, cls: Any, arguments: Any) -> None:
        raise UnsafeFileError(f"it calls {cls!r}")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


RESTRICTED_PICKLE = SimpleNamespace(
    Unpickler=RestrictedUnpickler,
    load=lambda file, **kwargs: RestrictedUnpickler(file, **kwargs).load(),
    __name__="restricted_pickle",
)
"""In place of the ``pickle`` module, for ``torch.load``."""


def loads_safely(value: Any) -> bool:
    """Whether ``value``, once saved, can be loaded without ``trusted=True``."""
    try:
        RestrictedUnpickler(io.BytesIO(cloudpickle.dumps(value))).load()
    except UnsafeFileError:
        return False
    return True


# ---- files ----


@contextmanager
def reading(path: Any, what: str) -> Iterator[None]:
    """Turn every exception raised inside into one kind of error, which names the file.

    :param path: the file that is read
    :param what: what the file should be, for example ``"a saved model"``
    :raises UnsafeFileError: for any exception raised inside
    """
    name = repr(str(path)) if isinstance(path, (str, pathlib.Path)) else f"an open file {path!r}"
    rule = f"path must be {what}, got {name}"
    try:
        yield
    except UnsafeFileError as error:
        way_out = "pass trusted=True if you know where the file comes from"
        raise UnsafeFileError(f"{rule}: {error}; {way_out}") from error.__cause__
    except Exception as error:
        found = str(error) if isinstance(error, ValueError) else repr(error)
        reason = "the file is damaged, or another version of the package wrote it"
        raise UnsafeFileError(f"{rule}: {found}; {reason}") from error


@contextmanager
def opened(path: str | pathlib.Path | io.BufferedIOBase, suffix: str) -> Iterator[Any]:
    """The file, open for reading from its start; closed afterwards unless the caller opened it.

    :raises FileNotFoundError: if there is none
    """
    file = open_path(path, "r", suffix=suffix)
    try:
        file.seek(0)
        yield file
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)


def check_archive(file: Any) -> list[str]:
    """The names of the entries of a zip archive that is safe to unpack.

    :param file: binary, open
    :raises UnsafeFileError: if it unpacks to more than ``MAX_EXPANSION`` times its size, an entry's
        name leads out of the archive or occurs twice, or it holds TorchScript, which is code
    :raises zipfile.BadZipFile: if it is not a zip archive
    """
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_EXPANSION * size:
        raise UnsafeFileError(
            f"its entries unpack to {unpacked} bytes, more than {MAX_EXPANSION} times the "
            f"{size} bytes of the file"
        )
    names = [entry.filename for entry in entries]
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise UnsafeFileError(f"its entry {name!r} leads out of the file")
        if name.split("/")[-1] == "constants.pkl":
            raise UnsafeFileError(f"its entry {name!r} is TorchScript, which is code")
    if len(set(names)) < len(names):
        raise UnsafeFileError("it has two entries of the same name")
    file.seek(0)
    return names


# ---- model files ----


class SavedModel(NamedTuple):
    """The content of a model file."""

    data: dict[str, Any]
    """Attributes of the model by name, without those that the caller replaces."""
    replaced: dict[str, Any]
    """What the caller replaces them by."""
    parameters: dict[str, Any]
    """State dicts of networks and optimisers by name, on the CPU."""


def read_model(file: Any, data: dict[str, Any], replaced: dict[str, Any]) -> SavedModel:
    """Read a model file without running what is in it.

    :param file: binary, open
    :param data: what :func:`read_json` read of it
    :param replaced: entries that the caller replaces; they are not unpickled
    :raises UnsafeFileError: for anything that a saved model does not hold
    """
    replaced = {key: value for key, value in replaced.items() if key in data}
    data = {key: item for key, item in data.items() if key not in replaced}
    for key, item in sorted(data.items()):
        if isinstance(item, dict) and ":serialized:" in item:
            data[key] = _unpickle(key, item[":serialized:"])
    return SavedModel(data, replaced, read_parameters(file))


def read_data(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """The ``data`` entry of a model file; pickled values in it are not unpickled.

    :param path: a file as ``load`` takes it, by name or open
    :raises UnsafeFileError: for a file that is not a saved model
    """
    with opened(path, "zip") as file, reading(path, "a saved model"):
        return read_json(file)


def read_parameters(file: Any) -> dict[str, Any]:
    """The state dicts of a model file by name, on the CPU.

    :param file: binary, open
    :raises UnsafeFileError: for anything that a saved model does not hold
    """
    names = [name for name in check_archive(file) if name.endswith(".pth")]
    with zipfile.ZipFile(file) as archive:
        found = {name[:-4]: _read_tensors(name, archive.read(name)) for name in names}
    if found.pop("pytorch_variables", None):
        raise UnsafeFileError("its entry 'pytorch_variables.pth' is not empty")
    return found


def read_json(file: Any) -> dict[str, Any]:
    """The ``data`` entry of a model file; pickled values in it are not unpickled.

    :param file: binary, open
    :raises UnsafeFileError: for a file that is not safe to unpack
    :raises ValueError: for a file without such an entry
    """
    if "data" not in check_archive(file):
        raise ValueError("it has no entry 'data'")
    with zipfile.ZipFile(file) as archive:
        saved = json.loads(archive.read("data"))
    if not isinstance(saved, dict):
        raise ValueError(f"its entry 'data' is a {type(saved).__name__}, not an object")
    return saved


def _unpickle(key: str, serialized: Any) -> Any:
    way_out = f"pass custom_objects={{{key!r}: ...}} to replace it"
    try:
        return RestrictedUnpickler(io.BytesIO(base64.b64decode(serialized, validate=True))).load()
    except UnsafeFileError as error:
        raise UnsafeFileError(f"entry {key!r} was not loaded, as {error}; {way_out}") from None
    except Exception as error:
        raise UnsafeFileError(f"entry {key!r} is damaged ({error!r}); {way_out}") from error


def _read_tensors(name: str, content: bytes) -> Any:
    """What ``torch.save`` wrote into an entry: tensors in containers, on the CPU."""
    try:
        check_archive(io.BytesIO(content))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"entry {name!r} was not loaded: {error}") from None
    except Exception as error:
        reason = textwrap.shorten(str(error), 100)
        raise UnsafeFileError(f"entry {name!r} cannot be read ({reason})") from error
