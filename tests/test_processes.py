"""Threads, forks, worker processes and distributed training."""

import os
import threading

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import optlayers as ol
from polytopes import arborescence, matching


def some_scores(seed: int, batch: int = 8) -> torch.Tensor:
    return torch.randn(batch, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_python_threads_share_a_layer():
    layers = [ol.OptLayer(matching(4), ol.SparseMAP()), ol.OptLayer(arborescence(3), ol.Spigot())]
    expected = [[layer(some_scores(seed)) for seed in range(8)] for layer in layers]
    found: dict[int, list[list[torch.Tensor]]] = {}
    errors: list[BaseException] = []

    def work(name: int) -> None:
        try:
            found[name] = [[layer(some_scores(seed)) for seed in range(8)] for layer in layers]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == 8
    for answers in found.values():
        for mine, theirs in zip(answers, expected, strict=True):
            torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), atol=1e-9, rtol=1e-9)


class Solved(Dataset):
    """Solves in the worker that loads it."""

    def __init__(self) -> None:
        self.hard = ol.OptLayer(matching(4), ol.Pipeline())
        self.soft = ol.OptLayer(matching(4), ol.SparseMAP())

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        scores = some_scores(index)
        return torch.stack([self.hard(scores), self.soft(scores)])


def test_data_loader_workers_are_forked_after_solving():
    data = Solved()
    expected = torch.stack([data[k] for k in range(len(data))])  # threads and solvers exist before the fork
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), expected, atol=1e-9, rtol=1e-9)


class Matcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(3, 16, dtype=torch.float64)
        self.layer = ol.OptLayer(matching(4), ol.SparseMAP())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(self.score(features).reshape(-1, 4, 4))


def features() -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def distributed_worker(rank: int, folder: str) -> None:
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = DistributedDataParallel(Matcher())
    model(features()[rank::2]).square().mean().backward()
    if rank == 0:
        torch.save(model.module.score.weight.grad, os.path.join(folder, "gradient"))
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_equals_one_process(tmp_path):
    torch.multiprocessing.spawn(distributed_worker, args=(str(tmp_path),), nprocs=2)
    model = Matcher()
    model(features()).square().mean().backward()
    torch.testing.assert_close(torch.load(tmp_path / "gradient"), model.score.weight.grad)
