"""Files that carry an attack or are damaged: nothing runs, each is named."""

from __future__ import annotations

import base64
import functools
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.utils import LinearSchedule

from core_agent import CoRe, RecurrentSAC, load_agent
from core_agent.agents.latent import RecurrentPolicy
from core_agent.agents.registry import AGENTS
from core_agent.saving.safe_loading import UnsafeFileError
from tests.fakes import BOTH, TINY, VECTOR, FakeEnv, tiny
from tests.saving.attacks import (
    ATTACKS,
    a_command_in_the_policy,
    an_optimizer_state_of_another_shape,
    load_all,
    read_zip,
    refusals,
    replayed_frames_of_another_type,
    save_sound_files,
    set_data,
    set_object,
    touch,
    write_zip,
)
from tests.saving.mutations import CHECKPOINT, FILES, fuzz


@pytest.fixture
def path(tmp_path):
    CoRe("CnnPolicy", FakeEnv(), **TINY).learn(12).save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


@pytest.fixture(scope="module")
def reasons(tmp_path_factory):
    return refusals(tmp_path_factory.mktemp("attacks"), list(ATTACKS))


TOLD = {
    "a_command_under_a_foreign_key": "entry 'foreign' was not loaded, as it asks for posix.system",
    "an_environment_that_imports_a_module": "the file must hold attributes alone, got 'env'",
    "a_policy_class_that_imports_a_module": "policy_class must be a class of policies",
    "a_change_of_a_class_that_all_share": "as it changes <class 'core_agent.replay.buffer.Sequence",
    "a_zip_bomb": "its entries unpack to 67",
    "a_zip_bomb_in_the_parameters": "entry 'policy.pth' was not loaded: its entries unpack to 67",
    "too_many_environments": "n_envs must be at most 65536",
    "an_entry_that_leads_out_of_the_file": "its entry '../../proof' leads out of the file",
    "two_entries_of_one_name": "it has two entries of the same name",
    "parameters_of_another_shape": "with log_ent_coef of shape (3,) instead of ()",
    "missing_parameters": "got them without log_ent_coef",
    "parameters_too_many": "got them with more",
    "an_optimizer_state_of_another_shape": "must have exp_avg of shape (2, 12, 8), got (1, 2, 3)",
    "an_argument_of_another_type": "batch_size must be a whole number >= 1, got 'many'",
    "data_that_is_a_list": "its entry 'data' is a list, not an object",
    "a_command_in_place_of_the_replay_buffer": "it is damaged or no archive",
    "a_command_in_an_array_of_the_replay_buffer": "Object arrays cannot be loaded",
    "replayed_frames_of_another_type": "an episode must have frames of observation of ((7, 8, 8, "
    "3), dtype('uint8')), got ((7, 8, 8, 3), dtype('float32'))",
    "replay_of_other_spaces": "((7, 3), dtype('float32'))",
    "compiled_code_in_place_of_the_policy": "is TorchScript, which is code",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_without_a_trace(reasons, name):
    reason = reasons[name]
    assert reason is not None, "it loaded or left something behind"
    assert reason.startswith("path must be a saved ")
    assert TOLD.get(name, "") in reason


def test_attacks_do_harm_where_a_file_is_trusted(tmp_path):
    model = save_sound_files(tmp_path)
    load_all(tmp_path, model)
    a_command_in_the_policy(tmp_path)
    with pytest.raises(TypeError):
        RecurrentPolicy.load(tmp_path / "policy.pth", trusted=True)
    assert (tmp_path / "proof").exists()


def test_a_replay_buffer_that_does_not_fit_leaves_the_models_own(tmp_path):
    model = save_sound_files(tmp_path)
    n_steps = model.replay_buffer.size()
    replayed_frames_of_another_type(tmp_path)
    with pytest.raises(UnsafeFileError, match="path must be a saved replay buffer"):
        model.load_replay_buffer(tmp_path / "replay.npz")
    assert model.replay_buffer.size() == n_steps > 0


@pytest.mark.parametrize("algorithm", AGENTS.values())
def test_every_agents_files_are_distinguished_load_and_are_searched_for_attacks(
    algorithm, tmp_path
):
    path, policy_path = tmp_path / "model.zip", tmp_path / "policy.pth"
    model = algorithm("CnnPolicy", FakeEnv(), **tiny(algorithm))
    model.save(path)
    assert type(load_agent(path, device="cpu")) is algorithm
    name = algorithm.__name__
    for other in set(AGENTS.values()) - {algorithm}:
        told = f"be a saved model of {other.__name__}, .* of {name}; use {name}.load, or load_a"
        with pytest.raises(UnsafeFileError, match=told):
            other.load(path)
    set_object(tmp_path, "foreign", touch(tmp_path))
    with pytest.raises(UnsafeFileError, match="entry 'foreign' was not loaded, as it asks for"):
        load_agent(path)
    model.policy.save(policy_path)
    type(model.policy).load(policy_path)
    a_command_in_the_policy(tmp_path)
    with pytest.raises(UnsafeFileError, match=r"it asks for posix\.system"):
        type(model.policy).load(policy_path)
    assert not (tmp_path / "proof").exists()


def set_agent_class(path, name) -> None:
    """Let the file say that it holds another agent, or none."""
    entries = read_zip(path)
    data = json.loads(entries["data"])
    del data["agent_class"]
    entries["data"] = json.dumps({**data, "agent_class": name} if name else data).encode()
    write_zip(path, entries)


def test_an_unknown_agent_is_named(path):
    set_agent_class(path, "MyCoRe")
    with pytest.raises(ValueError, match=r"path must be a model of one of .*, got 'MyCoRe'"):
        load_agent(path)


@pytest.mark.parametrize(
    ("algorithm", "found"),
    [(SAC, "SAC of stable_baselines3"), (PPO, "an on-policy algorithm of stable_baselines3")],
)
def test_a_model_of_stable_baselines3_is_named_and_never_to_be_trusted(algorithm, found, tmp_path):
    path = tmp_path / "other.zip"
    algorithm("MlpPolicy", FakeEnv(VECTOR)).save(path)
    with pytest.raises(
        UnsafeFileError, match=f"of CoRe, got .*other.zip', a model of {found}; load"
    ) as e:
        CoRe.load(path)
    assert "trusted" not in str(e.value)


def test_a_subclass_loads_what_its_parent_saved(path):
    class Own(CoRe):
        pass

    assert type(Own.load(path)) is Own
    with pytest.raises(UnsafeFileError, match=r"a model of CoRe; use CoRe\.load"):
        type("Own", (RecurrentSAC,), {}).load(path)


def test_mutants_load_or_are_refused_and_nothing_else(tmp_path):
    fuzzed = fuzz(tmp_path, 140, seed=1)
    assert fuzzed.failures == []
    assert sum(fuzzed.counts.values()) == 140
    for kind in FILES:
        assert fuzzed.counts[kind, "refused"] > 0
        assert (fuzzed.counts[kind, "loaded"] == 0) == (kind in CHECKPOINT)


def test_trusted_files_load_as_in_sb3(path, tmp_path):
    proof = tmp_path / "proof"
    set_object(tmp_path, "foreign", touch(tmp_path))
    CoRe.load(path, trusted=True)
    assert proof.exists()


def test_a_replaced_entry_is_not_read(path, tmp_path):
    proof = tmp_path / "proof"
    set_object(tmp_path, "foreign", touch(tmp_path))
    assert CoRe.load(path, custom_objects={"foreign": 3}).foreign == 3
    assert not proof.exists()


def test_what_replaces_an_entry_is_the_callers_business(path):
    # As rl-zoo does, to play without learning.
    replaced = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    assert CoRe.load(path, custom_objects=replaced).learning_rate == 0.0


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(UnsafeFileError, match="path must be a saved model"):
        CoRe.load(tmp_path / "model.zip")


def test_trust_is_no_way_out_for_a_file_that_is_no_model(tmp_path):
    write_zip(tmp_path / "model.zip", {"readme.txt": b"no model"})
    told = "it has no entry 'data'; the file is damaged, or another version of the package wrote it"
    with pytest.raises(UnsafeFileError, match=told):
        CoRe.load(tmp_path / "model.zip")


@pytest.mark.parametrize("damage", ["!!!", 3, base64.b64encode(b"\x80\x04garbage").decode()])
def test_a_damaged_entry_is_named(path, tmp_path, damage):
    set_data(tmp_path, "foreign", {":type:": "x", ":serialized:": damage})
    with pytest.raises(UnsafeFileError, match="entry 'foreign'"):
        CoRe.load(path)


def test_a_missing_file_is_no_unsafe_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        CoRe.load(tmp_path / "nothing")


def test_what_is_wrong_with_the_users_own_arguments_is_told_as_it_is(path):
    with pytest.raises(ValueError, match="spaces do not match") as error:
        CoRe.load(path, env=FakeEnv(VECTOR))
    assert not isinstance(error.value, UnsafeFileError)
    with pytest.raises(
        ValueError, match=r"^batch_size must be a whole number >= 1, got 0"
    ) as error:
        CoRe.load(path, batch_size=0)
    assert not isinstance(error.value, UnsafeFileError)


def test_parameters_that_do_not_fit_leave_the_model_as_it_is(path, tmp_path):
    model = CoRe.load(path)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    an_optimizer_state_of_another_shape(tmp_path)
    with pytest.raises(ValueError, match=r"policy.critic_optimizer must have exp_avg of shape"):
        model.set_parameters(path)
    with pytest.raises(ValueError, match="parameters must be of"):
        model.set_parameters({**model.get_parameters(), "critic": {}})
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters()))


def test_a_compressed_model_of_usual_content_loads(path):
    write_zip(path, read_zip(path), zipfile.ZIP_DEFLATED)
    CoRe.load(path)


@pytest.mark.parametrize(
    "space", [VECTOR, BOTH, spaces.Discrete(4), spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])]
)
def test_all_that_a_model_may_hold_loads_without_trust(space, tmp_path):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    rate, noise = LinearSchedule(1e-3, 1e-4, 1.0), NormalActionNoise(np.zeros(2), np.ones(2))
    arguments = {**TINY, "action_noise": noise, "learning_rate": rate}
    model = RecurrentSAC(policy, FakeEnv(space), **arguments).learn(12)
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
    replaced = {"learning_rate": 1e-3}
    assert CoRe.load(tmp_path / "model", custom_objects=replaced).learning_rate == 1e-3


def test_a_policy_class_that_is_imported_is_let_in(tmp_path):
    import tests.fakes as fakes

    model = CoRe(fakes.OwnPolicy, FakeEnv(), **TINY)
    model.save(tmp_path / "model")
    assert isinstance(CoRe.load(tmp_path / "model").policy, fakes.OwnPolicy)


def test_open_files_load_and_stay_open(path):
    file = io.BytesIO(path.read_bytes())
    CoRe.load(file)
    assert not file.closed


@pytest.mark.parametrize("algorithm", AGENTS.values())
def test_loading_builds_a_model_once_and_draws_no_parameter(algorithm, tmp_path, monkeypatch):
    model = algorithm("CnnPolicy", FakeEnv(), **tiny(algorithm)).learn(12)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pth")
    policy_class, built, drawn = type(model.policy), [], []
    for made in (algorithm, policy_class):
        count_calls(monkeypatch, made, "__init__", built)
    count_calls(monkeypatch, torch.nn.init, "orthogonal_", drawn)
    loaded = algorithm.load(tmp_path / "model", env=FakeEnv(), device="cpu")
    policy = policy_class.load(tmp_path / "policy.pth", device="cpu")
    assert [type(one) for one in built] == [algorithm, policy_class, policy_class]
    assert {tensor.device.type for tensor in drawn} == {"meta"}
    for found in (loaded.policy, policy):
        assert found.state_dict().keys() == model.policy.state_dict().keys()
        for name, tensor in model.policy.state_dict().items():
            assert torch.equal(tensor, found.state_dict()[name]), name
        for wanted, parameter in zip(model.policy.parameters(), found.parameters()):
            assert parameter.requires_grad == wanted.requires_grad
    loaded.learn(12)


def count_calls(monkeypatch, owner, name, calls) -> None:
    """Append the first argument of each call to ``calls``."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def counted(first, *args, **kwargs):
        calls.append(first)
        return function(first, *args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
