"""The report of a run on image files: table by class, contact sheet, report.html."""

import base64
import dataclasses
import html.parser
import io

import numpy as np
import pytest
from helpers import TINY, prepare_run, read_json, train
from PIL import Image

from experiments.plots import contact_sheet
from experiments.plots.html_report import Picture, Table, html_report
from experiments.tasks import hard_examples
from experiments.training import run_report

RNG = np.random.default_rng(0)
NASTY = "<script>&\"'"


class Parser(html.parser.HTMLParser):
    """Collects texts, tags and the values of attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.values = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def png(size=(3, 2)):
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return file.getvalue()


def test_all_texts_are_escaped_and_figures_inside():
    picture = png()
    tables = [Table(NASTY, (NASTY,), [(NASTY,)]), Table("empty", (), [])]
    page = html_report(NASTY, NASTY, tables, [Picture(NASTY, NASTY, picture)])
    found = Parser(page)
    assert "script" not in found.tags and "link" not in found.tags
    assert sum(NASTY in text for text in found.texts) == 8  # all of them as they were written
    sources = [value for tag, name, value in found.values if name in ("src", "href")]
    (source,) = sources
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == picture
    assert "http" not in page.replace("http-equiv", "") and "empty" not in page


def test_errors_by_class_are_counted():
    labels = np.array([0, 0, 2, 2, 2])
    correct = np.array([True, False, True, True, False])
    rows = run_report.by_class(labels, correct, ("a", "b", "c"))
    assert rows == [("a", 2, 1, 50.0), ("c", 3, 1, 33.33)]
    sets = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    rows = run_report.by_class(sets, np.array([False, True, True]), ("a", "b", "c"))
    assert rows == [("a", 1, 1, 100.0), ("b", 2, 1, 50.0)]


def test_hardest_images_come_first():
    loss = RNG.permutation(50).astype(np.float32)
    accuracy = RNG.integers(0, 2, 50)
    values = {"loss": -loss, "reconstruction_loss": -loss, "margin_loss": loss}
    wrong, unsure = hard_examples.hardest(values | {"accuracy": accuracy})
    for rows, right, most in ((wrong, 0, hard_examples.WRONG), (unsure, 1, hard_examples.UNSURE)):
        every = sorted(np.flatnonzero(accuracy == right), key=lambda k: -loss[k])
        assert rows.tolist() == every[:most]


def test_contact_sheets_have_a_line_for_every_four_images(tmp_path):
    image = RNG.random((6, 9, 3), np.float32)
    frames = [contact_sheet.Frame(image, None, "a" * 60, "b", False)] * 5
    heights = []
    for groups in ([("x", frames[:4])], [("x", frames)], [("x", frames), ("y", [])], []):
        contact_sheet.plot_contact_sheet(tmp_path / "c.png", groups, "title $x$")
        with Image.open(tmp_path / "c.png") as sheet:
            heights.append(sheet.height)
    assert heights[0] < heights[1] == heights[2] and heights[3] < heights[0]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Returns a folder of noise in two classes, one with a name like a tag, and a broken file."""
    root = tmp_path_factory.mktemp("pets")
    for name, count in (("<b>cat", 12), ("dog", 8)):
        (root / name).mkdir()
        for k in range(count):
            pixels = RNG.integers(0, 256, (20, 28, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    (root / "dog" / "bad.jpg").write_bytes(b"hello")
    return root


def test_a_run_on_a_folder_ends_with_a_report(pets, tmp_path, capsys):
    config = dataclasses.replace(TINY, dataset=str(pets), workdir=str(tmp_path), batch_size=8)
    train(config)
    out = capsys.readouterr()
    assert "dog/bad.jpg (not an image" in out.err and "report" in out.out
    assert "test error by class: " in out.out
    assert "dog/bad.jpg" in (tmp_path / "unreadable_files.csv").read_text()
    summary = read_json(tmp_path / "summary.json")
    assert summary["dataset"] == f"{pets}/"
    page = (tmp_path / "report.html").read_text()
    found = Parser(page)
    assert ("<b>cat", "2") in zip(found.texts, found.texts[1:])  # 2 of 12 images are for testing
    texts = " ".join(found.texts)
    assert "b" not in found.tags and "<b>cat" in texts and summary["command"] in texts
    assert "--dataset" in texts and "bad.jpg" in texts
    drawn = [v for tag, name, v in found.values if (tag, name) == ("img", "src")]
    files = [path.read_bytes() for path in (tmp_path / "figures").glob("*.png")]
    assert sorted(base64.b64decode(v.partition(",")[2]) for v in drawn) == sorted(files)
    assert (tmp_path / "figures" / "contact_sheet.png").exists()
    setup = prepare_run(dataclasses.replace(config, report="no"))
    assert not run_report.wanted(setup)


def test_columns_of_numbers_are_aligned_with_their_headings():
    """In a list of names and values, numbers stay next to their names."""
    by_class = Table("", ("class", "%", "note"), [("cat", 0.5, 1), ("dog", 100, "b")])
    page = html_report("", "", [by_class, Table("values", ("", ""), [("steps", 3)])], [])
    assert "<tr><th>class</th><th class=number>%</th><th>note</th></tr>" in page
    assert "<tr><td>cat</td><td class=number>0.5</td><td>1</td></tr>" in page
    assert "<tr><td>steps</td><td>3</td></tr>" in page


def test_other_runs_have_a_report_only_on_demand(tiny_run):
    assert not (tiny_run / "report.html").exists()
    assert run_report.wanted(prepare_run(dataclasses.replace(TINY, report="yes")))
