"""How agents are saved, loaded, checkpointed and resumed."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from core_agent.agents.arguments import ENVIRONMENT, LOADED_ENVIRONMENT, RULES, Collect
from core_agent.agents.collection import Collector
from core_agent.environments.make import describe, environment_for
from core_agent.networks.optimization import FiniteGuard
from core_agent.saving.checkpoint import CheckpointFolder
from core_agent.saving.models import (
    checked_parameters,
    find_checkpoint,
    load_model,
    warn_of_own_schedule,
)
from core_agent.saving.replay import load_replay, save_replay
from core_agent.validation import check_arguments

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="SavableAlgorithm")


class SavableAlgorithm(OffPolicyAlgorithm):
    """SB3's methods that read and write files, made safe, and exact checkpoints."""

    optimizer_names: ClassVar[tuple[str, ...]] = ()
    """Attributes of the policy that hold its optimisers."""
    not_saved: ClassVar[tuple[str, ...]] = ()
    """Attributes that are left out of model files, besides SB3's."""
    collect: Collect
    origin: dict[str, Any]
    begins_at_random: bool
    """Whether the first ``learning_starts`` agent steps are random."""
    _collector: Collector
    _guard: FiniteGuard
    _checkpoints: CheckpointFolder | None = None

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [getattr(self.policy, name) for name in self.optimizer_names]

    @property
    def acting_policy(self) -> Any:
        """The policy that collects.

        With ``collect="async"`` a copy, synchronised at episode ends and after 1,000 steps.
        """
        return self._collector.acting_policy(self.policy)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model as SB3 does; warn of a learning rate that :meth:`load` would refuse.

        :param path: file to write, by name or open
        :param exclude: names of attributes to leave out
        :param include: names of attributes to save that are left out otherwise
        :raises ValueError: for a bad argument, before anything is written
        """
        check_arguments(RULES, locals())
        warn_of_own_schedule(self.learning_rate)
        self.origin = {**self.origin, **describe(self.env)}
        super().save(path, exclude, include)

    @classmethod
    def load(
        cls: type[SelfAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trusted: bool = False,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """Load a model, without executing anything in the file.

        Unlike in SB3, a model that has learned acts with its policy from the first step of
        :meth:`learn`; updates wait for ``learning_starts`` steps, unless
        ``reset_num_timesteps=False`` continues the count. Give ``learning_starts`` here to take
        that many random actions first. The arguments are those of SB3's ``load`` and:

        :param trusted: unpickle whatever the file holds, as SB3 does
        :raises UnsafeFileError: if the file asks for names that loading does not allow, or is not a
            complete model of this class; a kind of ``ValueError``
        :raises FileNotFoundError: if there is no file
        :raises ValueError: for an environment or an argument that does not fit the model
        """
        check_arguments({**RULES, "env": LOADED_ENVIRONMENT}, locals())
        given = (path, env, device, custom_objects, print_system_info, force_reset)
        model = super().load(*given, **kwargs) if trusted else load_model(cls, *given, kwargs)
        if force_reset:  # A run that is resumed continues as it was.
            asked = "learning_starts" in {*kwargs, *(custom_objects or {})}
            model.begins_at_random = asked or model._n_updates == 0
        return model

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save the contents of the replay buffer as arrays and JSON: nothing is pickled.

        :param path: file to write: an open file, or a name, to which ``.npz`` is added if it has no
            suffix
        """
        check_arguments(RULES, locals())
        save_replay(path, self.replay_buffer)

    def load_replay_buffer(
        self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """Fill the replay buffer with what :meth:`save_replay_buffer` wrote.

        :param path: file to read: a name or an open file
        :param truncate_last_traj: end the episodes that were running when the buffer was saved;
            ``False`` lets the next steps continue them
        :raises UnsafeFileError: if the file is not a replay buffer with the model's spaces; the
            contents of the buffer are left unchanged
        """
        check_arguments(RULES, locals())
        load_replay(path, self.replay_buffer, truncate_last_traj)

    def checkpoint(self, folder: str | pathlib.Path) -> pathlib.Path:
        """Write everything that the rest of the run depends on, for :meth:`resume`.

        A checkpoint holds the model as :meth:`save` writes it, random states, the state of the
        environments and the replay buffer, of which only episodes that are new or still running
        are written. The last two checkpoints are kept. While :meth:`learn` runs, let
        :class:`~core_agent.runs.callbacks.ExactCheckpointCallback` call this at the right moments.

        :param folder: folder for checkpoints of this run only; created if missing
        :return: the file of the checkpoint in that folder
        :raises OSError: if it cannot be written; the checkpoints there are left as they are
        :raises ValueError: if a parameter is not finite
        :raises NonFiniteError: if an earlier update has failed and has not been reported yet
        """
        check_arguments(RULES, locals())
        self._guard.check()
        if self._checkpoints is None or self._checkpoints.path != pathlib.Path(folder):
            self._checkpoints = CheckpointFolder(folder)
        return self._checkpoints.write(self)

    @classmethod
    def resume(
        cls: type[SelfAlgorithm],
        folder: str | pathlib.Path,
        env: GymEnv | str,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        trusted: bool = False,
    ) -> SelfAlgorithm:
        """The model as it was at the newest complete checkpoint in ``folder``, replay included.

        ``learn(total_timesteps - model.num_timesteps, reset_num_timesteps=False)`` then does what
        the run would have done without stopping: on a CPU the same actions and parameters, bit for
        bit, if the environments can save and set their state (``get_state``, ``set_state``; those
        of ``distracting_envs`` do), or if the checkpoint was written at an episode's start. See
        :mod:`core_agent.saving.resumable`.

        :param folder: folder that was given to :meth:`checkpoint`
        :param env: environment made and wrapped as in the original run, or its id
        :param device: device of the networks
        :param custom_objects: as in :meth:`load`
        :param trusted: as in :meth:`load`
        :raises NoCheckpointError: if there is no complete checkpoint; a kind of ``ValueError``
        :raises ValueError: for another algorithm's checkpoint or other environments
        """
        check_arguments({**RULES, "env": ENVIRONMENT}, locals())
        checkpoints, checkpoint = find_checkpoint(folder, cls.__name__)
        if isinstance(env, str):
            env = environment_for(env, checkpoint.manifest["collect"])
        model = cls.load(
            checkpoint.model, env, device, custom_objects, force_reset=False, trusted=trusted
        )
        checkpoints.restore(model, checkpoint)
        model._checkpoints = checkpoints
        return model

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *self.not_saved]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{name}" for name in self.optimizer_names)], []

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, torch.Tensor],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Load networks and optimiser states; learning rates and similar settings do not change.

        :raises UnsafeFileError: if a file is not a saved model
        :raises ValueError: for parameters that do not fit this model, which is left as it is
        """
        check_arguments(RULES, locals())
        parameters = checked_parameters(self, load_path_or_dict, exact_match)
        options = [
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        super().set_parameters(parameters, exact_match, device)
        for optimizer, own in zip(self.optimizers, options):
            for group, kept in zip(optimizer.param_groups, own):
                group.update(kept)
        self._collector.renew(self.policy)
