"""Writing files and folders so that a kill leaves the old or the new, never a half."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coadapt._errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import, and most files here hold text
    from torch import Tensor

MANIFEST = "manifest.json"


def write_text(path: Path, text: str) -> None:
    """Write a file by way of a temporary one beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:  # a full disk: leave nothing half
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write JSON; floats keep every bit."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: if the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error


def save_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    """Write a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file.

    Raises:
        InputError: if it is missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or no safetensors file: {error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes ``path``, with a manifest, when the block ends.

    A folder that is there already is replaced.
    """
    temporary = path.with_name(f"tmp-{path.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary)
        raise
    seal(temporary)
    put_in_place(temporary, path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished folder to its name."""
    if path.exists():
        old = path.with_name(f"tmp-old-{path.name}")
        if old.exists():
            shutil.rmtree(old)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        temporary.rename(path)


def seal(folder: Path) -> None:
    """Write the manifest: name, size and SHA-256 of every file in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    rows = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
    }
    write_json(folder / MANIFEST, rows)


def is_whole(folder: Path) -> bool:
    """Return whether a folder has its manifest and every file in it at its full size."""
    if not (folder / MANIFEST).is_file():
        return False
    rows = read_json(folder / MANIFEST)
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == row["bytes"]
        for name, row in rows.items()
    )


def check_manifest(folder: Path, only: str | None = None) -> None:
    """Raise InputError unless every file of a sealed folder, or one, is as it was written."""
    for name, row in read_json(folder / MANIFEST).items():
        if only not in (None, name):
            continue
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; the folder is incomplete")
        if path.stat().st_size != row["bytes"] or sha256(path) != row["sha256"]:
            raise InputError(
                f"{path} is not the file that was written (truncated or changed since); "
                "restore it, or train again"
            )


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
