"""Models with a structure in the middle: an encoder scores its parts, a decoder labels features and structure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from latent_data import Problem
from torch import Tensor, nn

__all__ = ["AbstractModel", "CategoryModel", "PartsModel", "model_for"]


class AbstractModel(nn.Module, ABC):
    """Scores of a structure, and logits of two labels given features and a structure, hard or soft."""

    @abstractmethod
    def scores(self, features: Float[Tensor, "n ..."]) -> Float[Tensor, "n *shape"]:
        """What the layer makes a structure of."""

    @abstractmethod
    def logits(self, features: Float[Tensor, "n ..."], structures: Float[Tensor, "n *shape"]) -> Float[Tensor, "n 2"]:
        """Linear in the features and in the structure."""


@final
class CategoryModel(AbstractModel):
    """The model of the paper: a linear encoder, a bilinear decoder."""

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, clusters)
        self.decoder = nn.Bilinear(clusters, features, 2)

    def scores(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n clusters"]:
        """A linear function for each cluster."""
        return self.encoder(features)

    def logits(self, features: Float[Tensor, "n d"], structures: Float[Tensor, "n clusters"]) -> Float[Tensor, "n 2"]:
        """A linear classifier for each cluster, mixed by the structure."""
        # What self.decoder(structures, features) gives, as one matrix product: twice as fast.
        each = features @ self.decoder.weight.flatten(0, 1).T
        return torch.einsum("nk,nck->nc", structures, each.unflatten(1, (2, -1))) + self.decoder.bias


@final
class PartsModel(AbstractModel):
    """One linear scorer for all parts; a linear classifier of the features of the chosen parts, summed."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, 1)
        self.decoder = nn.Linear(features, 2)

    def scores(self, features: Float[Tensor, "n *shape d"]) -> Float[Tensor, "n *shape"]:
        """Scores of all parts, by one linear function."""
        return self.encoder(features).squeeze(-1)

    def logits(
        self, features: Float[Tensor, "n *shape d"], structures: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, "n 2"]:
        """Bilinear in the structure and the features of its parts."""
        chosen = torch.einsum("np,npd->nd", structures.flatten(1), features.flatten(1, -2))
        return self.decoder(chosen)


def model_for(problem: Problem) -> AbstractModel:
    """Fresh, from torch's own generator."""
    features = problem.train.features.shape[-1]
    if problem.structure == "category":
        return CategoryModel(features, problem.polytope.variable.size)
    return PartsModel(features)
