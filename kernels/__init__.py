"""Pallas kernels for the operations that capsjax defines in plain JAX.

- :mod:`kernels.api`: which implementation runs where
- :mod:`kernels.approval`, :mod:`kernels.trial`: for which shapes ``auto`` takes kernels; the trial
  that decides
- ``routing_pass_tpu``, ``routing_pass_gpu``: the passes of routing, without votes
- ``routing_steps_tpu``, ``routing_steps_gpu``, ``routing_blocks``: the parts of these kernels
- ``prediction_vectors_tpu``, ``prediction_vectors_gpu``: materialized votes
- ``blocks``: padding and products that all kernels share
- ``problems``: named shapes, for tests, bench and aot
- ``targets``, ``aot``: compilation for TPUs and GPUs that are not present
- ``bench``: speed on the device that is present
- ``cli``: what all commands share

TPU kernels use Mosaic and run on v4 and later. GPU kernels use Triton and run on NVIDIA's A100
and later; JAX has deprecated that backend in favour of Mosaic GPU, so only the files whose names
end in ``_gpu`` use it.

The wheel installs this package as ``capsjax_kernels``, because Hugging Face publishes one of the
same name. capsjax finds it under either name (:mod:`capsjax.companions`) and works without it.
"""
