"""ONNX: a network as the bytes of a file, and its outputs by onnxruntime.

The weights are inputs of the function that is converted and become initializers of the graph, so
each is stored once, under its name.
"""

import logging
import os
import warnings
from collections.abc import Callable

import jax
import numpy as np

from capsjax.backend import portable
from experiments.config import UserError
from experiments.exchange.network import Network, weight_bytes
from experiments.files import size

INSTALL = "pip install -r requirements-onnx.txt"
MOST_BYTES = 2**31 - 1  # of a message of Protocol Buffers
FILE = "model.onnx"


def to_bytes(network: Network) -> bytes:
    """Returns the ONNX file of a network, for any size of the batch.

    Raises:
      UserError: packages are missing, the weights are too large for a file, or an operation of the
        network has no ONNX form.
    """
    jax2onnx, onnx = _import("jax2onnx"), _import("onnx")
    if weight_bytes(network) > MOST_BYTES:
        needed, most = size(weight_bytes(network)), size(MOST_BYTES)
        raise UserError(f"the weights have {needed}, and an ONNX file has at most {most}")
    leaves, tree = jax.tree.flatten(network.variables)
    names = weight_names(network.variables)
    outputs: list[str] = []

    def function(images, *leaves):
        with portable():
            found = network.apply(jax.tree.unflatten(tree, leaves), images)
        outputs[:] = found
        return tuple(found.values())

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.shape), network.dtype)
    weights = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    quiet = logging.getLogger("onnx_ir")
    quiet.setLevel(logging.ERROR)  # shapes inside the graph that are unknown are left out
    jax.eval_shape(function, images, *weights)  # the names of the outputs
    try:
        with (
            warnings.catch_warnings(),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
        ):
            warnings.simplefilter("ignore")  # of the converter, about types that it asks JAX for
            graph = jax2onnx.to_onnx(
                function,
                [images, *weights],
                model_name="capsjax",
                input_names=["images", *names],
                output_names=list(outputs),
            )
    except Exception as error:  # the converter raises many types
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise UserError(f"jax2onnx can't convert this network: {reason}") from error
    _store_weights(onnx, graph, dict(zip(names, leaves, strict=True)))
    return graph.SerializeToString()


def weight_names(variables) -> list[str]:
    """Returns the paths of the arrays of a tree: ``classes/kernel``."""
    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _store_weights(onnx, graph, weights) -> None:
    """Makes initializers of those inputs of a graph that are weights."""
    images = [one for one in graph.graph.input if one.name not in weights]
    needed = [one.name for one in graph.graph.input if one.name in weights]
    for name in needed:
        array = onnx.numpy_helper.from_array(np.asarray(weights[name]), name)
        graph.graph.initializer.append(array)
    del graph.graph.input[:]
    graph.graph.input.extend(images)


def runner(data: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns the function of an ONNX file: images to outputs by name, on the CPU.

    Raises:
      UserError: onnxruntime is missing.
    """
    onnxruntime = _import("onnxruntime")
    options = onnxruntime.SessionOptions()
    # Its default is one thread per core of the machine, also where this process has fewer.
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images):
        return dict(zip(names, session.run(None, {"images": images}), strict=True))

    return run


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _import(name):
    try:
        return __import__(name)
    except ImportError as error:
        missing = (error.name or name).split(".")[0]
        raise UserError(f"--format=onnx needs the package {missing}: {INSTALL}") from error
