"""Files that carry an attack, made from sound ones.

Each attack is a function of a folder with sound files, ``model.zip``, ``replay.npz`` and
``policy.pth``, of which it spoils one. What runs leaves the file ``proof``.
"""

from __future__ import annotations

import base64
import collections
import copy
import importlib
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from gymnasium import spaces

from core_agent import CoRe
from core_agent.agents.latent import RecurrentPolicy
from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.saving.archive import read_archive, write_archive
from core_agent.saving.safe_loading import UnsafeFileError
from tests.fakes import TINY, VECTOR, FakeEnv

BOMB_BYTES = 64 * 2**20
HUGE = 10**7

Attack = Callable[[Path], None]


def save_sound_files(folder: Path) -> CoRe:
    """Write the three files; the model to load the replay buffer into."""
    model = CoRe("CnnPolicy", FakeEnv(), **TINY).learn(14)
    model.save(folder / "model.zip")
    model.save_replay_buffer(folder / "replay.npz")
    model.policy.save(folder / "policy.pth")
    return model


def load_all(folder: Path, model: CoRe) -> None:
    CoRe.load(folder / "model.zip")
    model.load_replay_buffer(folder / "replay.npz")
    RecurrentPolicy.load(folder / "policy.pth")


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Inside, an attack may lie in wait as a module of its own."""
    (folder / "lurking.py").write_text(f"open({str(folder / 'proof')!r}, 'w')\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("lurking", None)


def refusals(folder: Path, names: list[str]) -> dict[str, str | None]:
    """Why each attack was refused; ``None`` if it was not, or if it left something behind."""
    sound = folder / "sound"
    sound.mkdir()
    model = save_sound_files(sound)
    return {name: _refusal(folder / name, sound, model, ATTACKS[name]) for name in names}


def _refusal(folder: Path, sound: Path, model: CoRe, make: Attack) -> str | None:
    shutil.copytree(sound, folder)
    make(folder)
    with importable(folder):
        before = set(folder.parent.rglob("*"))
        try:
            load_all(folder, model)
        except UnsafeFileError as error:
            left = {path for path in folder.parent.rglob("*") if "__pycache__" not in path.parts}
            return str(error) if left <= before else None
    return None


# ---- tools ----


class Call:
    """Is pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class Hidden(Call):
    """Is pickled as an element of a deque."""

    def __reduce__(self) -> tuple[Any, ...]:
        return collections.deque, (), {}, iter([Call(self.function, *self.arguments)])


class Change:
    """Is pickled as a change of something that all share."""

    def __init__(self, target: Any, attributes: dict[str, Any]) -> None:
        self.target, self.attributes = target, attributes

    def dumps(self) -> bytes:
        changes = pickle.dumps((None, self.attributes), protocol=4)[2:-1]
        return pickle.dumps(self.target, protocol=4)[:-1] + changes + b"b."


def touch(folder: Path) -> Call:
    return Call(os.system, f"touch {folder / 'proof'}")


def read_zip(path: Path | io.BytesIO) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(
    path: Path | io.BytesIO, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def change_entry(folder: Path, name: str, content: bytes) -> None:
    path = folder / "model.zip"
    write_zip(path, {**read_zip(path), name: content})


def set_data(folder: Path, key: str, value: Any) -> None:
    """Put a JSON value into the model's ``data``."""
    data = json.loads(read_zip(folder / "model.zip")["data"])
    data[key] = value
    change_entry(folder, "data", json.dumps(data).encode())


def set_pickle(folder: Path, key: str, pickled: bytes) -> None:
    set_data(folder, key, {":type:": "x", ":serialized:": base64.b64encode(pickled).decode()})


def set_object(folder: Path, key: str, value: Any) -> None:
    set_pickle(folder, key, cloudpickle.dumps(value))


def change_state(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change one of the model's state dicts."""
    entry = f"{name}.pth"
    state = torch.load(io.BytesIO(read_zip(folder / "model.zip")[entry]), weights_only=True)
    change(state)
    file = io.BytesIO()
    torch.save(state, file)
    change_entry(folder, entry, file.getvalue())


def change_replay(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with (folder / "replay.npz").open("r+b") as file:
        tree = read_archive(file)
        change(tree)
        file.seek(0)
        file.truncate()
        write_archive(file, tree)


def change_policy(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "policy.pth"
    saved = torch.load(path, weights_only=False)
    change(saved)
    torch.save(saved, path)


def bomb() -> dict[str, bytes]:
    return {"archive/data/0": bytes(BOMB_BYTES)}


# ---- attacks of one step ----

ATTACKS: dict[str, Attack] = {
    # code in the model
    "a_command_under_a_foreign_key": lambda folder: set_object(folder, "foreign", touch(folder)),
    "a_name_reached_through_another": lambda folder: set_object(
        folder, "foreign", Call(getattr, collections.deque, "__reduce__")
    ),
    "a_module_that_is_imported": lambda folder: set_pickle(
        folder, "foreign", b"\x80\x04\x8c\x07lurking\x8c\x03fly\x93."
    ),
    "an_environment_that_imports_a_module": lambda folder: set_data(
        folder, "env", "lurking:Any-v0"
    ),
    "a_policy_class_that_imports_a_module": lambda folder: set_data(
        folder, "policy_class", "lurking:Any-v0"
    ),
    "an_attribute_that_hides_a_method": lambda folder: set_data(folder, "predict", "nothing"),
    "code_in_the_parameters": lambda folder: change_entry(
        folder, "policy.pth", pickle.dumps(touch(folder))
    ),
    # memory and time
    "too_many_environments": lambda folder: set_data(folder, "n_envs", 10**10),
    "an_array_larger_than_the_file": lambda folder: set_object(
        folder, "foreign", Call(np.ndarray, (HUGE, HUGE))
    ),
    "a_space_larger_than_the_file": lambda folder: set_object(
        folder, "foreign", Call(spaces.Box, 0.0, 1.0, (HUGE, HUGE))
    ),
    # names and shapes
    "an_entry_that_leads_out_of_the_file": lambda folder: change_entry(folder, "../../proof", b""),
    "an_entry_at_the_root": lambda folder: change_entry(folder, str(folder / "proof"), b""),
    "parameters_of_another_shape": lambda folder: change_state(
        folder, "policy", lambda state: state.update(log_ent_coef=torch.zeros(3))
    ),
    "missing_parameters": lambda folder: change_state(
        folder, "policy", lambda state: state.pop("log_ent_coef")
    ),
    "parameters_too_many": lambda folder: change_state(
        folder, "policy", lambda state: state.update(more=torch.zeros(3))
    ),
    "an_argument_of_another_type": lambda folder: set_data(folder, "batch_size", "many"),
    "data_that_is_a_list": lambda folder: change_entry(folder, "data", b"[1, 2]"),
    "a_space_that_is_a_string": lambda folder: set_data(folder, "observation_space", "Box"),
    # replay buffers
    "a_command_in_place_of_the_replay_buffer": lambda folder: (folder / "replay.npz").write_bytes(
        pickle.dumps(touch(folder))
    ),
    # policies
    "compiled_code_in_place_of_the_policy": lambda folder: write_zip(
        folder / "policy.pth", {"policy/constants.pkl": b"", "policy/data.pkl": b""}
    ),
    "a_zip_bomb_for_a_policy": lambda folder: write_zip(
        folder / "policy.pth", bomb(), zipfile.ZIP_DEFLATED
    ),
    "a_policy_too_large_for_memory": lambda folder: change_policy(
        folder, lambda saved: saved["data"].update(actor_dims=(HUGE, HUGE))
    ),
    "a_policy_with_parameters_of_another_shape": lambda folder: change_policy(
        folder, lambda saved: saved["state_dict"].update(log_ent_coef=torch.zeros(3))
    ),
}


def attack(function: Attack) -> Attack:
    """One of several steps."""
    ATTACKS[function.__name__] = function
    return function


# ---- code in the model ----


@attack
def a_command_hidden_in_a_deque(folder: Path) -> None:
    call = touch(folder)
    set_object(folder, "ep_info_buffer", Hidden(call.function, *call.arguments))


@attack
def a_function_of_old_pickles(folder: Path) -> None:
    command = f"touch {folder / 'proof'}".encode()
    set_pickle(folder, "foreign", b"(S'" + command + b"'\nios\nsystem\n.")


@attack
def a_change_of_a_class_that_all_share(folder: Path) -> None:
    change = Change(SequenceReplayBuffer, {"size": None})
    set_pickle(folder, "foreign", change.dumps())


@attack
def code_in_an_archive_of_parameters(folder: Path) -> None:
    file = io.BytesIO()
    torch.save({"a": touch(folder)}, file)
    change_entry(folder, "policy.pth", file.getvalue())


# ---- memory and time ----


@attack
def a_zip_bomb(folder: Path) -> None:
    entries = read_zip(folder / "model.zip")
    write_zip(folder / "model.zip", {**entries, **bomb()}, zipfile.ZIP_DEFLATED)


@attack
def a_zip_bomb_in_the_parameters(folder: Path) -> None:
    file = io.BytesIO()
    write_zip(file, bomb(), zipfile.ZIP_DEFLATED)
    change_entry(folder, "policy.pth", file.getvalue())


@attack
def entries_that_share_their_bytes(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        info = archive.getinfo("policy.pth")
        for number in range(1_000):
            again = copy.copy(info)
            again.filename = f"{number}.pth"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True  # type: ignore[attr-defined]


@attack
def networks_too_large_for_memory(folder: Path) -> None:
    sizes = {"deter_dim": HUGE, "gru_dims": [HUGE, HUGE]}
    set_data(folder, "policy_kwargs", {**TINY["policy_kwargs"], **sizes})


# ---- names and shapes ----


@attack
def two_entries_of_one_name(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        twice = copy.copy(archive.getinfo("policy.pth"))
        archive.filelist.append(twice)
        archive._didModify = True  # type: ignore[attr-defined]


@attack
def no_parameters(folder: Path) -> None:
    entries = read_zip(folder / "model.zip")
    entries.pop("policy.pth")
    write_zip(folder / "model.zip", entries)


@attack
def an_optimizer_state_of_another_shape(folder: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["state"][0]["exp_avg"] = torch.zeros(1, 2, 3)

    change_state(folder, "policy.critic_optimizer", change)


@attack
def variables_that_no_model_has(folder: Path) -> None:
    file = io.BytesIO()
    torch.save({"policy.log_ent_coef": torch.zeros(5)}, file)
    change_entry(folder, "pytorch_variables.pth", file.getvalue())


# ---- replay buffers ----


@attack
def a_command_in_an_array_of_the_replay_buffer(folder: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([touch(folder)], dtype=object), allow_pickle=True)
    path = folder / "replay.npz"
    write_zip(path, {**read_zip(path), "0.npy": file.getvalue()})


@attack
def replayed_frames_of_another_type(folder: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        frames = tree["episodes"][0]["frames"]
        frames["observation"] = frames["observation"].astype(np.float32)

    change_replay(folder, change)


@attack
def fewer_replayed_frames_than_steps(folder: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        frames = tree["episodes"][0]["frames"]
        frames["observation"] = frames["observation"][:1]

    change_replay(folder, change)


@attack
def replay_of_other_spaces(folder: Path) -> None:
    other = CoRe("MlpPolicy", FakeEnv(VECTOR), **TINY).learn(14)
    other.save_replay_buffer(folder / "replay.npz")


# ---- policies ----


@attack
def a_command_in_the_policy(folder: Path) -> None:
    torch.save({"state_dict": {}, "data": touch(folder)}, folder / "policy.pth")


@attack
def a_tar_archive_that_would_be_unpacked(folder: Path) -> None:
    with tarfile.open(folder / "policy.pth", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
