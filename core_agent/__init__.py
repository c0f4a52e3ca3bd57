"""CoRe and its companions: agents that learn robot control from distracting pixels."""

from importlib.util import find_spec

if find_spec("triton") is not None:
    # torch's optimisers import Triton at their first use; that crashes the process if software
    # OpenGL has loaded its own LLVM by then. Imported before any rendering it is harmless.
    import torch._dynamo  # noqa: F401

from core_agent.core import CoRe
from core_agent.recurrent_sac import RecurrentSAC

__version__ = "0.1.0"
__all__ = ["CoRe", "RecurrentSAC", "__version__"]
