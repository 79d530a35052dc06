"""Folders and tables of image files as data sets: reading, splits, duplicates, refusals."""

import json
import os
import zlib

import numpy as np
import pytest
from helpers import parse_mnist
from PIL import ExifTags, Image

from experiments import UserError
from experiments.config import own_images
from experiments.data import (
    datasets,
    image_files,
    image_folder,
    image_listing,
    image_size,
    image_splits,
    npz,
)
from experiments.data.image_folder import ImageOptions
from experiments.data.image_listing import list_images
from experiments.data.listed_image import ListedImage

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def fill(root, counts, shape=(8, 6)):
    for name, count in counts.items():
        for k in range(count):
            save(root / name / f"{k}.png", noise(*shape))
    return f"{root}/"


def load(dataset, **options):
    return datasets.load(
        str(dataset), cache_dir="none", validation_fraction=0.2, options=ImageOptions(**options)
    )


def refusal(dataset, **options):
    with pytest.raises(UserError) as caught:
        load(dataset, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_flags_and_options_have_the_same_defaults():
    config = parse_mnist()
    assert ImageOptions(*(getattr(config, name) for name in ImageOptions._fields)) == ImageOptions()
    assert tuple(image_size.RESIZE) == own_images.RESIZES


def test_a_folder_of_classes_is_split_by_class_and_seed(tmp_path, capsys):
    name = fill(tmp_path / "pets", {"cat2": 20, "cat10": 10, "dog": 2, "emu": 1})
    dataset = load(name)
    assert dataset.class_names == ("cat2", "cat10", "dog", "emu")  # numbers count as such
    assert dataset.name == name and dataset.image_shape == (8, 6, 1)
    of = [np.bincount(getattr(dataset, f"{s}_labels"), minlength=4) for s in datasets.SPLITS]
    assert np.array(of).tolist() == [[13, 6, 1, 1], [3, 2, 0, 0], [4, 2, 1, 0]]
    told = capsys.readouterr().err
    assert "33 images of 4 classes, 8x6 pixels (the size of all" in told
    assert "2 classes (dog, emu) have no validation images" in told
    assert "class emu has no test images" in told
    files = {}
    for path in (tmp_path / "pets").rglob("*.png"):
        files[np.asarray(Image.open(path)).tobytes()] = path.parent.name
    seen = [
        (image.tobytes(), dataset.class_names[label])
        for s in datasets.SPLITS
        for image, label in zip(getattr(dataset, f"{s}_images"), getattr(dataset, f"{s}_labels"))
    ]
    assert dict(seen) == files and len(seen) == 33  # every file is in one split, with its label
    again, other = load(name[:-1]), load(name, split_seed=1)
    assert again.source == dataset.source and other.source != dataset.source
    assert other.class_names == dataset.class_names


def test_splits_of_a_folder_are_kept_and_their_arrays_join_those_of_npz_files(tmp_path):
    for split in ("train", "val", "test"):
        fill(tmp_path / "data" / split, {"a": 3, "b": 2})
    dataset = load(tmp_path / "data")
    assert [len(getattr(dataset, f"{s}_labels")) for s in datasets.SPLITS] == [5, 5, 5]
    first = np.asarray(Image.open(tmp_path / "data" / "val" / "a" / "0.png"))
    np.testing.assert_array_equal(dataset.validation_images[0, ..., 0], first)
    names = [f"{s}_{what}" for what in ("images", "labels") for s in npz.SPLITS]
    arrays = {name: getattr(dataset, name) for name in names}
    np.savez(tmp_path / "same.npz", **arrays, class_names=["a", "b"])
    same = datasets.load(str(tmp_path / "same.npz"), cache_dir="none")
    for name in names:
        np.testing.assert_array_equal(getattr(same, name), arrays[name])
    checksum = 0
    for name in names:
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]), checksum)
    for one in (dataset, same):
        assert one.source.startswith(f"arrays {checksum:08x} from ")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_name_files_labels_and_splits(tmp_path, kind):
    rows = [
        {
            "path": f"x/{k}.png",
            "label": "ab"[k % 2],
            "split": ("train", "train", "val", "test")[k // 2],
        }
        for k in range(8)
    ]
    for row in rows:
        save(tmp_path / row["path"], noise(5, 5))
    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        text = "\n".join(["Path, label,split", *(",".join(row.values()) for row in rows)])
        path.write_text("\ufeff" + text, "utf-8")
    else:
        rows = [row | {"caption": "one\u2028two\u0085three"} for row in rows]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("\r\n".join(lines), "utf-8")
    dataset = load(path)
    assert [len(getattr(dataset, f"{s}_labels")) for s in datasets.SPLITS] == [4, 2, 2]
    assert dataset.class_names == ("a", "b") and not dataset.multi_label
    sets = [{"path": r["path"], "labels": ["a", "b"][: k % 3]} for k, r in enumerate(rows)]
    (tmp_path / "sets.jsonl").write_text("\n".join(map(json.dumps, sets)))
    (tmp_path / "sets.csv").write_text(
        "\n".join(["path,labels", *(f"{r['path']},{';'.join(r['labels'])}" for r in sets)])
    )
    for name in ("sets.jsonl", "sets.csv"):
        dataset = load(tmp_path / name)
        assert dataset.multi_label and dataset.train_labels.dtype == np.uint8
        every = np.concatenate([getattr(dataset, f"{s}_labels") for s in datasets.SPLITS])
        assert sorted(every.tolist()) == sorted(
            [[int(k % 3 > 0), int(k % 3 > 1)] for k in range(8)]
        )


BAD_TABLES = {
    "path,label\n../out.png,a\n": "line 2: '../out.png' is outside of the folder",
    "path,label\n/etc/hostname,a\n": "is outside of the folder",
    "path,label\nlink.png,a\n": "'link.png' is outside of the folder",
    "name,label\nx.png,a\n": "the first line names the columns",
    "path,label\nx.png,\n": "line 2 has no label",
    "path,label\nx.png,a,b,c\n": "line 2 has more fields",
    "path,label\n,a\n": "line 2 has no path",
    "path,label\n": "no lines",
    "path,label,split\nx.png,a,dev\n": "split 'dev' is none of train, validation, test",
    "path,label,split\nx.png,a,test\nx.png,b,\n": "some lines have a split",
    "path,label\nx.png,a\n": "one class only",
    "path,label\nx.png,a\x1b[2J\nx.png,b\n": "not printable",
    "path,label\nx\0.png,a\n": "",
    "path,label,label\nx.png,a,b\n": "several columns label",
    "path,label,labels\nx.png,a,b\n": "has both label and labels",
}


@pytest.mark.parametrize("labels", [6, 10, 20])
def test_rare_sets_of_labels_are_divided_together(labels):
    """Sets of many labels hardly occur twice, and yet a fifth of the images is for testing."""
    has = np.random.default_rng(0).random((1000, labels)) < 0.3
    images = [
        ListedImage(None, str(k), tuple(np.flatnonzero(row).astype(str)), None)
        for k, row in enumerate(has)
    ]
    codes = [str(k).encode() for k in range(1000)]
    splits = image_splits.choose(images, codes, {"test": 0.2, "validation": 0.1}, seed=0)
    assert 0.18 < np.mean(splits == "test") < 0.22
    assert 0.07 < np.mean(splits == "validation") < 0.09
    for split in ("train", "test"):  # no label is left to one of them
        np.testing.assert_allclose(has[splits == split].mean(0), has.mean(0), atol=0.07)


@pytest.mark.parametrize("text", BAD_TABLES, ids=range(len(BAD_TABLES)))
def test_bad_tables_are_refused_in_a_line(tmp_path, text):
    here = tmp_path / "here"
    save(here / "x.png", noise(5, 5))
    save(tmp_path / "out.png", noise(5, 5))
    (here / "link.png").symlink_to(tmp_path / "out.png")
    (here / "t.csv").write_text(text)
    assert BAD_TABLES[text] in refusal(here / "t.csv")
    (here / "t.jsonl").write_text('{"path": "x.png", "label": "a"}\n[' + "[" * 100_000)
    assert "--dataset=" in refusal(here / "t.jsonl")


def test_links_to_outside_are_refused(tmp_path):
    outside = save(tmp_path / "secret" / "x.png", noise(8, 6))
    name = fill(tmp_path / "pets", {"cat": 20, "dog": 20})
    (tmp_path / "pets" / "cat" / "y.png").symlink_to(outside)
    dataset = load(name)
    assert dataset.skipped == (("cat/y.png", "a link to outside of the folder"),)
    (tmp_path / "pets" / "emu").symlink_to(tmp_path / "secret")
    assert "emu is a link to outside" in refusal(name)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables_that_never_end_are_refused(tmp_path, suffix):
    os.mkfifo(tmp_path / f"a.{suffix}")
    (tmp_path / f"b.{suffix}").symlink_to("/dev/zero")
    for name in "ab":
        assert "is not a regular file" in refusal(tmp_path / f"{name}.{suffix}")


def test_a_folder_of_other_things_is_refused_before_all_of_it_is_listed(tmp_path, monkeypatch):
    name = fill(tmp_path / "pets", {"cat": 10, "dog": 10})
    monkeypatch.setattr(image_listing, "MOST_OTHERS", 15)
    for k in range(19):  # as notes to each image
        (tmp_path / "pets" / "cat" / f"{k}.txt").write_text("")
    (tmp_path / "pets" / "dog" / "last.txt").write_text("")
    listed = []
    monkeypatch.setattr(image_listing, "_is_image", lambda n: listed.append(n) or n[-3:] == "png")
    assert "more than 15 files and folders in it are no images" in refusal(name)
    assert "18.txt" in listed and "last.txt" not in listed
    monkeypatch.setattr(image_listing, "MOST_OTHERS", 50)
    assert len(load(name).train_labels) == 12


def test_unreadable_files_are_named_and_too_many_stop_the_run(tmp_path, capsys, monkeypatch):
    name = fill(tmp_path / "pets", {"cat": 10, "dog": 10})
    for k in range(12):
        (tmp_path / "pets" / "dog" / f"bad{k:02}.jpg").write_bytes(b"hello")
    (tmp_path / "pets" / "dog" / "bad03\x1b[2J.jpg").write_bytes(b"hello")
    (tmp_path / "pets" / "dog" / "notes.txt").write_text("no image")
    os.mkfifo(tmp_path / "pets" / "dog" / "pipe.png")
    error = refusal(name)
    assert "14 of 34 files can't be read, more than --max_bad_fraction=0.05" in error
    assert "dog/bad00.jpg (not an image" in error
    assert len(load(name, max_bad_fraction=0.5).skipped) == 14
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "left out" in x)
    assert "14 files" in line and line.count("bad") == 10 and line.endswith("and 4 more")
    assert r"bad03\x1b[2J.jpg" in line
    monkeypatch.setattr(image_files, "LARGEST_FILE", 10)
    assert "larger than" in refusal(name, max_bad_fraction=0.5)
    with pytest.raises(UserError, match="need 24.6 TB, and .* are free"):
        image_folder._check_memory("x", 10**9, (64, 64))


def test_equal_images_stay_together_or_are_reported(tmp_path, capsys):
    fill(tmp_path / "pets", {"cat": 20, "dog": 20})
    twin = save(tmp_path / "pets" / "dog" / "twin.bmp", noise(8, 6))
    for k in range(9):  # other bytes, the same pixels
        save(tmp_path / "pets" / "dog" / f"twin{k}.png", np.asarray(Image.open(twin)))
    for seed in range(4):
        dataset = load(tmp_path / "pets", split_seed=seed)
        found = [
            sum(x.tobytes() == Image.open(twin).tobytes() for x in getattr(dataset, f"{s}_images"))
            for s in datasets.SPLITS
        ]
        assert sorted(found) == [0, 0, 10]
    assert "also among" not in capsys.readouterr().err
    for split in ("train", "test"):
        fill(tmp_path / "own" / split, {"a": 3, "b": 3})
        save(
            tmp_path / "own" / split / ("a" if split == "train" else "b") / "z.png",
            noise(1, 1) + np.zeros((8, 6), np.uint8) + 7,
        )
    pixels = np.asarray(Image.open(tmp_path / "own" / "train" / "a" / "z.png"))
    save(tmp_path / "own" / "test" / "b" / "z.png", pixels)
    load(tmp_path / "own")
    told = capsys.readouterr().err
    assert "1 images of validation or test are also among" in told
    assert "test/b/z.png and train/a/z.png" in told and "different labels" in told


def test_kinds_of_files_give_the_same_pixels(tmp_path):
    grey, colour = noise(9, 7), noise(9, 7, 3)
    alpha = np.dstack([colour, np.full((9, 7), 255, np.uint8)])
    for split in ("train", "test"):
        here = tmp_path / split
        save(here / "a" / "grey.png", grey)
        save(here / "a" / "deep.png", grey.astype(np.uint16) * 257)
        save(here / "a" / "deep.tif", grey.astype(np.uint16) * 257)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
        save(here / "a" / "turned.png", np.rot90(grey), exif=exif)
        save(here / "b" / "colour.bmp", colour)
        save(here / "b" / "alpha.png", alpha)
        save(here / "b" / "exact.webp", colour, lossless=True)
        Image.fromarray(grey).convert("P").save(here / "b" / "palette.png")
    dataset = load(tmp_path)
    assert dataset.image_shape == (9, 7, 3)
    three = np.repeat(grey[..., None], 3, 2)
    expected = [three] * 4 + [colour] * 3 + [three]
    order = ["deep.png", "deep.tif", "grey.png", "turned.png", "alpha.png", "colour.bmp"]
    assert [i.path.name for i in list_images(str(tmp_path)).images][:6] == order
    np.testing.assert_array_equal(dataset.test_images, expected)
    single = load(tmp_path, channels="1")
    assert single.image_shape == (9, 7, 1)
    want = np.rint(colour @ np.float64([0.299, 0.587, 0.114]))
    assert np.abs(single.test_images[4, ..., 0] - want).max() <= 1


def test_sizes(tmp_path):
    choose = image_size.choose
    assert choose("auto", [(30, 20)] * 3 + [(9, 9)] * 2)[0] == (30, 20)
    assert choose("auto", [(10, 20), (30, 40), (50, 60)])[0] == (30, 40)
    shape, how = choose("auto", [(480, 640)] * 2)
    assert shape == (48, 64) and "the size of all (480x640), reduced to 64 at most" in how
    assert choose("5,7", [])[0] == (5, 7)
    assert choose("5", [])[0] == (5, 5)
    for text in ("3", "a", "a,b", "3,9", "5,5,5", "9,2000"):
        with pytest.raises(UserError, match="give auto, one side or H,W"):
            choose(text, [])
    image = np.linspace(0, 1, 40, dtype=np.float32).reshape(4, 10, 1)
    for resize in image_size.RESIZE.values():
        assert resize(image, (6, 6)).shape == (6, 6, 1)
        np.testing.assert_array_equal(resize(image, (4, 10)), image)
    np.testing.assert_array_equal(image_size.crop(image, (4, 4)), image[:, 3:7])
    np.testing.assert_array_equal(image_files.pad(image, (6, 10))[1:5], image)


def test_what_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mnist", "pets"):
        (tmp_path / name).mkdir()
    assert image_listing.is_folder("pets") and image_listing.is_folder("mnist/")
    assert not image_listing.is_folder("mnist") and not image_listing.is_folder("emnist/letters")
    assert "no images" in refusal("pets") and "No such file" in refusal("nowhere/")
    save(tmp_path / "loose" / "x.png", noise(5, 5))
    assert "x.png is in no folder of a class" in refusal("loose")
    with pytest.raises(UserError, match="--resize applies to folders"):
        load("digits", resize="crop")
    assert own_images.stem_of("a/b/") == "b" and own_images.stem_of("a/b.csv") == "b"
    assert own_images.stem_of("emnist/letters") == "emnist/letters"


def test_names_of_splits_may_have_capitals(tmp_path):
    for split in ("Train", "TEST"):
        fill(tmp_path / "data" / split, {"a": 5, "b": 5})
    dataset = load(tmp_path / "data")
    assert dataset.class_names == ("a", "b") and len(dataset.test_labels) == 10
    (tmp_path / "t.csv").write_text(
        "path,label,split\n"
        + "".join(f"data/Train/{c}/{k}.png,{c},Train\n" for c in "ab" for k in range(5))
        + "".join(f"data/TEST/{c}/{k}.png,{c}, Testing\n" for c in "ab" for k in range(5))
    )
    assert len(load(tmp_path / "t.csv").test_labels) == 10
    fill(tmp_path / "data" / "testing", {"a": 5, "b": 5})
    assert "TEST and testing are both for test" in refusal(tmp_path / "data")


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    dataset = load(fill(tmp_path / "vehicles", {"train": 10, "car": 10, "bus": 10}))
    assert dataset.class_names == ("bus", "car", "train")


def test_what_is_left_out_of_a_folder_is_said(tmp_path, capsys):
    for split in ("train", "test"):
        fill(tmp_path / "data" / split, {"a": 5, "b": 5})
    fill(tmp_path / "data", {"more": 3})
    save(tmp_path / "data" / "x.png", noise(8, 6))
    fill(tmp_path / "data" / "extra", {"c": 9})
    (tmp_path / "data" / "train" / "a" / "link").symlink_to(tmp_path / "data" / "extra" / "c")
    dataset = load(tmp_path / "data")
    assert len(dataset.train_labels) + len(dataset.validation_labels) == 10
    told = capsys.readouterr().err
    assert "1 images beside the folders are left out, such as x.png" in told
    assert "folders beside those of splits are left out: extra, more" in told
    assert "train/a/link is a link to a folder, which is left out" in told
    drawn = "10 test; validation drawn by class and --split_seed; test as given, without --test_f"
    assert drawn in told
    load(fill(tmp_path / "plain", {"a": 5, "b": 5}))
    assert "left out" not in capsys.readouterr().err


def test_classes_that_are_equal_numbers_have_one_order(tmp_path):
    fill(tmp_path / "data", {"1": 2, "01": 2, "001": 2, "a1": 2, "a01": 2})
    names = list_images(f"{tmp_path / 'data'}/").class_names
    assert names == ["001", "01", "1", "a01", "a1"]


def test_sets_of_labels_have_no_order(tmp_path, capsys):
    fill(tmp_path, {"x": 8})
    twin = noise(8, 6)
    lines = [f"x/{k}.png,{'cup;pen' if k % 2 else 'cup'}" for k in range(8)]
    for name, labels in (("p", "cup;pen"), ("q", "pen; cup;pen")):
        save(tmp_path / "x" / f"{name}.png", twin)
        lines.append(f"x/{name}.png,{labels}")
    (tmp_path / "t.csv").write_text("\n".join(["path,labels", *lines]))
    load(tmp_path / "t.csv")
    assert "different labels" not in capsys.readouterr().err


def test_lines_of_json_mean_what_lines_of_csv_mean(tmp_path):
    fill(tmp_path, {"x": 12})

    def write(*rows):
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "t.jsonl"

    def row(k, **more):
        return {"Path": f"x/{k}.png", "Label": " a" if k % 3 else "b ", **more}

    rows = [row(k, Split="Train" if k < 8 else "test") for k in range(12)]
    dataset = load(write(*rows))
    assert dataset.class_names == ("a", "b") and len(dataset.test_labels) == 4
    assert "line 2 has both label and labels" in refusal(write(row(0), row(1, labels=["a"])))
    assert "line 1: 1.0 is no label: text or whole numbers" in refusal(write(row(0, Label=1.0)))
    assert "line 1 has no label" in refusal(write({"path": "x/0.png"}))


def test_masks_of_0_and_1_are_refused_in_words_for_files(tmp_path):
    for name in ("round", "square"):
        for k in range(10):
            save(tmp_path / name / f"{k}.png", noise(8, 6) // 128)
    said = refusal(tmp_path)
    assert "no pixel of the train images is above 1 of 255" in said and "* 255" not in said
