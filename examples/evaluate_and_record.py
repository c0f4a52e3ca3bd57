"""Evaluate a saved agent on validation videos, and record an episode.

python examples/evaluate_and_record.py runs/demo/model.zip DCS-cartpole-swingup-easy-dynamic
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym

import distracting_envs  # noqa: F401  (registers the DCS ids)
from core_agent import CoRe
from core_agent.runs.evaluation import play, summarize
from core_agent.runs.video import write_mp4


def main(
    model_path: str,
    env_id: str,
    n_episodes: int = 5,
    video: Path = Path("runs/episode.mp4"),
    image_size: int = 64,
) -> float:
    """Mean return; ``image_size`` is that of training, 64 for the small preset."""
    env = gym.make(env_id, split="val", image_size=image_size, render_quality="fast")
    model = CoRe.load(model_path)
    episodes = play(env, model, n_episodes, deterministic=True, seed=0)
    statistics = summarize(episodes)
    print(f"return {statistics.mean:.0f} ± {statistics.standard_error:.0f}, {n_episodes} episodes")

    recorded = play(env, model, 1, seed=0, record=True)[0]
    video.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(video, recorded.frames, fps=15)
    print(f"an episode of return {recorded.episode_return:.0f}: {video}")
    env.close()
    return statistics.mean


if __name__ == "__main__":
    main(*sys.argv[1:3])
