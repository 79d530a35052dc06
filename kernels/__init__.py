"""Pallas kernels for the operations that capsjax defines in plain JAX.

- :mod:`kernels.api`: which implementation runs where; the only file that programs need
- ``routing_pass_tpu``, ``routing_pass_gpu``: the sweeps of routing, without votes
- ``prediction_vectors_tpu``, ``prediction_vectors_gpu``: votes held whole
- ``blocks``: padding and products that all of them share
- ``problems``: named shapes, for tests, bench and aot alike
- ``targets``, ``aot``: compiling for TPUs and GPUs that are not here
- ``bench``: what is fast on the device that is

TPU kernels are Mosaic's, v4 and later. GPU kernels are Triton's, for NVIDIA's A100 and later;
JAX has deprecated that backend in favour of Mosaic GPU, so it stays inside two files.

Run from the repository root; the wheel does not contain this folder, because Hugging Face
publishes a package of the same name. Nothing in capsjax imports it.
"""
