"""Workers, leaks, missing OpenGL, and what users must not see."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import distracting_envs
from distracting_envs import sky
from distracting_envs.cache import ClipCache
from distracting_envs.videos import BuiltinClip
from tests.fakes import HANGS_AFTER

ENV_ID = "distracting_envs:DCS-cartpole-swingup-easy-dynamic"
FAST = {"render_quality": "fast", "video_path": "builtin"}
SOURCE = str(Path(distracting_envs.__file__).parents[1])
ROOT = str(Path(__file__).parents[2])
TRITON = Path(sys.prefix, "triton")
"""Where ``.ci/run`` puts it, so that no other test imports it."""
NEEDS_TRITON = "needs Triton: a CUDA build of PyTorch brings it, or pip install triton"


def run_python(
    *arguments: str, launcher: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that knows the package, with a few more environment variables."""
    paths = [SOURCE, ROOT, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables
    environment.pop("PYOPENGL_PLATFORM", None)  # set by dm_control for this process's backend
    return subprocess.run(
        [*launcher, sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
        check=False,
    )


WORKERS = """
import distracting_envs  # before Stable-Baselines3, which imports gym where that is installed
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

def rollout(vec_env):
    observations = [vec_env.reset()]
    rng = np.random.default_rng(0)
    for _ in range(2):
        actions = rng.uniform(-1, 1, (vec_env.num_envs, *vec_env.action_space.shape))
        observations.append(vec_env.step(actions.astype(np.float32))[0])
    vec_env.close()
    return np.stack(observations)

if __name__ == "__main__":
    make = dict(
        env_id="distracting_envs:DCS-cartpole-swingup-easy-dynamic", n_envs=2, seed=3,
        env_kwargs={"render_quality": "fast", "video_path": "builtin"},
    )
    here = rollout(make_vec_env(vec_env_cls=DummyVecEnv, **make))
    print("workers differ:", np.any(here[:, 0] != here[:, 1]))
    start = {"start_method": "forkserver"}
    there = rollout(make_vec_env(vec_env_cls=SubprocVecEnv, vec_env_kwargs=start, **make))
    print("processes agree:", np.array_equal(here, there))
"""


def test_subprocesses_see_what_one_process_sees_and_print_nothing(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(WORKERS)
    result = run_python(str(script), DCS_CACHE=str(tmp_path))
    printed = ["workers differ: True", "processes agree: True"]
    assert result.stdout.splitlines() == printed, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "stand in for the DAVIS videos" in lines[0]


def test_gymnasiums_async_vector_env_works():
    vec_env = gymnasium.make_vec(
        ENV_ID, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **FAST
    )
    observations, _ = vec_env.reset(seed=1)
    assert observations.shape == (2, 100, 100, 3)
    vec_env.step(vec_env.action_space.sample())
    vec_env.close()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_worker_says_that_it_cannot_render_instead_of_hanging():
    code = f"""
import os
import gymnasium
make = lambda: gymnasium.make({ENV_ID!r}, render_quality="fast", video_path="builtin")
make().reset(seed=0)
if os.fork() == 0:
    try:
        make().reset(seed=0)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.wait()
"""
    result = run_python("-c", code)
    assert "RenderingUnavailableError" in result.stdout, result.stderr
    assert "SubprocVecEnv(env_fns, start_method='spawn')" in result.stdout


USE = f"""
import gymnasium
env = gymnasium.make({ENV_ID!r}, render_quality="fast", video_path="builtin")
env.reset(seed=0)
env.step(env.action_space.sample())
print(env.render().mean() > 0)
"""


def test_frames_come_from_osmesa():
    result = run_python("-c", USE, MUJOCO_GL="osmesa")
    if "apt-get install" in result.stderr:
        pytest.skip("needs OSMesa: sudo apt-get install libosmesa6 (Debian, Ubuntu)")
    assert result.stdout.strip() == "True", result.stderr


def test_users_see_frames_and_one_line_on_a_machine_and_no_notice_of_gym(tmp_path):
    # The environment is not closed: that must not show either.
    unasked = "import os; os.environ.pop('MUJOCO_GL', None)" + USE
    first, second = (run_python("-c", code, DCS_CACHE=str(tmp_path)) for code in (USE, unasked))
    assert first.stdout == second.stdout == "True\n", first.stderr + second.stderr
    (line,) = first.stderr.strip().splitlines()
    assert "stand in for the DAVIS videos" in line
    assert "core-agent videos download" in line
    assert second.stderr == ""


WINDOW = f"""
import gymnasium
import numpy as np
env = gymnasium.make({ENV_ID!r}, render_quality="fast", render_mode="human")
env.reset(seed=0)
for _ in range(3):
    env.step(env.action_space.sample())
import pygame
shown = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
print(pygame.display.get_driver(), np.array_equal(shown, env.unwrapped.render()), env.render_mode)
env.close()
"""


@pytest.mark.skipif(
    not shutil.which("xvfb-run"), reason="needs Xvfb: apt-get install -y xvfb xauth"
)
@pytest.mark.parametrize("backend", ["egl", "glfw"])
def test_human_rendering_shows_the_frames_in_a_window(backend):
    pytest.importorskip("pygame", reason="needs pygame: pip install pygame")
    result = run_python("-c", WINDOW, launcher=("xvfb-run", "-a"), MUJOCO_GL=backend)
    assert result.stdout.strip() == "x11 True human", result.stdout + result.stderr


def test_a_window_without_a_display_or_without_pygame_is_refused_in_one_line():
    result = run_python("-c", WINDOW, DISPLAY="", WAYLAND_DISPLAY="")
    line = result.stderr.strip().splitlines()[-1]
    assert "a window needs a display, but DISPLAY='' gives none; write a video" in line
    hide = "import sys; sys.modules['pygame'] = None" + WINDOW
    result = run_python("-c", hide, DISPLAY=":99")
    line = result.stderr.strip().splitlines()[-1]
    assert line.endswith("a window needs pygame, which is not installed: pip install pygame")


@pytest.mark.parametrize(
    ("variables", "hides"),
    [
        ({"MUJOCO_GL": "egl"}, "EGL"),
        ({"MUJOCO_GL": "osmesa"}, "OSMesa"),
        ({}, "EGL|OSMesa"),
    ],
)
def test_missing_opengl_says_what_to_install(variables, hides):
    code = f"""
import ctypes, ctypes.util, os, re
if not {variables!r}:
    os.environ.pop("MUJOCO_GL", None)
os.environ.pop("PYOPENGL_PLATFORM", None)
hidden = re.compile({hides!r})
find, load = ctypes.util.find_library, ctypes.CDLL.__init__
ctypes.util.find_library = lambda name: None if hidden.search(name) else find(name)
def refuse(self, name, *arguments, **named):
    if name and hidden.search(str(name)):
        raise OSError(f"cannot open {{name}}")
    load(self, name, *arguments, **named)
ctypes.CDLL.__init__ = refuse
import gymnasium
gymnasium.make({ENV_ID!r})
"""
    result = run_python("-c", code, **variables)
    assert "RenderingUnavailableError" in result.stderr, result.stderr
    assert "apt-get install" in result.stderr


def test_rendering_switched_off_says_what_to_do():
    result = run_python("-c", USE, MUJOCO_GL="disable")
    assert "RenderingUnavailableError" in result.stderr
    assert "MUJOCO_GL=disable" in result.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not TRITON.is_dir(), reason=NEEDS_TRITON
)
@pytest.mark.parametrize("before", ["", "import core_agent"])
def test_triton_can_be_imported_after_rendering(before):
    found = f"import sys; sys.path.append({str(TRITON)!r}); {before}"
    result = run_python("-c", found + USE + "import triton; print('survived')")
    assert result.stdout.split() == ["True", "survived"], result.stderr


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def construct_and_close(count: int) -> None:
    for seed in range(count):
        env = gymnasium.make(ENV_ID, **FAST)
        env.reset(seed=seed % 4)
        env.close()
    gc.collect()


def print_growth(warm_up: int, count: int) -> None:
    """Print how many open files and bytes of memory more there are after ``count`` of them."""
    construct_and_close(warm_up)
    files, memory = len(os.listdir("/proc/self/fd")), resident_bytes()
    construct_and_close(count)
    print(len(os.listdir("/proc/self/fd")) - files, resident_bytes() - memory)


def assert_no_leak(warm_up: int, count: int, mb_allowed: float) -> None:
    """In a process of its own: what other tests left in this one is freed at any time."""
    module = "tests.envs.test_robustness"
    code = f"from {module} import print_growth; print_growth({warm_up}, {count})"
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    more_files, more_bytes = map(int, result.stdout.split())
    assert more_files <= 2
    assert more_bytes < mb_allowed * 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_few_constructions_leak_no_memory_and_no_files():
    # The heap of a process without a leak goes up and down by 60 MB.
    assert_no_leak(warm_up=10, count=12, mb_allowed=100)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_hundred_constructions_leak_no_memory_and_no_files():
    assert_no_leak(warm_up=10, count=200, mb_allowed=60)


def test_without_libgl_fast_quality_shows_the_same(monkeypatch):
    frames = []
    for opengl in (sky._opengl, lambda: None):
        monkeypatch.setattr(sky, "_opengl", opengl)
        env = gymnasium.make(ENV_ID, **FAST)
        env.reset(seed=0)
        env.step(np.zeros(1, np.float32))
        env.step(np.zeros(1, np.float32))
        frames.append(env.render())
        env.close()
    np.testing.assert_array_equal(*frames)


# The clip cache.


def test_a_clip_is_decoded_once_and_then_mapped_from_disk(tmp_path, monkeypatch):
    first = ClipCache(1, 10, tmp_path).clip(BuiltinClip("train", 0), 64)
    monkeypatch.setattr(BuiltinClip, "frames", None)
    again = ClipCache(1, 10, tmp_path).clip(BuiltinClip("train", 0), 64)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)


def test_a_damaged_cache_file_is_made_again(tmp_path):
    expected = np.array(ClipCache(1, 10, tmp_path).clip(BuiltinClip("train", 0), 64))
    (path,) = tmp_path.glob("*.npy")
    for damage in (b"", path.read_bytes()[:1000], b"nonsense"):
        path.write_bytes(damage)
        actual = ClipCache(1, 10, tmp_path).clip(BuiltinClip("train", 0), 64)
        np.testing.assert_array_equal(actual, expected)


def test_the_disk_cache_keeps_its_limit_and_the_newest_clips(tmp_path):
    size = BuiltinClip.n_frames * 64 * 64 * 3
    cache = ClipCache(0, 2.5 * size / 1e9, tmp_path)
    for index in range(4):
        cache.clip(BuiltinClip("train", index), 64)
        os.utime(max(tmp_path.glob("*.npy"), key=os.path.getmtime), (index, index))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) <= 2.5 * size


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    (tmp_path / "partial-old").write_text("")
    (tmp_path / "partial-new").write_text("")
    os.utime(tmp_path / "partial-old", (0, 0))
    ClipCache(1, 10, tmp_path).clip(BuiltinClip("train", 0), 64)
    assert not (tmp_path / "partial-old").exists()
    assert (tmp_path / "partial-new").exists()


def test_the_memory_cache_keeps_its_limit():
    size = BuiltinClip.n_frames * 64 * 64 * 3
    cache = ClipCache(2.5 * size / 1e9, 0, Path("nowhere"))
    clips = [cache.clip(BuiltinClip("train", index), 64) for index in range(3)]
    assert cache.clip(BuiltinClip("train", 2), 64) is clips[2]
    assert cache.clip(BuiltinClip("train", 0), 64) is not clips[0]


def test_an_unwritable_cache_folder_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = ClipCache(1, 10, tmp_path / "file" / "clips")
    assert cache.clip(BuiltinClip("train", 0), 64).shape == (60, 64, 64, 3)
    assert "kept in memory only" in caplog.text


def test_the_next_episodes_clip_is_ready_before_its_reset(tmp_path, monkeypatch):
    monkeypatch.setenv("DCS_CACHE", str(tmp_path))
    env = gymnasium.make(ENV_ID, **FAST).unwrapped
    env.reset(seed=5)
    env.step(env.action_space.sample())
    background = env._distractors["background"]
    background._cache._worker.shutdown(wait=True)
    background._cache._worker = None
    monkeypatch.setattr(BuiltinClip, "frames", None)  # decoding now would fail
    env.reset()
    env.close()
