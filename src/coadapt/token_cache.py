"""Tokenised rows on disk: a large data set is tokenised once, and not once a run.

``tokens`` in the cache's folder (``$COADAPT_CACHE`` or ``~/.cache/coadapt``) has a file for each
task and split of at least 2^20 characters, under a hash of all that decides its content: the rows,
the task, the tokenizer with its chat template, how the model is to be used, the versions, and the
code that makes tokens of rows. When the files pass 2 GiB those that were read longest ago go.
Removing the folder loses nothing; ``COADAPT_TOKEN_CACHE=0`` does without it.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from coadapt import tasks
from coadapt._files import write_text
from coadapt._version import __version__
from coadapt.assets import cache_folder
from coadapt.config import to_plain
from coadapt.tasks import Rows, Task

logger = logging.getLogger(__name__)

# Below, tokenising takes less than half a second (benchmarks/tokenizing.py).
MIN_CHARACTERS = 2**20
MAX_BYTES = 2**31

Items = list[dict[str, Any]]


class TokenCache:
    """Finds tokenised rows on disk, or makes them and keeps them there."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[Any, str]] = {}  # of tokenizers, which stay the same

    def get(
        self, tokenizer: Any, how: list[Any], task: Task, rows: Rows, make: Callable[[], Items]
    ) -> Items:
        """Return tokenised rows.

        Args:
            tokenizer: the model's.
            how: what else decides what is made of the rows, as plain data.
            task: whose rows.
            rows: to be tokenised.
            make: tokenises them; its result is lists and integers, in dictionaries by name.
        """
        if not _pays(tokenizer, rows):
            return make()
        path = cache_folder() / "tokens" / f"{self._key(tokenizer, how, task, rows)}.json"
        found = _read(path)
        if found is None or len(found) != len(rows):
            found = make()
            _write(path, found)
        return found

    def _key(self, tokenizer: Any, how: list[Any], task: Task, rows: Rows) -> str:
        if id(tokenizer) not in self._told:
            self._told[id(tokenizer)] = tokenizer, _tell(tokenizer)
        digest = hashlib.sha256()
        content = (rows.texts, rows.pairs, rows.labels.tolist(), rows.options, rows.conversations)
        for part in (_code(), self._told[id(tokenizer)][1], how, to_plain(task), content):
            digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\x00")
        return digest.hexdigest()[:32]


def _pays(tokenizer: Any, rows: Rows) -> bool:
    """Whether the rows are many, and nothing but what is hashed decides their tokens."""
    if os.environ.get("COADAPT_TOKEN_CACHE") == "0" or rows.pictures is not None:
        return False
    if getattr(tokenizer, "backend_tokenizer", None) is None:  # state in Python, of any kind
        return False
    texts = [*rows.texts, *(rows.pairs or ())]
    return sum(map(len, texts)) >= MIN_CHARACTERS


def _tell(tokenizer: Any) -> str:
    """Return all of a tokenizer that decides what it makes of a text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for changing in ("truncation", "padding"):  # set by each call
        state.pop(changing, None)
    names = ("model_max_length", "model_input_names", "chat_template", "special_tokens_map")
    told = [type(tokenizer).__name__, *(str(getattr(tokenizer, name, None)) for name in names)]
    return json.dumps([told, state], sort_keys=True)


@functools.cache
def _code() -> str:
    """Return what stands for the code: versions, and the files that make tokens of rows."""
    digest = hashlib.sha256()
    for file in sorted(Path(tasks.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    versions = (__version__, transformers.__version__, tokenizers.__version__)
    return " ".join((*versions, digest.hexdigest()))


def _read(path: Path) -> Items | None:
    """Return what a file holds, or None if it is missing or not what was written."""
    try:
        mark, _, body = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if hashlib.sha256(body.encode()).hexdigest() != mark:
        logger.warning("%s is damaged; the rows are tokenised anew", path)
        return None
    with suppress(OSError):  # the folder may be read-only
        os.utime(path)
    return json.loads(body)


def _write(path: Path, items: Items) -> None:
    body = json.dumps(items, separators=(",", ":"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
        _make_room(path.parent)
    except OSError as error:
        logger.info("tokenised rows are not kept in %s: %s", path.parent, error)


def _make_room(folder: Path) -> None:
    """Remove the files that were read longest ago until the others fit."""
    files = [(file.stat(), file) for file in folder.glob("*.json")]
    total = sum(stat.st_size for stat, _ in files)
    for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime):
        if total <= MAX_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= stat.st_size
