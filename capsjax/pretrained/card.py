"""The card of a pretrained network, README.md: what it is, how it was made, what it can do."""

from typing import Any

from capsjax.functional import count_parameters
from capsjax.pretrained.schema import Description

# The facts that a card shows, in this order.
TITLES = {
    "data": "data",
    "train_examples": "training images",
    "recipe": "recipe",
    "routing": "routing",
    "command": "command",
    "commit": "commit",
    "seed": "seed",
    "steps": "steps",
    "device": "device",
    "weights": "weights",
    "float16": "stored as float16",
}
HEAD = """---
library_name: capsjax
pipeline_tag: image-classification
tags: [capsule-networks, jax, flax]
---

"""


def to_markdown(name: str, description: Description, shapes: Any, dtype: str) -> str:
    """Return the card.

    Args:
      name: of the network.
      description: of it.
      shapes: of its variables.
      dtype: of the parameters in the file.
    """
    facts, network = description.facts, description.network
    height, width, channels = description.preprocessing.image_shape
    rows = {
        "network": f"{type(network).__name__}, {count_parameters(shapes):,} parameters",
        "images": f"{height}x{width} pixels, {channels} channel{'s' * (channels > 1)}, uint8",
        "classes": ", ".join(description.labels[:20]) + (", ..." * (len(description.labels) > 20)),
        **{title: facts[key] for key, title in TITLES.items() if facts.get(key) is not None},
        "file": f"model.safetensors, {dtype}",
    }
    lines = [f"| {title} | {_cell(value)} |" for title, value in rows.items()]
    return (
        f"{HEAD}# {_cell(name)}\n\n{figure(facts)}\n\n| | |\n| --- | --- |\n"
        + "\n".join(lines)
        + "\n\n```python\nimport capsjax\n\n"
        + f'model, params, labels, preprocessing = capsjax.load_pretrained("{_cell(name)}")\n'
        + "scores = model.apply(params, preprocessing(images)).scores  # uint8 [N, H, W, C]\n"
        + "```\n"
    )


def figure(facts) -> str:
    """Return what the card says of the error on test images."""
    errors, examples = facts.get("test_errors"), facts.get("test_examples")
    if not (isinstance(errors, int) and isinstance(examples, int) and examples):
        return "Its error on test images has not been measured."
    return (
        f"{errors:,} of {examples:,} test images are wrong, {100 * errors / examples:.2f}%, "
        "measured once, with these weights. Nothing was chosen on test images."
    )


def _cell(value: Any) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text.replace("|", "\\|").replace("<", "&lt;")
