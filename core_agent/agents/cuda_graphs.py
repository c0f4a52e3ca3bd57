"""Updates as CUDA graphs: all kernels of an update in one launch.

An update consists of thousands of short kernels, which a GPU runs faster than Python can launch
them. A graph stores the kernels with their arguments: numbers as they were when it was captured,
tensors by address.
https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from core_agent.agents.metrics import Metrics

WARM_UPS = 3
"""Updates of each kind to run before one is captured: in these, libraries choose their kernels and
optimisers create their states."""
PROGRESS = frozenset({"num_timesteps", "start_time"})
"""Public numbers of an agent that change while it learns; no update may read them."""
CHANGE_TOLERANCE, ROUNDING = 0.05, 1e-5
"""Largest allowed difference between a replay and the update itself: this share of the change that
the update makes, plus this share of the value. The order in which a GPU sums is not fixed, and Adam
enlarges differences in small gradients."""


def changed(agent: Any) -> list[torch.Tensor]:
    """All tensors that an update writes to and a later one reads."""
    networks = [*agent.policy.parameters(), *agent.policy.buffers()]
    states = tree_leaves([list(optimizer.state.values()) for optimizer in agent.optimizers])
    return [*networks, *states, *agent._guard.tensors()]


def held(agent: Any, batch: Any) -> tuple[Any, ...]:
    """Everything that a graph of the update stores: if any of it changes, the graph is invalid.

    From the agent these are its public numbers, strings, booleans and ``None`` values. Numbers
    inside the networks are not compared.
    """
    groups = [group for optimizer in agent.optimizers for group in optimizer.param_groups]
    options = [value for group in groups for key, value in group.items() if key != "params"]
    settings = {
        name: value
        for name, value in vars(agent).items()
        if isinstance(value, (bool, int, float, str, type(None)))
        and not (name.startswith("_") or name in PROGRESS)
    }
    return (
        [(value.shape, value.dtype) for value in tree_leaves(batch)],
        settings,
        [(tensor.data_ptr(), tensor.requires_grad) for tensor in changed(agent)],
        [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in options],
    )


@torch.no_grad()
def is_close(found: torch.Tensor, wanted: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether ``found`` equals ``wanted`` up to rounding; both were computed from ``before``."""
    one, other, start = (torch.nan_to_num(each.double()) for each in (found, wanted, before))
    margin = CHANGE_TOLERANCE * (other - start).norm() + ROUNDING * other.norm()
    return bool((one - other).norm() <= margin)


def run_beside(stream: torch.cuda.Stream, update: Callable[[Any], Metrics], batch: Any) -> Metrics:
    """Run ``update(batch)`` on ``stream``, between earlier and later work of the current stream."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        metrics = update(batch)
    current.wait_stream(stream)
    return metrics


def record(stream: torch.cuda.Stream, function: Callable[[], None]) -> Callable[[], None]:
    """Capture the kernels of ``function()`` without running them; return a function to run them.

    :raises RuntimeError: if ``function()`` does what a graph cannot hold, such as wait for a value
    """
    graph = torch.cuda.CUDAGraph()
    # Meanwhile other threads may use the GPU.
    capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    try:
        # A capture that fails would leave its stream the current one.
        with torch.cuda.stream(stream), capture:
            function()
    except RuntimeError:
        # A failed capture also leaves the generator in a state in which it cannot draw.
        generator = torch.cuda.default_generators[stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay


def captured(stream: torch.cuda.Stream, agent: Any, batch: Any) -> Callable[[Any], Metrics]:
    """An update as a graph, for batches of the layout of ``batch``; nothing is computed now.

    :raises RuntimeError: if it cannot be captured
    """
    place, metrics = tree_map(torch.empty_like, batch), dict[str, torch.Tensor]()

    def update() -> None:
        metrics.update({name: value.detach() for name, value in agent.update(place).items()})

    launch = record(stream, update)

    def replay(batch: Any) -> Metrics:
        torch._foreach_copy_(tree_leaves(place), tree_leaves(batch), non_blocking=True)
        launch()
        # Sums with 0, as the next replay overwrites what this one computes.
        return dict(zip(metrics, torch._foreach_add(list(metrics.values()), 0.0)))

    return replay


class GraphedUpdates:
    """Makes an agent's updates: the first ones without graphs, then as CUDA graphs.

    No graph is used before it has been verified: the same update is made with it and without it,
    from the same weights, optimiser states, batch and random numbers. When anything stored in a
    graph has changed, updates are warmed up and captured again. If an update cannot be captured,
    for example because it waits for a value, or if its graph gives another result, a warning says
    so, and no graph is used from then on.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._held: tuple[Any, ...] | None = None
        self._n_warm_ups: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, Callable[[Any], Metrics]] = {}
        self._gave_up = False

    def __reduce__(self) -> tuple[type[GraphedUpdates], tuple[()]]:
        """Graphs belong to the process that captured them: a copy has none."""
        return GraphedUpdates, ()

    def __call__(self, agent: Any, batch: Any) -> Metrics:
        """``agent.update(batch)``; for each ``update_kind`` of the agent's there is a graph."""
        if self._gave_up:
            return agent.update(batch)
        if held(agent, batch) != self._held:
            self._graphs.clear()
            self._n_warm_ups.clear()
        if agent.update_kind in self._graphs:
            return self._graphs[agent.update_kind](batch)
        self._stream = self._stream or torch.cuda.Stream(agent.device)
        if self._n_warm_ups[agent.update_kind] >= WARM_UPS:
            return self._prove(agent, batch)
        metrics = run_beside(self._stream, agent.update, batch)
        self._n_warm_ups[agent.update_kind] += 1
        # Optimisers make their states in their first step, so after it.
        self._held = held(agent, batch)
        return metrics

    def _prove(self, agent: Any, batch: Any) -> Metrics:
        """Capture an update and replay it, then make it eagerly; keep the graph if they agree."""
        kind, tensors = agent.update_kind, changed(agent)
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            replay = captured(self._stream, agent, batch)
        except RuntimeError as error:
            reason = str(error.__context__ or error).partition("\n")[0]
            self._give_up(f"one could not be captured ({reason})")
            return agent.update(batch)
        with torch.random.fork_rng([agent.device] if agent.device.type == "cuda" else []):
            replay(batch)
        replayed = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            torch._foreach_copy_(tensors, before)
        metrics = run_beside(self._stream, agent.update, batch)
        if all(map(is_close, replayed, tensors, before)):
            self._graphs[kind] = replay
        else:
            self._give_up("the replay of one differs from the eager update")
        return metrics

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        self._graphs.clear()
        way_out = "CORE_AGENT_CUDA_GRAPHS=0 turns them off from the start"
        told = f"updates run without CUDA graphs, which takes longer: {reason}; {way_out}"
        warnings.warn(told, stacklevel=2)
