"""The agents by the name that the command line, the presets and rl-zoo know them by."""

from __future__ import annotations

import io
import pathlib
from typing import Any

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.core import CoRe, RecurrentSAC
from core_agent.agents.curl import CURL
from core_agent.agents.qt_opt import QTOptDrQ, QTOptRAD
from core_agent.agents.sac_rad import SACRAD
from core_agent.saving.safe_loading import read_data
from core_agent.validation import check, check_file

AGENTS: dict[str, type[SequenceOffPolicyAlgorithm]] = {
    "core": CoRe,
    "recurrent_sac": RecurrentSAC,
    "sacrad": SACRAD,
    "curl": CURL,
    "qtopt_rad": QTOptRAD,
    "qtopt_drq": QTOptDrQ,
}


def get_agent(name: str) -> type[SequenceOffPolicyAlgorithm]:
    """The agent of that name.

    :raises ValueError: for an unknown name
    """
    check(name in AGENTS, "agent", f"be one of {tuple(AGENTS)}", name)
    return AGENTS[name]


def load_agent(
    path: str | pathlib.Path | io.BufferedIOBase, **arguments: Any
) -> SequenceOffPolicyAlgorithm:
    """A saved model of any agent of this package, as its class's own ``load`` gives it.

    :param path: file
    :param arguments: of :meth:`~core_agent.agents.base.SequenceOffPolicyAlgorithm.load`
    :raises ValueError: for a file that is no saved model, or one of another class
    """
    check_file("path", path)
    data = read_data(path)
    # Models saved before there were more than two agents do not say which they are.
    unnamed = "CoRe" if "kl_coef" in data else "RecurrentSAC"
    name = data.get("agent_class", unnamed)
    classes = {agent.__name__: agent for agent in AGENTS.values()}
    check(
        name in classes,
        "path",
        f"be a model of one of {tuple(classes)}",
        name,
        "load it with its own class",
    )
    return classes[name].load(path, **arguments)
