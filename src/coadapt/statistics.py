"""What an init with statistics looks at: the spectra of W C by map and task, before training."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from coadapt._errors import InputError
from coadapt._files import load_tensors, read_json, save_tensors, write_json
from coadapt._seeds import named_generator, named_seed
from coadapt.adapters import target_names
from coadapt.adapters.linear import linear_weight
from coadapt.backbone import ModelConfig, ModelKind, compute_dtype, fingerprint
from coadapt.inits import POOLED, AbstractStatisticalInit, Spectra
from coadapt.loading import Loader
from coadapt.moments import InputMoments, Moments, watching
from coadapt.spectra import Spectrum
from coadapt.tasks import TaskSuite
from coadapt.tasks.render import TaskDataset

logger = logging.getLogger(__name__)

IDENTITY = "statistics.json"
MEMORY = 2**31  # bytes of sums at a time; what does not fit is summed in another pass
_BATCH = 16  # rows a forward at most
_PADDING = 1.125  # tokens with padding over those without, from which a batch is cut ...
_ENOUGH = 256  # ... if it has that many: each costs a pass over the sums


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be gathered.

    Args:
        model: the base model.
        init: that asks for it.
        rank: the plan's summed rank.
        seed: of the rows that are drawn and of randomised decompositions.
    """

    model: ModelConfig
    init: AbstractStatisticalInit
    rank: int
    seed: int


def gather_spectra(
    request: Request,
    suite: TaskSuite,
    folder: str | Path,
    *,
    loader: Loader | None = None,
    quiet: bool = False,
    memory: int = MEMORY,
) -> Spectra:
    """Run training rows through the frozen model and decompose W C for each map, by task or pooled.

    Second moments are summed in float64 over the valid tokens, once for maps that read one tensor,
    and dropped when a group of maps is decomposed. What is done lies in ``folder`` and is not done
    again. Under ``accelerate launch`` each process runs its share of the rows.

    Args:
        request: what to gather.
        suite: whose training rows.
        folder: new, or one in which the same was gathered, or begun.
        loader: keeps what several calls share.
        quiet: whether to show no bar.
        memory: bytes of sums to hold at a time; smaller takes more passes over the rows.

    Returns:
        By module and task (or ``POOLED``).

    Raises:
        InputError: if the folder holds statistics of another model, suite or setting, naming it;
            or a task's rows have no valid token.
    """
    return _Gathering(request, suite, Path(folder), loader or Loader(), quiet).run(memory)


class _Gathering:
    def __init__(
        self, request: Request, suite: TaskSuite, folder: Path, loader: Loader, quiet: bool
    ) -> None:
        self.request, self.folder, self.quiet = request, folder, quiet
        config, self.state = request.model, PartialState()
        backbone, _ = loader.backbone(config, compute_dtype(config.dtype), trains=False)
        self.backbone: PreTrainedModel = backbone.to(self.state.device).eval()  # pyright: ignore[reportArgumentType]
        self.kind: ModelKind = loader.kind(config)
        self.modules = target_names(backbone, config.target_modules)
        self.collate = loader.collator(config)
        self.items = {task: self._draw(loader, suite, task) for task in suite.names}

    def _draw(self, loader: Loader, suite: TaskSuite, task: str) -> list[dict[str, Any]]:
        encoded = loader.encoded(self.request.model, suite, task, "train")
        labels = None if self.kind != "encoder" else [np.zeros(len(encoded))]
        dataset = TaskDataset([encoded], labels)
        generator = np.random.default_rng(named_seed(self.request.seed, "statistics", task))
        order = generator.permutation(len(dataset))[: self.request.init.rows]
        items = [dataset[int(row)] for row in np.sort(order)]
        if not any(item["input_ids"] for item in items):
            raise InputError(
                f"task '{task}' has no valid token in the training rows that were drawn, so the "
                "init knows nothing of it; look at its data"
            )
        return items

    def run(self, memory: int) -> Spectra:
        self._claim()
        groups = self._groups(memory)
        whose = self.items
        if self.request.init.statistics == "pooled":
            whose = {POOLED: [item for items in self.items.values() for item in items]}
        total = sum(map(len, whose.values())) * len(groups)
        found: dict[str, dict[str, Spectrum]] = {name: {} for name in self.modules}
        main = self.state.is_main_process
        with tqdm(total=total, desc="statistics", disable=self.quiet or not main) as bar:
            for index, (task, items) in enumerate(whose.items()):
                for number, group in enumerate(groups):
                    file = self.folder / f"{index}-{number}.safetensors"
                    there = file.is_file()
                    self.state.wait_for_everyone()  # all have looked before anyone writes
                    if not there:
                        moments = self._moments(items, group, bar)
                        spectra = self._decompose(moments, group, task, found)
                        if main:
                            _write(file, spectra)
                    else:
                        spectra = _read(file)
                        bar.update(len(items))
                    for name, spectrum in spectra.items():
                        found[name][task] = spectrum
        self.state.wait_for_everyone()
        return found

    def _claim(self) -> None:
        """Make the folder this request's, or refuse one that is another's."""
        mine = self._identity()
        there = self.folder / IDENTITY
        if there.is_file():
            for key, value in read_json(there).items():
                if mine.get(key) != value:
                    raise InputError(
                        f"{self.folder} holds statistics of another {key} "
                        f"({_difference(key, value, mine.get(key))}); choose another folder"
                    )
        self.state.wait_for_everyone()
        if self.state.is_main_process and not there.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise InputError(f"{self.folder} is not empty and holds no statistics")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(there, mine)
        self.state.wait_for_everyone()

    def _identity(self) -> dict[str, Any]:
        request = self.request
        return {
            "model": [request.model.name, fingerprint(self.backbone)],
            "suite": {task: _digest(items) for task, items in self.items.items()},
            "modules": list(self.modules),
            "rank": request.rank,
            "init": request.init.identity(),
            "seed": request.seed,
        }

    def _groups(self, memory: int) -> list[dict[str, list[str]]]:
        """Return groups of inputs whose sums fit, with the maps that read each, in order."""
        seen = InputMoments(only=())
        item = next(item for items in self.items.values() for item in items if item["input_ids"])
        self._run([item], seen, self.modules)
        readers: dict[str, list[str]] = {}
        for name in self.modules:
            if name not in seen.source:
                raise InputError(
                    f"module '{name}' is not run on the rows, so there are no statistics of its "
                    "input; leave it out of target_modules"
                )
            readers.setdefault(seen.source[name], []).append(name)
        groups: list[dict[str, list[str]]] = []
        used = memory
        for source, names in readers.items():
            size = 8 * seen.width[source] ** 2
            if used + size > memory:
                groups.append({})
                used = 0
            groups[-1][source] = names
            used += size
        return groups

    def _moments(
        self, items: Sequence[dict[str, Any]], group: Mapping[str, Sequence[str]], bar: tqdm
    ) -> InputMoments:
        found = InputMoments(only=group.keys())
        watched = [name for names in group.values() for name in names]
        for rows in self._batches(items):
            self._run(rows, found, watched)
            bar.update(len(rows) * self.state.num_processes)
        if self.state.num_processes > 1:
            _add_over_processes(found, group, self.state)
        return found

    def _batches(self, items: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Yield this process's rows, those of like length together."""
        ordered = sorted((i for i in items if i["input_ids"]), key=lambda i: len(i["input_ids"]))
        mine = ordered[self.state.process_index :: self.state.num_processes]
        # A decoder's positions have a padding of their own; of a single row there is none.
        size = 1 if self.kind == "encoder-decoder" else _BATCH
        batch: list[dict[str, Any]] = []
        tokens = 0
        for item in mine:
            length = len(item["input_ids"])
            padded = (len(batch) + 1) * length > _PADDING * (tokens + length)
            if len(batch) == size or (padded and tokens >= _ENOUGH):
                yield batch
                batch, tokens = [], 0
            batch.append(item)
            tokens += length
        if batch:
            yield batch

    @torch.no_grad()
    def _run(
        self, items: Sequence[dict[str, Any]], found: InputMoments, modules: Sequence[str]
    ) -> None:
        batch = {k: v.to(self.state.device) for k, v in self.collate(items).items()}
        labels = batch.pop("labels")
        del batch["task_ids"]
        found.begin(None if self.kind == "encoder-decoder" else batch["attention_mask"])
        with watching(self.backbone, modules, found):
            if self.kind == "encoder-decoder":
                self.backbone(**batch, labels=labels)
            else:  # a decoder's logits are not needed
                self.backbone.base_model(**batch)

    def _decompose(
        self,
        moments: InputMoments,
        group: Mapping[str, Sequence[str]],
        task: str,
        before: Mapping[str, Mapping[str, Spectrum]],
    ) -> dict[str, Spectrum]:
        request, found = self.request, {}
        for source, names in group.items():
            C = torch.from_numpy(moments.sums[source].second)
            for name in names:
                W = linear_weight(self.backbone.get_submodule(name))
                generator = named_generator(request.seed, "spectrum", task, name)
                others = list(before[name].values())
                near = others[-1].U.to(W.device) if others else None  # the task before's
                made = request.init.decompose(W, C.to(W.device), request.rank, generator, near)
                found[name] = Spectrum(
                    U=made.U.cpu(), sigma=made.sigma.cpu(), residual=made.residual
                )
        return found


def _add_over_processes(
    found: InputMoments, group: Mapping[str, Sequence[str]], state: PartialState
) -> None:
    for source in group:
        width = found.width.get(source, 0)
        size = torch.tensor(width, device=state.device)
        torch.distributed.all_reduce(size, op=torch.distributed.ReduceOp.MAX)
        width = int(size)
        mine = found.sums.get(source) or Moments(
            sum=np.zeros(width), products=np.zeros((width, width)), num_tokens=0
        )
        parts: list[Tensor] = []
        for value in (mine.sum, mine.products, np.array(mine.num_tokens)):
            part = torch.from_numpy(np.asarray(value)).to(state.device)
            torch.distributed.all_reduce(part)
            parts.append(part.cpu())
        found.sums[source] = Moments(
            sum=parts[0].numpy(), products=parts[1].numpy(), num_tokens=int(parts[2])
        )


def _write(file: Path, spectra: Mapping[str, Spectrum]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, spectrum in spectra.items():
        tensors[f"{name}/U"], tensors[f"{name}/sigma"] = spectrum.U, spectrum.sigma
        tensors[f"{name}/residual"] = torch.tensor(spectrum.residual, dtype=torch.float64)
    temporary = file.with_name(f".{file.name}")
    save_tensors(temporary, tensors)
    temporary.replace(file)


def _read(file: Path) -> dict[str, Spectrum]:
    tensors = load_tensors(file)
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    return {
        name: Spectrum(
            U=tensors[f"{name}/U"],
            sigma=tensors[f"{name}/sigma"],
            residual=float(tensors[f"{name}/residual"]),
        )
        for name in names
    }


def _digest(items: Sequence[Mapping[str, Any]]) -> str:
    """Return a short hash of the tokens that are read."""
    text = json.dumps([[list(i["input_ids"]), list(i.get("labels", ()))] for i in items])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _difference(key: str, there: Any, mine: Any) -> str:
    if key != "suite":
        return f"{_short(there)}, not {_short(mine)}"
    if list(there) != list(mine):
        return f"tasks {', '.join(there)}, not {', '.join(mine)}"
    others = [task for task in there if there[task] != mine[task]]
    return f"other rows of {', '.join(others)}, or read with another tokenizer or length"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
