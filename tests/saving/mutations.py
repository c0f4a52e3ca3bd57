"""Files damaged at random, and what loading them does, in a process of its own.

As a command, ``python -m tests.saving.mutations FOLDER FIRST LAST SEED``, it loads mutants of the
sound files in a folder and prints one line of JSON for each. Its memory is limited; it dies when a
mutant takes too long.

Models, buffers and policies load or are refused. Checkpoints have sums, so each mutant of one is
noticed. Videos have none: where one is not refused, as many frames of the same size as before are
shown, whatever is on them.
"""

from __future__ import annotations

import base64
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from core_agent import CoRe
from core_agent.agents.latent import RecurrentPolicy
from core_agent.saving.safe_loading import UnsafeFileError
from distracting_envs.videos import VideoError, open_clips
from tests.fakes import HANGS_AFTER, TINY, FakeEnv, SavableEnv
from tests.saving.attacks import read_zip, save_sound_files, write_zip

PICTURE_SIZE, N_FRAMES = (32, 24), 5
SAVED = {"model": "model.zip", "replay buffer": "replay.npz", "policy": "policy.pth"}
CHECKPOINT = {"checkpoint": "run/checkpoint-*.npz", "episode": "run/replay/*.npz"}
VIDEOS = {"picture": "pictures/clip/2.jpg", "video": "videos/clip.mp4"}
FILES = {**SAVED, **CHECKPOINT, **VIDEOS}
"""Patterns of the sound files by kind; the last file that one fits is spoilt."""
EXTRA_MEMORY = 512 * 2**20
MOST_SECONDS = 30
"""Of processor time, for one file."""
FORBIDDEN_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.")
OTHER_VALUES = (None, True, -1, 0, 10**30, 1e400, 0.5, "", "x", [], [1], [[]], {}, {"x": 1})


# ---- sound files ----


def save_all(folder: Path) -> None:
    """Write the sound files."""
    save_sound_files(folder)
    run = CoRe("CnnPolicy", SavableEnv(), **TINY)
    for _ in range(2):
        run.learn(14, reset_num_timesteps=False)
        run.checkpoint(folder / "run")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (N_FRAMES, 3, 4, 3), np.uint8)
    pictures = [Image.fromarray(each).resize(PICTURE_SIZE) for each in small]
    for name, pattern in VIDEOS.items():
        (folder / pattern).parent.mkdir(parents=True)
        if name == "picture":
            for number, picture in enumerate(pictures):
                picture.save((folder / pattern).with_name(f"{number}.jpg"))
    with av.open(str(folder / VIDEOS["video"]), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = PICTURE_SIZE
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def find(folder: Path, kind: str) -> Path:
    """The file of a kind that is spoilt."""
    return max(folder.glob(FILES[kind]))


# ---- mutants ----


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    array = np.frombuffer(content, np.uint8).copy()
    for place in rng.integers(len(array), size=rng.integers(1, 9)):
        array[place] ^= 1 << rng.integers(8)
    return array.tobytes()


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def block(content: bytes, rng: np.random.Generator) -> slice:
    start = rng.integers(len(content))
    return slice(start, start + rng.integers(1, 1 + max(1, len(content) // 4)))


def duplicate_block(content: bytes, rng: np.random.Generator) -> bytes:
    part = block(content, rng)
    return content[: part.stop] + content[part] + content[part.stop :]


def zero_block(content: bytes, rng: np.random.Generator) -> bytes:
    part = block(content, rng)
    return content[: part.start] + bytes(len(content[part])) + content[part.stop :]


def change_an_entry(content: bytes, rng: np.random.Generator) -> bytes:
    """Swap two entries of an archive, empty one, or mutate one; the checksums are right."""
    entries = read_zip(io.BytesIO(content))
    one, other = rng.choice(sorted(entries), size=2)
    way = rng.integers(5)
    if way == 0:
        entries[one], entries[other] = entries[other], entries[one]
    elif way == 1:
        entries[one] = b""
    else:
        entries[one] = mutate(entries[one], rng)
    file = io.BytesIO()
    write_zip(file, entries)
    return file.getvalue()


def change_a_tree(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a value of the JSON object that NumPy's array of an archive holds."""
    tree = np.frombuffer(change_a_value(np.load(io.BytesIO(content)).tobytes(), rng), np.uint8)
    file = io.BytesIO()
    np.save(file, tree)
    return file.getvalue()


def change_a_value(content: bytes, rng: np.random.Generator) -> bytes:
    """Change or remove a value of a JSON object; mutate what is pickled in it."""
    values = json.loads(content)
    key = rng.choice(sorted(values))
    way, value = rng.integers(4), values[key]
    if way == 0:
        del values[key]
    elif isinstance(value, dict) and ":serialized:" in value and way < 3:
        pickled = mutate(base64.b64decode(value[":serialized:"]), rng)
        value[":serialized:"] = base64.b64encode(pickled).decode()
    else:
        values[key] = OTHER_VALUES[rng.integers(len(OTHER_VALUES))]
    return json.dumps(values).encode()


ANYWHERE = (flip_bits, cut, duplicate_block, zero_block)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one thing spoilt: anywhere, or inside of an archive or of a JSON object."""
    if not content:
        return b"\x00"
    ways: list[Callable[[bytes, np.random.Generator], bytes]] = list(ANYWHERE)
    if zipfile.is_zipfile(io.BytesIO(content)):
        ways += [change_an_entry] * 12
    elif content.startswith(b"{"):
        ways += [change_a_value] * 12
    elif b"{" in content[128:130]:
        ways += [change_a_tree] * 12
    return ways[rng.integers(len(ways))](content, rng)


# ---- loading them ----


class UnnoticedError(Exception):
    """A file is damaged and nothing said so."""


def load(folder: Path, kind: str, model: CoRe) -> None:
    """Load a kind of file from a folder of sound ones, of which that one may be spoilt."""
    path = folder / FILES[kind]
    if kind == "model":
        CoRe.load(path, device="cpu")
    elif kind == "replay buffer":
        model.load_replay_buffer(path)
    elif kind == "policy":
        RecurrentPolicy.load(path, device="cpu")
    elif kind in CHECKPOINT:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CoRe.resume(folder / "run", SavableEnv(), device="cpu")
    else:
        show(path.parent.parent if kind == "picture" else path.parent)


def show(folder: Path) -> None:
    """Decode the only clip of a folder.

    :raises UnnoticedError: if it is not what is to be shown
    """
    (clip,) = open_clips(folder, "train", None)
    shapes = [frame.shape for frame in clip.frames()]
    if shapes != [(*PICTURE_SIZE[::-1], 3)] * N_FRAMES or clip.n_frames != N_FRAMES:
        raise UnnoticedError(f"{clip.n_frames} frames, {shapes}")


class Watch:
    """Notes what a process does that loading must not do."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        writes = (
            event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        )
        if writes or event.startswith(FORBIDDEN_EVENTS):
            self.seen.append(event)


def limit_memory() -> None:
    """Refuse this process more than half a GiB of address space beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def outcome_of(folder: Path, kind: str, model: CoRe, watch: Watch) -> str:
    watch.seen.clear()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    signal.alarm(HANGS_AFTER)
    watch.active = True
    try:
        load(folder, kind, model)
        outcome = "not noticed" if kind in CHECKPOINT else "loaded"
    except (UnsafeFileError, VideoError):
        outcome = "refused"
    except UserWarning as warning:
        outcome = "refused" if "damaged" in str(warning) else f"a warning: {warning}"
    except Exception as error:
        outcome = f"another error: {error!r}"
    finally:
        watch.active = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return f"code ran: {watch.seen}" if watch.seen else outcome


def main(folder: str, first: str, last: str, seed: str) -> None:
    torch.set_num_threads(1)
    watch = Watch()
    files = {kind: find(Path(folder), kind) for kind in FILES}
    sound = {kind: path.read_bytes() for kind, path in files.items()}
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    for kind in FILES:
        load(Path(folder), kind, model)
    limit_memory()
    for number in range(int(first), int(last)):
        rng = np.random.default_rng([int(seed), number])
        kind = list(FILES)[number % len(FILES)]
        mutant = mutate(sound[kind], rng)
        while mutant == sound[kind]:
            mutant = mutate(sound[kind], rng)
        files[kind].write_bytes(mutant)
        print(json.dumps([number, kind, outcome_of(Path(folder), kind, model, watch)]), flush=True)
        files[kind].write_bytes(sound[kind])


class Fuzzed(NamedTuple):
    """What became of mutants."""

    counts: Counter[tuple[str, str]]
    """By file and outcome: ``"loaded"`` or ``"refused"``."""
    failures: list[str]
    """What must not happen: other errors, ends of the process, code that ran."""


def fuzz(folder: Path, n_mutants: int, seed: int) -> Fuzzed:
    """Load ``n_mutants`` mutants of sound files in ``folder``, one at a time."""
    save_all(folder)
    counts: Counter[tuple[str, str]] = Counter()
    failures, first = [], 0
    while first < n_mutants:
        arguments = [str(folder), str(first), str(n_mutants), str(seed)]
        # -B: a module that is first imported while a mutant is loaded would write its bytecode.
        result = subprocess.run(
            [sys.executable, "-B", "-m", "tests.saving.mutations", *arguments],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        outcomes = [json.loads(line) for line in result.stdout.splitlines()]
        for number, name, outcome in outcomes:
            if outcome in ("loaded", "refused"):
                counts[name, outcome] += 1
            else:
                failures.append(f"mutant {number}, {name}: {outcome}")
        first += len(outcomes)
        if result.returncode:
            end = f"the process ended with {result.returncode}: {result.stderr[-500:]}"
            kind = list(FILES)[first % len(FILES)]
            failures.append(f"mutant {first}, {kind}: {end}")
            first += 1
            # It could not put the sound file back: start from new ones.
            shutil.rmtree(folder)
            folder.mkdir()
            save_all(folder)
    return Fuzzed(counts, failures)


if __name__ == "__main__":
    main(*sys.argv[1:])
