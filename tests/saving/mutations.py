"""Files spoilt at random, and what loading them does, in a process of its own.

As a command, ``python -m tests.saving.mutations FOLDER FIRST LAST SEED``, it loads mutants of the
sound files in a folder and prints one line of JSON for each. Its memory is limited; it dies when a
mutant takes too long.
"""

from __future__ import annotations

import base64
import io
import json
import resource
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from core_agent import CoRe
from core_agent.agents.latent import RecurrentPolicy
from core_agent.saving.safe_loading import UnsafeFileError
from tests.fakes import TINY, FakeEnv
from tests.saving.attacks import read_zip, save_sound_files, write_zip

FILES = ("model.zip", "replay.npz", "policy.pth")
EXTRA_MEMORY = 512 * 2**20
MOST_SECONDS = 30
FORBIDDEN_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.")
OTHER_VALUES = (None, True, -1, 0, 10**30, 1e400, 0.5, "", "x", [], [1], [[]], {}, {"x": 1})


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


def load(path: Path, model: CoRe) -> None:
    if path.name == "model.zip":
        CoRe.load(path, device="cpu")
    elif path.name == "replay.npz":
        model.load_replay_buffer(path)
    else:
        RecurrentPolicy.load(path, device="cpu")


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


def outcome_of(path: Path, model: CoRe, watch: Watch) -> str:
    watch.seen.clear()
    signal.alarm(MOST_SECONDS)
    watch.active = True
    try:
        load(path, model)
        outcome = "loaded"
    except UnsafeFileError:
        outcome = "refused"
    except Exception as error:
        outcome = f"another error: {error!r}"
    finally:
        watch.active = False
        signal.alarm(0)
    return f"code ran: {watch.seen}" if watch.seen else outcome


def main(folder: str, first: str, last: str, seed: str) -> None:
    torch.set_num_threads(1)
    watch = Watch()
    sound = {name: (Path(folder) / name).read_bytes() for name in FILES}
    model = CoRe("CnnPolicy", FakeEnv(), **TINY)
    for name in FILES:
        load(Path(folder) / name, model)
    limit_memory()
    for number in range(int(first), int(last)):
        rng = np.random.default_rng([int(seed), number])
        name = FILES[number % len(FILES)]
        path = Path(folder) / "mutants" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutate(sound[name], rng))
        print(json.dumps([number, name, outcome_of(path, model, watch)]), flush=True)


class Fuzzed(NamedTuple):
    """What became of mutants."""

    counts: Counter[tuple[str, str]]
    """By file and outcome: ``"loaded"`` or ``"refused"``."""
    failures: list[str]
    """What must not happen: other errors, ends of the process, code that ran."""


def fuzz(folder: Path, n_mutants: int, seed: int) -> Fuzzed:
    """Load ``n_mutants`` mutants of sound files, which are left in ``folder``."""
    save_sound_files(folder)
    counts: Counter[tuple[str, str]] = Counter()
    failures, first = [], 0
    while first < n_mutants:
        arguments = [str(folder), str(first), str(n_mutants), str(seed)]
        result = subprocess.run(
            [sys.executable, "-m", "tests.saving.mutations", *arguments],
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
            failures.append(f"mutant {first}, {FILES[first % len(FILES)]}: {end}")
            first += 1
    return Fuzzed(counts, failures)


if __name__ == "__main__":
    main(*sys.argv[1:])
