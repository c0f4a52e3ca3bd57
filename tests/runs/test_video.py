"""Videos, plots and playing."""

from __future__ import annotations

import io
import re

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core_agent import CoRe, RecurrentSAC
from core_agent.runs.callbacks import (
    EpisodeReturns,
    RichProgressCallback,
    TimeLimitCallback,
    ValidationCallback,
)
from core_agent.runs.evaluation import EpisodeResult, play, summarize
from core_agent.runs.plotting import plot_learning_curve, plot_runs, read_curves, running_mean
from core_agent.runs.video import (
    captioned,
    encode_gif,
    log_video,
    side_by_side,
    write_video,
)
from tests.fakes import TINY, VECTOR, FakeEnv


def frames(n: int, value: int = 0) -> list[np.ndarray]:
    return [np.full((16, 24, 3), value + i, np.uint8) for i in range(n)]


def test_the_suffix_chooses_the_format(tmp_path):
    for name, n in (("a.gif", 3), ("b.MP4", 7)):
        write_video(tmp_path / "new" / name, frames(n), 15)
        with av.open(str(tmp_path / "new" / name)) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(decoded) == n
        assert decoded[0].shape == (16, 24, 3)
        with pytest.raises(ValueError, match="frames must hold at least one frame"):
            write_video(tmp_path / name, [], 15)
    with pytest.raises(ValueError, match=r"path must end in one of \('.mp4', '.gif'\), got 'c'"):
        write_video("c", frames(1), 15)


def test_side_by_side_freezes_the_shorter_video():
    joined = side_by_side(frames(2), frames(4, value=100))
    assert len(joined) == 4
    assert joined[0].shape == (16, 48, 3)
    assert joined[3][0, 0, 0] == 1
    assert joined[3][0, -1, 0] == 103


def test_captions_leave_the_original_alone():
    original = [np.full((40, 120, 3), 90, np.uint8)]
    (marked,) = captioned(original, "CoRe")
    assert marked.shape == (40, 120, 3)
    assert (marked == 255).any()
    assert (original[0] == 90).all()


def test_videos_reach_tensorboard(tmp_path):
    logger = configure(str(tmp_path), ["tensorboard"])
    log_video(logger, "validation/video", frames(3), 15, step=7)
    logger.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("validation/video")
    assert image.step == 7
    assert (image.width, image.height) == (24, 16)
    assert image.encoded_image_string == encode_gif(frames(3), 15)


def test_play_returns_whole_episodes_with_the_frames_that_are_asked_for():
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    results = play(FakeEnv(length=5), model, 2, seed=0, record=True)
    assert [r.n_steps for r in results] == [5, 5]
    assert [len(r.frames) for r in results] == [6, 6]
    at_random = play(FakeEnv(length=5), None, 3, seed=0, record="first")
    assert [len(r.frames) for r in at_random] == [6, 0, 0]
    again = play(FakeEnv(length=5), None, 3, seed=0)
    assert [r.episode_return for r in again] == [r.episode_return for r in at_random]
    with pytest.raises(ValueError, match="n_episodes must be a whole number >= 1, got 0"):
        play(FakeEnv(), None, 0)


def test_summary_is_mean_and_standard_error():
    results = [EpisodeResult(value, 1, []) for value in (1.0, 2.0, 6.0)]
    statistics = summarize(results)
    assert statistics.mean == 3.0
    assert statistics.standard_error == pytest.approx(np.sqrt(7.0 / 3.0))
    assert summarize(results[:1]).standard_error == 0.0


def test_running_mean_looks_back():
    assert running_mean([1, 3, 5, 7], window=2).tolist() == [1, 2, 4, 6]


def test_learning_curve_is_a_picture(tmp_path):
    plot_learning_curve(tmp_path / "curve.png", "title", [1, 2, 3], [1, 4, 9], 2.0, [(3, 8, 1)])
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def write_log(folder, points):
    folder.mkdir(parents=True, exist_ok=True)
    logger = configure(str(folder), ["tensorboard"])
    for step, value in points:
        logger.record("rollout/ep_rew_mean", value)
        logger.dump(step)
    logger.close()


def test_each_run_is_a_curve_and_each_environment_a_panel(tmp_path):
    for agent, env_id in (("core", "A-v0"), ("curl", "A-v0"), ("core", "B-v0")):
        run = tmp_path / agent / env_id / "seed-0"
        write_log(run / "tensorboard" / "first", [(10, 1.0), (20, 2.0)])
        (run / "run.json").write_text(f'{{"env_id": "{env_id}"}}')
    log = tmp_path / "core/A-v0/seed-0/tensorboard"
    # The first run was started again, and then resumed at step 10.
    write_log(log / "second", [(10, 3.0), (20, 4.0)])
    write_log(log / "second", [(20, 5.0), (30, 6.0)])
    write_log(tmp_path / "PPO_1", [(1, 1.0)])  # of other programs
    panels = read_curves([tmp_path], "rollout/ep_rew_mean")
    assert {env_id: sorted(curves) for env_id, curves in panels.items()} == {
        "": ["PPO_1"],
        "A-v0": ["core/seed-0", "curl/seed-0"],
        "B-v0": ["core/seed-0"],
    }
    assert panels["A-v0"]["core/seed-0"] == ([10, 20, 30], [3.0, 5.0, 6.0])
    validations = '{"agent_steps": 5, "returns": [1, 3]}\n{"agent_steps": 9, "returns": [4]}\n'
    (tmp_path / "core/A-v0/seed-0/evaluations.jsonl").write_text(validations)
    assert read_curves([tmp_path], "validation") == {"A-v0": {"seed-0": ([5, 9], [2.0, 4.0])}}
    plot_runs(tmp_path / "new" / "curves.png", "return", panels)
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.width > 2 * picture.height, "panels next to each other"


def test_a_curve_of_one_point_is_visible(tmp_path):
    path = tmp_path / "curves.png"
    plot_runs(path, "return", {"task": {"seed-0": ([100], [5.0])}})
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    middle = pixels[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
    assert len(np.unique(middle.reshape(-1, 3), axis=0)) > 1


def test_validation_logs_returns_and_a_video(tmp_path):
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    validation = ValidationCallback(FakeEnv(), every=10, n_episodes=2)
    training = EpisodeReturns()
    model.learn(24, callback=[validation, training], log_interval=1)
    model.logger.close()
    assert [step for step, *_ in validation.results] == [10, 20, 24]
    assert [step for step, *_ in training.episodes] == [6, 12, 18, 24]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Images("validation/video")) == 3
    assert "validation/return" in events.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore:updates are expensive")
def test_time_limit_ends_training():
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    model.learn(10**6, callback=TimeLimitCallback(0.2))
    assert model.num_timesteps < 10**6


class SlowUpdates(RecurrentSAC):
    """A minute passes with each update, a second with each step; progress is shown meanwhile."""

    progress: RichProgressCallback | None = None

    def update(self, batch):
        if self.progress:
            self.progress.clock.seconds += 60.0
            self.progress.show()
        return super().update(batch)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_moves_during_updates_and_tells_the_time_left(terminal):
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=terminal)
    progress = RichProgressCallback(console, "train/critic_loss", Clock())
    model = SlowUpdates("MlpPolicy", FakeEnv(VECTOR), **TINY, train_freq=(6, "step"))
    model.learn(12)
    model.progress = progress
    model.learn(12, progress, reset_num_timesteps=False)
    assert progress._ended.is_set()
    if terminal:
        assert progress._bar.tasks[0].completed == 24
        assert re.search(r"return -?\d+, loss -?\d+\.\d\d, .*0:00 left", output.getvalue())
        return
    *during, last = output.getvalue().splitlines()
    done = [float(line.split()[0]) for line in during]
    assert done == sorted(done) and len(set(done)) > 3, "steps move only between updates"
    assert done[0] > 6, "the steps before are not counted"
    left = [line.split(", ")[-1] for line in during]
    assert left[-1].endswith(" left") and left[-1] != "– left"
    assert last.startswith("24 of 24 steps") and last.endswith("0:00:00 left")
