"""Files that may come from elsewhere, and files that are written: one reader and one writer."""

from experiments.files.compiled import check_programs
from experiments.files.limits import (
    check_addresses,
    check_memory,
    check_private,
    free_bytes,
    local_path,
    make_private,
    size,
    split_paths,
)
from experiments.files.reader import (
    BadFile,
    check,
    is_integer,
    is_number,
    is_plain,
    parse,
    read_bytes,
    read_json,
    read_text,
    sha256,
)
from experiments.files.text import formula_free, html, one_line
from experiments.files.writer import check_folder, fresh, fresh_folder, write_json, write_text

__all__ = [
    "BadFile",
    "check",
    "formula_free",
    "free_bytes",
    "fresh",
    "fresh_folder",
    "html",
    "is_integer",
    "is_number",
    "is_plain",
    "local_path",
    "make_private",
    "one_line",
    "parse",
    "read_bytes",
    "read_json",
    "read_text",
    "check_folder",
    "check_addresses",
    "check_memory",
    "check_private",
    "check_programs",
    "sha256",
    "size",
    "split_paths",
    "write_json",
    "write_text",
]
