"""Loading files without running what is in them.

A model file of Stable-Baselines3 holds pickled objects, and unpickling can call anything. Here a
restricted unpickler reads them: it knows the names that a model of this package needs, spaces,
arrays, schedules, noise and the like, and refuses every other; of those it calls only the few that
a pickle of such an object calls. Archives are refused before they are unpacked if they unpack to
far more than they are.
"""

from __future__ import annotations

import base64
import binascii
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
import torch
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import open_path

_SB3 = "stable_baselines3.common"
ALLOWED: dict[str, frozenset[str]] = {
    # What protocol 2 writes for bytes.
    "_codecs": frozenset({"encode"}),
    "builtins": frozenset({"set", "frozenset", "slice", "complex"}),
    "collections": frozenset({"OrderedDict", "deque"}),
    "core_agent.replay.buffer": frozenset({"SequenceReplayBuffer"}),
    "core_agent.replay.episode": frozenset({"Episode"}),
    "core_agent.agents.curl": frozenset({"CURLPolicy"}),
    "core_agent.agents.latent": frozenset({"RecurrentPolicy"}),
    "core_agent.agents.qt_opt": frozenset({"QTOptPolicy"}),
    "core_agent.agents.sac_rad": frozenset({"SACRADPolicy"}),
    "gymnasium.spaces.box": frozenset({"Box"}),
    "gymnasium.spaces.dict": frozenset({"Dict"}),
    "gymnasium.spaces.discrete": frozenset({"Discrete"}),
    "gymnasium.spaces.multi_binary": frozenset({"MultiBinary"}),
    "gymnasium.spaces.multi_discrete": frozenset({"MultiDiscrete"}),
    "numpy": frozenset({"dtype", "ndarray", "float32", "float64", "int64", "uint8", "bool"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "numpy.random._pcg64": frozenset({"PCG64"}),
    "numpy.random._pickle": frozenset({"__bit_generator_ctor", "__generator_ctor"}),
    "numpy.random.bit_generator": frozenset({"SeedSequence", "__pyx_unpickle_SeedSequence"}),
    "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath"}),
    f"{_SB3}.noise": frozenset(
        {"NormalActionNoise", "OrnsteinUhlenbeckActionNoise", "VectorizedActionNoise"}
    ),
    f"{_SB3}.type_aliases": frozenset({"TrainFreq", "TrainFrequencyUnit"}),
    f"{_SB3}.utils": frozenset({"ConstantSchedule", "FloatSchedule", "LinearSchedule"}),
    "rl_zoo3.utils": frozenset({"SimpleLinearSchedule"}),
    "torch": frozenset({"device", "Size"}),
    "torch._utils": frozenset({"_rebuild_tensor_v2", "_rebuild_parameter"}),
}
"""Names that loading may look up, by module. None of them runs code that the file brings along."""

CALLED: dict[str, frozenset[str]] = {
    "_codecs": frozenset({"encode"}),
    "builtins": ALLOWED["builtins"],
    "collections": ALLOWED["collections"],
    "numpy": frozenset({"dtype"}),
    "numpy._core.multiarray": ALLOWED["numpy._core.multiarray"],
    "numpy._core.numeric": ALLOWED["numpy._core.numeric"],
    "numpy.core.multiarray": ALLOWED["numpy.core.multiarray"],
    "numpy.core.numeric": ALLOWED["numpy.core.numeric"],
    "numpy.random._pickle": ALLOWED["numpy.random._pickle"],
    "numpy.random.bit_generator": frozenset({"__pyx_unpickle_SeedSequence"}),
    "pathlib": ALLOWED["pathlib"],
    f"{_SB3}.type_aliases": frozenset({"TrainFrequencyUnit"}),
    "torch": ALLOWED["torch"],
    "torch._utils": ALLOWED["torch._utils"],
}
"""Those that loading may call, with arguments out of the file; classes that are not here are made
bare and given their state. A constructor could be asked for any amount of memory."""

USUAL_ARGUMENTS: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "_reconstruct": lambda arguments: arguments[1:2] == ((0,),),
    "encode": lambda arguments: arguments[1:] == ("latin1",),
}
"""What pickles pass to functions that with other arguments take long or much memory."""

SHARED = (type, Enum, FunctionType, BuiltinFunctionType, ModuleType)
"""What a whole process shares, and no file may therefore change."""

MAX_EXPANSION = 10
"""How many times its own size an archive may unpack to. Stable-Baselines3 and PyTorch store
without compressing; weights that someone has compressed hardly get smaller."""

LOADED_BASES: tuple[type, ...] = (BasePolicy, BaseBuffer, ActionNoise)
"""Subclasses of these are let in as well, where their module has been imported already."""


class UnsafeFileError(ValueError):
    """A file asks for something that loading does not allow, or is not what it should be."""


_PythonUnpickler: Any = pickle._Unpickler


class RestrictedUnpickler(_PythonUnpickler):
    """Unpickles what a model needs and refuses the rest.

    Python's own implementation, not that in C: it asks :meth:`load_reduce` before it calls
    anything, and takes no memory for what a damaged file merely announces.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: dict[int, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = getattr(sys.modules.get(module), name, None)
        if name in ALLOWED.get(module, ()):
            known = super().find_class(module, name)
            if name in CALLED.get(module, ()):
                self._names[id(known)] = name
        elif not (isinstance(known, type) and issubclass(known, LOADED_BASES)):
            raise UnsafeFileError(f"it asks for {module}.{name}")
        return known

    def load_reduce(self) -> None:
        function, arguments = self.stack[-2:]
        name = self._names.get(id(function))
        if name is None or not USUAL_ARGUMENTS.get(name, lambda _: True)(arguments):
            raise UnsafeFileError(f"it calls {getattr(function, '__name__', function)}")
        super().load_reduce()

    def load_newobj(self) -> None:
        self._refuse_arrays(self.stack[-2])
        super().load_newobj()

    def load_newobj_ex(self) -> None:
        self._refuse_arrays(self.stack[-3])
        super().load_newobj_ex()

    def load_build(self) -> None:
        if isinstance(self.stack[-2], SHARED):
            raise UnsafeFileError(f"it changes {self.stack[-2]!r}")
        super().load_build()

    def _instantiate(self, cls: Any, arguments: Any) -> None:
        raise UnsafeFileError(f"it calls {cls!r}")

    @staticmethod
    def _refuse_arrays(cls: Any) -> None:
        """An array made by its class is as large as the file says, without being in it."""
        if getattr(cls, "__module__", None) == "numpy":
            raise UnsafeFileError(f"it calls {cls!r}")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


RESTRICTED_PICKLE = SimpleNamespace(
    Unpickler=RestrictedUnpickler,
    load=lambda file, **kwargs: RestrictedUnpickler(file, **kwargs).load(),
    __name__="restricted_pickle",
)
"""In place of the ``pickle`` module, for ``torch.load``."""


class SavedModel(NamedTuple):
    """What a model file holds."""

    data: dict[str, Any]
    """Attributes of the model by name, less those that the caller replaces."""
    pickled: frozenset[str]
    """Those that are pickled in the file."""
    parameters: dict[str, Any]
    """State dicts of networks and optimisers by name, on the CPU."""


@contextmanager
def reading(path: Any, what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one kind of error, which names the file.

    :param path: the file that is read
    :param what: it should be, for example ``"a saved model"``
    :raises UnsafeFileError: from whatever was raised
    """
    name = repr(str(path)) if isinstance(path, (str, pathlib.Path)) else f"an open file {path!r}"
    rule = f"path must be {what}, got {name}"
    try:
        yield
    except UnsafeFileError as error:
        way_out = "pass trusted=True if you know where the file comes from"
        raise UnsafeFileError(f"{rule}: {error}; {way_out}") from error.__cause__
    except ValueError as error:
        reason = "the file is damaged, or another version of the package wrote it"
        raise UnsafeFileError(f"{rule}: {error}; {reason}") from error
    except Exception as error:
        raise UnsafeFileError(f"{rule}: the file is damaged ({error!r})") from error


@contextmanager
def opened(path: str | pathlib.Path | io.BufferedIOBase, suffix: str) -> Iterator[Any]:
    """The file to read from the beginning; closed again unless the caller had it open.

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


def restricted_load(file: Any, what: str) -> Any:
    """Unpickle from an open file.

    :param file: binary
    :param what: named in the error, for example ``"the replay buffer"``
    :raises UnsafeFileError: for a name that is not allowed, or for anything that is no pickle
    """
    try:
        return RestrictedUnpickler(file).load()
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{what} was not loaded, as {error}") from None
    except Exception as error:
        raise UnsafeFileError(f"{what} cannot be read ({error!r})") from error


def check_archive(file: Any) -> list[str]:
    """The names of the entries of a zip archive that is safe to unpack.

    :param file: binary, open
    :raises UnsafeFileError: if it unpacks to more than ``MAX_EXPANSION`` times its size, has a name
        that leads elsewhere or a name twice, or holds TorchScript, which is code
    :raises zipfile.BadZipFile: if it is no zip archive
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


def read_entries(file: Any) -> dict[str, bytes]:
    """The entries of a zip archive by name.

    :param file: binary, open
    :raises UnsafeFileError: see :func:`check_archive`
    """
    names = check_archive(file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in names}


def read_parameters(file: Any) -> dict[str, Any]:
    """The state dicts of a model file by name, on the CPU.

    :param file: binary, open
    :raises UnsafeFileError: for anything that a saved model does not hold
    """
    return _tensors_in(read_entries(file))


def _tensors_in(entries: dict[str, bytes]) -> dict[str, Any]:
    parameters = {
        name.removesuffix(".pth"): read_tensors(name, content)
        for name, content in entries.items()
        if name.endswith(".pth")
    }
    if parameters.pop("pytorch_variables", None):
        raise UnsafeFileError("its entry 'pytorch_variables.pth' is not empty")
    return parameters


def read_model(file: Any, replaced: dict[str, Any]) -> SavedModel:
    """Read a model file without running what is in it.

    :param file: binary, open
    :param replaced: entries that the caller replaces; they are not read
    :raises UnsafeFileError: for anything that a saved model does not hold
    """
    entries = read_entries(file)
    saved = _data_in(entries)
    data, pickled = {}, set()
    for key, item in saved.items():
        if key in replaced:
            continue
        if isinstance(item, dict) and ":serialized:" in item:
            data[key] = _unpickle_entry(key, item)
            pickled.add(key)
        else:
            data[key] = item
    return SavedModel(data, frozenset(pickled), _tensors_in(entries))


def read_data(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """The ``data`` entry of a model file, what is pickled in it left as it is.

    :param path: what ``load`` takes
    :raises UnsafeFileError: for a file that is no saved model
    """
    with opened(path, "zip") as file, reading(path, "a saved model"):
        return _data_in(read_entries(file))


def _data_in(entries: dict[str, bytes]) -> dict[str, Any]:
    if "data" not in entries:
        raise UnsafeFileError("the file has no entry 'data'")
    saved = json.loads(entries["data"])
    if not isinstance(saved, dict):
        raise UnsafeFileError(f"its entry 'data' is a {type(saved).__name__}, not an object")
    return saved


def _unpickle_entry(key: str, item: dict[str, Any]) -> Any:
    name = f"entry {key!r}"
    try:
        content = base64.b64decode(item[":serialized:"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UnsafeFileError(f"{name} is damaged ({error})") from error
    try:
        return restricted_load(io.BytesIO(content), name)
    except UnsafeFileError as error:
        way_out = f"pass custom_objects={{{key!r}: ...}} to replace it"
        raise UnsafeFileError(f"{error}; {way_out}") from error.__cause__


def read_tensors(name: str, content: bytes) -> Any:
    """What ``torch.save`` wrote into an entry: tensors in containers, on the CPU.

    :raises UnsafeFileError: for anything else
    """
    try:
        check_archive(io.BytesIO(content))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"entry {name!r} was not loaded: {error}") from None
    except Exception as error:
        reason = textwrap.shorten(str(error), 100)
        raise UnsafeFileError(f"entry {name!r} cannot be read ({reason})") from error


def loads_safely(value: Any) -> bool:
    """Whether ``value``, once saved, can be loaded without ``trusted=True``."""
    try:
        RestrictedUnpickler(io.BytesIO(cloudpickle.dumps(value))).load()
    except UnsafeFileError:
        return False
    return True
