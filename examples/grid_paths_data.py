"""Maps of terrain: images, what their cells cost, and the cheapest paths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from grid_paths_polytope import cell_paths
from jaxtyping import Float64, UInt8
from scipy.ndimage import gaussian_filter
from torch import Tensor

import optlayers as ol

__all__ = ["PIXELS", "TERRAINS", "Maps", "Terrain", "draw_maps"]

PIXELS = 8
"""A cell is a square of so many pixels a side."""


@dataclass(frozen=True)
class Terrain:
    """What a cell of it costs, its colour (red, green, blue between 0 and 1), and its texture.

    ``grain`` is the width of the spots of its texture in pixels, ``contrast`` by how much they differ.
    """

    name: str
    cost: float
    colour: tuple[float, float, float]
    grain: float
    contrast: float


TERRAINS = (
    Terrain("grass", 0.8, (0.46, 0.62, 0.30), 0.6, 0.05),
    Terrain("sand", 1.2, (0.70, 0.62, 0.42), 0.6, 0.05),
    Terrain("forest", 5.3, (0.40, 0.55, 0.27), 1.6, 0.16),
    Terrain("rocks", 7.7, (0.64, 0.57, 0.42), 1.6, 0.16),
    Terrain("water", 9.2, (0.34, 0.48, 0.52), 2.4, 0.06),
)
"""Costs are those of Vlastelica et al. (2020). Cheap grass and dear forest have nearly one colour, and so have sand and
rocks: the texture tells them apart."""
SMOOTH = 0.9
"""The width in cells of the Gaussian that smooths the fields of which the largest is a cell's terrain."""
LIGHT, NOISE = 0.15, 0.05
"""By how much the light differs from map to map, and a pixel from what it should be: standard deviations."""
AT_A_TIME = 200
"""So many maps are painted at a time, which bounds the memory of what is not yet bytes."""


@dataclass(frozen=True)
class Maps:
    """Images ``(count, 3, 8 size, 8 size)``, costs of cells and the cells of a cheapest path, ``(count, size, size)``.

    What is learned from are images and paths. Costs are for judging, and for the mark that knows them.
    """

    images: UInt8[Tensor, "count 3 height width"]
    costs: Float64[Tensor, "count size size"]
    paths: Float64[Tensor, "count size size"]

    def __len__(self) -> int:
        return len(self.images)


def draw_maps(count: int, size: int, seed: int) -> Maps:
    """Maps of ``size`` by ``size`` cells; the same seed and count draw the same ones again.

    Raises
    ------
    ValueError : for no maps, or maps of less than 2 by 2 cells.

    >>> maps = draw_maps(2, size=5, seed=0)
    >>> maps.images.shape, maps.costs.shape, bool((maps.paths[:, 0, 0] == 1).all())
    (torch.Size([2, 3, 40, 40]), torch.Size([2, 5, 5]), True)
    """
    if count < 1 or size < 2:
        raise ValueError(f"at least one map of at least 2 by 2 cells is drawn, but got {count} of {size} by {size}")
    generator = np.random.default_rng(seed)
    fields = generator.standard_normal((count, len(TERRAINS), size, size))
    terrain = gaussian_filter(fields, SMOOTH, axes=(2, 3), mode="nearest").argmax(axis=1)
    images = [_painted(some, generator) for some in np.split(terrain, range(AT_A_TIME, count, AT_A_TIME))]
    costs = torch.from_numpy(np.array([t.cost for t in TERRAINS])[terrain])
    paths = ol.compile_polytope(cell_paths(size, size)).maximize(-costs).check().value
    return Maps(torch.from_numpy(np.concatenate(images)), costs, paths)


def _painted(terrain: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The images, as bytes."""
    count, size, _ = terrain.shape
    of_pixels = terrain.repeat(PIXELS, axis=1).repeat(PIXELS, axis=2)
    colours = np.array([t.colour for t in TERRAINS], dtype=np.float32)[of_pixels]
    shape = (count, size * PIXELS, size * PIXELS)
    spots = np.zeros(shape, dtype=np.float32)
    for number, kind in enumerate(TERRAINS):
        texture = gaussian_filter(generator.standard_normal(shape, dtype=np.float32), kind.grain, axes=(1, 2))
        spots += np.where(of_pixels == number, kind.contrast / texture.std() * texture, 0.0)
    light = 1.0 + LIGHT * generator.standard_normal((count, 1, 1, 1), dtype=np.float32)
    colours = light * (colours + spots[..., None])
    colours += NOISE * generator.standard_normal(colours.shape, dtype=np.float32)
    return np.ascontiguousarray((255 * colours.clip(0.0, 1.0)).astype(np.uint8).transpose(0, 3, 1, 2))
