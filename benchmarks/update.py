"""How long one update takes, and what each optimisation is worth.

    python benchmarks/update.py                       # paper's size and the small preset
    python benchmarks/update.py --sizes small --repetitions 20 --json update.json
    python benchmarks/update.py --device cuda
    python benchmarks/update.py --sizes paper --only ours yardstick --profile

One update is: sample, crop, J_M, J_Q, J_π, temperature, target, all optimiser steps, logging. Rows:

- *yardstick*: the plain implementation of ``yardstick.py``, float32, eager, as the C library's
  allocator comes; on a CPU once more with the tuned allocator;
- *ours*: ``CoRe.train`` as a user runs it;
- *ours, …*: the same with one optimisation taken back or one setting changed. The columns on the
  right tell how many times as long as ours a row takes, and how many times as fast as either
  yardstick it is.

On a GPU updates run as CUDA graphs, in *ours, no CUDA graph* kernel by kernel; *.item() per metric*
and *plain Adam* wait for the GPU, which no graph can hold, and run without one too.

The allocator's setting holds for a process, so rows with and without it run in two processes. All
rows take turns, so that other work on the machine disturbs them alike; medians over the turns are
compared. *CPU ms* is the processor time of all threads together: where, on one thread, it is well
below the time by the clock, the machine was busy with other work. Frames are made up (100×100 with
six actions; 64×64 for ``small``): what an update costs does not depend on what they show.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

import torch
from measuring import (
    Spread,
    add_common_options,
    columns,
    describe_machine,
    made_up_model,
    print_machine,
    synchronize,
    write_json,
)
from torch import nn
from torch.nn import functional as F
from yardstick import PlainReplay, Yardstick

from core_agent import CoRe
from core_agent.agents.cuda_graphs import WARM_UPS
from core_agent.networks.rssm import RSSM, to_gaussian
from core_agent.networks.types import Gaussian, Rollout, SequenceBatch

SIZES = ("paper", "small", "debug")
PROFILED_OPERATORS = 16

Runner = Callable[[int], None]
"""Makes that many updates."""


class Settings(NamedTuple):
    """What a measuring process needs to know."""

    size: str
    device: str
    threads: int | None
    tuned_allocator: bool
    warmup: int


# ---- one optimisation taken back ----


def use_contiguous_images(model: CoRe) -> None:
    """Convolve NCHW images."""
    encoder: Any
    (encoder,) = model.policy.world_model.encoder.image_encoders.values()

    def prepare(images: torch.Tensor) -> torch.Tensor:
        dtype = encoder.compute_dtype or encoder.linear.weight.dtype
        return images.to(dtype, memory_format=torch.contiguous_format)

    encoder.prepare = prepare


def use_autograd_loop(model: CoRe) -> None:
    """Let autograd work out the recurrence's gradient; what does not recur stays hoisted."""
    rssm = model.policy.world_model.rssm

    def observe(embed: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor) -> Rollout:
        from_deter, from_embed = rssm.posterior_mlp.hidden[0].weight.split(
            [rssm.deter_dim, embed.shape[-1]], dim=1
        )
        from_stoch, from_action = rssm.gru_mlp.hidden[0].weight.split(
            [rssm.stoch_dim, rssm.action_dim], dim=1
        )
        embed_part = F.linear(embed, from_embed, rssm.posterior_mlp.hidden[0].bias)
        action_part = F.linear(actions, from_action, rssm.gru_mlp.hidden[0].bias)
        deter, stoch = rssm.initial(embed.shape[1])
        deters, posteriors, stochs = [], [], []
        for t in range(len(embed)):
            if t > 0:
                x = F.elu(action_part[t - 1] + F.linear(stoch, from_stoch))
                for layer in rssm.gru_mlp.hidden[1:]:
                    x = F.elu(layer(x))
                deter = rssm.cell(x, deter)
            x = F.elu(embed_part[t] + F.linear(deter, from_deter))
            for layer in rssm.posterior_mlp.hidden[1:]:
                x = F.elu(layer(x))
            assert rssm.posterior_mlp.output is not None
            posterior = to_gaussian(rssm.posterior_mlp.norm(rssm.posterior_mlp.output(x)))
            stoch = posterior.sample(noise[t])
            deters.append(deter)
            posteriors.append(posterior)
            stochs.append(stoch)
        return stack_rollout(deters, posteriors, stochs)

    rssm.observe = observe  # type: ignore[method-assign]


def stack_rollout(
    deters: list[torch.Tensor], posteriors: list[Gaussian], stochs: list[torch.Tensor]
) -> Rollout:
    posterior = Gaussian(*(torch.stack(parts) for parts in zip(*posteriors)))
    return Rollout(torch.stack(deters), posterior, torch.stack(stochs))


def observe_stepwise(
    rssm: RSSM, embed: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
) -> Rollout:
    """:meth:`RSSM.observe` by its one-step methods."""
    latent = rssm.initial(embed.shape[1])
    deters, posteriors, stochs = [], [], []
    for t in range(len(embed)):
        deter = latent.deter if t == 0 else rssm.advance(latent, actions[t - 1])
        posterior = rssm.posterior(deter, embed[t])
        latent = latent._replace(deter=deter, stoch=posterior.sample(noise[t]))
        deters.append(deter)
        posteriors.append(posterior)
        stochs.append(latent.stoch)
    return stack_rollout(deters, posteriors, stochs)


def use_nothing_hoisted(model: CoRe) -> None:
    """Compute every network of the model once for each step."""
    world_model = model.policy.world_model
    rssm = world_model.rssm

    def observe(embed: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor) -> Rollout:
        return observe_stepwise(rssm, embed, actions, noise)

    rssm.observe = observe  # type: ignore[method-assign]
    stepwise = [world_model.embed, world_model.decoder, rssm.prior_mlp]
    for net in [*stepwise, world_model.reward_head, world_model.inverse_head]:
        compute_stepwise(net)


def compute_stepwise(net: nn.Module) -> None:
    """Let ``net`` compute the entries of its input's first axis one after the other."""
    forward = net.forward
    net.forward = lambda x: torch.stack([forward(step) for step in x])


def use_wasted_prior(model: CoRe) -> None:
    """Compute prior and decoder in the critic's pass too."""
    world_model = model.policy.world_model

    def filter_and_predict(batch: SequenceBatch, noise: torch.Tensor | None = None) -> torch.Tensor:
        draws = world_model.draw_noise(*batch.mask.shape)
        features = world_model.encode(batch.observations)
        rollout = world_model.observe(features, batch.actions, draws.posterior)
        prior = world_model.rssm.prior(rollout.deter[1:])
        world_model.decoder(torch.cat([rollout.deter[1:], prior.sample(draws.prior)], dim=-1))
        return rollout.mean()

    model.filter = filter_and_predict  # type: ignore[method-assign]


def use_wasted_critic_gradients(model: CoRe) -> None:
    """Work out the critics' weight gradients in the actor's step too."""
    critic = model.policy.critic
    critic.requires_grad_ = lambda requires_grad=True: critic  # type: ignore[method-assign]


def use_separate_critics(model: CoRe) -> None:
    """Compute the two critics one after the other."""

    def separately(net: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            values, last = [], len(net.weights) - 1
            for member in range(net.n_members):
                x = inputs
                for index, (weight, bias) in enumerate(zip(net.weights, net.biases)):
                    dtype = (net.compute_dtype if index < last else None) or weight.dtype
                    weight, bias = weight[member].to(dtype), bias[member].to(dtype)
                    x = torch.addmm(bias, x.to(dtype), weight)
                    x = net.activation(x) if index < last else x
                values.append(x.squeeze(-1))
            return torch.stack(values)

        return forward

    for critic in (model.policy.critic, model.policy.critic_target):
        critic.net.forward = separately(critic.net)  # type: ignore[assignment, method-assign]


def use_plain_adam(model: CoRe) -> None:
    """Step every parameter by itself."""
    for optimizer in model.optimizers:
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=False)


def use_items(model: CoRe) -> None:
    """Wait for every metric of every update."""
    update = model.update

    def update_and_wait(batch: SequenceBatch) -> Any:
        metrics = update(batch)
        for value in metrics.values():
            value.item()
        return metrics

    model.update = update_and_wait  # type: ignore[method-assign]


def use_no_graph(model: CoRe) -> None:
    """Launch every kernel by itself."""
    model._update = model.update  # type: ignore[method-assign]


class Variant(NamedTuple):
    """One row: our agent with other arguments, or changed after it was made."""

    change: Callable[[CoRe], None] | None = None
    arguments: dict[str, Any] = {}  # noqa: RUF012


OURS, YARDSTICK, NO_GRAPH = "ours", "yardstick", "ours, no CUDA graph"
VARIANTS: dict[str, Variant] = {
    OURS: Variant(),
    NO_GRAPH: Variant(use_no_graph),
    "ours, precision float32": Variant(arguments=dict(precision="float32")),
    "ours, precision bfloat16": Variant(arguments=dict(precision="bfloat16")),
    "ours, NCHW convolutions": Variant(use_contiguous_images),
    "ours, recurrence by autograd": Variant(use_autograd_loop),
    "ours, nothing hoisted": Variant(use_nothing_hoisted),
    "ours, prior and decoder in J_Q": Variant(use_wasted_prior),
    "ours, critic gradients in J_π": Variant(use_wasted_critic_gradients),
    "ours, critics one by one": Variant(use_separate_critics),
    "ours, plain Adam": Variant(use_plain_adam),
    "ours, .item() per metric": Variant(use_items),
}


# ---- measuring ----


def make_runner(name: str, settings: Settings) -> Runner:
    """What makes updates for one row, warmed up."""
    run = yardstick_runner(settings) if name == YARDSTICK else our_runner(name, settings)
    run(settings.warmup)
    synchronize(settings.device)
    return run


def yardstick_runner(settings: Settings) -> Runner:
    model = made_up_model(settings.size, settings.device, precision="float32")
    assert model.replay_buffer is not None
    yardstick = Yardstick.of(model.policy)
    (crop,) = model.policy.world_model.encoder.crop_sizes.values()
    replay = PlainReplay(model.replay_buffer, crop)
    batch_size = model.batch_size

    def run(n_updates: int) -> None:
        for _ in range(n_updates):
            yardstick.update(replay.sample(batch_size))

    return run


def our_runner(name: str, settings: Settings) -> Runner:
    variant = VARIANTS[name]
    model = made_up_model(settings.size, settings.device, **variant.arguments)
    if variant.change is not None:
        variant.change(model)
    return lambda n_updates: model.train(n_updates, model.batch_size)


class Turn(NamedTuple):
    """Seconds per update: by the clock, and of this process's threads together."""

    wall: float
    cpu: float


def timed(run: Runner, n_updates: int, device: str) -> Turn:
    """How long updates take."""
    synchronize(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    run(n_updates)
    synchronize(device)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    return Turn(wall / n_updates, cpu / n_updates)


def profile(run: Runner, n_updates: int, device: str) -> list[tuple[str, float, int]]:
    """The operators that take longest: name, seconds and calls per update."""
    on_gpu = torch.device(device).type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run(n_updates)
        synchronize(device)
    rows = [
        (
            event.key,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
            / 1e6
            / n_updates,
            event.count // n_updates,
        )
        for event in profiler.key_averages()
    ]
    return sorted(rows, key=lambda row: -row[1])[:PROFILED_OPERATORS]


def serve(connection: Connection, settings: Settings) -> None:
    """Answer requests ``(what, row, number of updates)`` until told to stop with ``None``."""
    os.environ["CORE_AGENT_KEEP_MEMORY"] = "1" if settings.tuned_allocator else "0"
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    runners: dict[str, Runner] = {}
    while (request := connection.recv()) is not None:
        what, name, n_updates = request
        if what == "machine":
            connection.send(describe_machine(settings.device))
            continue
        try:
            if name not in runners:
                runners[name] = make_runner(name, settings)
            measure = profile if what == "profile" else timed
            connection.send(measure(runners[name], n_updates, settings.device))
        except RuntimeError as error:  # one row less, not a lost run
            connection.send(error)


class Worker:
    """A process that measures.

    :param settings: see :class:`Settings`
    """

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.settings = settings
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: str, name: str = "", n_updates: int = 0) -> Any:
        """What :func:`serve` answers; an error is returned, not raised."""
        self.connection.send((what, name, n_updates))
        return self.connection.recv()

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


class Row(NamedTuple):
    """One line of the table."""

    name: str
    tuned_allocator: bool

    def label(self, device: str) -> str:
        if torch.device(device).type == "cuda":
            return self.name
        if self.name == YARDSTICK:
            return f"{self.name}, tuned allocator" if self.tuned_allocator else self.name
        return self.name if self.tuned_allocator else f"{self.name}, plain allocator"


def rows_for(device: str, only: Sequence[str]) -> list[Row]:
    """All rows or, where ``only`` names some, ours, the yardstick's and those."""
    rows = [Row(YARDSTICK, True), *(Row(name, True) for name in VARIANTS)]
    if torch.device(device).type == "cpu":
        rows = [row for row in rows if row.name != NO_GRAPH]
        rows = [Row(YARDSTICK, False), rows[0], rows[1], Row(OURS, False), *rows[2:]]
    if only:
        rows = [row for row in rows if row.name in (OURS, YARDSTICK, *only)]
    return rows


class Measured(NamedTuple):
    """All figures of one size."""

    machine: dict[str, Any]
    turns: dict[str, list[Turn]]
    errors: dict[str, str]
    profile: list[tuple[str, float, int]]


def measure(size: str, options: argparse.Namespace) -> Measured:
    """Let all rows take turns."""
    slow = size == "paper" and options.device == "cpu"
    n_updates = options.updates or (1 if slow else 10)
    rows = rows_for(options.device, options.only)
    captures = torch.device(options.device).type == "cuda"
    warmup = max(options.warmup, WARM_UPS + 1) if captures else options.warmup
    settings = Settings(size, options.device, options.threads, True, warmup)
    workers = {
        tuned: Worker(settings._replace(tuned_allocator=tuned))
        for tuned in sorted({row.tuned_allocator for row in rows})
    }
    turns: dict[str, list[Turn]] = {row.label(options.device): [] for row in rows}
    errors: dict[str, str] = {}
    machine = workers[True].ask("machine")
    for _ in range(options.repetitions):
        for row in rows:
            label = row.label(options.device)
            if label in errors:
                continue
            answer = workers[row.tuned_allocator].ask("time", row.name, n_updates)
            if isinstance(answer, RuntimeError):
                errors[label] = str(answer).splitlines()[0]
            else:
                turns[label].append(answer)
    operators = workers[True].ask("profile", OURS, n_updates) if options.profile else []
    for worker in workers.values():
        worker.stop()
    return Measured(machine, {k: v for k, v in turns.items() if v}, errors, operators)


def print_table(size: str, measured: Measured) -> None:
    """Medians, quartiles and ratios."""
    spreads = {
        label: Spread.of([turn.wall for turn in turns]) for label, turns in measured.turns.items()
    }
    tuned = f"{YARDSTICK}, tuned allocator"
    yardsticks = [name for name in (YARDSTICK, tuned) if name in spreads]
    n = max(spread.n for spread in spreads.values())
    print(f"\n{size}: milliseconds per update, median [quartiles] of {n}")
    table = [
        [
            "",
            "ms",
            "updates/s",
            "CPU ms",
            "time / ours",
            *(f"speed / {name}" for name in yardsticks),
        ]
    ]
    for label, spread in spreads.items():
        ratios = [spreads[name].median / spread.median for name in yardsticks]
        table.append(
            [
                label,
                spread.milliseconds().strip(),
                f"{1 / spread.median:.2f}",
                f"{1e3 * median(turn.cpu for turn in measured.turns[label]):.0f}",
                f"{spread.median / spreads[OURS].median:.2f}" if OURS in spreads else "",
                *(f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    print(columns(table))
    for label, error in measured.errors.items():
        print(f"{label}: failed: {error}")
    if measured.profile:
        print(f"\n{size}: where our update's time goes, by operator (self time)")
        lines = [[name, f"{1e3 * s:.1f} ms", f"{n} calls"] for name, s, n in measured.profile]
        print(columns(lines))


def to_figures(measured: Measured) -> dict[str, Any]:
    """For JSON."""
    return {
        "machine": measured.machine,
        "rows": {
            label: {
                **Spread.of([turn.wall for turn in turns])._asdict(),
                "seconds": [turn.wall for turn in turns],
                "cpu_seconds": [turn.cpu for turn in turns],
            }
            for label, turns in measured.turns.items()
        },
        "errors": measured.errors,
        "profile": [
            {"operator": name, "seconds": seconds, "calls": calls}
            for name, seconds, calls in measured.profile
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["paper", "small"])
    parser.add_argument("--repetitions", type=int, default=7, help="turns of each row")
    parser.add_argument("--updates", type=int, help="in a turn; default: 1 or, where fast, 10")
    parser.add_argument(
        "--warmup", type=int, default=3, help="updates before, not counted; with CUDA at least 4"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows beside ours and yardstick")
    parser.add_argument("--profile", action="store_true", help="also tell operators of our update")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"benchmark": "update", "sizes": {}}
    for size in options.sizes:
        measured = measure(size, options)
        if not figures["sizes"]:
            print_machine(measured.machine)
        print_table(size, measured)
        figures["sizes"][size] = to_figures(measured)
    write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
