"""Programs that use capsjax: data, accelerators, checkpoints, figures, tables.

Run from the repository root, for example ``python -m experiments.mnist``.
"""
