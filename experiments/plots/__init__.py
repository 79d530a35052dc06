"""Figures from plain NumPy data: every function writes one file, a PNG or a PDF by its suffix.

``plot_NAME`` saves the Matplotlib figure that ``_NAME_figure`` returns. Files are replaced in one
move, so that they are never incomplete. Without pyplot, figures need no display and share no state
among threads. Their background is white.
"""

from experiments.plots.channels import drawable, note_of_channels
from experiments.plots.confusion import plot_confusion
from experiments.plots.equivariance import plot_pose_paths, plot_probes
from experiments.plots.predictions import Example, plot_predictions
from experiments.plots.reconstructions import (
    ReconstructionColumn,
    plot_perturbations,
    plot_reconstructions,
)
from experiments.plots.response_curves import MOST_CURVES, plot_data_efficiency, plot_responses
from experiments.plots.routing import plot_coupling_matrix, plot_routing_diagnostics
from experiments.plots.segmentation import PairColumn, plot_segmentation
from experiments.plots.sweep_intervals import Dots, plot_intervals
from experiments.plots.throughput import plot_throughput
from experiments.plots.training_curves import plot_logit_changes, plot_losses, plot_training_curves

__all__ = [
    "MOST_CURVES",
    "Dots",
    "Example",
    "PairColumn",
    "ReconstructionColumn",
    "drawable",
    "note_of_channels",
    "plot_confusion",
    "plot_coupling_matrix",
    "plot_data_efficiency",
    "plot_intervals",
    "plot_logit_changes",
    "plot_losses",
    "plot_perturbations",
    "plot_pose_paths",
    "plot_predictions",
    "plot_probes",
    "plot_reconstructions",
    "plot_responses",
    "plot_routing_diagnostics",
    "plot_segmentation",
    "plot_throughput",
    "plot_training_curves",
]
