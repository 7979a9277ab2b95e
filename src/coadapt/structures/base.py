"""What a structure is, and what it leaves in the model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from coadapt._errors import InputError
from coadapt._seeds import named_generator
from coadapt.adapters import (
    AbstractAdapted,
    BlockShares,
    DependsOn,
    Gated,
    Route,
    TaskPrompts,
)
from coadapt.config import to_plain
from coadapt.inits import AbstractInit, BlockStart, Start
from coadapt.planning import Plan

ShipsAs = Literal["lora", "dora", "merged", "runtime", "none"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a structure is built into.

    Attributes:
        backbone: the transformers model without head; edited in place.
        names: the modules to adapt.
        tasks: the suite's tasks in order; a row's task id is an index into it.
        plan: who shares, or None for a structure that does not divide the rank axis.
        init: how the factors start.
        route: set once a forward by the model.
        seed: of the init.
        start: what the init fills the blocks from.
    """

    backbone: nn.Module
    names: Sequence[str]
    tasks: Sequence[str]
    plan: Plan | None
    init: AbstractInit
    route: Route
    seed: int
    start: Start = Start()

    def fill(self, layer: AbstractAdapted[Gated], module: str, blocks: Sequence[str]) -> None:
        """Let the init fill the blocks of a module's layer, and freeze what is to be subtracted.

        Raises:
            InputError: if the init needs statistics that are not there.
        """
        init, spectra = self.init, self.start.spectra.get(module, {})
        if self.start.fills:
            if init.statistics != "none" and not spectra:
                raise InputError(
                    f"init '{to_plain(init)['kind']}' starts from statistics of the tasks' rows, "
                    "and there are none; build the model with coadapt.train, which gathers them"
                )
            for index, block in enumerate(blocks):
                generator = named_generator(self.seed, "block", block, module)
                filled = BlockStart(block=block, generator=generator, spectra=spectra)
                init.fill(layer, index, filled)
        if init.offset:
            layer.freeze_offset()


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What a structure added to a backbone.

    Attributes:
        layers: the adapted layers by module name; empty where the structure is no weight update.
        blocks: the names of the blocks in the order in which they lie on the rank axis.
        owners: for each block the ids of the tasks that use it.
        held: the blocks that a module has, by its name, where that is not all of them.
        prompts: by the name of an attention module; a block is then a task's own part.
        modules_beside: modules in the backbone, by their name in it, that train as a whole; they
            have no blocks, so none of their parameters is left out of a step.
    """

    layers: Mapping[str, AbstractAdapted[Gated]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    owners: tuple[tuple[int, ...], ...] = ()
    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prompts: Mapping[str, TaskPrompts] = field(default_factory=dict)
    modules_beside: Mapping[str, nn.Module] = field(default_factory=dict)

    def blocks_in(self, module: str) -> tuple[str, ...]:
        """Return the names of the blocks of a module's layer, in their order."""
        return self.held.get(module, self.blocks)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that something was added to."""
        return (*self.layers, *self.prompts)

    def of_block(self, block: int) -> list[nn.Parameter]:
        """Return the parameters of a block, in a structure whose modules have all blocks."""
        pairs = [(layer.A, layer.B) for layer in self.layers.values()]
        pairs += [(prompts.u, prompts.v) for prompts in self.prompts.values()]
        return [factors[block] for pair in pairs for factors in pair]

    def fold(self, task: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return ``{module: (A, B)}``, see :meth:`AbstractAdapted.fold`."""
        return {name: layer.fold(task) for name, layer in self.layers.items()}

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return every factor, router and magnitude by name.

        ``block/module/A`` and so on; ``shared/module/A`` is the A under several heads, A0 and B0
        are of a frozen start, ``router/module/weight`` makes the logits of a map,
        ``magnitude/module/weight`` holds the lengths of its rows, ``shares/module/weight`` what a
        new task takes of each block. Of prompts ``block/module/u`` and
        ``/v``, and ``shared/module/theta``, ``/B`` and ``/g``. Of a module beside
        ``shared/module/parameter``.
        """
        found: dict[str, nn.Parameter] = {}
        for name, module in self.modules_beside.items():
            found |= {f"shared/{name}/{key}": p for key, p in module.named_parameters()}
        for name, prompts in self.prompts.items():
            for key in ("theta", "B", "g"):
                if (common := getattr(prompts, key)) is not None:
                    found[f"shared/{name}/{key}"] = common
            for block, u, v in zip(self.blocks, prompts.u, prompts.v, strict=True):
                found[f"{block}/{name}/u"], found[f"{block}/{name}/v"] = u, v
        for name, layer in self.layers.items():
            for key in ("A", "B", "A0", "B0"):
                factors = getattr(layer, key)
                blocks = ("shared",) if layer.shared_A and key != "B" else self.blocks_in(name)
                for block, factor in zip(blocks, factors, strict=bool(len(factors))):
                    found[f"{block}/{name}/{key}"] = factor
            if layer.gate.router is not None:
                found[f"router/{name}/weight"] = layer.gate.router
            if isinstance(layer.gate, BlockShares):
                found[f"shares/{name}/weight"] = layer.gate.shares
            if layer.m is not None:
                found[f"magnitude/{name}/weight"] = layer.m
        return found


class AbstractStructure(ABC):
    """The shape of what is trained.

    Attributes:
        depends_on: what the gate looks at; with ``ships_as`` the single source of what can be
            merged and exported.
        ships_as: the form in which the trained thing leaves coadapt.
        divides: whether a plan says who shares.
        trains_backbone: whether the backbone's own weights are trained.
        multiplies: whether the plan's rank trains more than one LoRA of that rank: it is that of
            each of several heads or experts, or there are magnitudes beside.
    """

    depends_on: ClassVar[DependsOn]
    ships_as: ClassVar[ShipsAs]
    divides: ClassVar[bool]
    trains_backbone: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False

    @property
    def mergeable(self) -> bool:
        """Whether an exact LoRA exists: one, or one a task."""
        return self.ships_as == "lora" and self.depends_on != "token"

    @abstractmethod
    def attach(self, site: Site) -> Attached:
        """Build the structure into ``site.backbone``, whose parameters are all frozen."""
