"""The command import_weights, beside the forward passes of the programs that it knows."""

import json

import foreign_networks as theirs
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import capsjax
from experiments import import_weights
from experiments.config import UserError
from experiments.import_weights import Flags


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def images(shape, count=3):
    return np.random.default_rng(5).uniform(size=(count, *shape))


def imported(program, folder, arrays, suffix=".npz", **flags):
    """Writes arrays, runs the command in this process, and loads what it wrote."""
    file, output = folder / f"weights{suffix}", folder / "net"
    arrays = {name: np.float32(x) for name, x in arrays.items()}
    if suffix == ".npz":
        np.savez(file, **arrays)
    elif suffix == ".safetensors":
        save_file(arrays, file)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(file, "w") as stored:
            for name, x in arrays.items():
                stored[name] = x
    import_weights.main(Flags(from_=program, weights=str(file), output=str(output), **flags))
    return capsjax.load_pretrained(output)


def apply(network, x):
    model, params, *_ = network
    return jax.jit(model.apply)(params, np.float32(x))


def rounded(arrays):
    """The numbers of a file in float32."""
    return {name: np.float64(np.float32(x)) for name, x in arrays.items()}


def check(found, poses, drawn):
    assert np.abs(found.pose - poses).max() < 1e-5
    if drawn is not None:
        assert np.abs(found.reconstruction - drawn).max() < 1e-5


@pytest.mark.parametrize("learned", [slow(False), True])
def test_gram_ai(tmp_path, learned):
    """Also the older version: learned initial logits, a decoder of the pose of one class."""
    rng = np.random.default_rng(0)
    arrays = theirs.gram_ai_arrays(rng, learned, theirs.D if learned else theirs.J * theirs.D)
    network = imported("gram_ai", tmp_path, arrays, ".safetensors")
    x = images((theirs.SIDE, theirs.SIDE, 1))
    classes, poses, drawn = theirs.gram_ai(rounded(arrays), x)
    found = apply(network, x)
    check(found, poses, drawn)
    assert np.abs(theirs.softmax(np.asarray(found.scores), -1) - classes).max() < 1e-5


@pytest.mark.slow
def test_gram_ai_with_the_softmax_of_the_paper(tmp_path):
    arrays = theirs.gram_ai_arrays(np.random.default_rng(0))
    network = imported("gram_ai", tmp_path, arrays, coupling="outputs")
    x = images((theirs.SIDE, theirs.SIDE, 1))
    _, poses, drawn = theirs.gram_ai(rounded(arrays), x, axis=0)
    check(apply(network, x), poses, drawn)
    _, others, _ = theirs.gram_ai(rounded(arrays), x)
    assert np.abs(poses - others).max() > 0.01


def test_xifeng_guo_pytorch(tmp_path):
    arrays = theirs.xifeng_torch_arrays(np.random.default_rng(1))
    network = imported("xifeng_guo", tmp_path, arrays, ".safetensors")
    x = images((theirs.SIDE, theirs.SIDE, 2))
    lengths, poses, drawn = theirs.xifeng_torch(rounded(arrays), x)
    found = apply(network, x)
    check(found, poses, drawn)
    assert np.abs(found.scores - lengths).max() < 1e-5


@pytest.mark.parametrize("suffix", [".npz", slow(".h5")])
def test_xifeng_guo_keras(tmp_path, suffix):
    arrays = theirs.xifeng_keras_arrays(np.random.default_rng(2))
    network = imported("xifeng_guo", tmp_path, arrays, suffix)
    x = images((theirs.SIDE, theirs.SIDE, 2))
    lengths, poses, drawn = theirs.xifeng_keras(rounded(arrays), x)
    found = apply(network, x)
    check(found, poses, drawn)
    assert np.abs(found.scores - lengths).max() < 1e-5


@pytest.mark.parametrize(("which", "first"), [slow("mnist", 0), ("mnist", 8), slow("smallnorb", 4)])
def test_efficient_capsnet(tmp_path, which, first):
    """With the first layer numbered 8, an alphabetical order would be wrong."""
    arrays = theirs.efficient_arrays(np.random.default_rng(3), which, first)
    network = imported("efficient_capsnet", tmp_path, arrays, ".npz" if first else ".safetensors")
    x = images(theirs.EFFICIENT[which][0], 2)
    lengths, poses, drawn = theirs.efficient(rounded(arrays), x, which, first)
    found = apply(network, x)
    check(found, poses, drawn)
    assert np.abs(found.scores - lengths).max() < 1e-5
    shape = (96, 96, 2) if which == "smallnorb" else (28, 28, 1)
    pixels = np.zeros((1, *shape), np.uint8)
    assert network.preprocessing(pixels).shape[1:] == theirs.EFFICIENT[which][0]


def test_every_array_is_accounted_for(tmp_path, capsys):
    arrays = theirs.gram_ai_arrays(np.random.default_rng(0)) | {"epoch": np.zeros(1)}
    imported("gram_ai", tmp_path, arrays, labels="a,b,c,d")
    printed = capsys.readouterr().out.splitlines()
    said = [line.removeprefix("not mapped: ").split(" [")[0] for line in printed]
    assert set(arrays) <= set(said)
    assert "not mapped: epoch [1] is not used" in printed
    assert "not mapped: the softmax over the lengths" in " ".join(printed)
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["labels"] == ["a", "b", "c", "d"]
    assert (tmp_path / "net" / "README.md").read_text().count("# net\n") == 1


def refuse(tmp_path, match, arrays=None, suffix=".npz", **flags):
    file = tmp_path / f"w{suffix}"
    if arrays is not None:
        np.savez(file, **arrays)
    given = {"from_": "gram_ai", "weights": str(file), "output": str(tmp_path / "net")} | flags
    with pytest.raises(UserError, match=match) as caught:
        import_weights.main(Flags(**given))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net").exists()


def test_bad_files_are_refused_in_one_line(tmp_path):
    arrays = theirs.gram_ai_arrays(np.random.default_rng(0))
    refuse(tmp_path, "No such file")
    refuse(tmp_path, "safetensors.torch.save_file", suffix=".pt")
    W = "digit_capsules.route_weights"
    refuse(tmp_path, f"no array {W}", {n: x for n, x in arrays.items() if n != W})
    refuse(tmp_path, r"not \[any, any, 8, any\]", arrays | {W: np.zeros((2, 3, 4, 5))})
    refuse(tmp_path, "W has 15 input capsules", arrays | {W: np.zeros((4, 15, 8, 5))})
    refuse(tmp_path, "do not fit each other", arrays | {W: np.zeros((4, 16, 8, 5))})
    nothing = arrays["decoder.0.weight"][:, :0]
    refuse(tmp_path, "do not fit each other", arrays | {"decoder.0.weight": nothing})
    refuse(tmp_path, "no array of finite numbers", arrays | {W: arrays[W] * np.nan})
    refuse(tmp_path, "no array of finite numbers", arrays | {W: np.array(["text"])})
    refuse(tmp_path, "allow_pickle", arrays | {W: np.array([{}])})
    refuse(tmp_path, "0 convolutions", arrays, from_="efficient_capsnet")
    refuse(tmp_path, "no array primarycap_conv2d.kernel|no array conv1", arrays, from_="xifeng_guo")
    refuse(tmp_path, "2 names for 4 classes", arrays, labels="a,b")
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    refuse(tmp_path, "no safetensors file", suffix=".safetensors")


def test_a_folder_that_exists_is_kept(tmp_path):
    (tmp_path / "net").mkdir()
    np.savez(tmp_path / "w.npz", **theirs.gram_ai_arrays(np.random.default_rng(0)))
    flags = Flags(from_="gram_ai", weights=str(tmp_path / "w.npz"), output=str(tmp_path / "net"))
    with pytest.raises(UserError, match="exists already"):
        import_weights.main(flags)
    assert list((tmp_path / "net").iterdir()) == []
