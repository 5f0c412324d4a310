"""Gradients that are known by slopes along random directions, with the error of all that is made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

__all__ = ["Cosine", "Estimate", "Sent"]

RESOLVED = 3.0
"""A gradient is told from 0 where its squared norm is so many of its standard errors."""
RUNS_RESOLVED = 1.5
"""The mean of a few runs is told from 0 already at so many, as its error is judged too large where there is little
noise."""


@final
@dataclass(frozen=True)
class Cosine:
    """A cosine with its standard error; NaN where one of the two gradients is 0 or is not told from noise."""

    value: float
    error: float


@final
@dataclass(frozen=True)
class Sent:
    """What a rule sends back: ``gradients``, one for each run of a rule that draws, 0 for instances that ``failed``.

    The squared norm of their expectation is estimated without bias by products of different runs.
    """

    gradients: Float64[Tensor, "runs instances size"]

    @property
    def mean(self) -> Float64[Tensor, "instances size"]:
        """Over runs."""
        return self.gradients.mean(dim=0)

    @property
    def norm2(self) -> Float64[Tensor, " instances"]:
        """The squared norms of expectations."""
        runs = len(self.gradients)
        whole = self.mean.square().sum(dim=1)
        return whole if runs == 1 else whole - self.variance / runs

    @property
    def variance(self) -> Float64[Tensor, " instances"]:
        """The mean squared distance of a run from the expectation."""
        runs = len(self.gradients)
        if runs == 1:
            return torch.zeros(self.gradients.shape[1], dtype=torch.float64)
        return (self.gradients - self.mean).square().sum(dim=2).sum(dim=0) / (runs - 1)

    def resolved(self, rows: Bool[Tensor, " instances"]) -> bool:
        """Whether the expectation over all instances of ``rows`` is told from the noise of the runs."""
        runs = len(self.gradients)
        if runs == 1:
            return True
        products = torch.einsum("rin,sin->irs", self.gradients[:, rows], self.gradients[:, rows])
        own = products.diagonal(dim1=1, dim2=2).square().sum()
        error = float((products.square().sum() - own).clamp(min=0.0)) * 2.0 / (runs * (runs - 1)) ** 2
        return float(self.norm2[rows].sum()) >= RUNS_RESOLVED * math.sqrt(error)

    def without(self, run: int) -> Sent:
        """The other runs."""
        return Sent(torch.cat([self.gradients[:run], self.gradients[run + 1 :]]))


@final
@dataclass(frozen=True)
class Estimate:
    r"""A gradient of every instance, :math:`\frac1K \sum_k c_k Z_k`: slopes c along K directions Z.

    Slopes along directions that are independent give the gradient without bias; its squared norm is the mean of
    products of different terms, which is without bias, too. An ``exact`` gradient has no terms and no error. An
    instance with fewer than 2 slopes is not ``known``.
    """

    mean: Float64[Tensor, "instances size"]
    known: Bool[Tensor, " instances"]
    directions: Float32[Tensor, "terms instances size"] | None = None
    slopes: Float64[Tensor, "terms instances"] | None = None
    there: Bool[Tensor, "terms instances"] | None = None
    error: Float64[Tensor, "instances size"] | None = None
    """Standard errors of the entries of the mean."""
    norm2: Float64[Tensor, " instances"] | None = None
    norm2_error: Float64[Tensor, " instances"] | None = None

    @classmethod
    def exact(cls, mean: Float64[Tensor, "instances size"], known: Bool[Tensor, " instances"]) -> Estimate:
        """A gradient without error."""
        mean = torch.where(known[:, None], mean, 0.0)
        zero = torch.zeros(len(mean), dtype=torch.float64)
        return cls(mean, known, None, None, None, torch.zeros_like(mean), mean.square().sum(dim=1), zero)

    @classmethod
    def by_slopes(
        cls, directions: Float32[Tensor, "terms instances size"], slopes: Float64[Tensor, "terms instances"]
    ) -> Estimate:
        """From slopes along directions, NaN for those that are not known."""
        there = torch.isfinite(slopes)
        slopes = torch.where(there, slopes, 0.0)
        count = there.sum(dim=0)
        known = count >= 2
        mean, error = torch.zeros(2, *directions.shape[1:], dtype=torch.float64)
        norm2, norm2_error = torch.zeros(2, len(known), dtype=torch.float64)
        for i in torch.nonzero(known).flatten().tolist():
            k = int(count[i])
            terms = slopes[:, i, None] * directions[:, i].to(torch.float64)
            mean[i] = terms.sum(dim=0) / k
            spread = (terms - mean[i])[there[:, i]].square().sum(dim=0) / (k - 1)
            error[i] = (spread / k).sqrt()
            products = terms @ terms.T
            own = products.diagonal()
            norm2[i] = (products.sum() - own.sum()) / (k * (k - 1))
            others = (products.square().sum() - own.square().sum()) / (k * (k - 1))
            of_mean = ((products.sum(dim=1) - own) / (k - 1))[there[:, i]]
            norm2_error[i] = (2.0 * others / (k * (k - 1)) + 4.0 * of_mean.var() / k).sqrt()
        return cls(mean, known, directions, slopes, there, error, norm2, norm2_error)

    @property
    def total(self) -> float:
        """The squared norm over all instances, without bias: it may be negative where there is nothing but noise."""
        assert self.norm2 is not None
        return float(self.norm2.sum())

    @property
    def total_error(self) -> float:
        """The standard error of the squared norm."""
        assert self.norm2_error is not None
        return float(self.norm2_error.square().sum().sqrt())

    @property
    def resolved(self) -> bool:
        """Whether the gradient is told from 0."""
        return self.total > RESOLVED * self.total_error

    @property
    def relative_error(self) -> float:
        """The norm of the error in units of the gradient's."""
        assert self.error is not None
        return (float(self.error.square().sum()) / self.total) ** 0.5 if self.total > 0.0 else torch.inf

    def products(self, gradient: Float64[Tensor, "instances size"]) -> Float64[Tensor, "terms instances"] | None:
        """Of every term with another gradient; None for an exact one."""
        if self.directions is None or self.slopes is None:
            return None
        largest = gradient.abs().amax(dim=1) if gradient.shape[1] else torch.zeros(len(gradient), dtype=torch.float64)
        scale = torch.where(largest > 0.0, largest, 1.0)
        each = torch.einsum("kin,in->ki", self.directions, (gradient / scale[:, None]).to(torch.float32))
        return self.slopes * each.to(torch.float64) * scale

    def _variance_of_mean(self, values: Float64[Tensor, "terms instances"]) -> Float64[Tensor, " instances"]:
        """Of numbers for every term, without those that are not there."""
        count = self._there.sum(dim=0).clamp(min=2).to(torch.float64)
        kept = torch.where(self._there, values, 0.0)
        deviation = torch.where(self._there, kept - kept.sum(dim=0) / count, 0.0)
        return deviation.square().sum(dim=0) / (count - 1.0) / count

    def along(self, sent: Sent) -> tuple[Float64[Tensor, " instances"], Float64[Tensor, " instances"]]:
        """The products of both gradients in every instance, with their standard errors."""
        own = (self.mean * sent.mean).sum(dim=1)
        products, runs = self.products(sent.mean), len(sent.gradients)
        variance = torch.zeros_like(own) if products is None else self._variance_of_mean(products)
        if runs > 1:
            variance = variance + (sent.gradients * self.mean).sum(dim=2).var(dim=0) / runs
        return own, variance.sqrt()

    def cosine(self, sent: Sent, rows: Bool[Tensor, " instances"], *, single: bool = False) -> Cosine:
        """The cosine between both gradients over all instances of ``rows`` together; ``single`` for that of one run.

        Its bias, which is of second order, is taken off, so that it may be a little above 1.
        """
        value = self._cosine(sent, rows, single)
        if math.isnan(value) or not sent.resolved(rows):
            return Cosine(torch.nan, torch.nan)
        variance, bias = 0.0, 0.0
        products = self.products(sent.mean)
        if products is not None:
            away = self._without_each(sent, rows, single, products) - value
            away = torch.where(torch.isfinite(away) & self._there, away, 0.0)[:, rows]
            count = self._there.sum(dim=0)[rows].clamp(min=2).to(torch.float64)
            mean = away.sum(dim=0) / count
            bias = float(((count - 1.0) * mean).sum())
            around = torch.where(self._there[:, rows], away - mean, 0.0).square().sum(dim=0)
            variance = float(((count - 1.0) / count * around).sum())
        runs = len(sent.gradients)
        if runs > 2:
            left = torch.tensor([self._cosine(sent.without(r), rows, single) for r in range(runs)], dtype=torch.float64)
            left = left[torch.isfinite(left)]
            if len(left) < 2:
                return Cosine(torch.nan, torch.nan)
            bias += float(left.mean() - value) * (len(left) - 1)
            variance += float((left - left.mean()).square().mean()) * (len(left) - 1)
        return Cosine(value - bias, math.sqrt(variance))

    def _without_each(
        self, sent: Sent, rows: Bool[Tensor, " instances"], single: bool, products: Tensor
    ) -> Float64[Tensor, "terms instances"]:
        """The cosine with one term of one instance left out: the jackknife, for its bias and its error."""
        assert self.slopes is not None and self.directions is not None and self.norm2 is not None
        sizes = self._sizes(sent, rows, single)
        own = self.products(self.mean)
        assert sizes is not None and own is not None
        k = self._there.sum(dim=0).clamp(min=3).to(torch.float64)
        itself = self.slopes.square() * self.directions.square().sum(dim=2).to(torch.float64)
        of_others = (k * own - itself) / (k - 1.0)  # of a term with the mean of the others
        each = (self.mean * sent.mean).sum(dim=1)
        total = float(each[rows].sum()) + (each - products) / (k - 1.0)
        norm2 = sizes[1] + 2.0 * (self.norm2 - of_others) / (k - 2.0)
        return torch.where(norm2 > 0.0, total / (sizes[0] * norm2.clamp(min=0.0)).sqrt(), torch.nan)

    @property
    def _there(self) -> Bool[Tensor, "terms instances"]:
        assert self.there is not None
        return self.there

    def _sizes(self, sent: Sent, rows: Tensor, single: bool) -> tuple[float, float] | None:
        """The squared norms of both gradients; None where one of them is not known to be above 0."""
        assert self.norm2 is not None and self.norm2_error is not None
        mine = sent.norm2 + (sent.variance if single else 0.0)
        total, error = float(self.norm2[rows].sum()), float(self.norm2_error[rows].square().sum().sqrt())
        size, whole = float(mine[rows].sum()), float((sent.norm2 + sent.variance)[rows].sum())
        if not (total > RESOLVED * error and size > 1e-3 * whole):
            return None
        return size, total

    def _cosine(self, sent: Sent, rows: Tensor, single: bool) -> float:
        sizes = self._sizes(sent, rows, single)
        if sizes is None:
            return torch.nan
        product = float((self.mean * sent.mean).sum(dim=1)[rows].sum())
        return product / math.sqrt(sizes[0] * sizes[1])
