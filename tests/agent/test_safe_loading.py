"""Files that carry an attack: none runs, each is named."""

from __future__ import annotations

import base64
import collections
import io
import json
import os
import pickle
import zipfile

import cloudpickle
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.utils import LinearSchedule

from core_agent import CoRe, RecurrentSAC, load_agent
from core_agent.agents import AGENTS
from core_agent.safe_loading import ALLOWED, UnsafeFileError
from tests.agent.fakes import BOTH, TINY, VECTOR, FakeEnv, tiny


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, proof) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


class HiddenAttack(Attack):
    """The same, as the state of an object that is allowed."""

    def __reduce__(self):
        return collections.deque, (), {}, iter([Attack(self.proof)])


class DottedAttack(Attack):
    """Reaches for a forbidden name through an allowed one."""

    def __reduce__(self):
        return getattr, (collections.deque, "__reduce__")


def tamper(path, key: str, value) -> None:
    """Put a pickled value into the file's ``data`` entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["data"])
    data[key] = {":type:": "x", ":serialized:": base64.b64encode(cloudpickle.dumps(value)).decode()}
    entries["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.fixture
def path(tmp_path):
    CoRe("CnnPolicy", FakeEnv(), **TINY).learn(12).save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


@pytest.mark.parametrize("attack", [Attack, HiddenAttack, DottedAttack])
@pytest.mark.parametrize("key", ["foreign", "action_space", "ep_info_buffer"])
def test_an_attack_in_the_model_is_refused(path, tmp_path, attack, key):
    proof = tmp_path / "proof"
    tamper(path, key, attack(proof))
    with pytest.raises(UnsafeFileError, match=f"entry '{key}' was not loaded, as it asks for"):
        CoRe.load(path)
    assert not proof.exists()


@pytest.mark.parametrize("algorithm", AGENTS.values())
def test_every_agents_file_is_told_apart_loads_and_is_searched_for_attacks(algorithm, tmp_path):
    path, proof = tmp_path / "model.zip", tmp_path / "proof"
    model = algorithm("CnnPolicy", FakeEnv(), **tiny(algorithm)).learn(12)
    model.save(path)
    policy_class = type(model.policy)
    assert policy_class.__name__ in ALLOWED[policy_class.__module__]
    loaded = load_agent(path, device="cpu")
    assert type(loaded) is algorithm
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, loaded.policy.state_dict()[name]), name
    tamper(path, "foreign", Attack(proof))
    with pytest.raises(UnsafeFileError, match="entry 'foreign' was not loaded, as it asks for"):
        load_agent(path)
    assert not proof.exists()


def set_agent_class(path, name) -> None:
    """Let the file say that it holds another agent, or none."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    data = json.loads(entries["data"])
    del data["agent_class"]
    entries["data"] = json.dumps({**data, "agent_class": name} if name else data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)


@pytest.mark.parametrize("algorithm", [CoRe, RecurrentSAC])
def test_files_from_before_agents_were_named_are_told_apart(algorithm, tmp_path):
    algorithm("CnnPolicy", FakeEnv(), **TINY).save(tmp_path / "model.zip")
    set_agent_class(tmp_path / "model.zip", None)
    assert type(load_agent(tmp_path / "model")) is algorithm


def test_an_unknown_agent_is_named(path):
    set_agent_class(path, "MyCoRe")
    with pytest.raises(ValueError, match=r"path must be a model of one of .*, got 'MyCoRe'"):
        load_agent(path)


def test_trusted_files_load_as_in_sb3(path, tmp_path):
    proof = tmp_path / "proof"
    tamper(path, "foreign", Attack(proof))
    CoRe.load(path, trusted=True)
    assert proof.exists()


def test_a_replaced_entry_is_not_read(path, tmp_path):
    proof = tmp_path / "proof"
    tamper(path, "foreign", Attack(proof))
    assert CoRe.load(path, custom_objects={"foreign": 3}).foreign == 3
    assert not proof.exists()


def test_a_class_that_no_one_imported_is_refused(path):
    tamper(path, "foreign", 0)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["data"])
    opcodes = b"\x80\x04\x8c\x09antigravity\x8c\x03fly\x93.".replace(b"\x09", b"\x0b")
    data["foreign"][":serialized:"] = base64.b64encode(opcodes).decode()
    entries["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UnsafeFileError, match=r"antigravity\.fly"):
        CoRe.load(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(UnsafeFileError, match="path must be a saved model"):
        CoRe.load(tmp_path / "model.zip")


def test_a_damaged_entry_is_named(path):
    tamper(path, "foreign", 1)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for damage in ("!!!", base64.b64encode(b"\x80\x04garbage").decode()):
        data = json.loads(entries["data"])
        data["foreign"][":serialized:"] = damage
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**entries, "data": json.dumps(data).encode()}.items():
                archive.writestr(name, content)
        with pytest.raises(UnsafeFileError, match="entry 'foreign'"):
            CoRe.load(path)


def test_an_attack_in_the_replay_buffer_is_refused(tmp_path):
    proof = tmp_path / "proof"
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(Attack(proof)))
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    with pytest.raises(UnsafeFileError, match="the replay buffer was not loaded, as it asks for"):
        model.load_replay_buffer(tmp_path / "buffer")
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(
        ValueError, match="path must be a replay buffer of this package, got 'list'"
    ):
        model.load_replay_buffer(tmp_path / "buffer")
    assert not proof.exists()


@pytest.mark.parametrize("algorithm", AGENTS.values())
def test_an_attack_in_a_policy_is_refused(algorithm, tmp_path):
    proof = tmp_path / "proof"
    torch.save({"state_dict": {}, "data": Attack(proof)}, tmp_path / "policy.pt")
    with pytest.raises(UnsafeFileError, match="the policy was not loaded, as it asks for"):
        algorithm.policy_aliases["CnnPolicy"].load(tmp_path / "policy.pt")
    assert not proof.exists()


@pytest.mark.parametrize(
    "space", [VECTOR, BOTH, spaces.Discrete(4), spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])]
)
@pytest.mark.parametrize("noise", [None, NormalActionNoise(np.zeros(2), np.ones(2))])
def test_all_that_a_model_may_hold_loads_without_trust(space, noise, tmp_path):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    rate = LinearSchedule(1e-3, 1e-4, 1.0)
    arguments = {**TINY, "action_noise": noise, "learning_rate": rate}
    model = RecurrentSAC(policy, FakeEnv(space), **arguments).learn(12)
    if noise is not None:
        model.action_noise = VectorizedActionNoise(noise, 1)
    model.save(tmp_path / "model")
    loaded = RecurrentSAC.load(tmp_path / "model", env=FakeEnv(space))
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)
    assert loaded.observation_space == model.observation_space
    assert type(loaded.action_noise) is type(model.action_noise)


def test_a_lambda_warns_when_saved_and_needs_trust(tmp_path):
    model = CoRe("CnnPolicy", FakeEnv(), **{**TINY, "learning_rate": lambda p: 1e-3 * p})
    with pytest.warns(UserWarning, match="learning_rate is a function of your own"):
        model.save(tmp_path / "model")
    with pytest.raises(UnsafeFileError, match="entry 'learning_rate'"):
        CoRe.load(tmp_path / "model")
    assert CoRe.load(tmp_path / "model", trusted=True).learning_rate(0.5) == 5e-4
    replaced = {"learning_rate": 1e-3, "lr_schedule": None}
    assert CoRe.load(tmp_path / "model", custom_objects=replaced).learning_rate == 1e-3


def test_a_policy_class_that_is_imported_is_let_in(tmp_path):
    import tests.agent.fakes as fakes

    model = CoRe(fakes.OwnPolicy, FakeEnv(), **TINY)
    model.save(tmp_path / "model")
    assert isinstance(CoRe.load(tmp_path / "model").policy, fakes.OwnPolicy)


def test_open_files_load_and_stay_open(path):
    file = io.BytesIO(path.read_bytes())
    CoRe.load(file)
    assert not file.closed
