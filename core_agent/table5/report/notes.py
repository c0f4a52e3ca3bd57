"""Warnings about the numbers of a report, and a summary of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from core_agent.environments.suite import clips_name
from core_agent.table5.grid import STATES
from core_agent.table5.paper import N_PAPER_SEEDS
from core_agent.table5.report.results import Row
from core_agent.table5.report.runs import RecordedRun, Study
from core_agent.table5.statistics import MINIMUM_SEEDS

PAPER_EPISODES = 20


def notes(study: Study, rows: Sequence[Row]) -> list[str]:
    """Warnings, the most important first; none if everything is as in the paper."""
    return [*notes_on_results(rows), *notes_on_runs(study)]


def notes_on_results(rows: Sequence[Row]) -> Iterator[str]:
    """About results of few seeds, or at other steps than the paper's."""
    seeds = [row.result.n_seeds for row in rows]
    n_few = sum(count < MINIMUM_SEEDS for count in seeds)
    if n_few:
        yield (
            f"Fewer than {MINIMUM_SEEDS} seeds: {n_few} of {len(rows)} results. Read these as "
            "observations, not as findings: they have no interval."
        )
    elif seeds and min(seeds) < N_PAPER_SEEDS:
        yield f"Some results rest on {min(seeds)} seeds; the paper's rest on {N_PAPER_SEEDS}."
    steps = [row.steps for row in rows if row.steps and not row.is_at_paper_steps]
    if steps:
        yield (
            f"Other steps than the paper's (†): {len(steps)} of {len(rows)} results, at "
            f"{span(steps)} simulator steps. The paper's results at 500,000 steps are shown for "
            "orientation only."
        )


def notes_on_runs(study: Study) -> Iterator[str]:
    """About other conditions than the paper's, and runs that are not finished or left out."""
    presets = sorted({run.preset for run in study.runs} - {"paper", "release"})
    if presets:
        small = {"small", "debug"} & {part for name in presets for part in name.split("+")}
        hint = " Networks, batches and pictures are smaller in small and debug." if small else ""
        yield f"Other presets than the paper's: {listing(presets)}.{hint}"
    videos = backgrounds(study.runs)
    if videos and videos != ["DAVIS"]:
        yield (
            f"Background videos: {listing(videos)}. The paper's are DAVIS's; returns with others "
            "are not comparable with it."
        )
    episodes = episode_counts(study.runs)
    if min(episodes, default=PAPER_EPISODES) < PAPER_EPISODES:
        yield (
            f"Episodes per evaluation: {span(episodes)}; the paper's evaluations have "
            f"{PAPER_EPISODES}."
        )
    counts = Counter(run.state for run in study.runs)
    missing = [f"{counts[state]} {state}" for state in STATES[1:] if counts[state]]
    if missing:
        yield (
            f"Not finished, of {len(study.runs)} runs: {listing(missing)}. Their evaluations so "
            "far are included; numbers may still change."
        )
    if study.n_duplicates:
        yield (
            f"Left out: {study.n_duplicates} folder{'s' * (study.n_duplicates > 1)} with the same "
            "agent, setting and seed as another one with more steps."
        )


def facts(study: Study) -> list[tuple[str, str]]:
    """Runs, machines and versions, as terms and descriptions."""
    runs, settings = study.runs, study.settings
    steps = [run.last_steps for run in runs if run.returns]
    versions = {
        f"{name} {version}"
        for run in runs
        for name, version in run.status.get("versions", {}).items()
    }
    words = {
        "Agents": study.agents,
        "Tasks": sorted({setting.task for setting in settings}),
        "Distractions": sorted({" ".join(s[1:]).strip() or "undistracted" for s in settings}),
        "Seeds": map(str, sorted({run.seed for run in runs})),
        "Presets": sorted({run.preset for run in runs}),
        "Evaluated up to": [f"{span(steps)} simulator steps"] if steps else [],
        "Episodes per evaluation": [span(episodes)] if (episodes := episode_counts(runs)) else [],
        "Background videos": backgrounds(runs),
        "Precision": sorted({name for run in runs for name in run.status.get("precisions", ())}),
        "Machines": sorted({str(run.status["host"]) for run in runs if "host" in run.status}),
        "Versions": [", ".join(sorted(versions))],
    }
    pairs = [(term, listing(list(values))) for term, values in words.items()]
    return [(term, description) for term, description in pairs if description]


def episode_counts(runs: Sequence[RecordedRun]) -> set[int]:
    """Numbers of episodes of all evaluations."""
    return {len(returns) for run in runs for returns in run.returns.values()}


def backgrounds(runs: Sequence[RecordedRun]) -> list[str]:
    """Background videos of the distracted environments, in words."""
    return sorted({background(run) for run in runs if run.setting.distraction})


def background(run: RecordedRun) -> str:
    """Background of the environment, if it is recorded."""
    path = run.env_arguments.get("video_path") if run.videos is None else run.videos
    if path is None:
        return "not recorded (the built-in clips, unless DAVIS was installed on the machine)"
    if path in ("", "builtin"):
        return "the built-in clips" if path else "none"
    name = clips_name(path)
    return name if name == "DAVIS" else f"the folder {name}"


def span(numbers: Iterable[int]) -> str:
    """``"500"``, or ``"500 to 2,000"``."""
    low, high = min(numbers := list(numbers)), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def listing(words: Sequence[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
