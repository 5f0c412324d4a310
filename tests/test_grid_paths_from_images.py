"""Paths by their cells against other solvers and by enumeration; maps, rules, and the whole example but small."""

import csv
import itertools
import json

import grid_paths_from_images
import networkx as nx
import numpy as np
import pytest
import torch
from drawing import draw
from grid_paths_data import PIXELS, TERRAINS, draw_maps
from grid_paths_from_images import arguments, main, planned
from grid_paths_polytope import cell_paths, neighbours_of
from grid_paths_rules import RULES, TWO_STAGE, Known
from grid_paths_training import CostModel, Run, judge, train

import optlayers as ol

GRIDS = [(1, 2), (2, 2), (3, 3), (2, 5), (5, 4)]
TINY = Run("sparsemap", seed=3, size=4, train_maps=24, test_maps=8, epochs=2, learning_rate=0.01, batch_size=10)


def graph_of(costs):
    """A step costs the cell that it leads to, so that a path costs its cells but for the first one."""
    rows, columns = costs.shape
    cells = list(itertools.product(range(rows), range(columns)))
    graph = nx.DiGraph()
    for one, other in itertools.permutations(cells, 2):
        if max(abs(one[0] - other[0]), abs(one[1] - other[1])) == 1:
            graph.add_edge(one, other, cost=float(costs[other]))
    return graph


def structures_of(rows, columns):
    """All sets of cells that paths, with closed circles beside them, visit."""
    cells, neighbours = rows * columns, neighbours_of(rows, columns)
    found = set()
    for inside in itertools.product((0, 1), repeat=cells):
        visited = [v for v in range(cells) if inside[v]]
        if not (inside[0] and inside[-1]):
            continue
        nexts = nx.Graph()
        nexts.add_nodes_from(("from", v) for v in visited[:-1])
        nexts.add_edges_from((("from", v), ("to", w)) for v in visited[:-1] for w in visited[1:] if w in neighbours[v])
        matched = nx.bipartite.maximum_matching(nexts, [("from", v) for v in visited[:-1]])
        if all(("from", v) in matched for v in visited[:-1]):
            found.add(inside)
    return found


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_best_vertices_of_costs_are_shortest_paths(rows, columns):
    costs = draw(12, rows, columns).abs()
    paths = ol.compile_polytope(cell_paths(rows, columns)).maximize(-costs).check().value
    for cost, path in zip(costs, paths, strict=True):
        expected = nx.shortest_path_length(graph_of(cost), (0, 0), (rows - 1, columns - 1), weight="cost")
        assert (cost * path).sum().item() - cost[0, 0].item() == pytest.approx(expected)
        visited = graph_of(cost).subgraph([tuple(cell) for cell in path.nonzero().tolist()])
        assert nx.has_path(visited, (0, 0), (rows - 1, columns - 1))


def test_cells_that_gain_something_are_visited_as_linear_programs_say():
    polytope = cell_paths(4, 5)
    for scores in (draw(60, 4, 5), draw(60, 4, 5) + 1.0, draw(60, 4, 5) - 1.0):
        by_oracle, by_program = (
            ol.compile_polytope(each).maximize(scores).check().value for each in (polytope, polytope.without_oracle())
        )
        assert ((scores * (by_oracle - by_program)).sum((1, 2)).abs() < 1e-9).all()


def test_vertices_are_paths_with_circles_beside_them():
    """The report counts the vertices of the rows; the structures are enumerated without them."""
    expected = structures_of(3, 3)
    report = ol.report(cell_paths(3, 3), effort="quick")
    assert report.integral and f"has {len(expected)} vertices" in str(report)
    compiled = ol.compile_polytope(cell_paths(3, 3))
    for structure in expected:
        x = torch.tensor(structure, dtype=torch.float64).reshape(3, 3)
        assert torch.equal(compiled.maximize(2 * x - 1).check().value, x)


def test_the_oracle_keeps_the_contract():
    ol.testing.check_oracle(cell_paths(3, 4))


def test_forbidden_cells_are_gone_round_or_there_is_no_path():
    scores = -torch.ones(2, 3, 3, dtype=torch.float64)
    scores[0, :2, 1] = -torch.inf  # a wall with a gap
    scores[1, :, 1] = -torch.inf
    layer = ol.OptLayer(cell_paths(3, 3), ol.Pipeline(), on_failure="nan")
    gap, wall = layer(scores)
    assert gap.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]] or gap[2, 1] == 1
    assert gap[:2, 1].sum() == 0 and gap.sum() == 4 and wall.isnan().all()


def test_a_grid_has_two_cells_at_least():
    with pytest.raises(ValueError, match="at least two cells, but got 1 by 1"):
        cell_paths(1, 1)
    with pytest.raises(ValueError, match="at least two cells, but got 0 by 3"):
        cell_paths(0, 3)


def test_maps_are_drawn_again_by_their_seed():
    one, again, other = draw_maps(5, 4, seed=1), draw_maps(5, 4, seed=1), draw_maps(5, 4, seed=2)
    assert torch.equal(one.images, again.images) and torch.equal(one.costs, again.costs)
    assert not torch.equal(one.images, other.images) and not torch.equal(one.costs, other.costs)
    assert one.images.shape == (5, 3, 4 * PIXELS, 4 * PIXELS) and one.images.dtype == torch.uint8
    assert set(one.costs.unique().tolist()) <= {t.cost for t in TERRAINS}


def test_cells_look_like_their_terrain():
    maps = draw_maps(60, 6, seed=0)
    cells = maps.images.double().unfold(2, PIXELS, PIXELS).unfold(3, PIXELS, PIXELS) / 255
    mean, spread = cells.mean((-2, -1)), cells.std((-2, -1)).mean(1)
    of = {t.name: (maps.costs == t.cost) for t in TERRAINS}
    assert spread[of["forest"]].mean() > 1.5 * spread[of["grass"]].mean()
    assert spread[of["rocks"]].mean() > 1.5 * spread[of["sand"]].mean()
    red, blue = mean[:, 0], mean[:, 2]
    assert (blue - red)[of["water"]].mean() > 0.1 > (blue - red)[of["grass"]].mean()


@pytest.mark.parametrize(("count", "size"), [(0, 4), (3, 1)])
def test_no_maps_are_refused(count, size):
    with pytest.raises(ValueError, match=f"but got {count} of {size} by {size}"):
        draw_maps(count, size, seed=0)


def test_decisions_are_judged_by_true_costs():
    maps = draw_maps(3, 4, seed=0)
    assert judge(maps.paths, maps) == {"optimal": 100.0, "exact": 100.0, "ratio": 1.0}
    everywhere = maps.paths.clone()
    everywhere[0] = 1.0
    judged = judge(everywhere, maps)
    least = (maps.costs[0] * maps.paths[0]).sum()
    assert judged["optimal"] == judged["exact"] == pytest.approx(200 / 3)
    assert judged["ratio"] == pytest.approx((2 + (maps.costs[0].sum() / least).item()) / 3)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_lower_the_loss_of_wrong_paths(rule):
    """On costs of which the cheapest paths are wrong, steps against the gradient bring the true ones."""
    true = draw_maps(6, 5, seed=5)
    compiled = ol.compile_polytope(cell_paths(5, 5))
    loss, generator = RULES[rule](compiled), torch.Generator().manual_seed(0)
    costs = (1.0 - true.costs / 10.0).requires_grad_()
    optimizer = torch.optim.Adam([costs], lr=0.1)
    known = Known(true.paths, true.costs)
    wrong = judge(compiled.maximize(-costs.detach()).check().value, true)
    for _ in range(150):
        optimizer.zero_grad()
        loss(costs, known, generator).backward()
        optimizer.step()
    found = judge(compiled.maximize(-costs.detach()).check().value, true)
    assert wrong["ratio"] > 2 and found["ratio"] < 1.1


def test_costs_are_above_0_for_every_cell():
    torch.manual_seed(0)
    costs = CostModel(5)(draw_maps(3, 5, seed=0).images)
    assert costs.shape == (3, 5, 5) and (costs > 0).all()


def test_a_run_is_reproducible():
    first, second = train(TINY), train(TINY)
    assert {**first, "seconds": None} == {**second, "seconds": None}
    assert len(first["optimal"]) == TINY.epochs and np.shape(first["paths"]) == (4, 4, 4)


def test_costs_are_learned_from_paths_alone():
    run = Run("perturbed", seed=0, size=5, train_maps=200, test_maps=100, epochs=6, learning_rate=0.01, batch_size=20)
    result = train(run)
    assert result["ratio"][-1] < 1.15 and result["optimal"][-1] > 40


GIVEN = ["--rules", "identity", TWO_STAGE, "--size", "4", "--train-maps", "12", "--test-maps", "2", "--epochs", "2"]
GIVEN += ["--seeds", "0", "1", "--jobs", "2"]


def test_the_example_end_to_end(tmp_path, monkeypatch):
    """Without further processes."""

    def one_by_one(runs, work, *, folder, **_):
        folder.mkdir(parents=True, exist_ok=True)
        return [json.loads(json.dumps(work(run))) for run in runs]

    monkeypatch.setattr(grid_paths_from_images, "run_all", one_by_one)
    outcomes = main([*GIVEN, "--output", str(tmp_path / "new")])
    assert [(o.run.rule, o.run.seed) for o in outcomes] == [(r, s) for r in ("identity", TWO_STAGE) for s in (0, 1)]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"curves.png", "paths.png", "runs.csv", "table.md"}
    with (tmp_path / "new" / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 2 and {row["epoch"] for row in rows} == {"1", "2"}
    text = (tmp_path / "new" / "table.md").read_text()
    assert text.startswith("4 × 4 cells, 12 maps to learn from, 2 others") and text.count("\n| ") == 3


@pytest.mark.slow
def test_finished_runs_are_not_done_again(tmp_path):
    given = [*GIVEN, "--output", str(tmp_path)]
    outcomes = main(given)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(kept) == 4 and main(given) == outcomes
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--size", "1"], "--size must be at least 2, but is 1"),
        (["--train-maps", "0"], "--train-maps must be at least 1, but is 0"),
        (["--epochs", "0"], "--epochs must be at least 1, but is 0"),
        (["--learning-rate", "0"], "--learning-rate must be above 0, but is 0.0"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0, but is nan"),
        (["--seeds", "-1"], "--seeds must be at least 0"),
        (["--rules", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err


def test_every_rule_is_planned_with_every_seed_once():
    runs = planned(arguments(["--seeds", "0", "1", "1", "--rules", "spigot", "identity", "spigot"]))
    assert [(run.rule, run.seed) for run in runs] == [(r, s) for r in ("spigot", "identity") for s in (0, 1)]
