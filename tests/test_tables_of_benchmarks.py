"""What the benchmark of devices does with its time and its numbers: nothing is measured here."""

import json
import signal
import time
from pathlib import Path

import device
import findings
import pytest
import torch
from device import HOST, Session, Task
from findings import BACKWARD, FORWARD, OURS, Result
from measuring import Budget, limit, markdown
from peers import Peer
from rich.console import Console


def result(problem: str, batch: int, peer: str, milliseconds: float | None, measured: str = FORWARD, **more) -> Result:
    return Result("projection", problem, batch, measured, peer, "1", milliseconds, **more)


def test_a_table_for_a_document_has_the_heads_that_are_filled():
    rows = [{"a": "1", "c": "x|y"}, {"a": "2"}]
    assert markdown(["a", "b", "c"], rows) == "| a | c |\n| --- | --- |\n| 1 | x\\|y |\n| 2 |  |"


def test_a_budget_works_off_tasks_in_their_order_and_names_the_rest():
    now, done = [0.0], []

    def do(task: str) -> None:
        done.append(task)
        now[0] += 4.0

    budget = Budget(10.0, lambda: now[0])
    assert budget.work_off(["a", "b", "c", "d", "e"], do) == ["d", "e"] and done == ["a", "b", "c"]
    assert budget.left == 0.0
    assert Budget(10.0, lambda: now[0]).work_off(["a"], do) == []


@pytest.mark.parametrize("signals", [True, False])
def test_a_limit_of_time_needs_no_signals(signals, monkeypatch):
    if not signals:  # as on Windows
        for name in ("SIGALRM", "setitimer", "ITIMER_REAL"):
            monkeypatch.delattr(signal, name, raising=False)

    def busy() -> None:
        while time.monotonic() < began + 20.0:
            time.sleep(0.01)

    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"more than 0\.2 s"), limit(0.2):
        busy()
    assert time.monotonic() < began + 10.0
    with limit(0.2):
        pass
    time.sleep(0.4)  # nothing comes later


def test_rounds_are_those_that_fit_and_at_least_one():
    assert [device.rounds_within(8.0, once, 5) for once in (0.1, 2.0, 3.0, 9.0)] == [5, 4, 2, 1]


def test_lines_have_ours_both_ways_and_others_with_backward():
    found = [
        result("b", 1024, OURS, 2.0, distance=0.0),
        result("b", 1024, OURS, 3.0, BACKWARD, distance=0.0),
        result("b", 1024, "qpth", 8.0, ratio=4.0, distance=1e-3),
        result("b", 1024, "qpth", 9.0, BACKWARD, ratio=3.0, distance=1e-3),
        result("a", 64, OURS, None, failure="out of memory"),
        result("a", 64, HOST, 1234.5, distance=0.0),
        result("b", 64, OURS, 0.01234, distance=2e-15),
    ]
    assert findings.heads_of(found)[-3:] == ["qpth", HOST, "distance"]
    assert findings.lines(found) == [
        {"problem": "b", "batch": "64", f"{OURS}, forward": "0.0123", "distance": "2e-15"},
        {
            "problem": "b",
            "batch": "1,024",
            f"{OURS}, forward": "2",
            f"{OURS}, forward + backward": "3",
            "qpth": "9 (3×)",
            "distance": "0; qpth 1e-03",
        },
        {"problem": "a", "batch": "64", f"{OURS}, forward": "out of memory", HOST: "1234"},
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError("more than 8 s"), "more than 8 s"),
        (torch.cuda.OutOfMemoryError("Tried to allocate 94 GiB"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (ValueError("a shape"), "failed: ValueError"),
    ],
)
def test_errors_are_told_in_the_words_of_a_cell(error, words):
    assert device.failure_of(error) == words


def test_only_failures_and_distances_of_ours_are_complaints():
    fine = [
        result("a", 64, OURS, None, failure="out of memory"),
        result("a", 64, "qpth", 1.0, distance=0.5),
        result("a", 64, "qpth", None, failure="failed: ValueError"),
        result("a", 64, OURS, 1.0, distance=1e-9),
    ]
    bad = [
        result("a", 64, OURS, None, failure="failed: ValueError", message="ValueError: no"),
        result("a", 64, OURS, 1.0, distance=1e-3),
        result("a", 64, OURS, 1.0),
        result("a", 64, OURS, 1.0, BACKWARD, distance=0.0, gradient_distance=float("nan")),
    ]
    assert findings.wrong(fine) == [] and len(findings.wrong([*fine, *bad])) == len(bad)


def session(peers: list[Peer], clock=lambda: 0.0) -> Session:
    return Session("cpu", 3, 8.0, Budget(60.0, clock), Console(quiet=True), {"projection": peers})


def small(batch: int = 2) -> Task:
    return next(t for t in device.tasks_of("cpu", [batch], "simplex") if t.question.name == "projection")


def out_of_memory(problem):
    def solve(scores):
        raise MemoryError("no room")

    return solve


def test_who_cannot_is_said_and_not_asked_for_more():
    asked = []

    def too_large(problem):
        asked.append(problem.batch)
        return out_of_memory(problem)

    ours = small().question.ours
    run = session([*ours, Peer("greedy", "torch", "torch", too_large)])
    for batch in (2, 4):
        run.measure(small(batch))
    assert asked == [2] and len(run.results) == 2 * (2 * len(ours) + 1)
    assert {r.failure for r in run.results if r.peer == "greedy"} == {"out of memory"}
    mine = [r for r in run.results if r.peer == OURS]
    assert all(r.milliseconds > 0 and r.rounds == 3 and r.distance <= 1e-9 for r in mine) and not findings.wrong(mine)


def test_nobody_is_asked_when_the_time_is_spent():
    now = [0.0]

    def slow(problem):
        now[0] = 100.0
        return lambda scores: scores

    run = session([Peer("slow", "torch", "torch", slow), Peer("late", "torch", "torch", slow)], lambda: now[0])
    run.measure(small())
    assert [(r.peer, r.failure, r.rounds) for r in run.results] == [("slow", None, 1), ("late", "not reached", 0)]


def test_what_was_measured_and_what_was_not_is_written(tmp_path: Path):
    found = [result("simplex 50", 64, OURS, 0.5, distance=0.0)]
    findings.write(tmp_path, "A title", found, [small(1024).name])
    text = (tmp_path / "device.md").read_text()
    assert text.startswith("A title\n\n### Projection\n\n| problem | batch | optlayers, forward | distance |\n")
    assert "| simplex 50 | 64 | 0.5 | 0 |" in text and text.endswith(
        "Not reached: projection of simplex 50, batch 1,024.\n"
    )
    told = json.loads((tmp_path / "device.json").read_text())
    assert told["results"][0]["milliseconds"] == 0.5
    assert told["not reached"] == ["projection of simplex 50, batch 1,024"]


def test_a_device_that_is_not_there_is_said_and_the_cpu_taken(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.device_of("cuda", None, Console()) == ("cpu", (64, 1024))
    assert capsys.readouterr().out == (
        "there is no CUDA device that PyTorch can use: measured on the CPU, batches 64, 1,024\n"
    )
    assert device.device_of(None, [8], Console()) == ("cpu", [8])
