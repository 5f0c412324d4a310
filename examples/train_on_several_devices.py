"""Training with a layer on several GPUs, or in several processes: DistributedDataParallel, with the losses of one.

    python examples/train_on_several_devices.py --losses one.json
    torchrun --nproc-per-node 2 examples/train_on_several_devices.py --check one.json

Processes talk by nccl where each has a GPU, else by gloo. The second command ends with an error when a loss is further
than 1e-6 from that of the first one. The model chooses half of some items, and is told the sum of the right ones,
not which they are; sets of items have several sizes (``ol.Family``). Each step takes a batch, of which every process
has a part, and the loss is the mean over the whole batch.

What a layer asks for:

- **The unit of gradients.** DistributedDataParallel takes the mean of the gradients of all processes, so each
  multiplies its loss by their number, and with it what arrives at the layer. ``SparseMAP`` does not mind, as it is
  linear. ``Spigot``, ``Interpolation``, ``LPGD`` and ``IMLE`` take steps as long as the gradient, and would learn
  something else with every number of processes. ``gradient_unit="norm"`` measures steps in the gradient itself; see
  what happens without, by ``--unit none``.
- **Draws.** Rules that draw take ``generator=``, here with another seed in every process: with the same seed, the
  instances of all parts would have the same noise. Their losses are not those of one process (``--rule perturbed``).
- **What rules adapt.** A layer has no weights. Its only state is a buffer, such as ``rule_step_size`` of
  ``Spigot(AdaptiveStep())``, which ``state_dict`` has. Each process adapts its own by its part of the batch, and before
  the next step all take over that of process 0: it follows the part of process 0 alone.
- **Threads.** Solving on CPUs takes ``torch.get_num_threads()`` threads. ``torchrun`` sets ``OMP_NUM_THREADS=1``; set
  it to the number of cores for each process where there are more.
- **Compiling.** Each process compiles each polytope for itself, in tenths of a second. Kernels come from disk, and
  ``python -m optlayers.warm`` compiles them before all processes want them at once.
- **Empty parts.** All processes take the same number of steps. A part of a batch may be empty, as at the end of an
  epoch here.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import cvxpy as cp
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import optlayers as ol

FEATURES, NUMBERS, LARGEST = 5, 3, 8
RULES: dict[str, ol.AbstractRule] = {
    "spigot": ol.Spigot(step_size=1.0),
    "sparsemap": ol.SparseMAP(),
    "perturbed": ol.PerturbedAdditive(samples=5),
}


def half(items: int) -> ol.Polytope:
    """Every second of some items, whichever."""
    x = cp.Variable(items)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == items // 2])


class Chooser(nn.Module):
    """What the choice of a scorer comes to; the choice is latent."""

    def __init__(self, rule: ol.AbstractRule, unit: str | None) -> None:
        super().__init__()
        self.scorer = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 1))
        self.layer = ol.OptLayer(ol.Family(half), rule, gradient_unit=unit)

    def forward(self, features: Tensor, numbers: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
        """The sum ``(sets, NUMBERS)`` of chosen items, for their features and numbers ``(sets, items, …)``."""
        scores = self.scorer(features).squeeze(-1)
        chosen = self.layer(scores, sizes=sizes, generator=generator)
        return (chosen.unsqueeze(-1) * numbers).sum(dim=1)


def drawn(sets: int) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Features and numbers of items, sizes, and the sum of the numbers of the best half by hidden weights."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(sets, LARGEST, FEATURES, generator=generator, dtype=torch.float64)
    numbers = torch.randn(sets, LARGEST, NUMBERS, generator=generator, dtype=torch.float64)
    sizes = torch.randint(4, LARGEST + 1, (sets,), generator=generator).tolist()
    hidden = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    right = ol.OptLayer(ol.Family(half), ol.Pipeline())(features @ hidden, sizes=sizes)
    return features, numbers, sizes, (right.unsqueeze(-1) * numbers).sum(dim=1)


def train(options: argparse.Namespace) -> list[float]:
    """The mean loss of every batch. Weights, data and the order of batches have the same seed in all processes."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = device_of_process()
    features, numbers, sizes, right = drawn(options.sets)
    torch.manual_seed(options.seed)
    order = torch.Generator().manual_seed(options.seed)
    noise = torch.Generator().manual_seed(options.seed + rank)
    unit = None if options.unit == "none" else options.unit
    model: nn.Module = Chooser(RULES[options.rule], unit).to(device, torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    losses = []
    for _ in range(options.epochs):
        for batch in torch.randperm(options.sets, generator=order).split(options.batch):
            mine = batch[rank::world]
            inputs = features[mine].to(device), numbers[mine].to(device)
            value = model(*inputs, [sizes[k] for k in mine], noise)
            loss = (value - right[mine].to(device)).square().sum() / len(batch)
            optimizer.zero_grad()
            (world * loss).backward()  # the mean over processes is then the gradient of the mean over the batch
            optimizer.step()
            total = loss.detach()
            if dist.is_initialized():
                dist.all_reduce(total)
            losses.append(total.item())
    return losses


def device_of_process() -> torch.device:
    """A GPU of its own, or the CPU where there are too few."""
    local, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return torch.device("cuda", local) if torch.cuda.device_count() >= processes else torch.device("cpu")


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line, with the losses to compare with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", choices=list(RULES), default="spigot")
    parser.add_argument("--unit", choices=["norm", "none"], default="norm", help="of gradients at the layer (norm)")
    parser.add_argument("--sets", type=int, default=65, help="of items to choose from (65, so that batches are uneven)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--losses", type=Path, help="a file to be written with the losses of all batches")
    parser.add_argument("--check", type=Path, help="such a file: it is an error to be more than 1e-6 away from it")
    options = parser.parse_args(given)
    if min(options.sets, options.batch, options.epochs) < 1 or not options.rate > 0:
        parser.error("--sets, --batch and --epochs must be at least 1, --rate positive")
    if options.check:
        try:
            options.expected = json.loads(options.check.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--check {options.check}: {error}")
        if not isinstance(options.expected, list) or not all(isinstance(loss, float) for loss in options.expected):
            parser.error(f"--check {options.check} must be a JSON list of losses, as --losses writes it")
    return options


def main(given: list[str] | None = None) -> None:
    """Train, in a group of processes where torchrun has started several; print, write and compare the losses."""
    options = arguments(given)
    if "RANK" in os.environ:
        device = device_of_process()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        losses = train(options)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank > 0:
        return
    print(f"{world} processes, {options.rule}: loss {losses[0]:.6f} at first, {losses[-1]:.6f} at last")
    if options.losses:
        options.losses.write_text(json.dumps(losses))
    if options.check:
        if len(losses) != len(options.expected):
            raise SystemExit(f"{len(losses)} losses, but {options.check} has {len(options.expected)}")
        apart = torch.tensor(losses, dtype=torch.float64) - torch.tensor(options.expected, dtype=torch.float64)
        furthest = apart.abs().max().item()  # NaN, where there is one
        print(f"at most {furthest:.1e} from {options.check}")
        if not furthest <= 1e-6:
            raise SystemExit(f"losses differ by {furthest:.1e}, more than 1e-6")


if __name__ == "__main__":
    main()
