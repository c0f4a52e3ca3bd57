"""QT-Opt + DrQ: QT-Opt with random shifts, targets and losses averaged over two of them."""

from __future__ import annotations

from typing import ClassVar

from core_agent.agents.qt_opt_rad import QTOptRAD
from core_agent.networks.augmentations import random_shift
from core_agent.networks.types import Observation


class QTOptDrQ(QTOptRAD):
    """QT-Opt with the augmentation of DrQ.

    Paper: Yarats, Kostrikov and Fergus 2021, DrQ, https://arxiv.org/abs/2004.13649: shifts by up to
    4 pixels, targets averaged over K = 2 and losses over M = 2 of them. The 'QT-Opt + DrQ' of
    Table 5, arXiv:2112.01163.

    Deviations: those of :class:`~core_agent.agents.qt_opt_rad.QTOptRAD`; and images are shifted
    after the central crop (84 of 100 pixels), as DrQ renders 84 pixels to begin with.

    The arguments are those of ``QTOptRAD``.
    """

    n_views: ClassVar[int] = 2

    def augment(self, observation: Observation) -> Observation:
        """The stacks ``(B, ...)`` with each image shifted by a random offset of its own."""
        return self.policy.encoder.map_images(random_shift, observation)
