"""What a recipe's regularizers see of a forward, and what they add to its loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt.adapters import Route
from coadapt.readouts import Inputs
from coadapt.regularizers import Captured, Need, Regularizer, Routing
from coadapt.structures import Attached
from coadapt.tasks.language import answer_tokens


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
        apart: whether the model is an encoder-decoder: only its encoder is looked at, since the
            decoder's positions are others.

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
        self._attached, self._answers_known, self._apart = attached, answers_known, apart
        self._terms: list[_Term] = []
        self.watched: dict[str, set[str]] = {}
        for regularizer in regularizers:
            kind = regularizer.kind
            known = _known(attached, regularizer.needs, apart)
            if not known:
                raise InputError(
                    f"regularizer '{kind}' has nothing to look at: no adapted module "
                    + ("of the encoder " if apart else "")
                    + ("has a router" if regularizer.needs is Need.ROUTING else "is there")
                )
            regularizer.check(num_tasks, len(attached.layers[known[0]].B))
            term = _Term(regularizer, kind, regularizer.select(known))
            self._terms.append(term)
            self.watched.setdefault(regularizer.needs, set()).update(term.modules)

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
        total, found = torch.zeros((), device=valid.device), {}
        for term in self._terms:
            captured = Captured(
                task_ids=route.task_ids,
                valid=valid,
                learned=learned,
                representations={
                    name: noted[Need.REPRESENTATION][name]
                    for name in term.modules
                    if term.regularizer.needs is Need.REPRESENTATION
                },
                routing={
                    name: Routing(
                        probabilities=noted[Need.ROUTING][name],
                        top_k=self._attached.layers[name].gate.top_k,
                    )
                    for name in term.modules
                    if term.regularizer.needs is Need.ROUTING
                },
            )
            value = term.regularizer.loss(captured)
            total = total + term.regularizer.weight * value
            found[term.name] = value.detach()
        return total, found


def visible_modules(attached: Attached, *, apart: bool) -> list[str]:
    """Return the adapted modules that see the input's tokens.

    Args:
        attached: the layers.
        apart: whether the model is an encoder-decoder; its decoder's positions are others.
    """
    return [name for name in attached.layers if not (apart and ".decoder." in f".{name}")]


def _known(attached: Attached, needs: Need, apart: bool) -> list[str]:
    return [
        name
        for name in visible_modules(attached, apart=apart)
        if needs is Need.REPRESENTATION or attached.layers[name].gate.router is not None
    ]
