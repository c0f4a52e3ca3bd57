"""Warnings about the numbers of a report, and a summary of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from core_agent.table5.paper import N_PAPER_SEEDS
from core_agent.table5.report.results import Row
from core_agent.table5.report.runs import STATES, RecordedRun
from core_agent.table5.report.study import Study
from core_agent.table5.statistics import MINIMUM_SEEDS

PAPER_EPISODES = 20


def notes(study: Study, rows: Sequence[Row]) -> list[str]:
    """Warnings, the most important first; none if everything is as in the paper."""
    candidates = (
        seeds_note(rows),
        steps_note(rows),
        preset_note(study),
        videos_note(study),
        episodes_note(study),
        state_note(study),
        duplicates_note(study),
    )
    return [note for note in candidates if note]


def seeds_note(rows: Sequence[Row]) -> str:
    """About results of fewer than 3 seeds, or than the paper's 5."""
    few = [row for row in rows if row.result.n_seeds < MINIMUM_SEEDS]
    if few:
        return (
            f"Fewer than {MINIMUM_SEEDS} seeds: {len(few)} of {len(rows)} results. Read these as "
            "observations, not as findings: they have no interval."
        )
    if any(row.result.n_seeds < N_PAPER_SEEDS for row in rows):
        fewest = min(row.result.n_seeds for row in rows)
        return f"Some results rest on {fewest} seeds; the paper's rest on {N_PAPER_SEEDS}."
    return ""


def steps_note(rows: Sequence[Row]) -> str:
    """About results at other steps than the paper's."""
    others = [row for row in rows if row.steps and not row.is_at_paper_steps]
    if not others:
        return ""
    steps = [row.steps for row in others if row.steps]
    return (
        f"Other steps than the paper's (†): {len(others)} of {len(rows)} results, at {span(steps)} "
        "simulator steps. The paper's results at 500,000 steps are shown for orientation only."
    )


def preset_note(study: Study) -> str:
    """About other settings than the paper's."""
    others = sorted({run.preset for run in study.runs} - {"paper", "release"})
    if not others:
        return ""
    note = f"Other presets than the paper's: {listing(others)}."
    if any(part in ("small", "debug") for name in others for part in name.split("+")):
        note += " Networks, batches and pictures are smaller in small and debug."
    return note


def videos_note(study: Study) -> str:
    """About backgrounds that are not, or may not be, the paper's."""
    distracted = [run for run in study.runs if run.setting.distraction]
    backgrounds = sorted({background(run) for run in distracted})
    if not distracted or backgrounds == ["DAVIS"]:
        return ""
    return (
        f"Background videos: {listing(backgrounds)}. The paper's are DAVIS's; returns with others "
        "are not comparable with it."
    )


def background(run: RecordedRun) -> str:
    """Background of the environment, if it is recorded."""
    path = run.env_arguments.get("video_path") if run.videos is None else run.videos
    if path == "":
        return "none"
    if path == "builtin":
        return "the built-in clips"
    if path is None:
        return "not recorded (the built-in clips, unless DAVIS was installed on the machine)"
    folder = PurePath(path)
    if "DAVIS" in folder.parts:
        return "DAVIS"
    if folder.parts[-2:] == ("JPEGImages", "480p"):
        folder = folder.parent.parent
    return f"the folder {folder.name}"


def episodes_note(study: Study) -> str:
    """About evaluations with fewer episodes than the paper's."""
    counts = {len(entry.returns) for run in study.runs for entry in run.evaluations}
    if not counts or min(counts) >= PAPER_EPISODES:
        return ""
    return (
        f"Episodes per evaluation: {span(counts)}; the paper's evaluations have {PAPER_EPISODES}."
    )


def state_note(study: Study) -> str:
    """About runs that have not finished."""
    counts = state_counts(study)
    missing = [f"{counts[state]} {state}" for state in STATES[1:] if counts[state]]
    if not missing:
        return ""
    return (
        f"Not finished, of {len(study.runs)} runs: {listing(missing)}. Their evaluations so far "
        "are included; numbers may still change."
    )


def duplicates_note(study: Study) -> str:
    """About folders that hold the same run."""
    if not study.duplicates:
        return ""
    n_folders = len(study.duplicates)
    return (
        f"Left out: {n_folders} folder{'s' * (n_folders > 1)} with the same agent, setting and "
        "seed as another one with more steps."
    )


def state_counts(study: Study) -> Counter[str]:
    """Number of runs in each state."""
    return Counter(run.state for run in study.runs)


def facts(study: Study) -> list[tuple[str, str]]:
    """Runs, machines and versions, as terms and descriptions."""
    runs = study.runs
    settings = study.settings
    distractions = sorted({" ".join(s[1:]).strip() or "undistracted" for s in settings})
    steps = [run.evaluations[-1].simulator_steps for run in runs if run.evaluations]
    episodes = {len(entry.returns) for run in runs for entry in run.evaluations}
    pairs = (
        ("Agents", listing(study.agents)),
        ("Tasks", listing(sorted({setting.task for setting in settings}))),
        ("Distractions", listing(distractions)),
        ("Seeds", listing(sorted({str(run.seed) for run in runs}, key=int))),
        ("Presets", listing(sorted({run.preset for run in runs}))),
        ("Evaluated up to", f"{span(steps)} simulator steps" if steps else ""),
        ("Episodes per evaluation", span(episodes) if episodes else ""),
        ("Background videos", listing(sorted({background(r) for r in runs if r.setting[2]}))),
        ("Machines", listing(sorted({str(r.status["host"]) for r in runs if "host" in r.status}))),
        ("Versions", versions(runs)),
    )
    return [(term, description) for term, description in pairs if description]


def versions(runs: Sequence[RecordedRun]) -> str:
    """``"python 3.11.2, torch 2.13.0"``; all that occur where runs differ."""
    found = {
        f"{name} {version}"
        for run in runs
        for name, version in run.status.get("versions", {}).items()
    }
    return ", ".join(sorted(found))


def span(numbers: Iterable[int]) -> str:
    """``"500"``, or ``"500 to 2,000"``."""
    low, high = min(numbers := list(numbers)), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def listing(words: Sequence[str]) -> str:
    """``"a, b and c"``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
