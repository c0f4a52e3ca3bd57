"""All checks and measurements that need a GPU, in one command of at most ten minutes.

    python benchmarks/gpu.py --folder runs/gpu

1. The losses of a paper-size update on the GPU against the CPU's: same weights, batch and noise.
2. The tests that need CUDA.
3. Milliseconds per paper-size update: eager, as a CUDA graph and with
   ``torch.compile(mode="reduce-overhead")``, in float32, TF32 and bfloat16.
4. A training run of ``DCS-cartpole-swingup-easy-dynamic`` for 500,000 simulator steps, or as many
   as the time allows; its folder, with TensorBoard log and checkpoints, is ``FOLDER/train``.

Without a GPU, only the losses are compared; everything else is *not measured*.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from measuring import columns, made_up_model, save_json, synchronize
from update import use_no_graph

from core_agent import CoRe
from core_agent.agents.cuda_graphs import WARM_UPS
from core_agent.agents.soft_actor_critic import actor_loss
from core_agent.networks.types import SequenceBatch

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "DCS-cartpole-swingup-easy-dynamic"
NOT_MEASURED = "not measured"
LARGEST_DIFFERENCE = 1e-3
"""Largest relative difference of a loss; a float32 sum of 10^5 numbers depends on their order."""


def losses(model: CoRe, batch: SequenceBatch, noise: Sequence[torch.Tensor]) -> dict[str, float]:
    """J_M with its terms, J_Q and J_π."""
    device, world_model = model.device, model.policy.world_model
    batch = SequenceBatch(*(torch.as_tensor(part, device=device) for part in batch))
    posterior, prior, action = (draw.to(device) for draw in noise)
    result = world_model.compute_losses(
        batch, type(world_model.draw_noise(1, 1))(posterior, prior), model.model_loss_options
    )
    latents = model.filter(batch, posterior).detach()
    critic = model.critic_loss(batch, latents, action)
    actor, _ = actor_loss(model, batch, latents[:-1], action)
    terms = ("total", "contrastive", "kl", "reward", "inverse")
    values = {name: getattr(result, name).item() for name in terms}
    return {**values, "critic": critic.item(), "actor": actor.item()}


def compare_losses(size: str, device: str) -> float:
    """The largest relative difference between a loss on ``device`` and on the CPU, in float32."""
    ours = made_up_model(size, device, precision="float32")
    reference = made_up_model(size, "cpu", precision="float32")
    reference.policy.load_state_dict(ours.policy.state_dict())
    batch = reference.augment(reference._sample_batch(reference.batch_size))
    n_steps, n_sequences = batch.mask.shape
    noise = [
        *reference.policy.world_model.draw_noise(n_steps, n_sequences),
        torch.randn(batch.actions.shape),
    ]
    there, here = losses(ours, batch, noise), losses(reference, batch, noise)
    rows = [[name, f"{there[name]:.6g}", f"{here[name]:.6g}"] for name in here]
    print(columns([["loss", device, "cpu"], *rows]))
    return max(abs(there[k] - v) / max(abs(v), 1e-3) for k, v in here.items())


def use_compiled(model: CoRe) -> None:
    """Compile the update; its first calls take minutes."""
    model._update = torch.compile(model.update, mode="reduce-overhead")  # type: ignore[method-assign]


PATHS = {"eager": use_no_graph, "CUDA graph": lambda model: None, "torch.compile": use_compiled}
PRECISIONS = ("float32", "TF32", "bfloat16")


def time_updates(size: str, device: str, path: str, precision: str, n_updates: int = 20) -> str:
    """Milliseconds per update, or why there are none."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "TF32"
    torch.backends.cudnn.allow_tf32 = precision == "TF32"
    try:
        arithmetic = "bfloat16" if precision == "bfloat16" else "float32"
        model = made_up_model(size, device, precision=arithmetic)
        PATHS[path](model)
        model.train(WARM_UPS + 2, model.batch_size)
        turns = []
        for _ in range(5):
            synchronize(device)
            started = time.perf_counter()
            model.train(n_updates, model.batch_size)
            synchronize(device)
            turns.append((time.perf_counter() - started) / n_updates)
    except Exception as error:  # one cell less, not a lost run
        return f"failed: {type(error).__name__}"
    return f"{1e3 * median(turns):.2f}"


def train(folder: Path, seconds: float) -> str:
    """How far the training came in ``seconds``."""
    command = ["core-agent", "train", ENV_ID, "--folder", str(folder)]
    process = subprocess.Popen(command)
    started = time.perf_counter()
    try:
        process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        process.terminate()  # it writes a checkpoint first
        process.wait()
    return f"{time.perf_counter() - started:.0f} s, exit status {process.returncode}: {folder}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, test, time, train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="paper", choices=("paper", "small", "debug"))
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=10.0, help="in all; training ends with it")
    options = parser.parse_args(arguments)
    ends = time.perf_counter() + 60 * options.minutes
    on_gpu = torch.cuda.is_available()
    device, name = ("cuda", torch.cuda.get_device_name()) if on_gpu else ("cpu", "no GPU")
    tests, training = NOT_MEASURED, NOT_MEASURED
    difference = compare_losses(options.size, device)
    print(f"largest relative difference: {difference:.1e}")
    if on_gpu:
        command = [sys.executable, "-m", "pytest", "-q", "-k", "gpu", "tests/agents"]
        tests = "pass" if subprocess.run(command, cwd=ROOT).returncode == 0 else "fail"
    print(f"CUDA tests: {tests}\n\n{name}, {options.size}: milliseconds per update")
    table = [["", *PRECISIONS]]
    for path in PATHS:
        cells = [
            time_updates(options.size, device, path, precision) if on_gpu else NOT_MEASURED
            for precision in PRECISIONS
        ]
        table.append([path, *cells])
    print(columns(table), flush=True)
    if on_gpu:
        training = train(options.folder / "train", ends - time.perf_counter())
    print(f"training {ENV_ID}: {training}")
    figures = dict(gpu=name, difference=difference, tests=tests, table=table, training=training)
    save_json(options.folder / "gpu.json", figures)
    return 0 if difference <= LARGEST_DIFFERENCE and tests != "fail" else 1


if __name__ == "__main__":
    sys.exit(main())
