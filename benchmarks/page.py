"""Write docs/benchmarks.md from the committed results.

    python benchmarks/page.py

Each table is one result file, each row one ratio of interleaved rounds, with its quartiles. A test
holds that the page is what this script makes of the files.
"""

from pathlib import Path

import _sections as sections
from _tables import section, table
from aims import measured_aims, read

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

Made by `python benchmarks/page.py` from [`benchmarks/results`](../benchmarks/results), which the
commands below wrote. Ratios are medians over rounds in which every case ran once, with quartiles;
so they hold on a machine that does other work. *Floor* is the frozen model's forward and its
backward to the embeddings. What methods add, in words: [cost](methods/cost.md).
"""


def aims() -> str:
    """What we wanted, and what was measured."""
    rows = [
        (what, against, f"{aim:.2f}", f"{found:.2f}", "yes" if round(found, 2) <= aim else "**no**")
        for what, against, aim, found in measured_aims()
    ]
    body = table(("what", "against", "at most", "measured", "reached"), rows)
    return f"\n## Aims\n\nOf the tables below; the next section says why some are missed.\n\n{body}"


def missed() -> str:
    """Why what is missed is missed."""
    found = read("thin_products.json")["cases"]
    keys = [key.rpartition(", rank ") for key in found if key.startswith("bfloat16")]
    ranks = list(dict.fromkeys(rank for _, _, rank in keys))
    rows = [
        (
            shape.removeprefix("bfloat16, "),
            *(
                f"{found[f'{shape}, rank {rank}'][what]:.2f}"
                for rank in ranks
                for what in ("operations", "time")
            ),
        )
        for shape in dict.fromkeys(shape for shape, _, _ in keys)
    ]
    columns = ("map", *(f"rank {rank}: {what}" for rank in ranks for what in ("work", "time")))
    body = (
        "Where a step misses its aim it is for the LoRA's own products. They have few\n"
        "operations, but as many passes over x and y as the map's own, so they run at a fraction\n"
        "of its speed; and at rank 64 the operations alone are more than the aim allows. Of the\n"
        "frozen map's two products, in bfloat16:\n\n"
    )
    body += table(columns, rows)
    body += (
        "\nQuery, key and value of rank 8 are one product of rank 24, which takes less than twice\n"
        "the time of one of rank 8.\n\n"
        "Rows of 16 tasks need factors of their own, gathered for each map: a copy that one LoRA\n"
        "does not need.\n\n" + hasi()
    )
    told = "Products of 2048 rows."
    command = "python benchmarks/thin_products.py"
    return section("Why a rank costs what it costs", command, "thin_products.json", told, body)


def hasi() -> str:
    """What HASI's seconds are spent on."""
    data = read("init.json")["processor seconds"]
    mine, peft = data["HASI"], data["PEFT's CorDA, a task each"]["all"]
    parts = {part: mine[part] / peft for part in ("moments", "decompose")}
    forward = mine["all"] / peft - sum(parts.values())
    return (
        f"Of the time of PEFT's CorDA, HASI spends {parts['decompose']:.2f} on decompositions,\n"
        f"{parts['moments']:.2f} on second moments and {forward:.2f} on the forward passes and the "
        "start. The last two\n"
        "are products in float32 of the sizes that CorDA has: what HASI saves is what it does not\n"
        "repeat for each map or task.\n"
    )


def page() -> str:
    """Return the whole page."""
    parts = (
        aims,
        missed,
        sections.steps,
        sections.end_to_end,
        sections.scaling,
        sections.sweeps,
        sections.heads,
        sections.mixed_inference,
        sections.inference,
        sections.evaluation,
        sections.shipping,
        sections.products,
        sections.compiling,
        sections.tokenizing,
        sections.regularizers,
        sections.prompts,
        sections.language,
        sections.init,
    )
    return HEAD + "".join(part() for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
