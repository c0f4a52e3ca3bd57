"""CoRe and its companions: agents that learn robot control from distracting pixels."""

from importlib.util import find_spec

if find_spec("triton") is not None:
    # torch's optimisers import Triton at their first use; that crashes the process if software
    # OpenGL has loaded its own LLVM by then. Imported before any rendering it is harmless.
    import torch._dynamo  # noqa: F401

import core_agent.environments.suite  # noqa: F401  (registers the DCS ids)
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
