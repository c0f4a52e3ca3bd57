"""CUDA graphs emulated on a CPU, for agents that take it for a GPU.

What an update asks of PyTorch is recorded operator by operator, with its arguments, and then
undone; a replay calls the same operators on the same tensors. So numbers stay as they were and
tensors are read where they were, as in a CUDA graph; what waits for a value is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.lift_fresh,  # a number of Python's as a tensor: it is copied to the GPU
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
}


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def written(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Those arguments that the operator changes."""
    for index, argument in enumerate(operator._schema.arguments):
        if argument.is_write:
            yield args[index] if index < len(args) else kwargs.get(argument.name)


class Recorder(TorchDispatchMode):
    """Inside, operators are recorded; what they change is brought back at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.made: dict[int, torch.Tensor] = {}
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator.overloadpacket in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operator}")
        for tensor in tensors(list(written(operator, args, kwargs))):
            if address(tensor) not in self.made and address(tensor) not in self.before:
                storage = tensor.untyped_storage()
                self.before[address(tensor)] = storage, storage.clone()
        result = operator(*args, **kwargs)
        known = {address(tensor) for tensor in tensors((args, kwargs))}
        self.made |= {address(t): t for t in tensors(result) if address(t) not in known}
        self.calls.append((operator, args, kwargs, result))
        return result

    def undo(self) -> None:
        """As if nothing had been computed: no change is left, and results hold nothing."""
        for storage, content in self.before.values():
            storage.copy_(content)
        with torch.no_grad():
            for tensor in self.made.values():
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        for operator, args, kwargs, result in self.calls:
            for place, value in zip(tensors(result), tensors(operator(*args, **kwargs))):
                if address(place) != address(value):
                    place.copy_(value)


class EmulatedStream:
    """In place of :class:`~core_agent.agents.cuda_graphs.SideStream`."""

    n_captures = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def run(self, function: Callable[[], Any]) -> Any:
        return function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        recorder, state = Recorder(), torch.get_rng_state()
        try:
            with recorder:
                function()
        finally:
            recorder.undo()
            torch.set_rng_state(state)
        EmulatedStream.n_captures += 1
        return recorder.replay
