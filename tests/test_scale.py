"""The recipes for scale: the same answers however many processes there are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import solve_a_million
import torch
import train_on_several_devices
from solve_a_million import PARTS, Solver, declared, drawn

import optlayers as ol

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_an_instance_has_the_same_scores_in_any_batch():
    scores = drawn(np.arange(100))
    assert np.array_equal(drawn(np.arange(37, 41)), scores[37:41])
    assert len(np.unique(scores)) == scores.size and -1 < scores.min() < -0.9 and -0.1 < scores.max() <= 0
    with pytest.raises(ValueError, match="consecutive instances, but got 3 that begin with 4"):
        drawn(np.array([4, 6, 5]))


@pytest.mark.parametrize("project", [False, True])
def test_a_loop_solves_and_writes_all_instances(tmp_path, project):
    given = ["--instances", "250", "--batch", "100", "--workers", "0", "--output", str(tmp_path / "points")]
    rows = solve_a_million.main([*given, *(["--project"] if project else [])])
    assert [(row["first"], row["instances"]) for row in rows] == [(0, 100), (100, 100), (200, 50)]
    scores = torch.from_numpy(drawn(np.arange(250)))
    best = ol.OptLayer(declared(), ol.SparseMAP() if project else ol.Pipeline())(scores)
    assert sum(row["value"] for row in rows) == pytest.approx((scores * best).sum().item(), abs=1e-9)
    table = pq.read_table(tmp_path / "points").sort_by("id")
    assert table["id"].to_pylist() == list(range(250))
    torch.testing.assert_close(torch.tensor(table["point"].to_pylist()), best.float())
    assert all(min(row[part] for part in ("compiling", "scores", "solving", "writing")) > 0 for row in rows)


def test_failed_instances_are_named():
    solver = Solver(False, None)
    scores = np.stack([np.ones(PARTS), np.full(PARTS, -np.inf), np.ones(PARTS)])
    row = solver({"id": np.arange(7, 10), "scores": scores})
    assert row["failed"] == ["8"] and row["value"] == [16.0] and row["instances"] == [3]  # two paths of eight arcs
    with pytest.raises(ValueError, match=rf"scores end in \(3,\) but the polytope has shape \({PARTS},\)"):
        solver({"id": np.arange(2), "scores": np.zeros((2, 3))})


@pytest.mark.slow
@pytest.mark.usefixtures("started_ray")
def test_workers_find_what_a_loop_finds(tmp_path):
    given = ["--instances", "1050", "--batch", "100"]
    alone = solve_a_million.main([*given, "--workers", "0"])
    together = solve_a_million.main([*given, "--workers", "2", "--output", str(tmp_path / "points")])
    assert sum(row["instances"] for row in together) == 1050
    assert sum(r["value"] for r in together) == pytest.approx(sum(r["value"] for r in alone), rel=1e-12)
    assert sorted(pq.read_table(tmp_path / "points")["id"].to_pylist()) == list(range(1050))
    (tmp_path / "scores").mkdir()
    for k in range(3):
        instances = np.arange(350 * k, 350 * (k + 1))
        table = pa.table({"id": instances, "scores": drawn(instances).tolist()})
        pq.write_table(table, tmp_path / "scores" / f"{k}.parquet")
    pq.write_table(pq.read_table(tmp_path / "scores" / "0.parquet"), tmp_path / "scores" / "3.parquet")  # ids again
    again = ["--workers", "1", "--scores", str(tmp_path / "scores"), "--output", str(tmp_path / "twice")]
    solve_a_million.main([*given, *again])
    assert len(pq.read_table(tmp_path / "twice")) == 1400
    (tmp_path / "scores" / "3.parquet").unlink()
    with pytest.raises(ValueError, match="2 workers and those who read need a core each, but there are 2"):
        solve_a_million.main(["--workers", "2", "--scores", str(tmp_path / "scores")])
    read = solve_a_million.main([*given, "--workers", "1", "--scores", str(tmp_path / "scores")])
    assert sum(row["instances"] for row in read) == 1050
    assert sum(r["value"] for r in read) == pytest.approx(sum(r["value"] for r in alone), rel=1e-12)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--instances", "0"], "--instances and --batch must be at least 1"),
        (["--workers", "0", "--address", "auto"], "--scores and --address are for workers"),
        (["--scores", "nowhere"], "--scores nowhere: there is nothing"),
        (["--output", str(EXAMPLES)], "is not empty"),
    ],
)
def test_wrong_options_of_solving_are_explained(capsys, given, told):
    with pytest.raises(SystemExit):
        solve_a_million.main(given)
    assert told in capsys.readouterr().err


def losses_of(path, *given):
    train_on_several_devices.main([*given, "--losses", str(path)])
    return json.loads(path.read_text())


def several(*given):
    """Two processes, as from a shell."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = EXAMPLES / "train_on_several_devices.py"
    return subprocess.run([*command, script, *given], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["spigot", "sparsemap"])
def test_two_processes_have_the_losses_of_one(tmp_path, rule):
    given = ["--rule", rule]  # of 65 sets of items: the last part of an epoch is one for a process, none for the other
    losses = losses_of(tmp_path / "one.json", *given)
    assert len(losses) == 40 and sum(losses[-10:]) < 0.7 * sum(losses[:10])
    done = several(*given, "--check", str(tmp_path / "one.json"))
    assert done.returncode == 0 and "2 processes" in done.stdout, done.stderr
    other = several(*given, "--seed", "1", "--check", str(tmp_path / "one.json"))
    assert other.returncode != 0 and "more than 1e-6" in other.stderr


@pytest.mark.slow
def test_steps_in_no_unit_depend_on_the_number_of_processes(tmp_path):
    losses_of(tmp_path / "one.json", "--unit", "none")
    assert "more than 1e-6" in several("--unit", "none", "--check", str(tmp_path / "one.json")).stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("[0.5", "--check"),
        ("{}", "must be a JSON list of losses"),
        ("[0.5]", "16 losses, but"),
        (f"[{', '.join(['NaN'] * 16)}]", "differ by nan"),
    ],
)
def test_losses_to_compare_with_are_checked(tmp_path, capsys, text, told):
    path = tmp_path / "one.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        train_on_several_devices.main(["--sets", "16", "--batch", "8", "--check", str(path)])
    assert told in capsys.readouterr().err + str(stopped.value)
