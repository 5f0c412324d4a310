"""Pictures: what is drawn, where, and how dark. No pixels are compared."""

from __future__ import annotations

import builtins
import copy
import io
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import cvxpy as cp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from catalogue import POLYTOPES, Entry
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from mpl_toolkits.mplot3d.art3d import Line3DCollection

import optlayers as ol
import polytopes
from optlayers import plots
from optlayers.plots.outline import outline, principal

ROOT = Path(__file__).parent.parent
F64 = torch.float64


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    """pyplot knows of no figure that it did not know before, and what is drawn can be saved."""
    before = plt.get_fignums()
    yield
    assert plt.get_fignums() == before


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def render(ax: Axes) -> None:
    ax.figure.draw_without_rendering()  # the canvas of a figure that no backend has draws nothing


def of_kind(ax: Axes, kind: type) -> list:
    return [found for found in ax.collections if type(found) is kind]


def offsets(collection) -> np.ndarray:
    """Where dots lie, in two or three dimensions."""
    if hasattr(collection, "_offsets3d"):
        return np.stack([np.asarray(along) for along in collection._offsets3d], axis=1)
    return np.asarray(collection.get_offsets())


def labelled(ax: Axes, start: str):
    (found,) = [one for one in ax.collections if str(one.get_label()).startswith(start)]
    return found


def segments_of(ax: Axes) -> np.ndarray:
    (found,) = of_kind(ax, Line3DCollection) or of_kind(ax, LineCollection)
    return np.asarray(found._segments3d if isinstance(found, Line3DCollection) else found.get_segments())


def sides(points: np.ndarray) -> float:
    """The angle by which a polygon turns at its corners, in all."""
    way = np.roll(points, -1, axis=0) - points
    turn = np.arctan2(way[:, 1], way[:, 0])
    return float(np.mod(np.diff(np.append(turn, turn[0])), 2 * np.pi).sum())


# Hulls


def test_edges_of_solids():
    cube = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    edges, faces = outline(cube)
    assert len(edges) == 12 and [len(face) for face in faces] == [4] * 6
    assert all(np.abs(cube[i] - cube[j]).sum() == 1.0 for i, j in edges)
    octahedron = np.concatenate([np.eye(3), -np.eye(3)])
    assert [len(found) for found in outline(octahedron)] == [12, 8]


def test_edges_leave_out_what_is_no_corner():
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0.5, 0), (0.5, 0.5), (0, 0), (1, 0.25)], dtype=float)
    assert outline(square)[0] == [(0, 1), (0, 3), (1, 2), (2, 3)]
    cube = np.array(list(itertools.product((0.0, 0.5, 1.0), repeat=3)))  # with middles of edges and faces
    rotated = cube @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    bent = np.append(square, [(0.25, -1e-10)], axis=0)
    assert outline(bent)[0] == [(0, 1), (0, 3), (1, 2), (2, 3)]
    for points in (cube, rotated, 1e6 * rotated + 3.0, 1e-6 * rotated):
        assert [len(found) for found in outline(points)] == [12, 6]


def test_edges_of_what_is_flat():
    line = np.array([(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)])
    assert outline(line) == ([(0, 1)], [])
    assert outline(line[:1]) == ([], []) and outline(line[[0, 0]]) == ([], [])
    edges, (face,) = outline(np.eye(3))
    assert edges == [(0, 1), (0, 2), (1, 2)] and sorted(face) == [0, 1, 2]


def test_principal_directions_lie_in_the_affine_hull():
    directions, rank = principal(np.eye(4), 3)
    assert rank == 3 and directions.shape == (3, 4)
    assert np.allclose(directions.sum(axis=1), 0.0) and np.allclose(directions @ directions.T, np.eye(3))
    assert principal(np.ones((5, 2)), 2)[1] == 0


# Polytopes


def test_the_cube_has_8_vertices_and_12_edges():
    ax = plots.polytope(polytopes.cube(3))
    assert ax.name == "3d" and ax.get_title() == "8 vertices"
    assert sorted(map(tuple, offsets(labelled(ax, "8 vertices")))) == sorted(itertools.product((0.0, 1.0), repeat=3))
    assert segments_of(ax).shape == (12, 2, 3)
    render(ax)


def test_the_rankings_of_three_are_a_hexagon():
    ax = plots.polytope(polytopes.permutahedron(3))
    dots = offsets(labelled(ax, "6 vertices"))
    assert dots.shape == (6, 2) and segments_of(ax).shape == (6, 2, 2)
    assert np.allclose(np.hypot(*dots.T), np.sqrt(2.0))
    assert np.allclose(np.linalg.norm(np.diff(segments_of(ax), axis=1), axis=2), np.sqrt(2.0))
    assert "shadow" not in ax.get_title()  # it has no more dimensions


def test_limits_are_those_of_the_vertices_whatever_memory_holds(monkeypatch):
    """matplotlib takes them also of the unused ends of faces with fewer corners, in memory that nobody filled."""

    class Dirty:
        def __getattr__(self, name: str):
            return getattr(np, name)

        def empty(self, shape, **more):
            return np.full(shape, 1e200, **more)

    monkeypatch.setattr("mpl_toolkits.mplot3d.art3d.np", Dirty())
    ax = plots.polytope(polytopes.permutahedron(4))
    assert len({len(face) for face in outline(offsets(ax.collections[-1]))[1]}) == 2  # squares and hexagons
    assert np.abs(ax.get_w_lims()).max() < 3.0
    render(ax)


def test_a_shadow_contains_all_vertices():
    compiled = ol.compile_polytope(polytopes.matching(3))
    flat = compiled.vertices().numpy().reshape(6, 9)
    directions = scores(2, 3, 3)
    ax = plots.polytope(compiled, directions=directions)
    dots = offsets(labelled(ax, "6 vertices"))
    assert np.allclose(dots, flat @ directions.numpy().reshape(2, 9).T)
    corners = {tuple(np.round(end, 9)) for segment in segments_of(ax) for end in segment}
    assert corners <= {tuple(np.round(dot, 9)) for dot in dots}
    centre = dots.mean(axis=0)
    for start, end in segments_of(ax):  # all vertices lie on the side of each edge where their mean does
        across = np.array([start[1] - end[1], end[0] - start[0]])
        assert ((dots - start) @ across * np.sign((centre - start) @ across)).min() > -1e-9
    assert ax.get_title() == "6 vertices; a shadow in 2 of 4 dimensions"
    three = plots.polytope(compiled)
    assert offsets(labelled(three, "6 vertices")).shape == (6, 3)


def test_fractional_vertices_are_marked():
    x = cp.Variable(3, nonneg=True)
    stable = ol.Polytope(x, [x[0] + x[1] <= 1, x[1] + x[2] <= 1, x[0] + x[2] <= 1])
    ax = plots.polytope(stable)
    assert len(offsets(labelled(ax, "4 integral"))) == 4
    assert offsets(labelled(ax, "1 fractional")).tolist() == [[0.5, 0.5, 0.5]]
    assert len(segments_of(ax)) == 9
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["4 integral vertices", "1 fractional vertex"]


def test_points_are_drawn_where_they_lie():
    x = cp.Variable(2, nonneg=True)
    square = ol.compile_polytope(ol.Polytope(x, [x <= 1]))
    asked = torch.tensor([0.25, 3.0])
    many = torch.tensor([[0.1, 0.2], [0.3, 0.4]], requires_grad=True)
    ax = plots.polytope(square, points={"projection": square.project(asked), "asked": asked, "drawn": many})
    assert np.allclose(offsets(labelled(ax, "projection")), [[0.25, 1.0]])
    assert np.allclose(offsets(labelled(ax, "asked")), [[0.25, 3.0]])
    assert np.allclose(offsets(labelled(ax, "drawn")), many.detach())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x[0]", "x[1]")
    y = cp.Variable(3, nonneg=True)
    lopsided = ol.compile_polytope(ol.Polytope(y, [cp.sum(y) == 1, y[0] <= 0.25]))
    vertices = lopsided.vertices()
    centred = plots.polytope(lopsided, points=vertices)  # in the affine hull, seen from the mean
    dots = np.concatenate([offsets(labelled(centred, "2 integral")), offsets(labelled(centred, "2 fractional"))])
    assert np.allclose(dots.mean(axis=0), 0.0)
    found = {tuple(np.round(dot, 9) + 0.0) for dot in offsets(labelled(centred, "points"))}
    assert found == {tuple(np.round(dot, 9) + 0.0) for dot in dots}
    assert np.allclose(np.sort(np.linalg.norm(dots, axis=1)), np.sort((vertices - vertices.mean(0)).norm(dim=1)))


def test_parameters_are_given_by_name():
    assert plots.polytope(polytopes.subset(4), budget=2).get_title() == "6 vertices"
    assert len(offsets(labelled(plots.polytope(polytopes.subset(3), budget=1.5), "6 fractional"))) == 6
    loss, small = square_loss(torch.eye(3, dtype=F64)[0]), {"arrows": 2, "resolution": 2}
    assert plots.rule_field(ol.SparseMAP(), polytopes.subset(3), loss, budget=1, **small).get_title() == "SparseMAP()"
    path = plots.regularization_path(polytopes.subset(3), torch.zeros(3), ol.Entropy, [1.0, 2.0], budget=1.5)
    assert [line.get_ydata()[0] for line in path.get_lines()] == pytest.approx([0.5] * 3)
    with pytest.raises(TypeError, match="budget"):
        plots.polytope(polytopes.subset(4))
    with pytest.raises(ValueError, match="no point satisfies the constraints with these parameters"):
        plots.polytope(polytopes.subset(4), budget=5)


def test_too_many_vertices_are_sampled_and_the_title_says_so():
    ax = plots.polytope(polytopes.matching(7), dimensions=2)
    assert "random objectives" in ax.get_title() and "there may be more" in ax.get_title()
    few = plots.polytope(polytopes.cube(4), samples=3, dimensions=2)
    assert "found by 3 random objectives" in few.get_title()
    assert 1 <= len(offsets(few.collections[-1])) <= 3


def test_small_polytopes():
    for polytope, dots, edges in (
        (polytopes.simplex(1), 1, 0),
        (polytopes.simplex(2), 2, 1),
        (polytopes.cube(1), 2, 1),
    ):
        ax = plots.polytope(polytope)
        assert len(offsets(ax.collections[-1])) == dots and len(segments_of(ax)) == edges
        render(ax)
    figure = Figure()
    flat = plots.polytope(polytopes.simplex(3), ax=figure.add_subplot(projection="3d"))
    assert offsets(labelled(flat, "3 vertices")).shape == (3, 3)
    render(flat)


# Fields


def square_loss(gold: torch.Tensor):
    return lambda z: (z - gold).square().flatten(1).sum(-1)


@pytest.mark.parametrize(
    "rule",
    [
        ol.StraightThrough(),
        ol.Spigot(0.5),
        ol.SparseMAP(),
        ol.ScoreFunction(samples=3),
        ol.PerturbedAdditive(samples=3),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_arrows_are_what_the_rule_sends_back(rule):
    x = cp.Variable(2, nonneg=True)
    square = ol.Polytope(x, [x <= 1, cp.sum(x) <= 1.5])
    loss = square_loss(torch.tensor([0.4, 1.2], dtype=F64))
    ax = plots.rule_field(rule, square, loss, arrows=4, resolution=5, generator=torch.Generator().manual_seed(3))
    (quiver,) = of_kind(ax, Quiver)
    at = torch.from_numpy(quiver.get_offsets().copy()).requires_grad_()
    layer = ol.OptLayer(square, rule)
    layer(at, objective=loss, generator=torch.Generator().manual_seed(3)).sum().backward()
    assert at.grad.abs().max() > 0.01
    assert np.allclose(np.stack([quiver.U, quiver.V], axis=1), -at.grad)
    render(ax)


def test_arrows_in_a_plane_of_more_parts():
    """Directions that are neither orthogonal nor of length 1."""
    directions = torch.stack([torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, 1.0])]).double()
    gold, centre = torch.eye(3, dtype=F64)[0], torch.tensor([0.1, 0.0, -0.3], dtype=F64)
    options = {"directions": directions, "scores": centre, "arrows": 3, "resolution": 4, "extent": 1.0}
    ax = plots.rule_field(ol.StraightThrough(), polytopes.simplex(3), square_loss(gold), **options)
    (quiver,) = of_kind(ax, Quiver)
    at = centre + torch.from_numpy(quiver.get_offsets().copy()) @ directions
    gradient = 2 * (ol.OptLayer(polytopes.simplex(3), ol.Pipeline())(at) - gold)
    seen = torch.from_numpy(np.stack([quiver.U, quiver.V], axis=1)) @ directions
    left = -gradient - seen  # what lies out of the plane
    assert (left @ directions.T).abs().max() < 1e-9


def test_the_background_is_the_loss_of_the_best_vertex():
    gold = torch.eye(2, dtype=F64)[0]
    options = {"arrows": 2, "resolution": 6, "extent": 1.0}
    ax = plots.rule_field(ol.Pipeline(), polytopes.cube(2), square_loss(gold), **options)
    (mesh,) = of_kind(ax, QuadMesh)
    line = np.linspace(-1.0, 1.0, 6)
    expected = [[float((a > 0) != 1) + float((b > 0) != 0) for a in line] for b in line]
    assert np.allclose(mesh.get_array(), expected)
    soft = plots.rule_field(ol.SparseMAP(), polytopes.cube(2), square_loss(gold), background="forward", **options)
    expected = [[(np.clip(a, 0, 1) - 1) ** 2 + np.clip(b, 0, 1) ** 2 for a in line] for b in line]
    assert np.allclose(of_kind(soft, QuadMesh)[0].get_array(), expected)
    assert (ax.get_title(), soft.get_title()) == ("Pipeline()", "SparseMAP()")
    (nothing,) = of_kind(ax, Quiver)
    assert np.abs(nothing.U).max() == np.abs(nothing.V).max() == 0.0


def test_titles_of_fields_leave_out_defaults():
    ax = plots.rule_field(
        ol.Hard(ol.Regularized(ol.Entropy(0.5))),
        polytopes.simplex(2),
        square_loss(torch.eye(2, dtype=F64)[0]),
        arrows=2,
        resolution=2,
    )
    assert ax.get_title() == "Hard(rule=Regularized(regularizer=Entropy(temperature=0.5)))"


# Paths


def test_a_path_begins_at_the_best_vertex_and_ends_in_the_middle():
    given = torch.tensor([1.0, 0.5, 0.0])
    numbers = [0.01, 0.1, 1.0, 10.0, 1000.0]
    ax = plots.regularization_path(polytopes.simplex(3), given, ol.Entropy, numbers, words=["a", "b", "c"])
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in ax.get_lines()}
    assert sorted(lines) == ["a", "b", "c"]
    assert [lines[name][0] for name in "abc"] == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert [lines[name][-1] for name in "abc"] == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert [lines[name][2] for name in "abc"] == pytest.approx(given.softmax(0).tolist(), abs=1e-6)
    assert all(np.asarray(line.get_xdata()).tolist() == numbers for line in ax.get_lines())
    assert (ax.get_xlabel(), ax.get_xscale()) == ("temperature", "log")
    render(ax)


def test_of_many_parts_those_that_move_most_have_names():
    ax = plots.regularization_path(polytopes.matching(4), scores(4, 4), ol.Barrier, [0.01, 0.05])
    assert len(ax.get_lines()) == 16
    assert len(ax.get_legend().get_texts()) == 8 and "8 that move less" in ax.get_legend().get_title().get_text()
    assert ax.get_xlabel() == "mu" and ax.get_xscale() == "linear"
    moved = {line.get_label(): np.ptp(line.get_ydata()) for line in ax.get_lines()}
    named = [size for name, size in moved.items() if name.startswith("x[")]
    others = [size for name, size in moved.items() if not name.startswith("x[")]
    assert min(named) >= max(others, default=0.0)


# Structures


def test_circles_lead_where_closed_forms_say():
    """The logistic function on the square under the entropy of each part, and seen along directions of one's own."""
    x = cp.Variable(2, nonneg=True)
    ax = plots.regularized_circles(ol.Polytope(x, [x <= 1]), ol.Entropy(0.5), [0.5, 3.0])
    for line, norm in zip(ax.get_lines(), (0.5, 3.0), strict=True):
        points = np.asarray(line.get_xydata())
        scores = 0.5 * np.log(points / (1.0 - points))
        assert len(points) == 361 and np.abs(np.hypot(*scores.T) - norm).max() <= 1e-6
        assert scores[0] == pytest.approx([norm, 0.0], abs=1e-6) and scores[90] == pytest.approx([0.0, norm], abs=1e-6)
    assert len(ax.collections[0].get_segments()) == 4
    other = plots.regularized_circles(ol.Polytope(x, [x <= 1]), cp.sum_squares(x), [9.0], directions=[[1, 1], [1, 0]])
    assert np.asarray(other.get_lines()[0].get_xydata()).max(axis=0) == pytest.approx([2.0, 1.0], abs=1e-6)
    render(other)
    with pytest.raises(ValueError, match=r"sizes must be a list of positive numbers, but got \[0.0\]"):
        plots.regularized_circles(polytopes.simplex(3), ol.Entropy(), [0.0])


@pytest.mark.parametrize("entry", POLYTOPES, ids=repr)
def test_all_kinds_are_drawn(entry: Entry):
    """The first vertex, and the mean of all, on the axes that are given."""
    ax = Figure().add_subplot()
    for point in (entry.vertices[0], entry.vertices.mean(axis=0)):
        ax.clear()
        before = list(ax.figure.axes)
        assert plots.structure(entry.polytope, point, ax=ax) is ax
        assert ax.collections or ax.patches or ax.images
        assert ax.figure.axes == before
    render(ax)


def test_the_catalogue_brings_its_pictures():
    without = {entry.declare.__name__ for entry in POLYTOPES if entry.polytope.draw is None}
    assert without == {"simplex", "cube", "subset", "knapsack"}  # vectors, which are bars


def lines_of(ax: Axes, place: int = 0) -> LineCollection:
    return of_kind(ax, LineCollection)[place]


def test_links_are_as_opaque_as_their_weights():
    soft = ol.compile_polytope(polytopes.matching(3)).project(scores(3, 3)).value.numpy()
    ax = plots.structure(polytopes.matching(3), soft)
    rows, columns = np.nonzero(soft > 0.01)
    assert 3 < len(rows) < 9
    assert lines_of(ax).get_colors()[:, 3].tolist() == pytest.approx(soft[rows, columns].tolist())
    assert np.asarray(lines_of(ax).get_segments())[:, :, 1].tolist() == np.stack([rows, columns], axis=1).tolist()
    assert ax.get_legend().get_title().get_text() == "weight"
    whole = plots.structure(polytopes.matching(3), np.eye(3))
    assert whole.get_legend() is None and lines_of(whole).get_colors()[:, 3].tolist() == [1.0] * 3


def test_arcs_go_from_heads_to_words():
    tree = np.zeros((4, 4))
    tree[0, 2] = tree[2, 1] = tree[2, 3] = 1.0
    ax = plots.structure(polytopes.arborescence(3), tree, words=["we", "see", "it"])
    ends = [(round(path[0][0]), round(path[-1][0])) for path in lines_of(ax).get_segments()]
    assert ends == [(2, 2), (2, 1), (2, 3)]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["we", "see", "it"]
    assert [text.get_text() for text in ax.texts] == ["root"]
    tips = of_kind(ax, type(ax.collections[1]))[0]
    assert len(offsets(tips)) == 3
    both = plots.arcs([[0.0, 0.5], [0.5, 0.0]], directed=True)
    first, second = lines_of(both).get_segments()
    assert np.abs(np.sort(first[:, 0]) - np.sort(second[:, 0])).max() > 0.05  # beside each other
    colors = np.full((4, 4), "#ff0000")
    colors[0, 2] = "#0000ff"
    colored = lines_of(plots.arcs(tree, rooted=True, color=colors)).get_colors()
    assert colored[:, 2].tolist() == [1.0, 0.0, 0.0]


def test_bracketings_are_trees_and_mixtures_of_them_bars():
    tree = np.zeros((4, 4))
    tree[0, 3] = tree[0, 1] = tree[2, 3] = 1.0
    ax = plots.structure(polytopes.constituency_tree(4), tree)
    ends = {tuple(map(tuple, segment)) for segment in np.asarray(lines_of(ax).get_segments())}
    assert len(ends) == 6 and ((1.5, 2.0), (0.5, 1.0)) in ends and ((2.5, 1.0), (3.0, 0.0)) in ends
    other = np.zeros((4, 4))
    other[0, 3] = other[0, 2] = other[1, 2] = 1.0
    ax = plots.structure(polytopes.constituency_tree(4), 0.75 * tree + 0.25 * other)
    (boxes,) = of_kind(ax, PolyCollection)
    assert sorted(boxes.get_facecolor()[:, 3]) == pytest.approx([0.25, 0.25, 0.75, 0.75, 1.0])
    extents = [path.get_extents() for path in boxes.get_paths()]
    for a, b in itertools.combinations(extents, 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1)


def test_lanes_of_tags():
    ax = plots.structure(polytopes.linear_chain(3, 2), [[1, 0], [0, 1], [0, 1]], states=["N", "V"], words=list("abc"))
    assert np.asarray(lines_of(ax, 1).get_segments()).tolist() == [[[0, 0], [1, 1]], [[1, 1], [2, 1]]]
    edges = np.zeros((2, 2, 2))
    edges[0, 0, 0], edges[1, 0, 0], edges[1, 0, 1] = 1.0, 0.25, 0.75
    ax = plots.structure(polytopes.sequence(2, 2), edges)
    assert lines_of(ax, 1).get_colors()[:, 3].tolist() == [0.25, 0.75]
    assert sorted(ax.collections[-1].get_facecolor()[:, 3]) == [0.25, 0.75, 1.0]
    x = np.zeros((3, 2, 2))
    x[0, 1, 0] = x[2, 0, 1] = 1.0
    ax = plots.structure(polytopes.semi_markov(3, 2, 2), x)
    (boxes,) = of_kind(ax, PolyCollection)
    spans = [(path.get_extents().x0, path.get_extents().x1) for path in boxes.get_paths()]
    assert spans == [pytest.approx((-0.42, 1.42)), pytest.approx((1.58, 2.42))]


def test_positions_in_time():
    x = np.zeros((3, 2, 2))
    x[0, 0, 1] = x[1, 0, 0] = x[2, 1, 1] = 1.0
    ax = plots.structure(polytopes.ctc_alignment(3, 2), x)
    assert np.asarray(lines_of(ax, 1).get_segments()).tolist() == [[[0, 0], [1, 0]], [[1, 0], [2, 1]]]


def test_alignments_are_links_or_paths():
    align = polytopes.monotone_alignment(2, 2)
    x = np.zeros((2, 2, 3))
    x[0, 0, 1], x[1, 1, 1], x[0, 1, 0], x[1, 1, 2] = 1.0, 0.25, 0.75, 0.75
    cells = lines_of(plots.structure(align, x, words=(["a", "b"], ["A", "B"])))
    assert cells.get_colors()[:, 3].tolist() == [1.0, 0.75, 1.0]
    path = lines_of(plots.structure(align, x, view="grid"))
    assert dict(zip(map(str, np.asarray(path.get_segments()).tolist()), path.get_colors()[:, 3], strict=True)) == {
        "[[0.0, 0.0], [1.0, 0.0]]": 0.75,
        "[[0.0, 0.0], [1.0, 1.0]]": 0.25,
        "[[1.0, 0.0], [1.0, 1.0]]": 0.75,
    }
    with pytest.raises(ValueError, match='view is "links" or "grid"'):
        plots.structure(align, x, view="tree")


def test_paths_lie_on_their_grid():
    arcs, grid = polytopes.grid_arcs(2, 3), polytopes.grid_path(2, 3)
    x = ol.OptLayer(grid, ol.Pipeline())(scores(len(arcs)))
    ax = plots.structure(grid, x)
    every, used = of_kind(ax, LineCollection)
    assert len(every.get_segments()) == 7 and len(used.get_segments()) == 3
    for segment, (tail, head) in zip(used.get_segments(), arcs[x.numpy() > 0.5], strict=True):
        assert np.allclose(segment[[0, -1]], [(tail % 3, tail // 3), (head % 3, head // 3)])
    arcs = [(0, 1), (0, 1), (0, 1), (1, 2), (0, 2), (0, 2)]
    layered = plots.structure(polytopes.dag_path(3, arcs), [0.2, 0.2, 0.1, 0.5, 0.25, 0.25])
    middles = [way[12] for way in of_kind(layered, LineCollection)[1].get_segments()]
    for a, b in itertools.combinations([*middles, (1.4, 0.0)], 2):  # parallel arcs apart, detours around the node
        assert np.hypot(*(np.asarray(a) - b)) > 0.2


def test_tours_and_trees_are_graphs_on_a_circle():
    x = np.triu(np.ones((3, 3)), 1)
    ax = plots.structure(polytopes.tour(3), x, words=["Rome", "Oslo", "Bonn"])
    assert len(lines_of(ax).get_segments()) == 3
    assert np.allclose(np.hypot(*offsets(ax.collections[-1]).T), 1.0)
    assert [text.get_text() for text in ax.texts] == ["Rome", "Oslo", "Bonn"]
    placed = plots.graph(x, places=[[0, 0], [2, 0], [0, 5]])
    assert offsets(placed.collections[-1]).tolist() == [[0, 0], [2, 0], [0, 5]]


def test_other_vectors_are_bars_and_other_matrices_heat():
    bars = plots.structure(polytopes.subset(3), [0.5, 1.0, 0.5], words=["a", "b", "c"])
    assert [bar.get_height() for bar in bars.patches] == [0.5, 1.0, 0.5]
    ranks = plots.structure(polytopes.permutahedron(3), [3.0, 1.0, 2.0])
    assert ranks.get_yticks().tolist() == [1, 2, 3]
    x = cp.Variable((2, 3), nonneg=True)
    flows = ol.Polytope(x, [x <= 5])
    heat = plots.structure(flows, [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]], words=(["a", "b"], None))
    assert heat.images[0].get_array().tolist() == [[1, 2, 3], [4, 5, 0]]
    assert heat.images[0].get_clim() == (0.0, 5.0)
    assert [text.get_text() for text in heat.texts] == ["1", "2", "3", "4", "5"]
    below = plots.heat([[-2.0, 1.0]])
    assert below.images[0].get_clim() == (-2.0, 2.0)
    number = cp.Variable()
    assert len(plots.structure(ol.Polytope(number, [number >= 0, number <= 1]), 0.5).patches) == 1


def test_a_solution_tells_what_it_mixes():
    compiled = ol.compile_polytope(polytopes.arborescence(3), projector=ol.ActiveSet())
    solution = compiled.project(0.5 * scores(4, 4))
    weights = sorted((w for w in solution.weights.tolist() if w > 0), reverse=True)
    assert len(weights) > 1
    title = plots.structure(compiled, solution).get_title()
    assert f"mixture of {len(weights)} structures" in title and f"{weights[0]:.2f} + {weights[1]:.2f}" in title
    assert plots.structure(compiled, compiled.maximize(scores(4, 4))).get_title() == ""
    tokens = ol.compile_polytope(polytopes.matching(2)).project(torch.eye(2)[None])
    assert plots.structure(polytopes.matching(2), tokens).get_title() == ""


# draw=


def draw_dot(ax, x, **options):
    ax.plot(x.mean(), 0.0, "o", **options)


def test_a_declaration_brings_its_own_picture():
    x, further = cp.Variable(2, boolean=True), cp.Parameter(name="further")
    declared = ol.Polytope(x, [cp.sum(x) <= 1], draw=draw_dot)
    ax = plots.structure(declared, [1.0, 0.0], markersize=20)
    assert ax.get_lines()[0].get_markersize() == 20 and ax.get_lines()[0].get_xdata().tolist() == [0.5]
    others = (declared.beside([further]), declared.relaxed(), declared.without_oracle(), copy.deepcopy(declared))
    assert all(other.draw is draw_dot for other in others)
    assert pickle.loads(pickle.dumps(declared)).draw is draw_dot
    with pytest.raises(TypeError, match="draw must be callable, but got str"):
        ol.Polytope(x, [cp.sum(x) <= 1], draw="arcs")


def test_pictures_of_the_catalogue_can_be_pickled():
    for polytope in (polytopes.matching(2), polytopes.grid_path(2, 2), polytopes.monotone_alignment(2, 2)):
        loaded = pickle.loads(pickle.dumps(polytope))
        point = ol.OptLayer(loaded, ol.Pipeline())(torch.ones(polytope.shape))
        assert plots.structure(loaded, point).collections


# Manners


def calls(ax: Axes | None = None) -> dict[str, object]:
    """A small call of everything, by name."""
    simplex, eye = polytopes.simplex(3), np.eye(3)
    gold = torch.eye(3, dtype=F64)[0]
    small = {"arrows": 2, "resolution": 2}
    return {
        "polytope": lambda ax: plots.polytope(simplex, ax=ax),
        "rule_field": lambda ax: plots.rule_field(ol.Spigot(), simplex, square_loss(gold), ax=ax, **small),
        "regularization_path": lambda ax: plots.regularization_path(simplex, gold, ol.Entropy, [0.1, 1.0], ax=ax),
        "regularized_circles": lambda ax: plots.regularized_circles(simplex, ol.Entropy(), [1.0], ax=ax),
        "structure": lambda ax: plots.structure(simplex, gold, ax=ax),
        "arcs": lambda ax: plots.arcs(eye, ax=ax),
        "bars": lambda ax: plots.bars(gold, ax=ax),
        "brackets": lambda ax: plots.brackets(np.triu(np.ones((2, 2))), ax=ax),
        "graph": lambda ax: plots.graph(eye[[1, 2, 0]], ax=ax),
        "heat": lambda ax: plots.heat(eye, ax=ax),
        "lanes": lambda ax: plots.lanes(eye, ax=ax),
        "links": lambda ax: plots.links(eye, ax=ax),
        "moves": lambda ax: plots.moves(eye[:, :, None].repeat(3, 2) / 3, ax=ax),
        "network": lambda ax: plots.network([1.0], arcs=[(0, 1)], ax=ax),
        "segments": lambda ax: plots.segments(eye[:, None, :], ax=ax),
    }


def test_every_function_is_tried():
    assert sorted(calls()) == sorted(plots.__all__)


@pytest.mark.parametrize("name", plots.__all__)
def test_axes_are_those_that_were_given_or_new_ones(name):
    ax = Figure().add_subplot()
    assert calls()[name](ax) is ax
    new = calls()[name](None)
    assert isinstance(new, Axes) and new.figure is not ax.figure and len(new.figure.axes) <= 2
    render(new)
    with pytest.raises(TypeError, match="ax must be matplotlib Axes, such as"):
        calls()[name](new.figure)


def grid_of(layout: str | None) -> list[Axes]:
    """Two rows of three panels that all have a legend, one of them in three dimensions."""
    figure = Figure(figsize=(12, 6.5), layout=layout)
    panels = [figure.add_subplot(2, 3, k + 1, projection="3d" if k == 1 else None) for k in range(6)]
    mixed = {
        "brackets": np.full((5, 5), 0.5),
        "links": np.full((4, 4), 0.25),
        "arcs": np.full((4, 4), 0.3),
    }
    x, y = cp.Variable(5, nonneg=True), cp.Variable(3, nonneg=True)
    cycle = ol.Polytope(x, [x[i] + x[(i + 1) % 5] <= 1 for i in range(5)])
    triangle = ol.Polytope(y, [y[0] + y[1] <= 1, y[0] + y[2] <= 1, y[1] + y[2] <= 1])
    plots.polytope(cycle, ax=panels[0], points={"a point with a name": np.full(5, 0.4)})
    plots.polytope(triangle, ax=panels[1])
    plots.regularization_path(polytopes.simplex(7), scores(7), ol.Entropy, [0.1, 1.0], ax=panels[2])
    for panel, (name, weights) in zip(panels[3:], mixed.items(), strict=True):
        getattr(plots, name)(weights, ax=panel)
    figure.draw_without_rendering()
    return panels


@pytest.mark.parametrize("layout", ["constrained", "tight", None])
def test_legends_in_a_grid_lie_within_their_own_axes(layout):
    panels = grid_of(layout)
    for panel in panels:
        legend, box = panel.get_legend().get_window_extent(), panel.get_window_extent()
        assert box.x0 - 1 <= legend.x0 and legend.x1 <= box.x1 + 1 and legend.y1 <= box.y1 + 1
        others = [other.get_window_extent() for other in panels if other is not panel]
        assert not any(legend.overlaps(other) for other in others)
        if panel.name != "3d":  # what is drawn ends below it
            top = panel.dataLim.intervaly[0 if panel.yaxis_inverted() else 1]
            assert panel.transData.transform((0.0, top))[1] <= legend.y0 + 2
    titles = [panel.title.get_window_extent() for panel in panels[:3]]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(titles, 2))


def test_a_legend_of_axes_that_are_alone_lies_beside_them():
    for ax in (plots.links(np.full((3, 3), 1 / 3)), plots.polytope(polytopes.simplex(2), points=np.full(2, 0.5))):
        render(ax)
        assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
        assert ax.get_legend().get_window_extent().x1 <= ax.figure.bbox.x1 + 2


def test_names_are_slanted_where_there_is_no_room():
    """Also in a part of a figure."""
    wide, narrow = Figure(figsize=(10, 3)).subfigures(1, 2, width_ratios=[9, 1])
    words, x = ["internationalization", "matters", "here"], np.zeros((3, 3))
    for figure, angle in ((wide, 0.0), (narrow, 40.0)):
        ax = plots.arcs(x, words=words, ax=figure.add_subplot())
        assert [label.get_rotation() for label in ax.get_xticklabels()] == [angle] * 3


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    def refuse(name, *rest, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return kept(name, *rest, **more)

    kept = builtins.__import__
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'optlayers\[plots\]'"):
        plots.bars([1.0])


def test_matplotlib_is_imported_when_it_is_used():
    program = (
        "import sys, optlayers, polytopes; polytopes.grid_path(2, 2); "
        "assert not any(name.partition('.')[0] == 'matplotlib' for name in sys.modules); "
        "optlayers.plots.bars([1.0]); assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_points_that_do_not_fit_are_refused():
    match, nan = polytopes.matching(2), torch.tensor([[torch.nan, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"x has shape \(3, 3\) but the polytope has shape \(2, 2\)"):
        plots.structure(match, np.eye(3))
    with pytest.raises(ValueError, match=r"x has the entry nan at \(0, 0\), and cannot be drawn"):
        plots.structure(match, nan)
    with pytest.raises(ValueError, match=r"between 0 and 1, but x has 1.5 at \(0, 1\)"):
        plots.structure(match, [[0.0, 1.5], [0.0, 0.0]])
    with pytest.raises(ValueError, match="x has 2 instances, but one is drawn at a time"):
        plots.structure(match, ol.compile_polytope(match).maximize(torch.zeros(2, 2, 2)))
    with pytest.raises(TypeError, match="x must be a tensor or an array of numbers, but got str"):
        plots.structure(match, "ab")
    with pytest.raises(TypeError, match="a Polytope, but got ndarray"):
        plots.structure(np.eye(2), np.eye(2))
    with pytest.raises(TypeError, match=r"give the polytope of one size, family\(size\)"):
        plots.polytope(ol.Family(polytopes.simplex))
    x = cp.Variable((2, 2, 2), nonneg=True)
    with pytest.raises(ValueError, match=r"declare one, Polytope\(..., draw=...\)"):
        plots.structure(ol.Polytope(x, [x <= 1]), np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"links are drawn for an array \(rows, columns\), but x has shape \(2,\)"):
        plots.links([1.0, 0.0])
    with pytest.raises(ValueError, match=r"arcs are drawn for an array \(nodes, nodes\), but x has shape \(2, 3\)"):
        plots.arcs(np.zeros((2, 3)))


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="there are 3 words, but 2 names"):
        plots.structure(polytopes.arborescence(3), np.zeros((4, 4)), words=["a", "b"])
    with pytest.raises(TypeError, match="must be a list of words, but got the text 'a b': split it"):
        plots.structure(polytopes.simplex(3), [1.0, 0.0, 0.0], words="a b")
    with pytest.raises(TypeError, match="words of links must be a pair"):
        plots.structure(polytopes.matching(3), np.eye(3), words=["a", "b", "c"])


def test_polytopes_that_cannot_be_drawn_are_refused():
    ball, simplex = cp.Variable(2), polytopes.simplex(3)
    with pytest.raises(ValueError, match="not polyhedral: it has no finite list of vertices"):
        plots.polytope(ol.Polytope(ball, [cp.norm(ball) <= 1]))
    for directions, wrong in (
        (torch.eye(3)[:1], "directions are 2 or 3 arrays"),
        (torch.eye(4)[:2], "directions are 2 or 3 arrays"),
        ([[1.0, 0.0, 0.0], [0.0, 1.0]], r"a direction has shape \(2,\)"),
        (torch.ones(2, 3), "depend on each other"),
        (torch.full((2, 3), torch.nan), "has the entry nan"),
    ):
        with pytest.raises(ValueError, match=wrong):
            plots.polytope(simplex, directions=directions)
    with pytest.raises(ValueError, match="dimensions must be 2 or 3, but got 4"):
        plots.polytope(simplex, dimensions=4)
    with pytest.raises(ValueError, match="samples must be a positive integer"):
        plots.polytope(simplex, samples=0)
    with pytest.raises(ValueError, match=r"step ends in \(2,\) but the polytope has shape \(3,\)"):
        plots.polytope(simplex, points={"step": [1.0, 0.0]})
    with pytest.raises(ValueError, match="step has the entry nan at 1"):
        plots.polytope(simplex, points={"step": [1.0, np.nan, 0.0]})
    with pytest.raises(ValueError, match="three directions are drawn on 3-D axes"):
        plots.polytope(polytopes.cube(3), directions=torch.eye(3), ax=Figure().add_subplot())
    with pytest.raises(ValueError, match="drawn on plain axes, but got 3-D ones"):
        plots.bars([1.0], ax=Figure().add_subplot(projection="3d"))


def test_fields_and_paths_that_cannot_be_drawn_are_refused():
    simplex, loss = polytopes.simplex(3), square_loss(torch.zeros(3))
    with pytest.raises(ValueError, match="the loss must give one number for each structure"):
        plots.rule_field(ol.Spigot(), simplex, lambda z: z.sum())
    with pytest.raises(TypeError, match="loss is a function of structures, but got float"):
        plots.rule_field(ol.Spigot(), simplex, 1.0)
    with pytest.raises(TypeError, match="rule must be a backward rule"):
        plots.rule_field(ol.Spigot, simplex, loss)
    with pytest.raises(ValueError, match=r"scores have shape \(2,\)"):
        plots.rule_field(ol.Spigot(), simplex, loss, scores=[0.0, 1.0])
    with pytest.raises(ValueError, match="a plane has two directions, but got 3"):
        plots.rule_field(ol.Spigot(), simplex, loss, directions=torch.eye(3))
    with pytest.raises(ValueError, match="no two directions in which vertices differ"):
        plots.rule_field(ol.Spigot(), polytopes.simplex(1), square_loss(torch.zeros(1)))
    with pytest.raises(ValueError, match='background is "vertex" or "forward"'):
        plots.rule_field(ol.Spigot(), simplex, loss, background="none")
    for wrong in ({"extent": -1.0}, {"arrows": 1}, {"resolution": 2.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            plots.rule_field(ol.Spigot(), simplex, loss, **wrong)
    with pytest.raises(TypeError, match=r"regularizer\(1\) must be one such as Entropy\(1\), but got 1.0"):
        plots.regularization_path(simplex, torch.zeros(3), float, [1.0])
    with pytest.raises(ValueError, match="a list of at least one number"):
        plots.regularization_path(simplex, torch.zeros(3), ol.Entropy, [])
    with pytest.raises(ValueError, match=r"scores have shape \(4,\) but the polytope has shape \(3,\)"):
        plots.regularization_path(simplex, torch.zeros(4), ol.Entropy, [1.0])


@pytest.mark.filterwarnings("error")
def test_a_field_of_zero_gradients_is_drawn_as_dots():
    ax = plots.rule_field(ol.Pipeline(), polytopes.simplex(3), lambda z: z[..., 0], arrows=3, resolution=5)
    ax.figure.savefig(io.BytesIO())
    (arrows,) = (drawn for drawn in ax.collections if isinstance(drawn, Quiver))
    assert arrows.N == 9 and not arrows.U.any() and not arrows.V.any()


def test_the_gallery_draws_a_picture_for_the_page(tmp_path):
    from plots_gallery import PICTURES, main

    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("plots.md", "rules.md"))
    for name in PICTURES:
        assert f"](plots_{name}.png)" in pages and (ROOT / "docs" / f"plots_{name}.png").is_file()
    main(["--output", str(tmp_path), "--only", "polytope", "regularization_path"])
    assert {path.name for path in tmp_path.iterdir()} == {"plots_polytope.png", "plots_regularization_path.png"}
