"""Loading files without running what is in them.

A model file of Stable-Baselines3 holds pickled objects, and unpickling can call anything. Here a
restricted unpickler reads them: it knows the names that a model of this package needs, spaces,
arrays, schedules, noise and the like, and refuses every other.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pathlib
import pickle
import sys
import zipfile
from types import SimpleNamespace
from typing import Any

import cloudpickle
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import open_path

_SB3 = "stable_baselines3.common"
ALLOWED: dict[str, frozenset[str]] = {
    # What protocol 2 writes for bytes.
    "_codecs": frozenset({"encode"}),
    "builtins": frozenset({"set", "frozenset", "slice", "complex", "range"}),
    "collections": frozenset({"OrderedDict", "deque"}),
    "core_agent.buffers": frozenset({"Episode", "SequenceReplayBuffer"}),
    "core_agent.curl": frozenset({"CURLPolicy"}),
    "core_agent.policies": frozenset({"RecurrentPolicy"}),
    "core_agent.qt_opt_rad": frozenset({"QTOptPolicy"}),
    "core_agent.sac_rad": frozenset({"SACRADPolicy"}),
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

LOADED_BASES: tuple[type, ...] = (BasePolicy, BaseBuffer, ActionNoise)
"""Subclasses of these are let in as well, where their module has been imported already."""


class UnsafeFileError(ValueError):
    """A file asks for something that loading does not allow."""


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles what a model needs and refuses the rest."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        known = getattr(sys.modules.get(module), name, None)
        if isinstance(known, type) and issubclass(known, LOADED_BASES):
            return known
        raise UnsafeFileError(f"it asks for {module}.{name}")


RESTRICTED_PICKLE = SimpleNamespace(
    Unpickler=RestrictedUnpickler,
    load=lambda file, **kwargs: RestrictedUnpickler(file, **kwargs).load(),
    __name__="restricted_pickle",
)
"""In place of the ``pickle`` module, for ``torch.load``."""


def restricted_load(file: Any, what: str, way_out: str) -> Any:
    """Unpickle from an open file.

    :param file: binary
    :param what: named in the error, for example ``"replay buffer"``
    :param way_out: ends the error
    :raises UnsafeFileError: for a name that is not allowed, or for anything that is no pickle
    """
    try:
        return RestrictedUnpickler(file).load()
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{what} was not loaded, as {error}; {way_out}") from None
    except Exception as error:
        raise UnsafeFileError(f"{what} cannot be read: {error!r}; {way_out}") from error


def read_data(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """The ``data`` entry of a model file, what is pickled in it left as it is.

    :param path: what ``load`` takes
    :raises UnsafeFileError: for a file that is no saved model
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            if "data" not in archive.namelist():
                raise UnsafeFileError(
                    f"path must be a saved model, got {path!r}; the file has no entry 'data'"
                )
            return json.loads(archive.read("data"))
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnsafeFileError(
            f"path must be a saved model, got {path!r}; the file is damaged ({error})"
        ) from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)


def safe_data(path: str | pathlib.Path | io.BufferedIOBase, replaced: set[str]) -> dict[str, Any]:
    """The pickled entries of a model file, for SB3's ``custom_objects``: it unpickles none then.

    :param path: what ``load`` takes
    :param replaced: entries that the caller replaces, which are not read
    :raises UnsafeFileError: for an entry that asks for a name that is not allowed
    """
    objects = {}
    for key, item in read_data(path).items():
        if not (isinstance(item, dict) and ":serialized:" in item) or key in replaced:
            continue
        way_out = (
            f"pass custom_objects={{{key!r}: ...}} to replace it, or trusted=True if you know "
            "where the file comes from"
        )
        try:
            content = base64.b64decode(item[":serialized:"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise UnsafeFileError(f"entry {key!r} is damaged ({error}); {way_out}") from error
        objects[key] = restricted_load(io.BytesIO(content), f"entry {key!r}", way_out)
    return objects


def loads_safely(value: Any) -> bool:
    """Whether ``value``, once saved, can be loaded without ``trusted=True``."""
    try:
        RestrictedUnpickler(io.BytesIO(cloudpickle.dumps(value))).load()
    except UnsafeFileError:
        return False
    return True
