"""The confusion matrix of a classifier."""

import numpy as np

from experiments.plots.page import GREY, INK, LITERAL, add_axes, blank_page, save_figure

MOST_NUMBERS = 25  # classes up to which the counts are written into the cells


def plot_confusion(path, matrix, class_names, title="") -> None:
    """Plots how many examples of each class have each prediction, wrong ones in colour.

    Args:
      path: of the file that is written.
      matrix: counts ``[J, J]``, a row for each label and a column for each prediction.
      class_names: J names.
      title: of the page.
    """
    save_figure(_confusion_figure(matrix, class_names, title), path)


def _confusion_figure(matrix, class_names, title=""):
    matrix, count = np.asarray(matrix), len(class_names)
    cell = max(0.06, min(0.42, 9 / count))
    longest = max(len(_short(name)) for name in class_names)
    margin, side = 0.45 + 0.075 * longest, cell * count
    page = blank_page(margin + side + 0.3, side + margin + 0.35, title)
    axes = add_axes(page, margin, 0.25, side, side)
    wrong = matrix * (1 - np.eye(count, dtype=matrix.dtype))
    axes.imshow(wrong, cmap="Reds", vmin=0, vmax=2 * max(wrong.max(), 1), aspect="auto")
    if count <= MOST_NUMBERS:
        for label, prediction in zip(*np.nonzero(matrix)):
            colour = GREY if label == prediction else INK
            number = str(matrix[label, prediction])
            where = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
            axes.text(prediction, label, number, **where)
    every = range(0, count, max(1, count // 50))
    names = [_short(class_names[n]) for n in every]
    axes.set_xticks(every, names, rotation=90, **LITERAL)
    axes.set_yticks(every, names, **LITERAL)
    axes.tick_params(labelsize=7, labelcolor=INK, length=0)
    axes.set_xlabel("prediction (colour: errors)", fontsize=8, color=GREY)
    axes.set_ylabel("label", fontsize=8, color=GREY)
    axes.spines[:].set_visible(False)
    return page.figure


def _short(name):
    return name if len(name) <= 16 else name[:15] + "…"
