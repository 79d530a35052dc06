"""Pallas kernels for the operations that capsjax defines in plain JAX.

Run from the repository root; the wheel does not contain this folder, because Hugging Face
publishes a package of the same name. Nothing in capsjax imports it.
"""
