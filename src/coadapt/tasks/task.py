"""What a task is: where its rows come from, which columns hold what, and how it is scored."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Literal

from coadapt._errors import InputError, nearest
from coadapt.config import LATER
from coadapt.tasks.metrics import METRICS
from coadapt.tasks.prompts import OPTIONS_FIELD, Generation, column_of, template_fields
from coadapt.tasks.sources import MESSAGES, LlamaFactorySource, Source
from coadapt.tasks.split import SPLITS

Kind = Literal["classification", "regression", "choice", "generation"]

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "choice": ("accuracy", "accuracy_norm"),
    "generation": ("exact_match",),
}

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Task:
    r"""One task of a suite.

    An encoder scores a classification or regression by a head. A language model scores a
    classification by the likelihood of its label words, a choice by that of its options, and
    writes the answer of a generation.

    Args:
        name: 1 to 100 of letters, digits, ``_``, ``-`` and ``.``, not beginning with a dot: it
            becomes the name of files and folders.
        kind: ``classification``, ``regression``, ``choice`` or ``generation``.
        data: where the rows come from.
        text: the column with the text, or two columns for a task on pairs.
        prompt: a template that makes the text of columns instead (``"{question}\nAnswer:"``), see
            `coadapt.tasks.prompts.template_fields`.
        system: what a chat begins with, a template too; language models only.
        messages: the column with a conversation, as a list of ``{role, content}``; its last
            assistant turn is the answer. Only for ``generation``. Of a `LlamaFactorySource` it is
            filled in.
        image: the column with a row's picture: a path, seen from the data file's folder, or what a
            data set has as a picture; rows may be without. Image-text models only.
        label: where the label or answer stands: a column, or a dotted field (``answers.text``). A
            generation may have several admissible answers, a list; the first is trained on.
        labels: the classes; their order gives the ids. If not given, those of the training split
            in sorted order, filled in by `load_suite`. For a choice, what the label column calls
            the options, by position.
        words: what a language model says for each label; the labels themselves if not given.
        options: of a choice: the field with the row's list of options (a text is cut at ``/``), or
            a template for each option.
        option_labels: the field with what the label column calls each of the row's options.
            Without it and ``labels``, the label is the option's number from 0, or its text.
        unit: of a regression, (center, scale): its head computes (y - center) / scale, and the loss
            is the squared error of that. If not given, mean and standard deviation of the training
            split's labels, filled in by `load_suite`; (0, 1) takes the labels as they are.
        delimiter: between the prompt and an option or answer, where a decoder reads them as one
            text, unless the prompt ends in white space.
        generation: how an answer is written.
        metrics: names in `coadapt.tasks.metrics.METRICS`, the first being the one that decides; if
            not given `DEFAULT_METRICS` of the kind.
        num_shots: that many training rows of each class.
        max_rows: at most that many training rows, or split -> number of rows; drawn by the suite's
            seed, and a smaller draw is part of a larger one.

    Raises:
        InputError: if a field has a value that cannot be.
    """

    name: str
    kind: Kind
    data: Source
    text: str | tuple[str, ...] = "text"
    prompt: str | None = field(default=None, metadata=LATER)
    system: str | None = field(default=None, metadata=LATER)
    messages: str | None = field(default=None, metadata=LATER)
    image: str | None = field(default=None, metadata=LATER)
    label: str = "label"
    labels: tuple[str | int | bool, ...] = ()
    words: tuple[str, ...] = field(default=(), metadata=LATER)
    options: str | tuple[str, ...] = field(default=(), metadata=LATER)
    option_labels: str | None = field(default=None, metadata=LATER)
    unit: tuple[float, float] | None = field(default=None, metadata=LATER)
    delimiter: str = field(default=" ", metadata=LATER)
    generation: Generation = field(default=Generation(), metadata=LATER)
    metrics: tuple[str, ...] = ()
    num_shots: int | None = None
    max_rows: dict[str, int] | int | None = None

    def __post_init__(self) -> None:
        check_task_name(self.name)
        if isinstance(self.data, LlamaFactorySource):
            self._take_conversations()
        if self.prompt is None and len(self.columns) not in (1, 2):
            raise InputError(f"{self}: text names {len(self.columns)} columns; give one or two")
        if not self.metrics:
            object.__setattr__(self, "metrics", DEFAULT_METRICS[self.kind])
        for metric in self.metrics:
            self._check_metric(metric)
        if METRICS[self.score_metric].lower_is_better:
            raise InputError(
                f"{self}: '{self.score_metric}' is better when lower; the first metric decides and "
                "must be better when higher, such as log_likelihood"
            )
        # As JSON and YAML spell them.
        spelled = (str(v).lower() if isinstance(v, bool) else v for v in self.labels)
        object.__setattr__(self, "labels", tuple(spelled))
        self._check_labels()
        self._check_unit()
        self._check_language()
        check_max_rows(self.max_rows, str(self))
        if self.num_shots is not None:
            self._check_num_shots(self.num_shots)

    def _take_conversations(self) -> None:
        if self.kind != "generation":
            raise InputError(
                f"{self}: a data set of LLaMA-Factory holds conversations, which are for a "
                f"generation, not a {self.kind}; set kind to generation"
            )
        if self.messages not in (None, MESSAGES):
            raise InputError(
                f"{self}: messages is '{self.messages}', but a data set of LLaMA-Factory says "
                "itself where they stand; remove it"
            )
        object.__setattr__(self, "messages", MESSAGES)

    def _check_metric(self, metric: str) -> None:
        if metric not in METRICS:
            raise InputError(f"{self}: unknown metric '{metric}'{nearest(metric, METRICS)}")
        if self.kind not in METRICS[metric].kinds:
            fitting = ", ".join(name for name, row in METRICS.items() if self.kind in row.kinds)
            raise InputError(f"{self}: '{metric}' does not score {self.kind}; use {fitting}")

    def _check_labels(self) -> None:
        if self.labels and self.kind in ("regression", "generation"):
            raise InputError(f"{self}: a {self.kind} has no labels; remove 'labels'")
        if len(self.labels) == 1:
            raise InputError(f"{self}: one label {self.labels[0]!r} only; give two or more")
        if len(self._ids) < len(self.labels):
            written = [str(label) for label in self.labels]
            twice = next(label for label in written if written.count(label) > 1)
            raise InputError(f"{self}: the label '{twice}' is declared twice; remove one")
        if "" in self._ids:
            raise InputError(f"{self}: an empty label is declared; remove it")

    def _check_unit(self) -> None:
        if self.unit is None:
            return
        if self.kind != "regression":
            raise InputError(f"{self}: 'unit' is for a regression, not a {self.kind}; remove it")
        center, scale = self.unit
        if not (isfinite(center) and isfinite(scale) and scale > 0):
            found = list(self.unit)
            raise InputError(f"{self}: unit is {found}; give a center and a scale above 0")

    def _check_language(self) -> None:
        """Check the prompt, and refuse what has no effect on a task of this kind."""
        for kind, name, given in (
            ("choice", "options", self.options),
            ("choice", "option_labels", self.option_labels),
            ("classification", "words", self.words),
            ("generation", "messages", self.messages),
        ):
            if given and self.kind != kind:
                raise InputError(f"{self}: '{name}' is for a {kind}, not a {self.kind}; remove it")
        if self.kind == "choice" and not self.options:
            raise InputError(f"{self}: a choice needs 'options': a field, or a list of templates")
        if isinstance(self.options, tuple) and len(self.options) == 1:
            raise InputError(f"{self}: one option only; give two or more, or the field with them")
        if len(set(self.options)) < len(self.options) and isinstance(self.options, tuple):
            raise InputError(f"{self}: an option stands twice in 'options'; remove one")
        if self.words and len(self.words) != len(self.labels):
            raise InputError(
                f"{self}: {len(self.words)} words for {len(self.labels)} labels; give a word a "
                "label, in the order of 'labels'"
            )
        if len(set(self.words)) < len(self.words) or "" in self.words:
            raise InputError(f"{self}: each label needs a word of its own, not empty")
        if self.image and (self.messages or self.kind == "regression"):
            raise InputError(
                f"{self}: 'image' is for prompts of text and classification, choice or "
                "generation; remove it"
            )
        if self.messages and (self.prompt or self.system):
            raise InputError(f"{self}: 'messages' holds the whole prompt; remove prompt and system")
        for template in (self.prompt, self.system):
            if template is not None:
                template_fields(template)  # raises where it is not well formed

    def _check_num_shots(self, num_shots: int) -> None:
        if self.kind != "classification":
            raise InputError(f"{self}: num_shots counts rows of a class; use max_rows")
        if num_shots < 1:
            raise InputError(f"{self}: num_shots is {num_shots}; give 1 or more")
        if isinstance(self.max_rows, int) or "train" in (self.max_rows or {}):
            raise InputError(f"{self}: num_shots and max_rows both limit training; give one")

    def __str__(self) -> str:
        return f"task '{self.name}'"

    @property
    def columns(self) -> tuple[str, ...]:
        """What the text is made of: the prompt's fields, or the one or two text columns."""
        if self.messages is not None:
            return (self.messages,)
        if self.prompt is not None:
            fields = template_fields(self.prompt)
            listed = OPTIONS_FIELD if self.kind == "choice" else None
            return tuple(field for field in fields if field != listed)
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts, as a head's encoder reads them."""
        return self.prompt is None and len(self.columns) == 2

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The source's columns that a prediction needs: all but the label's."""
        fields = [*self.columns]
        if self.system is not None:
            fields += template_fields(self.system)
        options = (self.options,) if isinstance(self.options, str) else self.options
        if self.options:
            templates = [] if isinstance(self.options, str) else options
            fields += [*options] if isinstance(self.options, str) else []
            fields += [field for template in templates for field in template_fields(template)]
        fields += [self.image] if self.image else []
        return tuple(dict.fromkeys(column_of(field) for field in fields))

    @property
    def source_columns(self) -> tuple[str, ...]:
        """The source's columns that training needs."""
        fields = [] if self.messages else [self.label]
        fields += [self.option_labels] if self.option_labels else []
        return tuple(dict.fromkeys((*self.input_columns, *map(column_of, fields))))

    @property
    def num_outputs(self) -> int:
        """The width of the task's head: the number of classes, or 1 for a regression.

        Raises:
            InputError: for a kind that has no head, or labels that are not known yet.
        """
        if self.kind == "regression":
            return 1
        if self.kind != "classification":
            raise InputError(f"{self}: a {self.kind} has no head; it needs a language model")
        if not self.labels:
            raise InputError(f"{self}: no labels yet; load_suite reads them from the data")
        return len(self.labels)

    @property
    def score_metric(self) -> str:
        """The metric that decides."""
        return self.metrics[0]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {str(label): index for index, label in enumerate(self.labels)}

    def label_id(self, value: str | int | float) -> int:
        """Return the class id of a label, which may be written as text or as a number.

        Raises:
            InputError: if it is not one of the declared labels.
        """
        try:
            return self._ids[str(value)]
        except KeyError:
            raise InputError(
                f"{self}: label {value!r} is not one of the declared ones"
                f"{nearest(str(value), self._ids)}"
            ) from None


def check_task_name(name: str, what: str = "task") -> None:
    """Refuse what cannot safely be the name of a file.

    Args:
        name: the name.
        what: it is of.

    Raises:
        InputError: giving the name and what one may hold.
    """
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 120 else name[:117] + "..."
        raise InputError(
            f"{what} name {shown!r} ({len(name)} characters) cannot be used; take 1 to 100 of "
            f"letters, digits, '_', '-' and '.', not beginning with a dot"
        )


def check_max_rows(max_rows: dict[str, int] | int | None, where: str) -> None:
    """Refuse limits below 1 and unknown splits.

    Raises:
        InputError: naming ``where`` and the limit.
    """
    limits = max_rows if isinstance(max_rows, dict) else {"train": max_rows}
    for split, limit in limits.items():
        if split not in SPLITS:
            raise InputError(
                f"{where}: max_rows of unknown split '{split}'{nearest(split, SPLITS)}"
            )
        if limit is not None and limit < 1:
            raise InputError(f"{where}: max_rows is {limit} for {split}; give 1 or more")
