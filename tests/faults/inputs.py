"""Bad input to all commands: one clear line, exit status 2, and nothing is written."""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import processes

HUGE = ("99999999999999999999", "2147483648", "-1", "1.5", "x", "")
TRAIN = ("--dataset=digits", "--accelerator=cpu", "--cache_dir=none", "--preset=tiny", "--steps=2")
INTEGERS = ("batch_size", "steps", "epochs", "log_every", "max_shift", "primary_types", "seed")
INTEGERS += (
    "class_pose",
    "num_devices",
    "train_examples",
    "validate_every",
    "decay_steps",
    "depth",
)
FLOATS = ("learning_rate", "decay_rate", "reconstruction_weight", "primary_scale")
FLOATS += ("margin_weight", "learning_rate_floor", "validation_fraction")
# Each is beyond memory, beyond reason, or contradicts another.
WRONG = [
    "--batch_size=1000000000",
    "--epochs=2000000000 --steps=0",
    "--log_every=1000000000",
    "--primary_types=1000000000",
    "--class_pose=1000000000",
    "--primary_pose=1000000000",
    "--num_devices=100000000",
    "--num_devices=300",
    "--routing_iterations=1001",
    "--routing_iterations=0",
    "--train_examples=1000000",
    "--validation_fraction=0.99",
    "--routing=dynamc",
    "--routing=frozen",
    "--frozen_from=nowhere",
    "--routing=frozen --frozen_from=nowhere",
    "--preset=huge",
    "--model=resnet",
    "--dtype=float64",
    "--recipe=papr",
    "--init=zeros",
    "--squash=round",
    "--votes=none",
    "--loss=mse",
    "--parallel=threads",
    "--accelerator=gpu",
    "--accelerator=tpu",
    "--accelerator=fpga",
    "--routing_implementation=pallas",
    "--routing_implementation=fast",
    "--routing_prior=learned --routing=em",
    "--model=cnn --routing=em",
    "--workdir=gs://bucket/run",
    "--workdir=s3://bucket/run",
    "--workdir=~nobody-at-all/run",
    "--workdir=/dev/null",
    "--workdir=/dev/null/run",
    "--workdir=/proc/run",
    f"--workdir={'x' * 300}",
    "--cache_dir=gs://bucket/cache",
    "--dataset=no_such_data",
    "--dataset=../digits",
    "--dataset=http://host/data.npz",
    "--dataset=gs://bucket/data.npz",
    "--dataset=nowhere.npz",
    "--dataset=/dev/zero.npz",
    "--dataset=mnist:9.9.9 --data_dir=nowhere",
    "--dataset=",
    "--data_dir=nowhere --dataset=mnist",
    "--flagfile=nowhere",
    "--flagfile=/dev/zero",
    "--flagfile=/tmp",
    "--logger_levels=x",
    "--stderrthreshold=loud",
    "--dataset=/",
    "--dataset=.",
    "--cache_dir=/dev/null",
    "--max_minutes=nan",
    "--learning_rate=-1",
    "--no_such_flag=1",
    "--noepochs",
    "--diagnostics=maybe",
    "word",
    "--profile=-1",
    "--routing_bias=perhaps",
]
OTHERS = {
    "cifar10": ["--ensemble=100000000", "--ensemble=0", "--dataset=digits --ensemble=1000000"],
    "smallnorb": ["--dataset=digits --batch_size=1000000000", "--dataset=nothing"],
    "svhn": ["--dataset=nothing", "--learning_rate=nan"],
    "multimnist": ["--dataset=nothing", "--decay_rate=nan", "--train_examples=-1"],
    "affnist": [
        "--dataset=digits --affnist_dir=nowhere",
        "--dataset=digits --compare=nowhere",
        "--dataset=digits --stop_at=101",
        "--dataset=digits --stop_at=nan",
    ],
    "predict": [
        "",
        "image.png",
        "--run=nowhere image.png",
        "--run=. image.png",
        "--run=. nowhere/",
        "--run=/dev/null image.png",
        "--run=. --invert=perhaps image.png",
        "--run=. --output=x.txt image.png",
        "--run=. --output=gs://x.png image.png",
    ],
    "figures": [
        "",
        "--run=nowhere",
        "--run=.",
        "--run=.,.",
        "--run=,",
        "--run=. --format=gif",
        "--run=. --image=-2",
        "--run=. --image=99999999999999999999",
        "--run=nowhere,nothing",
    ],
    "equivariance": ["", "--run=nowhere", "--run=.", "--run=. --images=-1", "--run=/dev/null"],
    "sweep": [
        "",
        "--study=nothing",
        "--grid=",
        "--grid=seed",
        "--grid=seed=",
        "--grid=seed=0..99999999999",
        "--grid=noreconstruction=1",
        "--grid=flagfile=x",
        "--grid=workdir=x",
        "--grid=seed=0 --program=os",
        "--grid=seed=0 --program=sweep",
        "--grid=seed=0 --program=../mnist",
        "--grid=seed=0 --program=experiments.mnist",
        "--grid=seed=0 --seeds=-1",
        "--grid=seed=0 --jobs=0",
        "--grid=seed=0 --vmap=some",
        "--grid=seed=0 --shard=2/2",
        "--grid=seed=0 --merge=nowhere",
        "--grid=seed=0 --executor=cloud",
        "--grid=seed=0 --runs=/dev/null",
        "--grid=learning_rate=nan",
        "--study=table1 --grid=seed=0",
    ],
    "data_efficiency": [
        "",
        "--sweep=nowhere",
        "--sweep=.",
        "--sweep=/dev/zero",
        "--sweep=bad.json",
    ],
    "benchmark": [
        "--batch_sizes=1000000000",
        "--batch_sizes=²",
        "--batch_sizes=1,,2",
        "--pixels=100000 --batch_sizes=1000000",
        "--pixels=0",
        "--repetitions=0",
        "--routings=none",
        "--implementations=all,some",
        "--compare=tensorflow",
        "--output=/dev/null/x",
        "--output=/",
        "--model=cnn",
        "--dataset=digits",
    ],
    "benchmark_vmap": ["--sizes=tiny,-5", "--sizes=tiny", "--sizes=huge,8", "--runs=1", "--sizes="],
    "scaling": ["--output=/dev/null/x", "--accelerator=gpu", "--no_such_flag"],
    "acceptance": ["--output=/dev/null/x", "--limit=0", "--epochs=-1", "--accelerator=gpu"],
}


def arrays(**changes) -> dict:
    """Returns small arrays of a data set, some exchanged."""
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 1), np.uint8)
    labels = np.arange(20) % 4
    found = {f"{s}_images": images for s in ("train", "test")}
    found |= {f"{s}_labels": labels for s in ("train", "test")}
    return {name: value for name, value in (found | changes).items() if value is not None}


def files() -> dict[str, dict]:
    """Returns arrays that are refused, by name of the file."""
    images, labels = arrays()["train_images"], arrays()["train_labels"]
    return {
        "no labels": arrays(train_labels=None),
        "other lengths": arrays(train_labels=labels[:9]),
        "no images": arrays(train_images=images[:0], train_labels=labels[:0]),
        "no channels": arrays(train_images=images[..., :0]),
        "other shapes": arrays(test_images=images[:, :8]),
        "NaN": arrays(train_images=np.full(images.shape, np.nan)),
        "text": arrays(train_images=np.full(images.shape, "x")),
        "objects": arrays(train_images=np.array([None] * 20)),
        "label 30000000": arrays(train_labels=labels + 30_000_000),
        "label 2^32": arrays(train_labels=labels + 2**32),
        "label -1": arrays(train_labels=labels - 1),
        "label 0.5": arrays(train_labels=labels + 0.5),
        "one class": arrays(train_labels=labels * 0, test_labels=labels * 0),
        "many names": arrays(class_names=np.arange(10**6).astype(str)),
        "few names": arrays(class_names=np.array(["a"])),
        "tiny": arrays(train_images=images[:, :2, :2], test_images=images[:, :2, :2]),
        "volumes": arrays(train_images=images[..., None]),
        "huge": arrays(
            train_images=np.zeros((1, 1, 1, 1)), test_images=np.zeros((4, 10**5, 10**5, 0))
        ),
    }


def cases(scratch: Path):
    """Yields names, and functions that return what is wrong or nothing."""
    log, data = scratch / "log", scratch / "data"
    log.mkdir(), data.mkdir()
    for number, (name, content) in enumerate(files().items()):
        np.savez(data / f"{number}.npz", **content)
        yield f"npz: {name}", partial(_refused, log, "mnist", f"--dataset={data / f'{number}.npz'}")
    whole = (data / "4.npz").read_bytes()
    for name, content in (("empty", b""), ("half", whole[:999]), ("binary", os.urandom(99))):
        (data / f"{name}.npz").write_bytes(content)
        yield f"npz: {name}", partial(_refused, log, "mnist", f"--dataset={data / name}.npz")
    os.mkfifo(data / "fifo.npz")
    (data / "folder.npz").mkdir()
    for name in ("fifo", "folder"):
        yield f"npz: {name}", partial(_refused, log, "mnist", f"--dataset={data / name}.npz")
    for name in INTEGERS:
        for value in HUGE[: 6 if name == "steps" else 2] + HUGE[3:5]:
            if name != "seed" or value != "2147483648":  # which is legal
                yield f"--{name}={value}", partial(_refused, log, "mnist", f"--{name}={value}")
    for name in FLOATS:
        for value in ("nan", "inf", "-1e400", "x"):
            yield f"--{name}={value}", partial(_refused, log, "mnist", f"--{name}={value}")
    for words in WRONG:
        yield f"mnist {words}", partial(_refused, log, "mnist", *words.split())
    for module, lines in OTHERS.items():
        for words in lines:
            yield (
                f"{module} {words}",
                partial(_refused, log, module, *words.split(" ") if words else ()),
            )


def _refused(log, module, *words):
    here = log / "here"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    (here / "bad.json").write_text('{"runs": [[')
    common = TRAIN if module == "mnist" else ()
    before = os.getcwd()
    os.chdir(here)
    try:
        ended = processes.run(log, module, *common, *words)
    finally:
        os.chdir(before)
    written = {path.name for path in here.iterdir()} - {"bad.json"}
    return processes.clean(ended) or (f"written: {sorted(written)}" if written else "")
