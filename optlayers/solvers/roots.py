"""Roots of positive semidefinite matrices that instances bring."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64

from optlayers.form.standard import ParameterSpec

__all__ = ["roots_of"]

ROUNDINGS = 8.0
"""Eigenvalues below 0 by so many roundings of each row are 0."""


def roots_of(
    spec: ParameterSpec, matrices: Float64[np.ndarray, "batch entries"], precision: float
) -> Float64[np.ndarray, "batch entries"]:
    r"""Upper triangular U with :math:`U^\top U = Q` for the symmetric part Q of each matrix, row by row.

    ``precision`` is the machine epsilon of the dtype in which entries came.

    By Cholesky's decomposition, and where there is none because Q has eigenvalues of 0, by that into eigenvectors.

    Raises
    ------
    ValueError : for a matrix that is not positive semidefinite, naming the instance.
    """
    count, size = len(matrices), spec.shape[0]
    if count > 1 and (matrices == matrices[:1]).all():  # given once for all instances
        return np.broadcast_to(roots_of(spec, matrices[:1], precision), matrices.shape)
    whole = matrices.reshape(count, size, size)
    whole = 0.5 * (whole + whole.transpose(0, 2, 1))
    lower, info = torch.linalg.cholesky_ex(torch.from_numpy(whole))
    found = np.ascontiguousarray(lower.numpy().transpose(0, 2, 1))
    for k in np.flatnonzero(info.numpy()).tolist():
        values, vectors = np.linalg.eigh(whole[k])
        largest = np.abs(values).max()
        if values[0] < -ROUNDINGS * size * precision * largest:
            whose = f" in instance {k}" if count > 1 else ""
            raise ValueError(
                f"parameter {spec.name} must be positive semidefinite, but has the eigenvalue {values[0]:.3g}{whose}"
            )
        found[k] = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0.0))).T, mode="r")
    return found.reshape(count, size * size)
