"""The one reader: what is no regular file, too large, too deep or of another form is refused."""

import hashlib
import json
import os

import pytest

from experiments.files import BadFile, check, is_integer, is_number, read_bytes, read_json, sha256
from experiments.files.forms import ENTRY, NETWORK, SUMMARY


def test_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xa4"]}')
    assert read_json(path) == {"a": [1, 2.5, None, "ä"]}
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link") == path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [b"", b"[1", b"[]", b"null", b"\xff{}", b"[" * 10**6, b'{"a":' * 9 + b"1" + b"}" * 9]
    + [b'{"a": 1' + b"0" * 5000 + b"}", b'{"a": 9223372036854775808}', b" " * 1025],
    ids=range(10),
)
def test_other_contents_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a\x1b[2J.json"
    path.write_bytes(content)
    with pytest.raises(BadFile) as error:
        read_json(path, most=1024 if content[:1] == b" " else 2**24)
    assert str(error.value).isprintable() and "json" in str(error.value)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, "/dev/zero", tmp_path / "nowhere", "a\0b"):
        for read in (read_bytes, sha256):
            with pytest.raises(BadFile):
                read(path)


SCHEMA = {"a": is_integer, "b?": [str], "c?": {"d": is_number}}


@pytest.mark.parametrize(
    "value, said",
    [
        ({}, "it has no 'a'"),
        ({"a": True}, "'a' is True"),
        ({"a": 1, "b": [1]}, "'b'[0] is a number, not text"),
        ({"a": 1, "b": "x"}, "'b' is text, not a list"),
        ({"a": 1, "c": {}}, "'c' has no 'd'"),
        ({"a": 1, "e": 1}, "'e' in it is unknown"),
        ([], "it is a list, not an object"),
    ],
)
def test_other_forms_are_refused_naming_the_place(value, said):
    with pytest.raises(ValueError) as error:
        check(value, SCHEMA)
    assert str(error.value) == said


def test_the_form_itself_is_accepted():
    for value in ({"a": 1}, {"a": 2, "b": [], "c": {"d": 0.5}}, {"a": 0, "b": ["x", "y"]}):
        assert check(value, SCHEMA) is value
    assert check({"a": 1, "z": 3}, {"a": is_integer, "*": is_number})


@pytest.mark.parametrize(
    "form, good, bad",
    [
        (SUMMARY, {"test_error": 3.5, "new": 1}, {"test_error": -1}),
        (SUMMARY, {"test_error": 0}, {"test_examples": 4e10}),
        (ENTRY, {"key": "a", "summary": {}}, {"key": ["a"]}),
        (ENTRY, {"key": "a", "error": "x"}, {"key": "a", "summary": "text"}),
        (ENTRY, {"key": "a", "together": 1}, {"key": "a", "together": 0}),
        (
            NETWORK,
            {"image_shape": [8, 8, 1], "class_names": ["a", "b"], "border": [0, 0.5]},
            {"image_shape": [8, "8", 1], "class_names": ["a", "b"], "border": [0, 0.5]},
        ),
    ],
)
def test_forms_of_files(form, good, bad):
    assert check(json.loads(json.dumps(good)), form) == good
    with pytest.raises(ValueError):
        check(bad, form)
