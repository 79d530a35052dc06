"""Every picture, from plain NumPy data: one function, one file, a PNG or a PDF by its name.

``_NAME_figure`` draws what ``NAME`` saves. Files appear whole or not at all. Without pyplot: no
display needed, no state among threads. Pages are white, also on a dark screen.
"""

from experiments.plots.equivariance import pose_paths, probes
from experiments.plots.predictions import Example, predictions
from experiments.plots.reconstructions import ReconstructionColumn, perturbations, reconstructions
from experiments.plots.response_curves import data_efficiency, responses
from experiments.plots.routing import coupling_matrix, routing_diagnostics
from experiments.plots.segmentation import PairColumn, segmentation
from experiments.plots.sweep_intervals import Dots, intervals
from experiments.plots.throughput import throughput
from experiments.plots.training_curves import logit_changes, losses, training_curves

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
