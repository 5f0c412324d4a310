"""Losses whose gradient is a difference of structures, and a metric of decisions."""

from optlayers.losses.base import AbstractLoss, Reduction
from optlayers.losses.crf import CRFLoss
from optlayers.losses.fenchel_young import AbstractFenchelYoungLoss
from optlayers.losses.hinge import StructuredHingeLoss
from optlayers.losses.optimal_value import OptimalValue
from optlayers.losses.perceptron import StructuredPerceptronLoss
from optlayers.losses.perturbed import PerturbedFenchelYoungLoss
from optlayers.losses.prediction import Prediction
from optlayers.losses.regret import regret
from optlayers.losses.regularized import FenchelYoungLoss
from optlayers.losses.sparsemap import SparseMAPLoss
from optlayers.losses.spo_plus import SPOPlusLoss

__all__ = [
    "AbstractFenchelYoungLoss",
    "AbstractLoss",
    "CRFLoss",
    "FenchelYoungLoss",
    "OptimalValue",
    "PerturbedFenchelYoungLoss",
    "Prediction",
    "Reduction",
    "SPOPlusLoss",
    "SparseMAPLoss",
    "StructuredHingeLoss",
    "StructuredPerceptronLoss",
    "regret",
]
