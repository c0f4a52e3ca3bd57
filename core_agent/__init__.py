"""CoRe and its companions: agents that learn robot control from distracting pixels.

The agents are imported when they are first asked for, so that :mod:`core_agent.onnx_agent` can be
used where PyTorch, Stable-Baselines3 and Gymnasium are not installed.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("torch") is not None and find_spec("triton") is not None:
    # torch's optimisers import Triton at their first use; that crashes the process if software
    # OpenGL has loaded its own LLVM by then. Imported before any rendering it is harmless.
    import torch._dynamo  # noqa: F401

if find_spec("gymnasium") is not None:
    import core_agent.environments.suite  # noqa: F401  (registers the DCS ids)

if TYPE_CHECKING:
    from core_agent.agents.core import CoRe
    from core_agent.agents.curl import CURL
    from core_agent.agents.presets import preset
    from core_agent.agents.qt_opt import QTOptDrQ, QTOptRAD
    from core_agent.agents.recurrent_sac import RecurrentSAC
    from core_agent.agents.registry import load_agent
    from core_agent.agents.sac_rad import SACRAD

__version__ = "0.1.0"
__all__ = [
    "CURL",
    "SACRAD",
    "CoRe",
    "QTOptDrQ",
    "QTOptRAD",
    "RecurrentSAC",
    "__version__",
    "load_agent",
    "preset",
]

_MODULES = {
    "CURL": "curl",
    "SACRAD": "sac_rad",
    "CoRe": "core",
    "QTOptDrQ": "qt_opt",
    "QTOptRAD": "qt_opt",
    "RecurrentSAC": "recurrent_sac",
    "load_agent": "registry",
    "preset": "presets",
}
"""Modules of ``core_agent.agents`` by what is imported from them on demand."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"core_agent.agents.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
