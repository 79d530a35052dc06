"""How a checkpoint gets its checksums, and its name after all of its files are there."""

import json
from pathlib import Path

from experiments.files import sha256

CHECKSUMS, ROWS, CONFIG = "checksums.json", "metrics.jsonl", "config.json"


def with_checksums(rows: dict[str, tuple[Path, int]]) -> type:
    """Returns how a checkpoint gets its name: Orbax's way, after its last files are written.

    ``rows`` are metrics.jsonl and how many bytes of it, by step; entries are removed.
    """
    import orbax.checkpoint as ocp

    class WithChecksums(ocp.path.atomicity.AtomicRenameTemporaryPath):
        async def finalize(self, *arguments, **options):
            folder, name = Path(self.get()), self.get_final().name
            if name.isdigit():  # or else it is a part, whose files are among those of the whole
                _complete(folder, rows.pop(name, None))
            await super().finalize(*arguments, **options)

    return WithChecksums


def _complete(folder: Path, rows: tuple[Path, int] | None) -> None:
    if rows:
        with open(rows[0], "rb") as file:
            (folder / ROWS).write_bytes(file.read(rows[1]))
        (folder / CONFIG).write_bytes(rows[0].with_name(CONFIG).read_bytes())
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    # Orbax itself changes the files at the top once more; they hold no numbers.
    paths = [p for p in paths if p.parent != folder or p.name in (ROWS, CONFIG)]
    found = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    (folder / CHECKSUMS).write_text(json.dumps(found), "utf-8")
