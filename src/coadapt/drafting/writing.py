"""Writing suite.yaml and train.yaml with comments that say what was guessed and why."""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from coadapt._errors import InputError
from coadapt._files import write_text
from coadapt.drafting.guessing import Guess

SUITE, TRAIN = "suite.yaml", "train.yaml"
ENCODER, DECODER = "asset:minilm", "asset:smollm2"
_LONG = (64, 128, 256)  # tokens
_TOKENS_A_WORD = 1.5
_FAR = os.path.join(*[os.pardir] * 3)  # from where on a relative path is harder to read
# (at most so many rows a task, epochs): small data want more passes to reach a plateau.
_EPOCHS = ((200, 15), (1000, 8), (float("inf"), 3))


def write_files(guesses: Sequence[Guess], folder: Path, model: str | None = None) -> list[Path]:
    """Write both files; they load and train as they stand.

    Args:
        guesses: one a task.
        folder: for the files; made if it is not there.
        model: of train.yaml; by default a small one from a wheel, an encoder if all tasks are
            classification or regression, else a decoder.

    Raises:
        InputError: if a file is there already, or two tasks have one name.
    """
    names = [guess.name for guess in guesses]
    for name in names:
        if names.count(name) > 1:
            twice = ", ".join(str(guess.file) for guess in guesses if guess.name == name)
            raise InputError(f"two tasks would be named '{name}' ({twice}); rename a file")
    for name in (SUITE, TRAIN):
        if (folder / name).exists():
            raise InputError(f"{folder / name} is there already; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    suite = "".join(_task(guess, folder) for guess in guesses)
    write_text(folder / SUITE, f"{_SUITE_HEAD}tasks:\n{suite}")
    write_text(folder / TRAIN, _train(guesses, model))
    return [folder / SUITE, folder / TRAIN]


_SUITE_HEAD = """\
# What is trained on and scored. Written from a look at the files: read it, and mend what is wrong.
#
#     coadapt check suite.yaml
#
# Rows are split by a hash of their text, alike in every task: no text is in two splits.
split: {validation: 0.15, test: 0.25}
"""


def _task(guess: Guess, folder: Path) -> str:
    """Return a task's lines."""
    where = os.path.relpath(guess.file.absolute(), folder.absolute())
    if where.startswith(_FAR):
        where = str(guess.file.absolute())
    lines = [f"  # {guess.file.name}: {guess.rows:,} rows, {guess.words[0]} words in the median."]
    lines += [f"  # {reason}." for reason in guess.reasons]
    lines += [f"  {_quoted(guess.name)}:", f"    kind: {guess.kind}", f"    data: {_quoted(where)}"]
    if guess.kind in ("choice", "generation"):
        parts = "\n".join(f"{{{column}}}" for column in guess.texts)
        lines.append(f"    prompt: {_quoted(parts)}  # columns in braces; what the model reads")
    else:
        texts = ", ".join(_quoted(column) for column in guess.texts)
        lines.append(f"    text: [{texts}]")
    lines.append(f"    label: {_quoted(guess.label)}")
    if guess.options is not None:
        lines.append(f"    options: {_quoted(guess.options)}")
    if guess.values:
        shown = ", ".join(f"{name} {count}" for name, count in list(guess.values.items())[:8])
        lines.append(f"    # labels: {shown}")
        rare = min(guess.values.values()) < 0.2 * max(guess.values.values())
        if rare:
            lines.append(
                "    metrics: [f1, accuracy]  # the labels are uneven: accuracy says little"
            )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return text as YAML would write it in one line."""
    dumped = yaml.safe_dump(text, default_flow_style=True, allow_unicode=True, width=10_000)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _train(guesses: Sequence[Guess], model: str | None) -> str:
    heads = all(guess.kind in ("classification", "regression") for guess in guesses)
    name = model or (ENCODER if heads else DECODER)
    tokens = max(guess.words[1] for guess in guesses) * _TOKENS_A_WORD
    length = next((length for length in _LONG if tokens <= length), _LONG[-1])
    rows = sum(guess.rows for guess in guesses) / len(guesses)
    epochs = next(epochs for most, epochs in _EPOCHS if rows <= most)
    rate = "2.0e-3" if heads else "5.0e-4"
    kind = "an encoder with a head a task" if heads else "a decoder that scores or writes answers"
    return f"""\
# How it is trained. See what it will take, then train, score and ship:
#
#     coadapt check train.yaml
#     coadapt train train.yaml --output runs/first
#     coadapt evaluate runs/first
#     coadapt export runs/first --output shipped
model:
  name: {_quoted(name)}  # {kind}; a hub id or a folder will do too
  max_length: {length}  # tokens; longer rows are cut (check says how many)
suite: {SUITE}
recipe: lora  # one adapter for all tasks; `coadapt methods` lists the others
budget: 8  # its rank
training:  # for transformers' TrainingArguments
  learning_rate: {rate}  # try three, on validation rows
  num_train_epochs: {epochs}
  per_device_train_batch_size: {16 if heads else 8}
"""
