"""Write the network of a run for other programs: ONNX, StableHLO or safetensors.

    python -m experiments.export --run=DIR --format=onnx --output=FOLDER
    python -m experiments.export --run=DIR --format=stablehlo --preprocess --output=FOLDER
    python -m experiments.export --model=NAME --format=onnx --time --output=FOLDER

The folder is new. It gets model.onnx (which needs pip install -r requirements-onnx.txt) or
model.stablehlo with the weights, any number of images at a time, and model.json, which says what
goes in and what comes out: scores, poses and the reconstruction, --couplings also the coupling
coefficients. With --preprocess images are uint8, as in the data set, and the named classes come
first. Before anything is written, the file is run on 64 random images, in onnxruntime or by
jax.export; numbers that differ by 1e-5 or more (relative to those above one) are an error.

--verify=test also compares the classes of the whole test set of the run: one that differs is an
error. --time measures calls with 1 and 128 images alongside JAX, into latency.json and latency.md.

--format=safetensors is experiments.publish: weights, configuration and card of a finished run, for
capsjax.load_pretrained.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

import jax
import numpy as np

import capsjax
from experiments.analysis import saved_run
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.exchange import (
    latency,
    network,
    onnx_file,
    pretrained_folder,
    stablehlo_file,
    verification,
)
from experiments.files import fresh_folder, local_path, size, write_json
from experiments.training.devices import find_devices, keep_compiled_programs
from experiments.training.results import provenance, versions, write_results

FORMATS = {"onnx": onnx_file, "stablehlo": stablehlo_file}
RUNTIMES = {"onnx": "onnxruntime", "stablehlo": "StableHLO by jax.export"}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    run: str = setting("", "folder of the run")
    model: str = setting("", "in place of a run: a pretrained network, see capsjax.load_pretrained")
    format: str = setting(
        "onnx", "format of the file", choices=("onnx", "stablehlo", "safetensors")
    )
    output: str = setting("", "new folder")
    preprocess: bool = setting(
        False, "take uint8 images as in the data set, and return the classes"
    )
    couplings: bool = setting(False, "also return the coupling coefficients")
    verify: str = setting(
        "random",
        "images on which outputs are compared: random ones, or also the test set of the run",
        choices=("random", "test"),
    )
    time: bool = setting(False, "measure calls with 1 and 128 images, alongside JAX")
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    data_dir: str = setting(
        "", "directory of prepared TensorFlow Datasets; that of the run is not used"
    )
    cache_dir: str = setting("", "folder of compiled programs; by default the user's cache folder")


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Exports, checks, and prints what was written.

    Raises:
      UserError: a flag is wrong, the network can't be used or exported, its outputs differ, or the
        folder can't be written.
    """
    if bool(flags.run) == bool(flags.model) or not flags.output:
        raise UserError("give one network and a new folder: --run=DIR --output=FOLDER")
    if flags.verify == "test" and not flags.run:
        raise UserError("--verify=test needs a --run, which names its data set")
    if flags.format == "safetensors":
        _check_pretrained(flags)
    output = local_path(flags.output, "output")
    opened = None
    if flags.run:
        opened = saved_run.open_run(
            flags.run,
            accelerator=flags.accelerator,
            data_dir=flags.data_dir,
            cache_dir=flags.cache_dir,
            examples=flags.verify == "test" or flags.format == "safetensors",
        )
        source = network.source_of_run(opened)
    else:
        find_devices(flags.accelerator, 1)
        keep_compiled_programs(flags.cache_dir)
        source = pretrained_folder.read(flags.model)
    with fresh_folder(output, "output") as folder:
        if flags.format == "safetensors":
            lines = pretrained_folder.write(folder, opened, output.name)
        else:
            lines = export(flags, source, opened, folder)
    print("\n".join([*lines, f"folder {output}"]))


def _check_pretrained(flags):
    """Refuses flags that do not concern a pretrained network, of which there is a run."""
    if flags.model:
        raise UserError(f"--model={flags.model} is stored as safetensors already")
    names = [name for name in ("preprocess", "couplings", "time") if getattr(flags, name)]
    if names or flags.verify != "random":
        raise UserError(f"--{(names or ['verify'])[0]} is for --format=onnx and stablehlo")


def export(
    flags: Flags, source: network.Source, opened: saved_run.SavedRun | None, folder: Path
) -> list[str]:
    """Writes the files of a network into a folder, and returns what was found."""
    kind = FORMATS[flags.format]
    options = {"couplings": flags.couplings, "preprocess": flags.preprocess}
    made = network.make_network(source, **options)
    print(f"converting {source.name} ...", file=sys.stderr)
    data = kind.to_bytes(made)
    runner = kind.runner(data)
    found = {"difference": verification.verify(made, runner), "images": verification.IMAGES}
    weights = network.weight_bytes(made)
    lines = [
        f"{kind.FILE}: {size(len(data))}, weights {size(weights)}",
        f"{found['images']} images: largest difference from JAX {found['difference']:.1e}",
    ]
    if flags.verify == "test":
        found["test"], line = compare(made, runner, opened)
        lines.append(line)
    (folder / kind.FILE).write_bytes(data)
    write_json(folder / "model.json", describe(flags, made, found, data))
    if flags.time:
        runners = {RUNTIMES[flags.format]: runner, "JAX": verification.reference(made)}
        command = shlex.join(["python", "-m", "experiments.export", *sys.argv[1:]])
        result = {
            **provenance(command, 0, jax.devices()[0]),
            "network": source.name,
            "format": flags.format,
            "file_bytes": len(data),
            "weight_bytes": weights,
            "cores": onnx_file.cores(),
            "rows": latency.measure(made, runners),
        }
        text = latency.table(result)
        write_results(folder / "latency", result, text)
        lines.append(text)
    return lines


def compare(made: network.Network, runner: verification.Runner, opened) -> tuple[dict, str]:
    """Compares decisions on the test set; returns fields of model.json and a line.

    Raises:
      UserError: one differs, or examples are no images that the network could take.
    """
    pipeline = opened.setup.pipeline
    raw, labels = pipeline.held_out("test")
    if made.dtype == "uint8":
        if pipeline.from_image:
            raise UserError("--verify=test with --preprocess needs images, and this run has pairs")
        images = raw
    else:
        to_input = jax.jit(jax.vmap(pipeline.input))
        images = np.asarray(
            capsjax.map_batches(lambda batch, _: to_input(batch), raw, verification.BATCH)
        )
    found = verification.compare(made, runner, images, np.asarray(labels))
    line = f"{found.images:,} test images: {found.different} decisions differ from those of JAX"
    if found.errors is not None:
        line += f", {found.errors:,} are wrong"
    if found.different:
        raise UserError(f"{line}; nothing is written")
    return found._asdict(), line


def describe(flags: Flags, made: network.Network, found: dict, data: bytes) -> dict:
    """Returns what model.json says."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *made.shape), made.dtype)
    outputs = jax.eval_shape(made.apply, made.variables, images)
    pixels = "pixels 0 to 255, as in the data set" if flags.preprocess else "what the network takes"
    return {
        "format": flags.format,
        "source": made.source,
        "input": {"name": "images", "shape": [str(n) for n in images.shape], "dtype": made.dtype}
        | {"meaning": f"[batch, H, W, C], {pixels}"},
        "outputs": [
            {
                "name": name,
                "shape": [str(n) for n in outputs[name].shape],
                "dtype": str(outputs[name].dtype),
                "meaning": meaning,
            }
            for name, meaning in network.MEANINGS.items()
            if name in outputs
        ],
        "labels": list(made.labels),
        "file_bytes": len(data),
        "weight_bytes": network.weight_bytes(made),
        "compared": found,
        "versions": versions(),
    }


if __name__ == "__main__":
    run(main, DEFAULTS)
