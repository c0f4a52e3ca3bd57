"""Updates as CUDA graphs: all kernels of an update in one launch.

An update is thousands of short kernels, which a GPU computes faster than Python can ask for them. A
graph holds them with their arguments: numbers as they were at its capture, tensors by address.
https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from core_agent.agents.base import Metrics, SequenceOffPolicyAlgorithm

Result = TypeVar("Result")

WARM_UPS = 3
"""Updates of each kind before one is captured: libraries choose kernels, optimisers make states."""
PROGRESS = frozenset({"num_timesteps", "start_time"})
"""Public numbers of an agent that change while it learns; no update may read them."""
SETTINGS = (bool, int, float, str, type(None))
"""What numbers, texts and switches are."""


class SideStream:
    """A CUDA stream beside the current one, to warm up and to capture on.

    :param device: the GPU
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, function: Callable[[], Result]) -> Result:
        """``function()`` in between what the current stream was and will be asked for."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                return function()
        finally:
            current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What launches the kernels that ``function()`` asks for; none of them runs now.

        :raises RuntimeError: if it asks for what a graph cannot hold, such as waiting for a value
        """
        graph = torch.cuda.CUDAGraph()
        # Meanwhile other threads may use the GPU.
        capture = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        try:
            # A capture that fails would leave its stream the current one.
            with torch.cuda.stream(self._stream), capture:
                function()
        except RuntimeError:
            # It also leaves its mark on the generator, which then refuses to draw.
            generator = torch.cuda.default_generators[self._stream.device_index]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        return graph.replay


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a named tuple whose fields are tensors or dicts of them."""
    for field in batch:
        yield from field.values() if isinstance(field, dict) else (field,)


def room_for(batch: Any) -> Any:
    """A batch of the same shapes, types and order in memory, not filled."""

    def room(field: Any) -> Any:
        if isinstance(field, dict):
            return {key: torch.empty_like(value) for key, value in field.items()}
        return torch.empty_like(field)

    return type(batch)(*(room(field) for field in batch))


class Recording:
    """A captured update.

    :param stream: to capture on
    :param update: of an agent
    :param batch: such as it will be called with
    :raises RuntimeError: if it cannot be captured; nothing has changed then
    """

    def __init__(self, stream: SideStream, update: Callable[[Any], Metrics], batch: Any) -> None:
        self._batch = room_for(batch)
        self._names: list[str] = []
        self._values = torch.empty(0)

        def run() -> None:
            metrics = update(self._batch)
            self._names = list(metrics)
            self._values = torch.stack([value.detach().float() for value in metrics.values()])

        self._replay = stream.capture(run)

    def __call__(self, batch: Any) -> Metrics:
        """The update on ``batch``; its metrics are not overwritten by the next one's."""
        for place, value in zip(tensors_in(self._batch), tensors_in(batch)):
            place.copy_(value, non_blocking=True)
        self._replay()
        return dict(zip(self._names, self._values.clone().unbind()))


class CapturedUpdate:
    """Makes an agent's updates: the first ones as they come, then as CUDA graphs.

    There is a graph for each kind of update, see ``update_kind``. When anything that a graph holds
    has changed (:func:`held_by_graphs`), the agent's updates are warmed up and captured anew. An
    update that cannot be captured, as it waits for a value, goes on as it comes, with a warning.

    It holds nothing worth saving: a copy, also a pickled one, starts from the beginning.
    """

    def __init__(self) -> None:
        self._stream: SideStream | None = None
        self._held: tuple[Any, ...] | None = None
        self._n_warm_ups: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, Recording] = {}
        self._gave_up = False

    def __reduce__(self) -> tuple[type[CapturedUpdate], tuple[()]]:
        return CapturedUpdate, ()

    def __call__(self, model: SequenceOffPolicyAlgorithm, batch: Any) -> Metrics:
        """``model.update(batch)``."""
        if self._gave_up:
            return model.update(batch)
        if held_by_graphs(model, batch) != self._held:
            self._recordings.clear()
            self._n_warm_ups.clear()
        self._stream = self._stream or SideStream(model.device)
        kind = model.update_kind
        if kind not in self._recordings and self._n_warm_ups[kind] >= WARM_UPS:
            try:
                self._recordings[kind] = Recording(self._stream, model.update, batch)
            except RuntimeError as error:
                self._give_up(error)
                return model.update(batch)
        if kind in self._recordings:
            return self._recordings[kind](batch)
        metrics = self._stream.run(lambda: model.update(batch))
        self._n_warm_ups[kind] += 1
        # Optimisers make their states in their first step, so after it.
        self._held = held_by_graphs(model, batch)
        return metrics

    def _give_up(self, error: RuntimeError) -> None:
        self._gave_up = True
        self._recordings.clear()
        reason = str(error.__context__ or error).partition("\n")[0]
        warnings.warn(
            f"updates run without CUDA graphs, which takes longer: one could not be captured "
            f"({reason}); CORE_AGENT_CUDA_GRAPHS=0 does without from the start",
            stacklevel=2,
        )


def held_by_graphs(model: SequenceOffPolicyAlgorithm, batch: Any) -> tuple[Any, ...]:
    """What a graph of an update holds: equal as long as the graph is right.

    These are the layout of the batch, the agent's public numbers, texts and switches, the options
    of its optimisers, and where parameters, targets and optimisers' states lie. Not watched are
    numbers that networks hold.
    """
    layout = [(value.shape, value.stride(), value.dtype) for value in tensors_in(batch)]
    settings = [
        (name, value)
        for name, value in vars(model).items()
        if isinstance(value, SETTINGS) and name[0] != "_" and name not in PROGRESS
    ]
    changed = [parameter for target in model.policy.targets() for parameter in target.parameters()]
    states: list[torch.Tensor] = []
    options: list[Any] = []
    for optimizer in model.optimizers:
        for group in optimizer.param_groups:
            changed += group["params"]
            options += (value for key, value in group.items() if key != "params")
        for state in optimizer.state.values():
            states += state.values()
    return (
        layout,
        settings,
        [parameter.requires_grad for parameter in changed],
        [tensor.data_ptr() for tensor in changed],
        [tensor.data_ptr() for tensor in states],
        [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in options],
        model._guard,
    )
