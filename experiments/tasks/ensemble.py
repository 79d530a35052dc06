"""Ensembles: several networks as one, parameters with a leading axis, scores averaged."""

import functools

import jax
import jax.numpy as jnp

from capsjax.functional import Model, outputs
from capsjax.models import Config as ModelConfig
from capsjax.objectives import prediction_metrics
from experiments.config import Config, UserError
from experiments.tasks.base import Objective, Setup
from experiments.tasks.classification import classify, has_logits


def objective(config: Config, model_config: ModelConfig) -> Objective:
    """Returns ``--ensemble`` networks, each with its own initial weights, as one.

    All see the same batches. Each is trained as if it were the only one, because the loss is the
    sum of theirs; metrics are means over networks, except that ``accuracy`` is that of the mean
    scores (of a CNN: logits), and ``member_accuracy`` the mean accuracy of the single networks.
    The paper averages lengths over 7 networks that were trained separately.

    Raises:
      UserError: a flag needs a single network, or see
        :func:`experiments.tasks.classification.classify`.
    """
    one = classify(config, model_config)
    count = config.ensemble
    if count == 1:
        return one
    alone = {
        "--diagnostics": config.diagnostics,
        "--reconstruction": getattr(model_config, "decoder", None) is not None,
        "--routing=frozen": config.routing == "frozen",
    }
    for flag, given in alone.items():
        if given:
            raise UserError(f"{flag} needs a single network, not --ensemble={count}")

    def init(key):
        return jax.vmap(one.model.init)(jax.random.split(key, count))

    def apply(variables, images, labels=None, keys=None, **mode):
        """Predictions, or outputs of a method, with a leading axis, over the networks."""
        run = functools.partial(one.model.apply, **mode)
        if "method" in mode:  # methods take the images alone
            return jax.vmap(run, (0, None))(variables, images)
        return jax.vmap(run, (0, None, None, 0))(variables, images, labels, keys)

    model = Model(init, apply, one.model.has_state)

    def of_all(member_loss, variables, images, labels, key=None, progress=1.0, **mode):
        keys = None if key is None else jax.random.split(key, count)
        each = jax.vmap(functools.partial(member_loss, **mode), (0, None, None, 0, None))
        losses, metrics, *state = each(variables, images, labels, keys, progress)
        predicted = metrics.pop("prediction", None) is not None
        metrics = {name: jnp.mean(value, axis=0) for name, value in metrics.items()}
        prediction, *_ = outputs(model, variables, images, labels, keys, **mode)
        scores = jnp.mean(prediction.scores, axis=0)
        right = (jnp.argmax(scores, axis=1) == labels).astype(jnp.float32)
        together = {"member_accuracy": metrics["accuracy"], "accuracy": right}
        if predicted:
            together |= prediction_metrics(scores, has_logits(model_config))
        return jnp.sum(losses, axis=0), metrics | together, *state

    losses = (functools.partial(of_all, loss) for loss in (one.loss, one.measure))
    return Objective(model, *losses)


def summary_fields(setup: Setup, values: dict) -> dict:
    """Returns further fields of summary.json: the number of networks, the mean error of one."""
    alone = values.get("member_accuracy", values["accuracy"])
    error = round(100 * (1 - float(alone.mean())), 4)
    return {"ensemble": setup.config.ensemble, "member_test_error": error}
