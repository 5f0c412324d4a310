r"""Functions of one number that regularizers are sums of: value, slope, curvature, and where a slope is met.

A column has a kind, a weight a > 0 and a power p; x is its number.

=============  ===========================================  ==========================  =================
kind           :math:`\omega(x)`                            :math:`\omega'(x)`          :math:`\omega''(x)`
=============  ===========================================  ==========================  =================
``LINEAR``     0                                            0                           0
``QUADRATIC``  :math:`\tfrac a2 x^2`                        :math:`a x`                 a
``ENTROPY``    :math:`a x \log x`                           :math:`a (\log x + 1)`      :math:`a / x`
``BITS``       :math:`a (x \log x + (1-x) \log (1-x))`      :math:`a \log (x / (1-x))`  :math:`a / (x (1-x))`
``POWER``      :math:`a (x^p - x) / (p (p - 1))`            see :func:`slope`           :math:`a x^{p-2}`
=============  ===========================================  ==========================  =================
"""

from __future__ import annotations

import math

from optlayers.solvers.kernels.lanes import part

__all__ = ["BITS", "ENTROPY", "LINEAR", "POWER", "QUADRATIC", "bend", "meet", "slope", "worth"]

LINEAR, QUADRATIC, ENTROPY, BITS, POWER = -1, 0, 1, 2, 3
HIGHEST = 700.0
"""Exponents up to here have a finite exponential."""


@part
def worth(kind, weight, power, x):  # type: ignore[no-untyped-def]
    """ω(x); inf outside of its domain."""
    if kind == QUADRATIC:
        return 0.5 * weight * x * x
    if kind == LINEAR:
        return 0.0
    if x < 0.0 or (kind == BITS and x > 1.0):
        return math.inf
    if kind == ENTROPY:
        return weight * x * math.log(x) if x > 0.0 else 0.0
    if kind == BITS:
        first = x * math.log(x) if x > 0.0 else 0.0
        return weight * (first + ((1.0 - x) * math.log1p(-x) if x < 1.0 else 0.0))
    # (x^p - x) / (p - 1) = x (x^(p-1) - 1) / (p - 1), which tends to x log x
    return weight * x * math.expm1((power - 1.0) * math.log(x)) / (power * (power - 1.0)) if x > 0.0 else 0.0


@part
def slope(kind, weight, power, x):  # type: ignore[no-untyped-def]
    """ω'(x): -inf where entropies begin."""
    if kind == QUADRATIC:
        return weight * x
    if kind == LINEAR:
        return 0.0
    if kind == ENTROPY:
        return weight * (math.log(x) + 1.0) if x > 0.0 else -math.inf
    if kind == BITS:
        if x <= 0.0:
            return -math.inf
        return weight * (math.log(x) - math.log1p(-x)) if x < 1.0 else math.inf
    if x <= 0.0:
        return weight * (1.0 / power - 1.0 / (power - 1.0))
    return weight * (math.expm1((power - 1.0) * math.log(x)) / (power - 1.0) + 1.0 / power)


@part
def bend(kind, weight, power, x):  # type: ignore[no-untyped-def]
    """ω''(x): inf where entropies begin or end."""
    if kind == QUADRATIC:
        return weight
    if kind == LINEAR:
        return 0.0
    if kind == ENTROPY:
        return weight / x
    if kind == BITS:
        return weight / (x * (1.0 - x))
    return weight * x ** (power - 2.0)


@part
def meet(kind, weight, power, r):  # type: ignore[no-untyped-def]
    """The x with ω'(x) = r, or the end of the domain of ω that is nearest to it; not for ``LINEAR`` columns."""
    r = r / weight
    if kind == QUADRATIC:
        return r
    if kind == ENTROPY:
        return math.exp(min(r - 1.0, HIGHEST))
    if kind == BITS:
        if r >= 0.0:
            return 1.0 / (1.0 + math.exp(-min(r, HIGHEST)))
        low = math.exp(max(r, -HIGHEST))
        return low / (1.0 + low)
    inside = (power - 1.0) * (r - 1.0 / power)
    return math.exp(min(math.log1p(inside) / (power - 1.0), HIGHEST)) if inside > -1.0 else 0.0
