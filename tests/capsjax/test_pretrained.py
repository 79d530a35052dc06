"""Pretrained networks: what is written is read again, what does not fit is refused in one line."""

import dataclasses
import json
import os
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import filled

import capsjax
from capsjax import Preprocessing, PretrainedError, Variables
from capsjax.models import ResNetConfig
from capsjax.pretrained import files, schema

TINY = capsjax.preset("capsnet_tiny", decoder=(8,), conv_channels=4, primary_types=2)
CNN = capsjax.preset("cnn_tiny", image_shape=(12, 14, 3), num_classes=3)
STATE = capsjax.preset("capsnet_efficient", decoder=(8,), conv_channels=4)


def save(folder, config=TINY, **changes):
    variables = filled(capsjax.create_model(config))
    return capsjax.save_pretrained(folder, config, variables, **changes), variables


def header(path):
    """Reads the header of a safetensors file as the format describes it."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_weights(path, arrays):
    """Writes a safetensors file as the format describes it."""
    kinds, offset, head, body = {"float32": "F32", "float16": "F16", "int32": "I32"}, 0, {}, b""
    for name, array in arrays.items():
        ends = [offset, offset + array.nbytes]
        kind = kinds[str(array.dtype)]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": ends}
        offset, body = ends[1], body + array.tobytes()
    head = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)


def arrays_of(folder):
    head, body = header(folder / "model.safetensors")
    head.pop("__metadata__")
    kinds = {"F32": np.float32, "F16": np.float16}
    return {
        name: np.frombuffer(body[slice(*x["data_offsets"])], kinds[x["dtype"]]).reshape(x["shape"])
        for name, x in head.items()
    }


@pytest.mark.parametrize("config", [TINY, CNN, STATE], ids=["capsules", "cnn", "statistics"])
def test_what_is_written_is_read_again(config, tmp_path):
    labels = [f"class {k}" for k in range(config.num_classes)]
    taken = Preprocessing(config.image_shape, (("unit",), ("standardize",)), (0.25, 0.5), "crop")
    facts = {"seed": 3, "recipe": "paper", "test_errors": 7, "test_examples": 200, "commit": None}
    folder, variables = save(
        tmp_path / "net", config, labels=labels, preprocessing=taken, facts=facts
    )
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    model, params, found, preprocessing = capsjax.load_pretrained(folder)
    assert isinstance(params, Variables) == (config is STATE)
    jax.tree.map(np.testing.assert_array_equal, params, variables)
    assert found == tuple(labels) and preprocessing == taken
    described = capsjax.describe_pretrained(str(folder))
    assert described == schema.Description(config, tuple(labels), taken, 1, facts)
    text = (folder / "README.md").read_text()
    assert "# net\n" in text and "7 of 200 test images are wrong, 3.50%" in text
    images = np.random.default_rng(0).integers(0, 256, (2, *config.image_shape), np.uint8)
    before = capsjax.create_model(config).apply(variables, preprocessing(images)).scores
    np.testing.assert_array_equal(model.apply(params, preprocessing(images)).scores, before)


def test_the_file_has_the_published_format_and_float16_is_rounding(tmp_path):
    folder, (params, state) = save(tmp_path, STATE, dtype="float16")
    arrays = arrays_of(folder)
    kernel = np.asarray(params["more_convs"]["1"]["kernel"])
    np.testing.assert_array_equal(arrays["params.more_convs.1.kernel"], np.float16(kernel))
    np.testing.assert_array_equal(arrays["state.norms.0.var"], state["norms"]["0"]["var"])
    assert len(arrays) == len(jax.tree.leaves((params, state)))
    _, loaded, *_ = capsjax.load_pretrained(folder)
    got = loaded.params["more_convs"]["1"]["kernel"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.float32(np.float16(kernel)))
    sizes = [len(header(f / "model.safetensors")[1]) for f in (folder, save(tmp_path / "b")[0])]
    assert sizes[0] == 2 * sum(x.size for x in jax.tree.leaves(params)) + 4 * sum(
        x.size for x in jax.tree.leaves(state)
    )


def test_every_preset_has_a_description_that_is_read_again():
    for name, config in capsjax.PRESETS.items():
        labels = tuple(map(str, range(config.num_classes)))
        described = schema.Description(config, labels, Preprocessing(config.image_shape))
        assert schema.from_json(schema.to_json(described)) == described, name


@pytest.mark.parametrize("routing", capsjax.ROUTINGS)
def test_networks_of_all_routings_are_read_again(routing, tmp_path):
    """Some have parameters that are single numbers."""
    changes = {"votes": "full", "image_shape": (12, 12, 1), "conv_kernel": 3, "primary_kernel": 3}
    config = dataclasses.replace(TINY, routing=routing, **changes)
    folder, variables = save(tmp_path / "net", config)
    jax.tree.map(np.testing.assert_array_equal, capsjax.load_pretrained(folder).params, variables)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"facts": {"a": "x" * 600_000, "b": "y" * 600_000}}, "and at most 1,048,576 are read"),
        ({"preprocessing": Preprocessing((32, 32, 1))}, "the network takes floats"),
        ({"preprocessing": Preprocessing((28, 28, 1), ())}, "makes uint8"),
    ],
    ids=["size", "pixels", "type"],
)
def test_what_would_not_be_read_again_is_not_written(changes, said, tmp_path):
    with pytest.raises(PretrainedError, match=said):
        save(tmp_path / "net", **changes)
    assert not (tmp_path / "net").exists()


def test_the_state_of_training_is_not_the_parameters(tmp_path):
    model = capsjax.create_model(TINY)
    state = capsjax.init_state(model, capsjax.adam(), jax.random.key(0))
    with pytest.raises(PretrainedError, match="is no array, but TrainState"):
        capsjax.save_pretrained(tmp_path / "net", TINY, state)


def test_the_home_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder, _ = save("~/net")
    assert folder == tmp_path / "net" and capsjax.load_pretrained("~/net")


@pytest.mark.parametrize(
    "config, changes",
    [
        (CNN, {"kernels": [5, 5, 5, 5, 5]}),
        (TINY, {"decoder": [], "decoder_kind": "transposed"}),
        (TINY, {"dtype": "foo"}),
    ],
    ids=["kernels", "decoder", "dtype"],
)
def test_configurations_of_no_network_are_refused(config, changes, tmp_path):
    folder, _ = save(tmp_path / "net", config)
    text = json.loads((folder / "config.json").read_text())
    text["network"] |= changes
    (folder / "config.json").write_text(json.dumps(text))
    with pytest.raises(PretrainedError, match="config.json"):
        capsjax.load_pretrained(folder)


@pytest.mark.parametrize("steps", [[["unit"], ["crop", 20]], [], [["standardize"]]], ids=str)
def test_preprocessing_has_to_make_the_input_of_the_network(steps, tmp_path):
    folder, _ = save(tmp_path / "net", TINY)
    text = json.loads((folder / "config.json").read_text())
    text["preprocessing"]["steps"] = steps
    (folder / "config.json").write_text(json.dumps(text))
    for read in (capsjax.load_pretrained, capsjax.pretrained.describe_pretrained):
        with pytest.raises(PretrainedError, match="config.json is not understood: .*uint8|takes"):
            read(folder)


def test_stages_of_residual_blocks_are_few():
    many, steps = ResNetConfig(stages=((4, 200, 1),)), Preprocessing((32, 32, 3))
    text = schema.to_json(schema.Description(many, tuple("abcdefghij"), steps))
    with pytest.raises(ValueError, match="more than 100 layers"):
        schema.from_json(text)


def test_labels_may_be_an_array_and_are_as_many_as_classes(tmp_path):
    names = np.array(list("jihgfedcba"))
    folder, _ = save(tmp_path / "x", labels=names)
    assert capsjax.load_pretrained(folder).labels == tuple("jihgfedcba")
    with pytest.raises(PretrainedError, match="labels are 0"):
        save(tmp_path / "y", labels=[])
    assert not (tmp_path / "y").exists()


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    model = capsjax.create_model(TINY)
    for dtype, bad in (("float32", np.nan), ("float16", 7e4)):
        params = filled(model)
        params["conv"]["bias"][0] = bad
        with pytest.raises(PretrainedError, match="params.conv.bias has numbers that are not"):
            capsjax.save_pretrained(tmp_path / "x", TINY, params, dtype=dtype)
    with pytest.raises(PretrainedError, match="shape"):
        capsjax.save_pretrained(
            tmp_path / "x", dataclasses.replace(TINY, num_classes=4), filled(model)
        )
    with pytest.raises(PretrainedError, match="labels are 2, and the network has 10"):
        save(tmp_path / "x", labels=["a", "b"])
    assert not (tmp_path / "x").exists()


def changed(path, value):
    """Returns a function that changes one place in the configuration."""

    def change(config):
        *parts, last = path.split(".")
        place = config
        for part in parts:
            place = place[part]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value

    return change


BAD_CONFIGS = {
    "'x' in network is unknown": changed("network.x", 1),
    "'extra' in it is unknown": changed("extra", {}),
    "'labels' in it is missing": changed("labels", KeyError),
    "schema is 2": changed("schema", 2),
    "network.kind is 'os.system'": changed("network.kind", "os.system"),
    "network.conv_channels is '64', not an integer": changed("network.conv_channels", "64"),
    "network.conv_channels is True": changed("network.conv_channels", True),
    "network.conv_bias is 1, not true or false": changed("network.conv_bias", 1),
    "network.decoder is": changed("network.decoder", {"a": 1}),
    "network.image_shape has 2 numbers, not 3": changed("network.image_shape", [28, 28]),
    "network.more_convs is not a list": changed("network.more_convs", [[1, 2, 3]] * 2000),
    "more than 100 layers": changed("network.more_convs", [[4, 1, 1]] * 200),
    "is larger than 1,000,000": changed("network.conv_channels", 10**30),
    "network.routing_iterations is more than": changed("network.routing_iterations", 5000),
    "network: routing must be one of": changed("network.routing", "fastest"),
    "NaN is no number": changed("network.conv_slope", float("nan")),
    "labels is not a list of texts": changed("labels", [1] * 10),
    "labels have '', which is empty": changed("labels", [*"abcdefghi", ""]),
    "labels have 'a\\n', which is": changed("labels", [*"bcdefghij", "a\n"]),
    "two labels are 'a'": changed("labels", [*"abcdefghi", "a"]),
    "labels_per_image is 3": changed("labels_per_image", 3),
    "preprocessing: steps: 'exec' is none of": changed("preprocessing.steps", [["exec", 1]]),
    "preprocessing: steps: 'crop' takes a number": changed("preprocessing.steps", [["crop"]]),
    "'image_shape' in preprocessing is missing": changed("preprocessing.image_shape", KeyError),
    "fit must be one of": changed("preprocessing.fit", "best"),
    "facts.a is neither": changed("facts.a", [1]),
}


@pytest.mark.parametrize("message", BAD_CONFIGS)
def test_a_configuration_with_anything_else_is_refused(message):
    text = schema.to_json(schema.Description(TINY, tuple("abcdefghij"), Preprocessing((28, 28, 1))))
    config = json.loads(text)
    BAD_CONFIGS[message](config)
    with pytest.raises(ValueError) as error:
        schema.from_json(json.dumps(config))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    folder, _ = save(tmp_path)
    path, good = folder / "model.safetensors", arrays_of(folder)
    bias = good["params.conv.bias"]
    cases = {
        "params.conv.bias is missing": {k: v for k, v in good.items() if v is not bias},
        "'x' is no array of this network": good | {"x": bias[:0]},
        "has the shape [2, 2], not [4]": good | {"params.conv.bias": bias.reshape(2, 2)},
        "is int32, not": good | {"params.conv.bias": bias.view(np.int32)},
        "not finite": good | {"params.conv.bias": bias * np.float32(np.inf)},
    }
    for message, arrays in cases.items():
        write_weights(path, arrays)
        with pytest.raises(PretrainedError) as error:
            capsjax.load_pretrained(folder)
        assert message in str(error.value) and str(path) in str(error.value)
    write_weights(path, good)
    jax.tree.map(np.testing.assert_array_equal, capsjax.load_pretrained(folder).params, _)


def test_files_that_are_none_are_refused(tmp_path):
    folder, _ = save(tmp_path / "net")
    path, config = folder / "model.safetensors", folder / "config.json"
    data = path.read_bytes()
    contents = {
        "no safetensors file": data[:-5],
        "no safetensors": b"\x80\x04K\x01.",  # a pickle
        "more than the": data + bytes(2**21),
    }
    for message, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match=message):
            capsjax.load_pretrained(folder)
    path.unlink()
    with pytest.raises(PretrainedError, match="can't be read: No such file"):
        capsjax.load_pretrained(folder)
    for content in (b"[" * 10**5, b"\xff", b"{}", b"[]", b"a" * (files.MOST_CONFIG + 1)):
        config.write_bytes(content)
        with pytest.raises(PretrainedError, match="config.json") as error:
            capsjax.load_pretrained(folder)
        assert "\n" not in str(error.value)
    if hasattr(os, "mkfifo"):
        config.unlink()
        os.mkfifo(config)
        with pytest.raises(PretrainedError, match="not a regular file"):
            capsjax.load_pretrained(folder)


def test_places_that_hold_none_are_named(tmp_path, monkeypatch):
    with pytest.raises(PretrainedError, match="nowhere is neither a folder nor a packaged"):
        capsjax.load_pretrained("nowhere")
    with pytest.raises(PretrainedError, match="write it as hf://OWNER/NAME"):
        capsjax.load_pretrained("hf://name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PretrainedError, match="pip install huggingface_hub"):
        capsjax.load_pretrained("hf://owner/name")


def test_the_hub_is_asked_for_three_files(tmp_path, monkeypatch):
    folder, params = save(tmp_path)
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = capsjax.load_pretrained("hf://owner/name@v1").params
    jax.tree.map(np.testing.assert_array_equal, found, params)
    wanted = {"revision": "v1", "allow_patterns": ["model.safetensors", "config.json", "README.md"]}
    assert asked == [("owner/name", wanted)] * len(asked) and asked


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "net" / "README.md").symlink_to(tmp_path / "mine")
    save(tmp_path / "net")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_card_is_one_table_whatever_the_facts_are(tmp_path):
    facts = {"data": "a | b\n# heading <script>", "test_errors": "many"}
    text = (save(tmp_path, facts=facts)[0] / "README.md").read_text()
    assert "| data | a \\| b # heading &lt;script> |" in text
    assert "has not been measured" in text


def test_preprocessing_takes_the_steps_in_numpy():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 64, 66, 2), np.uint8)
    steps = (("unit",), ("halve", 64), ("crop", 20), ("standardize",), ("pad", 1))
    got = jax.jit(Preprocessing((64, 66, 2), steps))(images)
    x = np.float64(images) / 255
    x = x.reshape(2, 3, 32, 2, 33, 2, 2).mean((3, 5))[:, :, 6:26, 6:26]
    axes = (2, 3, 4)
    x = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
    want = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
    np.testing.assert_allclose(got, want, atol=1e-5)
    clipped = Preprocessing((2, 2, 1), (("unit",), ("clip",)))(np.full((2, 2, 1), 255, np.uint8))
    np.testing.assert_array_equal(clipped, np.ones((2, 2, 1)))
    with pytest.raises(ValueError, match="images must be uint8"):
        Preprocessing((64, 66, 2))(jnp.zeros((64, 66, 2)))
    with pytest.raises(ValueError, match="too few for crops"):
        Preprocessing((4, 4, 1), (("unit",), ("crop", 5)))(np.zeros((4, 4, 1), np.uint8))
