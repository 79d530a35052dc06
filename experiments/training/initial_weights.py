"""Initial weights of a run that are those of another one, or of a pretrained network."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import capsjax
from capsjax.functional import split
from capsjax.pretrained import weights
from capsjax.train import TrainState
from capsjax.update_factors import paths_of
from experiments.config import UserError
from experiments.config.fine_tuning import check_patterns
from experiments.files import check_memory, local_path
from experiments.tasks.base import Setup
from experiments.training.checkpoints import Checkpoints, has_checkpoints


class Fit(NamedTuple):
    """How the arrays of a network fit those of another one, by name: ``params.conv.kernel``."""

    kept: list[str]
    replaced: dict[str, str]  # by name, why


def check(setup: Setup) -> None:
    """Refuses flags of fine-tuning that mean nothing, before anything is written.

    The source of a run that has been started is not read.

    Raises:
      UserError: an expression is found in no path; or there is no such source, nothing of it
        fits, or the run is an ensemble.
    """
    config, shapes = setup.config, jax.eval_shape(setup.model.init, jax.random.key(0))
    check_patterns(config, paths_of(split(shapes)[0]))
    if not config.init_from or has_checkpoints(config):
        return
    if getattr(config, "ensemble", 1) > 1:
        raise UserError(
            f"--init_from with --ensemble={config.ensemble}: all networks would start alike"
        )
    if config.routing == "frozen":
        raise UserError("--init_from and --routing=frozen both say where couplings come from")
    fit = compare(weights.named_variables(shapes), read_source(config.init_from))
    if not any(name.startswith("params.") for name in fit.kept):
        name, why = next(iter(fit.replaced.items()))
        raise UserError(
            f"--init_from={config.init_from}: nothing of it fits this network ({name} {why})"
        )


def load(setup: Setup, state: TrainState, *, report: bool = True) -> TrainState:
    """Returns an initial state with the arrays of ``--init_from`` that have its shapes.

    Args:
      setup: of the run. state: before the first step.
      report: whether to say what is kept and what stays as it was drawn, layer by layer.
    """
    source = read_source(setup.config.init_from)
    drawn = weights.named_variables(state.variables)
    fit = compare(drawn, source)
    if report:
        for line in describe(setup.config.init_from, fit, drawn):
            print(line, file=sys.stderr)
    loaded = drawn | {name: jnp.asarray(source[name], drawn[name].dtype) for name in fit.kept}
    params, stats = split(weights.variables_of(loaded))
    average = jax.tree.map(jnp.copy, params) if state.average else ()
    opt_state = setup.optimizer.init(params)
    return state._replace(params=params, stats=stats, average=average, opt_state=opt_state)


def compare(wanted: dict[str, Any], source: dict[str, np.ndarray]) -> Fit:
    """Returns which arrays of a source have the names and shapes that are wanted."""
    kept, replaced = [], {}
    for name, leaf in wanted.items():
        if name not in source:
            replaced[name] = "is not there"
        elif source[name].shape != leaf.shape:
            replaced[name] = f"is {list(source[name].shape)} there, {list(leaf.shape)} here"
        else:
            kept.append(name)
    return Fit(kept, replaced)


def describe(place: str, fit: Fit, drawn: dict[str, Any]) -> Iterable[str]:
    """Yields what is kept and what is replaced, one line for each layer."""
    size, kept = (sum(drawn[n].size for n in names) for names in (drawn, fit.kept))
    yield f"weights of {place}: {kept:,} of {size:,} numbers are kept"
    for layer in dict.fromkeys(_layer(name) for name in drawn):
        names = [name for name in drawn if _layer(name) == layer]
        reasons = [f"{n.rpartition('.')[2]} {fit.replaced[n]}" for n in names if n in fit.replaced]
        word = "kept" if not reasons else "replaced" if len(reasons) == len(names) else "in part"
        yield f"  {layer:<28} {word}" + (f": {', '.join(reasons)}" if reasons else "")


def _layer(name: str) -> str:
    kind, _, path = name.partition(".")
    layer = path.rpartition(".")[0] or path
    return layer if kind == "params" else f"{layer} (statistics)"


def checksum_of(place: str) -> str:
    """Returns a checksum of the weights at a place, or nothing if they are not there any more."""
    try:
        source = read_source(place)
    except UserError:
        return ""
    digest = hashlib.sha256()
    for name in sorted(source):
        array = np.ascontiguousarray(source[name], np.float32)
        digest.update(repr((name, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


def read_source(place: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a run or of a pretrained network, by name.

    Of a run that reports other weights than its last ones (``--ema``, ``--keep``) it is those.

    Raises:
      UserError: there is neither, or it can't be read.
    """
    folder = Path(place).expanduser()
    if not place.startswith("hf://") and (folder / "checkpoints").is_dir():
        return _of_run(local_path(place, "init_from"))
    try:
        params = capsjax.load_pretrained(place).params
    except capsjax.PretrainedError as error:
        raise UserError(f"--init_from: {error}") from error
    return {name: np.asarray(leaf) for name, leaf in weights.named_variables(params).items()}


def _of_run(folder: Path) -> dict[str, np.ndarray]:
    """The newest variables of a run, without its configuration; its folder is not changed."""
    import orbax.checkpoint as ocp

    with Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest()
    if step is None:
        raise UserError(f"--init_from={folder} has no checkpoint yet")
    path = (folder / "checkpoints" / str(step) / "default").absolute()
    try:
        reader = ocp.PyTreeCheckpointHandler()
        tree = reader.metadata(path).tree
        parts = {"reported"} if "reported" in tree else {"params", "stats"}
        target = {name: tree[name] for name in parts & tree.keys()}
        leaves = jax.tree.leaves(target)
        need = sum(np.prod(leaf.shape, dtype=float) * leaf.dtype.itemsize for leaf in leaves)
        check_memory(need, f"--init_from={folder}", "choose a smaller network")
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        restored = reader.restore(
            path,
            args=ocp.args.PyTreeRestore(target, restore_args=as_numpy, partial_restore=True),
        )
    except UserError:
        raise
    except Exception as error:  # Orbax raises many types for a damaged checkpoint
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint {step} in {folder} can't be read ({reason[:200]})") from error
    found = restored.get("reported", restored)
    trees = {"params": found["params"]} | ({"state": found["stats"]} if "stats" in found else {})
    return weights.names_of(trees)
