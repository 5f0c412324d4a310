"""What a rule sends back, as arrows over a plane of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.layer import OptLayer
from optlayers.plots.canvas import INK, axes_of, module
from optlayers.plots.points import array_of, compiled_of, directions_of
from optlayers.plots.shadow import plane_of, vertices_of
from optlayers.polytope import Polytope
from optlayers.rules.base import AbstractRule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plane_of_scores", "rule_field"]

LIGHT = ("#FFFFFF", "#6BAED6")
"""From small losses to large ones: dark arrows are seen on all of them."""


def rule_field(
    rule: AbstractRule,
    polytope: Polytope | CompiledPolytope,
    loss: Callable[[Tensor], Tensor],
    *,
    directions: Any = None,
    scores: Any = None,
    extent: float = 2.0,
    arrows: int = 13,
    background: Literal["vertex", "forward"] = "vertex",
    resolution: int = 81,
    generator: torch.Generator | None = None,
    ax: Axes | None = None,
    **parameters: Any,
) -> Axes:
    r"""What a rule sends back for scores in a plane: an arrow is a step against the gradient.

    Colours are the loss of the best vertex, which changes only where another vertex becomes the best one. An arrow at
    scores s is :math:`-\nabla_s` of the loss behind a layer with this rule, seen in the plane; all arrows of a picture
    have one scale, and a gradient of 0 is a dot. What the rule sends back out of the plane is not seen.

    Parameters
    ----------
    rule : ``Spigot()``, ``SparseMAP()``, …
    polytope : a declaration, or a compiled one.
    loss : from structures ``(batch, *shape)`` to one loss each, ``(batch,)``.
    directions : two arrays of the shape of the polytope that span the plane; scores are the centre plus a mixture of
        them. By default the axes for polytopes of two parts, else the directions in which vertices vary most.
    scores : the centre of the plane, in the shape of the polytope; 0 by default.
    extent : the plane is drawn from -extent to extent along both directions.
    arrows : so many in a row.
    background : whose loss the colours are: ``"vertex"``, the best vertex, or ``"forward"``, what the rule sends
        forward.
    resolution : so many colours in a row.
    generator : what random numbers of the rule are drawn from; by default a new one of seed 0.
    ax : matplotlib Axes to draw on; by default those of a new figure (``ax.figure``).
    parameters : the value of each parameter of the polytope, by its name.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : directions or scores of another shape, or that are not finite; a loss of another shape than one number
        for each structure.
    TypeError : no rule, no polytope, no Axes.
    optlayers.SolveError : when some scores have no answer.

    Examples
    --------
    >>> import optlayers as ol, torch
    >>> from polytopes import simplex
    >>> gold = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    >>> ax = rule_field(ol.Spigot(), simplex(3), lambda z: (z - gold).square().sum(-1), arrows=5)
    >>> ax.get_title()
    'Spigot()'
    """
    compiled = compiled_of(polytope)
    if not callable(loss):
        raise TypeError(f"loss is a function of structures, but got {type(loss).__name__}")
    if background not in ("vertex", "forward"):
        raise ValueError(f'background is "vertex" or "forward", but got {background!r}')
    if not extent > 0.0 or not np.isfinite(extent):
        raise ValueError(f"extent must be a positive number, but got {extent!r}")
    for name, count in (("arrows", arrows), ("resolution", resolution)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise ValueError(f"{name} must be an integer of at least 2, but got {count!r}")
    layer = OptLayer(compiled, rule)
    plane, names = plane_of_scores(compiled, directions, parameters)
    names = [f"score of {name}" if name.startswith("x[") else f"scores along {name}" for name in names]
    centre = np.zeros(compiled.shape) if scores is None else array_of(scores, "scores")
    if centre.shape != compiled.shape:
        raise ValueError(f"scores have shape {centre.shape} but the polytope has shape {compiled.shape}")
    basis = torch.from_numpy(plane.reshape(2, *compiled.shape))
    middle = torch.from_numpy(centre.copy())
    draws = torch.Generator().manual_seed(0) if generator is None else generator

    fine = np.linspace(-extent, extent, resolution)
    at = _over(fine, basis, middle)
    with torch.no_grad():
        if background == "vertex":
            values = _losses(loss, compiled.maximize(at, **parameters).check().value)
        else:
            values = layer(at, objective=lambda z: _losses(loss, z), generator=draws, **parameters)
    coarse = np.linspace(-extent, extent, arrows) * (1.0 - 1.0 / arrows)
    with torch.enable_grad():
        asked = _over(coarse, basis, middle).requires_grad_()
        behind = layer(asked, objective=lambda z: _losses(loss, z), generator=draws, **parameters)
        (gradient,) = torch.autograd.grad(behind.sum(), asked)
    # The steepest way within the plane, in its own coordinates, whether or not directions are orthonormal.
    seen = -gradient.reshape(len(asked), -1).numpy() @ np.linalg.pinv(plane)

    ax = axes_of(ax, 5.0, 4.2)
    light = module("matplotlib.colors").LinearSegmentedColormap.from_list("losses", LIGHT)
    shape = (resolution, resolution)
    mesh = ax.pcolormesh(fine, fine, values.numpy().reshape(shape), shading="nearest", cmap=light, rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label("loss of " + ("the best vertex" if background == "vertex" else "what goes forward"), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    across, up = np.meshgrid(coarse, coarse)
    scale = None if seen.any() else 1.0  # arrows of length 0 alone have no scale
    ax.quiver(
        across, up, seen[:, 0], seen[:, 1], scale=scale, color=INK, width=0.005, pivot="tail", zorder=3, minlength=0.9
    )
    ax.set_aspect("equal")
    ax.set_xlabel(names[0], fontsize=9)
    ax.set_ylabel(names[1], fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_title(_called(rule), fontsize=10)
    return ax


def _called(rule: Any) -> str:
    """A rule as it is written, without what it has by default."""
    if not isinstance(rule, AbstractRule) or not is_dataclass(rule):
        return repr(rule)
    told = []
    for field in fields(rule):
        value = getattr(rule, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is MISSING or value != default:
            told.append(f"{field.name}={_called(value)}")
    return f"{type(rule).__name__}({', '.join(told)})"


def plane_of_scores(
    compiled: CompiledPolytope, directions: Any, parameters: dict[str, Any]
) -> tuple[np.ndarray, list[str]]:
    """Two directions, flat, and what their axes are: those that were given, or by default of the polytope."""
    if directions is not None:
        chosen = directions_of(directions, compiled.shape)
        if len(chosen) != 2:
            raise ValueError(f"a plane has two directions, but got {len(chosen)}")
        return chosen, ["direction 1", "direction 2"]
    if compiled.shape == (2,):
        return np.eye(2), ["x[0]", "x[1]"]
    vertices, _ = vertices_of(compiled, None, parameters)
    chosen, _, names, rank = plane_of(vertices.reshape(len(vertices), -1), 2, at_least=2)
    if rank < 2:
        raise ValueError("the polytope has no two directions in which vertices differ: give directions=")
    return chosen, names


def _over(line: np.ndarray, basis: Tensor, middle: Tensor) -> Tensor:
    """Scores of a square of the plane, row by row."""
    up, across = np.meshgrid(line, line, indexing="ij")
    mixed = torch.from_numpy(np.stack([across.ravel(), up.ravel()], axis=1)) @ basis.reshape(2, -1)
    return middle + mixed.reshape(-1, *middle.shape)


def _losses(loss: Callable[[Tensor], Tensor], structures: Tensor) -> Tensor:
    values = loss(structures)
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(structures),):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the loss must give one number for each structure, ({len(structures)},), but for structures "
            f"{tuple(structures.shape)} it gave {got}"
        )
    return values
