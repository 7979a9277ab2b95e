"""How the tasks of a suite relate, before anything is trained."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError
from coadapt._processes import share_out
from coadapt._seeds import named_seed
from coadapt.adapters import target_names
from coadapt.adapters.linear import linear_weight
from coadapt.backbone import ModelConfig, compute_dtype
from coadapt.config import parse, to_plain
from coadapt.diagnosis import describe
from coadapt.diagnosis.collect import Collector, Encoded, Features, ProbeGradients
from coadapt.diagnosis.heads import chunks_of, crossfit_gradients, folds_of, pool_gradients
from coadapt.diagnosis.measures import Diagnosis
from coadapt.diagnosis.progress import RowProgress
from coadapt.diagnosis.redundancy import label_redundancy
from coadapt.diagnosis.representation import covariance_gram, spectral_entropy
from coadapt.diagnosis.similarity import cosines, gram_of
from coadapt.loading import Loader
from coadapt.tasks import Task, TaskSuite, load_suite
from coadapt.tasks.render import Collator

if TYPE_CHECKING:
    from rich.console import Console

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DiagnosisConfig:
    """How a suite is diagnosed.

    Args:
        model: the base model; its ``target_modules`` are what is probed.
        max_rows: training rows a task that are looked at.
        num_probes: rank-1 probes that the similarity is averaged over.
        num_folds: a row's gradient is taken with a head fitted on the other folds.
        num_chunks: groups of rows that the uncertainty is judged by, at most.
        num_bootstrap: bootstrap replicates.
        num_permutations: for the labels' redundancy.
        rank: singular values that the entropy counts.
        pool: take all tasks' gradients on the same rows, drawn from all tasks, with the labels of
            a teacher: a Gaussian kernel ridge regression on frozen features.
        batch_size: rows a forward.
        seed: of folds, chunks, probes and resamples.
    """

    model: ModelConfig
    max_rows: int = 512
    num_probes: int = 8
    num_folds: int = 2
    num_chunks: int = 32
    num_bootstrap: int = 200
    num_permutations: int = 199
    rank: int = 8
    pool: bool = False
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"num_folds": 2, "num_chunks": max(4, self.num_folds), "num_bootstrap": 20}
        least |= {"num_permutations": 19, "max_rows": 8 * self.num_folds}
        least |= {"num_probes": 1, "rank": 2, "batch_size": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} must be at least {low}, not {getattr(self, name)}")

    def generator(self, *names: str) -> np.random.Generator:
        """Return the random stream of that name."""
        return np.random.default_rng(named_seed(self.seed, "diagnosis", *names))


@dataclass(kw_only=True, eq=False)
class _Seen:
    """What was collected of one task."""

    task: Task
    encoded: Encoded
    labels: Array
    folds: NDArray[np.int64]
    chunks: NDArray[np.int64]
    features: Features
    gradients: ProbeGradients | None = None
    entropy: dict[str, float] = field(default_factory=dict)


def diagnose(
    model: str | dict[str, Any] | ModelConfig,
    suite: str | Path | dict[str, Any] | TaskSuite,
    *,
    console: "Console | None" = None,
    loader: Loader | None = None,
    **options: Any,
) -> Diagnosis:
    """Measure how the tasks of a suite relate, on training rows alone.

    The processes of a launch share the tasks out among them; each returns the same diagnosis.

    Args:
        model: a hub id, a folder, an asset such as ``asset:minilm``, or a ModelConfig.
        suite: a suite file, a ready suite's name, plain data, or a TaskSuite.
        console: where to show progress.
        loader: keeps what several calls share.
        options: the other fields of :class:`DiagnosisConfig`, such as ``max_rows``.

    Returns:
        By pair: ``similarity`` of the gradients, ``absolute``, ``corrected`` for noise, ``fisher``,
        ``representation`` and, where tasks share texts, ``redundancy``. By task: ``rows``,
        ``reliability`` and ``entropy``; by module: ``entropy``.

    Raises:
        InputError: if there are fewer than two tasks, or one of them has too few rows or classes.

    Example:
        ``found = coadapt.diagnose("asset:minilm", "demo")``
    """
    loaded = suite if isinstance(suite, TaskSuite) else load_suite(suite)
    named = to_plain(model) if isinstance(model, ModelConfig) else model
    plain = {"model": {"name": named} if isinstance(named, str) else named, **options}
    config = parse(DiagnosisConfig, plain, "diagnose()")
    return examine(config, loaded, console=console, loader=loader)


def examine(
    config: DiagnosisConfig,
    suite: TaskSuite,
    *,
    console: "Console | None" = None,
    loader: Loader | None = None,
) -> Diagnosis:
    """Return the diagnosis that ``config`` describes, see :func:`diagnose`."""
    if len(suite.names) < 2:
        raise InputError(
            f"suite '{suite.name}' has one task; a diagnosis relates two or more to each other"
        )
    suite = suite.resolved()
    seconds: dict[str, float] = {}
    with _timed(seconds, "collect"), RowProgress(console) as progress:
        seen = _collect(config, suite, loader or Loader(), progress)
    names = suite.names
    gradients = [task.gradients for task in seen if task.gradients is not None]
    with _timed(seconds, "similarity"):
        similarity, fisher = (
            cosines(
                gram_of(gradients, fisher=with_fisher),
                [task.num_chunks for task in gradients],
                names,
                num_bootstrap=config.num_bootstrap,
                generator=config.generator("bootstrap", "gradients"),
                paired=config.pool,
            )
            for with_fisher in (False, True)
        )
    with _timed(seconds, "representation"):
        gram = covariance_gram([t.features.pooled for t in seen], [t.chunks for t in seen])
        representation = cosines(
            gram,
            [int(task.chunks.max()) + 1 for task in seen],
            names,
            num_bootstrap=config.num_bootstrap,
            generator=config.generator("bootstrap", "representation"),
        )
    with _timed(seconds, "redundancy"):
        redundancy = label_redundancy(
            suite,
            num_permutations=config.num_permutations,
            generator=config.generator("permutations"),
        )
    judged = {task.task.name: len(task.labels) for task in seen}
    rows = {task: len(suite.rows(task, "train")) for task in names}
    return Diagnosis(
        tasks=names,
        of=f"model {config.model.name}, suite {suite.name}",
        rows=judged,
        settings=to_plain(config),
        pairs=describe.pairs(names, similarity, fisher, representation, redundancy, config.pool),
        by_task=describe.by_task(names, rows, judged, similarity, [t.entropy for t in seen]),
        tables=describe.entropies(names, [t.entropy for t in seen], config.rank),
        notes=describe.notes(names, similarity, redundancy, config.pool),
        seconds=seconds,
    )


def _collect(
    config: DiagnosisConfig, suite: TaskSuite, loader: Loader, progress: RowProgress
) -> list[_Seen]:
    """Run every task's rows forward, fit heads, and run them forward and back."""
    backbone, pooling = loader.backbone(
        config.model, compute_dtype(config.model.dtype), trains=False
    )
    if pooling is None:
        raise InputError(
            f"'{config.model.name}' is a language model; so far a diagnosis reads the vectors of "
            "an encoder. Diagnose the suite with one, such as asset:minilm"
        )
    collector = Collector(
        backbone=backbone,
        pooling=pooling,
        collate=Collator(loader.tokenizer(config.model)),
        modules=target_names(backbone, config.model.target_modules),
        batch_size=config.batch_size,
        tick=progress.advance,
    )
    seen = _look(config, collector, suite, loader, progress)
    if config.pool:
        _on_a_pool(config, collector, seen, progress)
        return seen
    progress.start("forward and back", sum(len(found.labels) for found in seen))

    def back(found: _Seen) -> ProbeGradients:
        return collector.gradients(
            found.encoded,
            crossfit_gradients(found.task, found.features.pooled, found.labels, found.folds),
            found.chunks,
            num_probes=config.num_probes,
            seed=config.seed,
        )

    for found, gradients in zip(seen, share_out(seen, back), strict=True):
        found.gradients = gradients
    return seen


def _look(
    config: DiagnosisConfig,
    collector: Collector,
    suite: TaskSuite,
    loader: Loader,
    progress: RowProgress,
) -> list[_Seen]:
    """Draw every task's rows and run them forward."""
    drawn = [_draw(config, suite, loader, task) for task in suite.tasks]
    total = sum(len(labels) for _, labels, _ in drawn)
    progress.start("forward", total)

    def forward(encoded: Encoded) -> tuple[Features, dict[str, float]]:
        features = collector.features(encoded)
        # Now, so that only one task's moments are in memory at a time.
        entropy = _entropies(collector, features, config.rank)
        features.moments.clear()
        return features, entropy

    forwarded = share_out([encoded for encoded, _, _ in drawn], forward)
    return [
        _Seen(
            task=task,
            encoded=encoded,
            labels=labels,
            folds=folds,
            chunks=chunks_of(
                labels,
                folds,
                config.num_chunks,
                config.generator("chunks", task.name),
                ordered=task.kind == "regression",
            ),
            features=features,
            entropy=entropy,
        )
        for task, (encoded, labels, folds), (features, entropy) in zip(
            suite.tasks, drawn, forwarded, strict=True
        )
    ]


def _draw(
    config: DiagnosisConfig, suite: TaskSuite, loader: Loader, task: Task
) -> tuple[Encoded, Array, NDArray[np.int64]]:
    """Return a task's rows, at most so many, its labels, and the folds."""
    encoded = loader.encoded(config.model, suite, task.name, "train")
    labels = suite.rows(task.name, "train").labels.astype(np.float64)
    if len(labels) > config.max_rows:
        order = config.generator("rows", task.name).permutation(len(labels))
        kept = np.sort(order[: config.max_rows])
        encoded, labels = [encoded[row] for row in kept], labels[kept]
    folds = folds_of(task, labels, config.num_folds, config.generator("folds", task.name))
    return encoded, labels, folds


def _entropies(collector: Collector, features: Features, rank: int) -> dict[str, float]:
    return {
        name: spectral_entropy(
            linear_weight(collector.backbone.get_submodule(name)).double().cpu().numpy(),
            features.moments[source].second,
            rank=rank,
        )
        for name, source in features.source.items()
    }


def _on_a_pool(
    config: DiagnosisConfig, collector: Collector, seen: list[_Seen], progress: RowProgress
) -> None:
    """Take every task's gradients on the same rows, an equal number from each task."""
    each = max(1, config.max_rows // len(seen))
    # Drawn, since a file may hold one class after the other.
    rows = [
        config.generator("pool", task.task.name).permutation(len(task.labels))[:each]
        for task in seen
    ]
    pairs = list(zip(seen, rows, strict=True))
    encoded = [task.encoded[row] for task, kept in pairs for row in kept]
    features = np.concatenate([task.features.pooled[kept] for task, kept in pairs])
    source = np.repeat(np.arange(len(seen), dtype=np.float64), [len(kept) for kept in rows])
    chunks = chunks_of(
        source, np.zeros(len(source), np.int64), config.num_chunks, config.generator("pool")
    )
    progress.start("forward and back", len(encoded) * len(seen))

    def back(found: _Seen) -> ProbeGradients:
        return collector.gradients(
            encoded,
            pool_gradients(found.task, found.features.pooled, found.labels, features),
            chunks,
            num_probes=config.num_probes,
            seed=config.seed,
        )

    for found, gradients in zip(seen, share_out(seen, back), strict=True):
        found.gradients = gradients


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start
