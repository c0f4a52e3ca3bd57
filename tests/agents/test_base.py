"""The agents as Stable-Baselines3 algorithms."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from core_agent import CoRe, RecurrentSAC
from core_agent.agents.registry import AGENTS
from core_agent.agents.soft_actor_critic import soft_targets
from tests.fakes import TINY, FakeEnv, random_batch, tiny

ALGORITHMS = list(AGENTS.values())


class Recorder(BaseCallback):
    """Counts what SB3 promises to call."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.events: list[str] = []
        self.stop_after = stop_after

    def _on_training_start(self) -> None:
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> bool:
        assert "infos" in self.locals
        self.events.append("step")
        return self.stop_after is None or self.events.count("step") < self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


class Failing(BaseCallback):
    """Fails when training starts, after it has registered an action for the end."""

    def _on_training_start(self) -> None:
        self.told: list[BaseException | None] = []
        self.model.when_learning_ends(self.told.append)
        raise RuntimeError("no start")

    def _on_step(self) -> bool:
        return True


def test_what_a_callback_asked_for_is_done_even_if_another_cannot_start():
    model, failing = CoRe("CnnPolicy", FakeEnv(), **TINY), Failing()
    with pytest.raises(RuntimeError, match="no start") as error:
        model.learn(10, failing)
    model.learn(10)
    assert failing.told == [error.value]


def parameters(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


@pytest.mark.parametrize(("length", "terminates"), [(1, True), (2, False), (3, True), (12, False)])
def test_episodes_of_any_length_train(length, terminates):
    model = CoRe("CnnPolicy", FakeEnv(length=length, terminates=terminates), **TINY)
    model.gradient_steps = 1
    model.learn(16)
    assert model._n_updates > 0
    assert torch.isfinite(parameters(model)).all()


def test_training_follows_each_episode_with_half_as_many_updates():
    model = CoRe("CnnPolicy", FakeEnv(length=9), **TINY)
    model.learn(27)
    # Warm-up lasts 8 steps: all three episodes of 9 end after it; 4.5 updates each make 13.
    assert model._n_updates == 13


def test_no_update_during_warm_up():
    model = CoRe("CnnPolicy", FakeEnv(length=5), **{**TINY, "learning_starts": 10})
    model.learn(10)
    assert model._n_updates == 0


@pytest.mark.parametrize(
    ("kwargs", "n_updates"),
    [
        (dict(gradient_steps=3), 3 * 3),
        (dict(gradient_steps=-1), 3 * 9),
        (dict(update_ratio=1.0), 3 * 9),
        (
            dict(train_freq=(3, "step"), gradient_steps=1),
            6,
        ),  # after steps 9, 12, ... 24, less warm-up
    ],
)
def test_schedule_options(kwargs, n_updates):
    model = CoRe("CnnPolicy", FakeEnv(length=9), **TINY, **kwargs)
    model.learn(27 if "train_freq" not in kwargs else 24)
    assert model._n_updates == n_updates


def test_several_environments_run_until_each_has_ended_an_episode():
    env = DummyVecEnv([lambda: FakeEnv(length=4), lambda: FakeEnv(length=7)])
    model = CoRe("CnnPolicy", env, **{**TINY, "learning_starts": 0})
    recorder = Recorder()
    model.learn(14, callback=recorder)
    assert recorder.events.count("step") == 7
    assert model.num_timesteps == 14
    assert model._n_updates == 7  # half of 14


def test_callbacks_come_in_order_and_once_a_step():
    recorder = Recorder()
    CoRe("CnnPolicy", FakeEnv(length=3), **TINY).learn(6, callback=recorder)
    rollout = ["rollout_start", "step", "step", "step", "rollout_end"]
    assert recorder.events == ["training_start", *rollout, *rollout, "training_end"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_gives_the_same_run(algorithm):
    sizes = tiny(algorithm)
    models = [algorithm("CnnPolicy", FakeEnv(), **sizes).learn(24) for _ in range(2)]
    assert torch.equal(parameters(models[0]), parameters(models[1]))
    other = algorithm("CnnPolicy", FakeEnv(), **{**sizes, "seed": 1}).learn(24)
    assert not torch.equal(parameters(models[0]), parameters(other))


def test_every_argument_survives_saving():
    model = CoRe(
        "CnnPolicy", FakeEnv(), **TINY, kl_coef=0.5, negatives="same_sequence", crop_size=(6, 7)
    )
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = CoRe.load(file, gamma=0.5)
    assert loaded.kl_coef == 0.5
    assert loaded.negatives == "same_sequence"
    assert loaded.policy.world_model.encoder.crop_sizes == {"observation": (6, 7)}
    assert loaded.gamma == 0.5
    assert loaded.env is None


def test_nothing_is_saved_twice():
    model = CoRe("CnnPolicy", FakeEnv(), **TINY).learn(12)
    excluded = set(model._excluded_save_params())
    kept = {k: v for k, v in model.__dict__.items() if k not in excluded}
    assert not [k for k, v in kept.items() if isinstance(v, (torch.Tensor, torch.nn.Module))]
    assert not [k for k, v in kept.items() if isinstance(v, torch.optim.Optimizer)]


def test_actions_are_rescaled_and_stored_as_executed():
    env = FakeEnv(length=5)
    model = CoRe("CnnPolicy", env, **TINY, action_noise=NormalActionNoise(np.zeros(2), np.ones(2)))
    model.learn(15)
    stored = np.concatenate([ep.actions for ep in model.replay_buffer.episodes])
    assert np.allclose(stored * 2.0, np.stack(env.actions), atol=1e-6)
    assert np.abs(stored).max() <= 1.0


def test_the_filter_advances_with_the_executed_action_during_warm_up():
    env = FakeEnv(length=50)
    model = CoRe("CnnPolicy", env, **{**TINY, "learning_starts": 100})
    model.learn(100, callback=Recorder(stop_after=3))
    deter, _, action = model._last_states
    assert np.allclose(action[0] * 2.0, env.actions[-1], atol=1e-6)
    assert np.abs(deter).sum() > 0


def test_logs_every_loss_of_the_paper(tmp_path):
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    model.set_logger(configure(str(tmp_path), ["csv", "stdout"]))
    model.learn(40, log_interval=2)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    wanted = {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "time/episodes",
        "time/total_timesteps",
        "time/simulator_steps",
        "time/updates_per_second",
        "train/learning_rate",
        "train/n_updates",
        "train/model_loss",
        "train/contrastive_loss",
        "train/kl_loss",
        "train/reward_loss",
        "train/inverse_loss",
        "train/actor_loss",
        "train/critic_loss",
        "train/ent_coef",
        "train/contrastive_accuracy",
        "train/prior_entropy",
        "train/posterior_entropy",
        "train/model_grad_norm",
        "train/critic_grad_norm",
        "train/actor_grad_norm",
    }
    assert wanted <= set(header)


def test_a_schedule_scales_every_learning_rate():
    model = CoRe("CnnPolicy", FakeEnv(), **{**TINY, "learning_rate": lambda p: 1e-3 * p})
    model.set_logger(configure(None, []))
    model._current_progress_remaining = 0.25
    model._update_learning_rate(model.optimizers)
    rates = {
        name: [g["lr"] for g in getattr(model.policy, name).param_groups]
        for name in model.optimizer_names
    }
    assert rates == {
        "optimizer": pytest.approx([2.5e-4, 5e-4]),
        "critic_optimizer": pytest.approx([2.5e-4, 2.5e-4]),
        "actor_optimizer": pytest.approx([2.5e-4]),
        "ent_coef_optimizer": pytest.approx([2.5e-4]),
    }


def test_learning_rates_and_adam_are_the_papers():
    policy = CoRe("CnnPolicy", FakeEnv(), **TINY).policy
    assert [g["lr"] for g in policy.optimizer.param_groups] == [3e-4, 2e-3]
    assert [g["lr"] for g in policy.critic_optimizer.param_groups] == [1e-3, 3e-4]
    assert policy.actor_optimizer.param_groups[0]["lr"] == 1e-3
    assert policy.ent_coef_optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    assert policy.log_ent_coef.item() == pytest.approx(-2.3)


# ---- the updates ----


def test_the_actor_loss_leaves_all_but_the_actor_alone():
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    batch = random_batch()
    model.policy.zero_grad()
    model.update_actor(batch, model.filter(batch).detach()[:-1])
    touched = {n for n, p in model.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched
    assert all(name.startswith("actor.") for name in touched)


@pytest.mark.parametrize("include", [True, False])
def test_the_critic_loss_trains_the_model_or_not(include):
    model = CoRe("CnnPolicy", FakeEnv(), **TINY, train_model_with_critic=include)
    batch = random_batch()
    model_before = [p.clone() for p in model.policy.world_model.filter_parameters()]
    critic_before = [p.clone() for p in model.policy.critic.parameters()]
    RecurrentSAC.update(model, batch)
    model_after = list(model.policy.world_model.filter_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(model_before, model_after)) == include
    assert any(
        not torch.equal(a, b) for a, b in zip(critic_before, model.policy.critic.parameters())
    )


def test_termination_stops_the_bootstrap_and_a_time_limit_does_not():
    model = RecurrentSAC("CnnPolicy", FakeEnv(), **TINY)
    batch = random_batch()
    latents, noise = model.filter(batch).detach(), torch.zeros(3, 3, 2)
    going_on = soft_targets(model, batch, latents[1:], noise)
    ended = soft_targets(model, batch._replace(terminated=torch.ones(3, 3)), latents[1:], noise)
    assert torch.equal(ended, batch.rewards)
    distribution = model.policy.actor(latents[1:])
    action, log_prob = distribution.sample(noise)
    q = model.policy.critic_target(latents[1:], action).amin(0)
    expected = batch.rewards + 0.99 * (q - torch.exp(torch.tensor(-2.3)) * log_prob)
    assert torch.allclose(going_on, expected, atol=1e-6)


def test_critic_loss_sums_both_errors():
    model = RecurrentSAC("CnnPolicy", FakeEnv(), **TINY)
    batch = random_batch()
    latents, noise = model.filter(batch).detach(), torch.zeros(3, 3, 2)
    targets = soft_targets(model, batch, latents[1:], noise)
    q1, q2 = model.policy.critic(latents[:-1], batch.actions)
    expected = (q1 - targets).square().mean() + (q2 - targets).square().mean()
    assert model.critic_loss(batch, latents, noise).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_targets_follow_the_critics_slowly():
    model = RecurrentSAC("CnnPolicy", FakeEnv(), **TINY)
    with torch.no_grad():
        for p in model.policy.critic.parameters():
            p.add_(1.0)
    before = [p.clone() for p in model.policy.critic_target.parameters()]
    model.update_target()
    for old, new in zip(before, model.policy.critic_target.parameters()):
        assert torch.allclose(new, old + 0.005, atol=1e-6)


def test_the_temperature_moves_towards_the_target_entropy_and_is_bounded():
    model = RecurrentSAC("CnnPolicy", FakeEnv(), **TINY)
    batch = random_batch()
    start = model.policy.log_ent_coef.item()
    model.update_temperature(batch, torch.full((3, 3), 5.0))  # entropy -5 < target -2: rise
    assert model.policy.log_ent_coef.item() > start
    model.policy.log_ent_coef.data.fill_(10.0)
    model.update_temperature(batch, torch.full((3, 3), 5.0))
    assert model.policy.log_ent_coef.item() == 3.0


@pytest.mark.parametrize(("ent_coef", "start"), [(0.5, 0.5), ("auto_0.25", 0.25), ("auto", 0.1003)])
def test_the_temperature_is_learned_or_fixed(ent_coef, start):
    model = RecurrentSAC("CnnPolicy", FakeEnv(), **TINY, ent_coef=ent_coef)
    assert model.policy.log_ent_coef.exp().item() == pytest.approx(start, rel=1e-3)
    model.learn(18)
    changed = model.policy.log_ent_coef.exp().item() != pytest.approx(start, rel=1e-4)
    assert changed == isinstance(ent_coef, str)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = RecurrentSAC.load(file)
    assert torch.equal(loaded.policy.log_ent_coef, model.policy.log_ent_coef)


def test_images_that_are_scaled_already_are_taken_as_they_are():
    space = spaces.Box(0.0, 1.0, (3, 8, 8), np.float32)
    scaled = CoRe("CnnPolicy", FakeEnv(space), **TINY)
    encoder = scaled.policy.world_model.encoder.image_encoders["observation"]
    images = torch.rand(2, 3, 7, 7)
    assert torch.equal(encoder.prepare(images), images)
    scaled.learn(18)
    assert scaled._n_updates > 0


# ---- ids, defaults and bad arguments ----


def test_an_environment_id_is_enough():
    model = CoRe("Pendulum-v1", **{**TINY, "buffer_size": 50})
    assert model.env.num_envs == 1
    assert model.observation_space.shape == (3,)


def test_learn_needs_a_length_where_none_is_known():
    with pytest.raises(ValueError, match="total_timesteps must be given"):
        CoRe("CnnPolicy", FakeEnv(), **TINY).learn()


def test_learn_needs_an_environment(tmp_path):
    CoRe("CnnPolicy", FakeEnv(), **TINY).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"env must be set before learn\(\)"):
        CoRe.load(tmp_path / "model").learn(10)


class DiscreteEnv(FakeEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3)


def test_discrete_actions_are_refused_at_once():
    with pytest.raises(ValueError, match="env must have a Box action space"):
        CoRe("CnnPolicy", DiscreteEnv(), **TINY)
