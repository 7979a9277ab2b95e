"""Tasks that a run is said to have judged, with errors whose coupling is known."""

import numpy as np

from coadapt.diagnosis.residuals import Judged, calibrate, shared_coupling
from coadapt.tasks import FileSource, Task
from coadapt.tasks.rows import Rows
from coadapt.tasks.split import text_key

NOWHERE = FileSource(path="never-read.jsonl")


def rng(seed=0):
    return np.random.default_rng(seed)


def texts_of(num, start=0):
    return tuple(f"text {index}" for index in range(start, start + num))


def rows_of(texts, labels, pairs=None):
    return Rows(texts=tuple(texts), pairs=pairs, labels=np.asarray(labels))


def classes(name, texts, labels, outputs):
    task = Task(name=name, kind="classification", data=NOWHERE, labels=("no", "yes"))
    return Judged(task=task, rows=rows_of(texts, np.asarray(labels, int)), outputs=outputs)


def values(name, texts, labels, outputs):
    task = Task(name=name, kind="regression", data=NOWHERE)
    return Judged(task=task, rows=rows_of(texts, labels), outputs=np.reshape(outputs, (-1, 1)))


def logits(p):
    """Return two columns of logits whose softmax is (1 - p, p)."""
    return np.column_stack([np.zeros_like(p), np.log(p / (1 - p))])


def coupled(num, share, seed=0, texts=None, names=("a", "b")):
    """Return two tasks on the same texts whose residuals correlate by ``share`` at every p.

    The second label is the first with that probability, and drawn anew otherwise: the covariance
    given p is share * p (1 - p), the variances are p (1 - p).
    """
    generator = rng(seed)
    p = generator.uniform(0.1, 0.9, size=num)
    first = generator.random(num) < p
    second = np.where(generator.random(num) < share, first, generator.random(num) < p)
    texts = texts_of(num) if texts is None else texts
    return [
        classes(name, texts, labels, logits(p))
        for name, labels in zip(names, (first, second), strict=True)
    ]


def independent(name, texts, seed):
    generator = rng(seed)
    p = generator.uniform(0.1, 0.9, size=len(texts))
    return classes(name, texts, generator.random(len(texts)) < p, logits(p))


def is_fitted(text, *rest):
    """Whether the temperature is fitted on the row: its key is odd."""
    return int.from_bytes(text_key((text, *rest)), "big") % 2 == 1


def estimated(*judged, seed=0):
    return shared_coupling(judged, [calibrate(task) for task in judged], rng(seed))
