"""Where a task's rows come from."""

from dataclasses import dataclass
from typing import Literal

from coadapt._errors import InputError, nearest
from coadapt.assets import DATA_NAMES
from coadapt.tasks.split import SPLITS


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A data set of the Hugging Face hub, or a local folder in the same form.

    Args:
        path: the data set's id, or a folder that begins with ``.`` or ``/``.
        name: its configuration, where it has several.
        revision: the branch, tag or commit; the newest if not given.
        splits: our split -> its split (``{test: validation}`` where the test labels are secret);
            its splits called train, validation and test if not given.
    """

    kind: Literal["hub"] = "hub"
    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[str, str] | None = None

    def __post_init__(self) -> None:
        _check_splits(self.splits or {})


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Rows in files: ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet``.

    A ``.json`` file holds a list of objects or, as ``.jsonl`` does, an object a line.

    Args:
        path: one file, which is split by a hash of the text; or split -> file. In a suite file,
            relative to it.
    """

    kind: Literal["file"] = "file"
    path: str | dict[str, str]

    def __post_init__(self) -> None:
        if isinstance(self.path, dict):
            _check_splits(self.path)


@dataclass(frozen=True, kw_only=True)
class AssetSource:
    """One of the embedded data sets (`coadapt.assets.DATA_NAMES`), split by a hash.

    Of the text, or of the picture where there is one.
    """

    kind: Literal["asset"] = "asset"
    name: str

    def __post_init__(self) -> None:
        if self.name not in DATA_NAMES:
            raise InputError(f"unknown data asset '{self.name}'{nearest(self.name, DATA_NAMES)}")


@dataclass(frozen=True, kw_only=True)
class LlamaFactorySource:
    """A data set as LLaMA-Factory knows it, by its entry in a ``dataset_info.json``.

    Alpaca and ShareGPT rows are read, of files (``.json``, ``.jsonl``, ``.csv``, ``.parquet``, or a
    folder of such) and of the hub. Each row becomes a conversation, and the task's ``messages``
    is `MESSAGES` by itself. What is trained on is the last answer of the assistant; LLaMA-Factory
    trains on the earlier ones too, unless told not to (``mask_history``).

    Not for preferences, tools, images, video or sound, which are refused.

    Args:
        path: the ``dataset_info.json``, or the folder that holds it. In a suite file, relative to
            it.
        name: the entry, whose rows are split by a hash of the text.
        splits: in its place, our split -> the entry that holds it.

    Raises:
        InputError: if neither or both of ``name`` and ``splits`` are given.

    Example:
        >>> LlamaFactorySource(path="data", splits={"train": "alpaca", "test": "alpaca_eval"}).name
    """

    kind: Literal["llama_factory"] = "llama_factory"
    path: str
    name: str | None = None
    splits: dict[str, str] | None = None

    def __post_init__(self) -> None:
        _check_splits(self.splits or {})
        if bool(self.name) == bool(self.splits):
            raise InputError(
                f"{self.path}: give 'name', the entry to split by a hash, or 'splits', an entry "
                "for each split; one of the two"
            )


# The column that `LlamaFactorySource` gives.
MESSAGES = "messages"

Source = HubSource | FileSource | AssetSource | LlamaFactorySource


def _check_splits(splits: dict[str, str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}'{nearest(split, SPLITS)}")
    if splits and not {"train", "test"} & set(splits):
        raise InputError(
            f"there is neither 'train' nor 'test' among the splits {', '.join(splits)}; add one"
        )
