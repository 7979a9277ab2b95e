"""The synthetic figure of the capacity-redundancy paper, with its slack drawn in two parts.

    python examples/theory/figure.py [--output docs/figures/theory.svg] [--draws 40] [--seed 0]

Khan, "Capacity and redundancy trade-offs in multi-task learning", section 8.1 and figure 2: inputs
N(0, I) of 20 dimensions, unit task directions, label noise 0.1, encoders with orthonormal rows and
noise 0.5. What the paper does not state: task directions are sqrt(c) times a common random unit
vector plus sqrt(1 - c) times an own one, the own ones orthogonal to each other, so that two tasks
have a cosine of about c. An encoder of a rank below that of the tasks reads their principal
directions, drawn at random among equals.

Every bar and area is a mean over draws of the directions. The whole height is the bound C + TC; it
is the information about all tasks, plus residual coupling, plus unused capacity.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from coadapt.theory import LinearGaussian

OUTPUT = Path(__file__).parents[2] / "docs/figures/theory.svg"

D, LABEL_NOISE, ENCODER_NOISE = 20, 0.1**2, 0.5**2
NUM_TASKS, COSINE = 5, 0.5  # of the two panels with a fixed number of tasks
FIXED_RANK, RELATED, UNRELATED = 4, 0.8, 0.0  # of the panel with a growing number
LOUDER = 3.0

PARTS = {  # Okabe and Ito's palette, and a gray lighter than both
    "information about the tasks": "#0072B2",
    "residual coupling": "#E69F00",
    "unused capacity": "#D0D0D0",
}

Rows = NDArray[np.float64]
Encoder = Callable[[Rows, np.random.Generator], Rows]  # task directions (T, d) to rows (m, d)


@dataclass(frozen=True)
class Account:
    """What the bound C + TC of a model is made of, in nats."""

    information: float  # sum_t I(Z;Y_t)
    coupling: float  # TC(Y|Z)
    unused: float  # I(Z;X) - I(Z;Y)

    @property
    def bound(self) -> float:
        """C + TC, which the three add up to."""
        return self.information + self.slack

    @property
    def slack(self) -> float:
        """How far the information stays below the bound."""
        return self.coupling + self.unused


def unit(rows: Rows) -> Rows:
    """Return the rows at length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def orthonormal(num: int, generator: np.random.Generator) -> Rows:
    """Return so many orthonormal directions drawn at random, (num, D)."""
    return np.linalg.qr(generator.normal(size=(D, num)))[0].T


def directions(num: int, cosine: float, generator: np.random.Generator) -> Rows:
    """Return unit task directions with about that cosine between any two, (num, D)."""
    common = orthonormal(1, generator)
    own = orthonormal(num, generator)
    return unit(np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own)


def principal(tasks: Rows, generator: np.random.Generator) -> Rows:
    """Return an orthonormal basis, the tasks' span first and what they share most of all first."""
    tie_breaker = 1e-6 * generator.normal(size=(len(tasks), len(tasks))) @ tasks
    return np.linalg.svd(tasks + tie_breaker, full_matrices=True)[2]


def span(tasks: Rows, generator: np.random.Generator) -> Rows:
    """Return the encoder that reads the tasks' span and nothing else."""
    return principal(tasks, generator)[: len(tasks)]


def at_random(tasks: Rows, generator: np.random.Generator) -> Rows:
    """Return one of the same rank in random directions."""
    return orthonormal(len(tasks), generator)


def misaligned(tasks: Rows, generator: np.random.Generator) -> Rows:
    """Return one of the same rank that reads nothing of the tasks."""
    return principal(tasks, generator)[-len(tasks) :]


def of_rank(rank: int) -> Encoder:
    """Return the encoder of the first so many principal directions."""
    return lambda tasks, generator: principal(tasks, generator)[:rank]


def account(num_tasks: int, cosine: float, encoder: Encoder, *, draws: int, seed: int) -> Account:
    """Return the mean account over draws; the same seed draws the same tasks for every encoder."""
    found = []
    for draw in range(draws):
        generator = np.random.default_rng([seed, draw])
        tasks = directions(num_tasks, cosine, generator)
        model = LinearGaussian(
            cov_x=np.eye(D),
            U=tasks.T,
            label_noise=np.full(num_tasks, LABEL_NOISE),
            A=encoder(tasks, generator),
            encoder_noise=ENCODER_NOISE,
        )
        total = float(model.task_information.sum())
        found.append((total, model.residual_coupling, model.unused_capacity))
    return Account(*np.mean(found, axis=0).tolist())


def accounts(
    *, draws: int, seed: int, ranks: Iterable[int] = range(13), tasks: Iterable[int] = range(1, 21)
) -> dict[str, dict]:
    """Return the accounts of all panels, under the panel's name and what varies in it."""
    encoders = {
        "task span": span,
        f"task span,\ngain x{LOUDER:g}": lambda tasks, generator: LOUDER * span(tasks, generator),
        "random": at_random,
        "misaligned": misaligned,
    }
    how = {"draws": draws, "seed": seed}
    tasks = list(tasks)
    return {
        "encoders": {
            name: account(NUM_TASKS, COSINE, encoder, **how) for name, encoder in encoders.items()
        },
        "ranks": {rank: account(NUM_TASKS, COSINE, of_rank(rank), **how) for rank in ranks},
        "unrelated": {T: account(T, UNRELATED, of_rank(FIXED_RANK), **how) for T in tasks},
        "related": {T: account(T, RELATED, of_rank(FIXED_RANK), **how) for T in tasks},
    }


def stack(axes: Axes, xs: Sequence[int], heights: NDArray[np.float64]) -> None:
    """Draw the three parts over each other, and the bound on top."""
    axes.stackplot(xs, heights, colors=list(PARTS.values()), linewidth=0)
    axes.plot(xs, heights.sum(axis=0), color="black", linewidth=1.6)
    axes.set_xlim(xs[0], xs[-1])
    axes.set_ylim(bottom=0)


def draw_encoders(axes: Axes, found: dict[str, Account]) -> None:
    """Draw a bar for each kind of encoder."""
    left = np.zeros(len(found))
    places = np.arange(len(found))[::-1]
    for part, color in enumerate(PARTS.values()):
        widths = np.array([astuple(one)[part] for one in found.values()])
        axes.barh(places, widths, left=left, color=color, height=0.62)
        left += widths
    axes.vlines(left, places - 0.31, places + 0.31, color="black", linewidth=2.2)
    axes.set_yticks(places, list(found))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("nats")
    axes.set_xlim(0, left.max() * 1.04)
    axes.set_title("Encoders of rank 5, five tasks")


def draw_ranks(axes: Axes, found: dict[int, Account]) -> None:
    """Draw the sweep over the encoder's rank."""
    ranks = list(found)
    stack(axes, ranks, np.array([astuple(one) for one in found.values()]).T)
    axes.axvline(NUM_TASKS, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(
        "spans\nthe tasks",
        (NUM_TASKS, axes.get_ylim()[1]),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set_xlabel("rank of the encoder")
    axes.set_ylabel("nats")
    axes.set_title("More capacity, five tasks")


def draw_tasks(axes: Axes, unrelated: dict[int, Account], related: dict[int, Account]) -> None:
    """Draw what is left for each of a growing number of tasks."""
    tasks = np.array(list(unrelated))
    parts = np.array([astuple(one) for one in unrelated.values()]).T
    stack(axes, tasks.tolist(), parts / tasks)
    means = [one.information / T for T, one in related.items()]
    axes.plot(tasks, means, color="white", linewidth=4)
    axes.plot(tasks, means, color="#0072B2", linewidth=2, linestyle=(0, (4, 1.5)))
    axes.annotate(
        f"information if the\ntasks are related\n(cosine {RELATED:g})",
        (tasks[-1], means[-1]),
        xytext=(-4, 6),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color="#00507D",
    )
    axes.set_xticks([t for t in (1, 5, 10, 15, 20) if t <= tasks[-1]])
    axes.set_xlabel("number of unrelated tasks")
    axes.set_ylabel("nats a task")
    axes.set_title(f"Fixed capacity, rank {FIXED_RANK}")


def draw(found: dict[str, dict]) -> Figure:
    """Return the three panels."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    first, second, third = figure.subplots(1, 3, width_ratios=[1.05, 1, 1])
    draw_encoders(first, found["encoders"])
    draw_ranks(second, found["ranks"])
    draw_tasks(third, found["unrelated"], found["related"])
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
    handles: list[Artist] = [Patch(color=color, label=name) for name, color in PARTS.items()]
    handles.append(Line2D([], [], color="black", linewidth=1.6, label="bound C + TC"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def save(figure: Figure, output: Path) -> None:
    """Write the picture; the same numbers give the same file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix != ".svg":
        figure.savefig(output, dpi=100)
        return
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(found: dict[str, dict]) -> str:
    """Return the accounts as text, one a line."""
    lines = [f"{'mean nats over draws':30}{'bound':>8}{'inform.':>9}{'coupling':>10}{'unused':>8}"]
    for panel, rows in found.items():
        for name, one in rows.items():
            label = f"{panel}: {name}".replace("\n", " ")
            numbers = [abs(round(value, 2)) for value in (one.bound, *astuple(one))]
            lines.append(label.ljust(30) + "{:8.2f}{:9.2f}{:10.2f}{:8.2f}".format(*numbers))
    return "\n".join(lines)


def failures(found: dict[str, dict]) -> str:
    """Return where the paper's claims fail in these numbers."""
    spanning, loud = list(found["encoders"].values())[:2]
    redundancy, first, last = (found["ranks"][rank] for rank in (0, 1, NUM_TASKS))
    num = max(found["unrelated"])
    many = found["unrelated"][num]
    return "\n".join(
        [
            "Where claims of the paper fail in these numbers (all in nats):",
            "- An encoder that spans the tasks should leave no residual coupling. It leaves "
            f"{spanning.coupling:.2f} of TC = {redundancy.coupling:.2f}.",
            "- Residual coupling should fall as the rank grows. From rank 1 to rank "
            f"{NUM_TASKS} it rises from {first.coupling:.2f} to {last.coupling:.2f}.",
            f"- The slack should be residual coupling. Of {spanning.slack:.2f}, "
            f"{spanning.unused:.2f} are unused capacity; at rank {max(found['ranks'])}, "
            f"{found['ranks'][max(found['ranks'])].unused:.2f}.",
            "- The bound should become tight with spanning encoders. A gain of "
            f"{LOUDER:g} lowers coupling to {loud.coupling:.2f} and raises unused capacity to "
            f"{loud.unused:.2f}: the slack grows from {spanning.slack:.2f} to {loud.slack:.2f}.",
            f"- The sum of informations should be at least the joint one. For {num} unrelated "
            f"tasks (TC = 0) it is lower by the residual coupling, {many.coupling:.2f}.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, dict]:
    """Compute, draw, print; return the accounts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    found = accounts(draws=options.draws, seed=options.seed)
    with mpl.rc_context({"svg.hashsalt": "coadapt", "font.size": 10, "axes.titlesize": 11}):
        save(draw(found), options.output)
    print(table(found))
    print(failures(found))
    return found


if __name__ == "__main__":
    main()
