"""Every picture, from plain NumPy data: one function, one file, a PNG or a PDF by its name.

``_NAME_figure`` draws what ``NAME`` saves. Files appear whole or not at all. Without pyplot: no
display needed, no state among threads. Pages are white, also on a dark screen.
"""

from experiments.drawing.curves import logit_changes, losses, training_curves
from experiments.drawing.decoder import ReconstructionColumn, perturbations, reconstructions
from experiments.drawing.equivariance import pose_paths, probes
from experiments.drawing.pairs import PairColumn, segmentation
from experiments.drawing.recognised import Example, predictions
from experiments.drawing.robustness import data_efficiency, responses
from experiments.drawing.routing import coupling_matrix, routing_diagnostics
from experiments.drawing.speed import throughput
from experiments.drawing.studies import Dots, intervals

__all__ = [
    "Dots",
    "Example",
    "PairColumn",
    "ReconstructionColumn",
    "coupling_matrix",
    "data_efficiency",
    "intervals",
    "logit_changes",
    "losses",
    "perturbations",
    "pose_paths",
    "predictions",
    "probes",
    "reconstructions",
    "responses",
    "routing_diagnostics",
    "segmentation",
    "throughput",
    "training_curves",
]
