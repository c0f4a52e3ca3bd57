"""How near the built-in clips are to natural video: saturation, fine texture, change over time.

    python benchmarks/clip_statistics.py

All 90 clips at 64×64 pixels, ten pairs of consecutive frames each. *Saturation* is that of HSV;
*gradient* the mean absolute difference of neighbouring pixels in grey; *change* the mean absolute
difference of consecutive frames over all colours; each on a scale of 0 to 1. Four natural clips
lie at a saturation of 0.12 to 0.42, a gradient of 0.040 to 0.057 and a change of 0.005 to 0.028.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from distracting_envs.builtin_videos import CLIP_FRAMES, N_CLIPS, ClipScene

SIDE = 64
N_PAIRS = 10
COLUMNS = ("saturation", "gradient", "change")

Floats = npt.NDArray[np.float64]


def pair_statistics(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> Floats:
    """Saturation, gradient and change of two consecutive frames ``(h, w, 3)``, ``(3,)``."""
    one, two = (
        cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in (first, second)
    )
    saturation = cv2.cvtColor(one, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255
    grey = one.mean(axis=-1) / 255
    gradient = np.mean([np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)])
    change = np.abs(one.astype(float) - two).mean() / 255
    return np.array([saturation, gradient, change])


def clip_statistics(split: str, index: int, n_pairs: int = N_PAIRS) -> Floats:
    """Mean :func:`pair_statistics` of one clip."""
    scene = ClipScene(split, index)
    starts = range(0, CLIP_FRAMES - 1, -(-(CLIP_FRAMES - 1) // n_pairs))
    pairs = [pair_statistics(scene.frame(t), scene.frame(t + 1)) for t in starts]
    return np.mean(pairs, axis=0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="pairs of frames of each clip")
    parser.add_argument("--clips", type=int, help="the first so many of each split; default: all")
    arguments = parser.parse_args(argv)
    print(f"{'':12}" + "".join(f"{name:>12}" for name in COLUMNS))
    rows = []
    for split, n_clips in N_CLIPS.items():
        chosen = range(n_clips)[: arguments.clips]
        rows.append(np.array([clip_statistics(split, i, arguments.pairs) for i in chosen]))
    everything = np.concatenate(rows)
    summary = {f"{split} mean": row.mean(axis=0) for split, row in zip(N_CLIPS, rows)}
    summary |= {"all mean": everything.mean(axis=0)}
    for share in (0.1, 0.9):
        summary[f"all {share:.0%}"] = np.quantile(everything, share, axis=0)
    for name, values in summary.items():
        print(f"{name:12}" + "".join(f"{value:12.3f}" for value in values))


if __name__ == "__main__":
    main()
