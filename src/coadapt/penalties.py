"""What a recipe's regularizers see of a forward, and what they add to its loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt.adapters import Route
from coadapt.planning import COOPERATIVE
from coadapt.readouts import Inputs
from coadapt.regularizers import (
    Captured,
    FastWeights,
    LayerFactors,
    Need,
    Regularizer,
    Routing,
)
from coadapt.structures import Attached
from coadapt.tasks.render import answer_tokens


@dataclass(frozen=True)
class _Term:
    regularizer: Regularizer
    name: str
    modules: tuple[str, ...]


class Penalties:
    """The regularizers of a recipe on the layers of a model.

    Args:
        regularizers: the terms.
        attached: the layers.
        num_tasks: in the suite.
        answers_known: whether the labels tell answers from prompts.
        apart: whether the model is an encoder-decoder: of what its layers compute only the
            encoder's is looked at, since the decoder's positions are others.

    Raises:
        InputError: if a term has nothing to look at.
    """

    def __init__(
        self,
        regularizers: Sequence[Regularizer],
        attached: Attached,
        *,
        num_tasks: int,
        answers_known: bool,
        apart: bool,
    ) -> None:
        self._attached, self._answers_known = attached, answers_known
        self._common = _common_blocks(attached, num_tasks)
        self._terms: list[_Term] = []
        self.watched: dict[str, set[str]] = {}
        for regularizer in regularizers:
            kind, needs = regularizer.kind, regularizer.needs
            known = _known(attached, needs, apart)
            if not known and needs is Need.PROMPTS:
                raise InputError(
                    f"regularizer '{kind}' looks at the tasks' own part of prompts, and there is "
                    "none with fast_rank 0; drop it, or set fast_rank to 1"
                )
            if not known:
                raise InputError(
                    f"regularizer '{kind}' has nothing to look at: no adapted module "
                    + ("of the encoder " if apart and not needs.lasting else "")
                    + ("has a router" if needs is Need.ROUTING else "is there")
                )
            layers = {name: self._factors(name) for name in known if name in attached.layers}
            regularizer.check(num_tasks, layers)
            term = _Term(regularizer, kind, regularizer.select(known))
            self._terms.append(term)
            if not needs.lasting:
                self.watched.setdefault(needs, set()).update(term.modules)

    def __call__(
        self,
        noted: dict[str, dict[str, Tensor]],
        task_ids: Tensor,
        labels: Tensor,
        inputs: Inputs,
        route: Route,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the terms, and each without its weight and graph.

        Args:
            noted: what the layers noted while the forward ran.
            task_ids: (B,) of the rows.
            labels: as the readout got them.
            inputs: of the backbone.
            route: of the forward.
        """
        valid = inputs["attention_mask"].bool()
        assert route.task_ids is not None
        learned = None
        if self._answers_known:
            learned = answer_tokens(labels, inputs.get("position_ids"))
        batch = Captured(task_ids=route.task_ids, valid=valid, learned=learned)
        return self._add_up(self._terms, batch, noted)

    def of_weights(self, task_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same of the terms that do not depend on the batch, for one without rows.

        They have their share of a step whichever rows a rank got.

        Args:
            task_ids: (0,).
        """
        terms = [term for term in self._terms if term.regularizer.needs.lasting]
        nothing = Captured(task_ids=task_ids, valid=task_ids.new_zeros(0, 1, dtype=torch.bool))
        return self._add_up(terms, nothing, {})

    def _add_up(
        self, terms: Sequence[_Term], batch: Captured, noted: dict[str, dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, found = torch.zeros((), device=batch.valid.device), {}
        for term in terms:
            seen = self._seen(term.regularizer.needs, term.modules, noted)
            value = term.regularizer.loss(replace(batch, **seen))
            total = total + term.regularizer.weight * value
            found[term.name] = value.detach()
        return total, found

    def _seen(
        self, needs: Need, modules: Sequence[str], noted: dict[str, dict[str, Tensor]]
    ) -> dict[str, Any]:
        """Return what a term looks at, as an argument of `Captured`."""
        match needs:
            case Need.REPRESENTATION:
                return {"representations": {name: noted[needs][name] for name in modules}}
            case Need.ROUTING:
                routing = {
                    name: Routing(
                        probabilities=noted[needs][name],
                        top_k=self._attached.layers[name].gate.top_k,
                    )
                    for name in modules
                }
                return {"routing": routing}
            case Need.WEIGHTS:
                return {"factors": {name: self._factors(name) for name in modules}}
            case Need.PROMPTS:
                prompts = {name: self._attached.prompts[name] for name in modules}
                fast = {n: FastWeights(u=list(p.u), v=list(p.v)) for n, p in prompts.items()}
                return {"prompts": fast}

    def _factors(self, module: str) -> LayerFactors:
        layer, names = self._attached.layers[module], self._attached.blocks_in(module)
        blocks = dict(zip(names, layer.blocks(), strict=True))
        return LayerFactors(
            A={name: A for name, (A, _) in blocks.items()},
            B={name: B for name, (_, B) in blocks.items()},
            base=layer.base,
            shared_A=layer.shared_A,
            common=self._common,
        )


def visible_modules(attached: Attached, *, apart: bool) -> list[str]:
    """Return the adapted modules that see the input's tokens.

    Args:
        attached: the layers.
        apart: whether the model is an encoder-decoder; its decoder's positions are others.
    """
    return [name for name in attached.layers if not (apart and ".decoder." in f".{name}")]


def _known(attached: Attached, needs: Need, apart: bool) -> list[str]:
    if needs is Need.WEIGHTS:
        return list(attached.layers)
    if needs is Need.PROMPTS:
        return [name for name, prompts in attached.prompts.items() if len(prompts.u)]
    return [
        name
        for name in visible_modules(attached, apart=apart)
        if needs is Need.REPRESENTATION or attached.layers[name].gate.router is not None
    ]


def _common_blocks(attached: Attached, num_tasks: int) -> frozenset[str]:
    """Return the blocks that are no task's own: of every task, where others are of some.

    Where all are of every task, it is the one that is named so.
    """
    owners = zip(attached.blocks, attached.owners, strict=True)
    everyone = frozenset(block for block, tasks in owners if len(tasks) == num_tasks)
    return everyone if len(everyone) < len(attached.blocks) else frozenset({COOPERATIVE})
