"""Write docs/benchmarks.md from the committed results.

    python benchmarks/page.py

Each table is one result file, each row one ratio of interleaved rounds, with its quartiles. A test
holds that the page is what this script makes of the files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

Made by `python benchmarks/page.py` from [`benchmarks/results`](../benchmarks/results), which the
commands below wrote. Ratios are medians over rounds in which every case ran once, with quartiles;
so they hold on a machine that does other work. *Floor* is the frozen model's forward and its
backward to the embeddings. What methods add, in words: [cost](methods/cost.md).
"""

Rows = Mapping[str, Mapping[str, float]]


def read(name: str) -> dict[str, Any]:
    """Return a result file's content."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def machine(data: Mapping[str, Any]) -> str:
    """Return where a file's numbers were taken."""
    told = data["machine"]
    device = told["device"].replace(" 1 threads", " one thread")
    return f"{device}, torch {told['packages']['torch']}, commit {told['commit'][:8]}."


def section(title: str, command: str, file: str, told: str, body: str) -> str:
    """Return a heading, how it was made, and tables."""
    link = f"[`{file}`](../benchmarks/results/{file})"
    return f"\n## {title}\n\n    {command}\n\n{told} {machine(read(file))} {link}.\n\n{body}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ratio(row: Mapping[str, float]) -> str:
    """Return a median with its quartiles."""
    return f"{row['ratio']:.2f} ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f})"


def steps() -> str:
    """Training steps on attention, beside PEFT."""
    data = read("step_attention.json")
    rows = [(name, ratio(row), f"{row['peak_mib']:.0f}") for name, row in data["rows"].items()]
    told = "A step of 64 rows of 32 tokens, query and value of all-MiniLM-L6-v2, total rank 64."
    body = table(("case", "of the floor", "peak MiB"), rows)
    command = "python benchmarks/step.py --targets attention --output step_attention.json"
    return section("A training step", command, "step_attention.json", told, body)


def scaling() -> str:
    """Cost as tasks, ranks and layers grow."""
    data = read("scaling.json")
    sizes = data["options"]
    told = (
        f"BERT of random weights, width {sizes['width']}, {sizes['layers']} layers, query and "
        f"value, {sizes['batch']} rows of {sizes['length']} tokens in turn of all tasks. *Joint*: "
        "every row with all adapters' factors under a gate. *By row*: with its own alone. The "
        "layer chooses."
    )
    body = ""
    for found in data["tasks"]:
        paths = ("joint", "by row", "chosen")
        numbers = sorted({int(name.split(", ")[1]) for name in found["rows"] if ", " in name})
        rows = [
            (str(n), *(ratio(found["rows"][f"{path}, {n}"]) for path in paths)) for n in numbers
        ]
        body += f"Private adapters of rank {found['rank of each']} each, of the floor:\n\n"
        body += table(("tasks", *paths), rows) + "\n"
        fitted = {path: b for path, b in found["exponent"].items() if b is not None}
        told_of = ", ".join(f"{path} {b:.2f}" for path, b in fitted.items())
        least = found["by row is cheaper from"]
        body += f"Exponent of what is added, in tasks: {told_of or 'none to fit'}. "
        body += f"By row is cheaper from {least} tasks on.\n\n" if least else "\n\n"
    ranks = data["ranks"]["rows"]
    body += "One LoRA, of the floor:\n\n"
    body += table(("rank", "step"), [(n[5:], ratio(r)) for n, r in ranks.items() if n != "floor"])
    layers = data["layers"]["rows"]
    body += "\nOne LoRA of rank 64, of the floor of as many layers:\n\n"
    body += table(("layers", "step"), [(n, ratio(rows["LoRA"])) for n, rows in layers.items()])
    command = f"python benchmarks/scaling.py --rounds {sizes['rounds']}"
    return section("As tasks, ranks and layers grow", command, "scaling.json", told, body)


def heads() -> str:
    """Five heads beside one LoRA and loops."""
    data = read("heads.json")
    body = ""
    for dtype in ("float32", "bfloat16"):
        rows = [
            (name, ratio(row), f"{row['by_lora']:.2f}") for name, row in data[dtype]["rows"].items()
        ]
        body += f"{dtype}:\n\n{table(('case', 'of the floor', 'of one LoRA'), rows)}\n"
    told = "Five heads of rank 8 and what is beside them, as published loops and as one product."
    return section("Heads and experts", "python benchmarks/heads.py", "heads.json", told, body)


def inference() -> str:
    """Inference, merged and not."""
    data = read("inference.json")
    names = list(data["models"])
    cases = list(next(iter(data["models"].values())))
    rows = [(case, *(ratio(data["models"][name][case]) for name in names)) for case in cases]
    body = table(("case", *(f"of the base, {name}" for name in names)), rows)
    command = "python benchmarks/inference.py"
    return section("Inference", command, "inference.json", "A forward, rank 64.", body)


def regularizers() -> str:
    """What terms add to a step."""
    data = read("regularizers.json")
    targets = list(data["steps"])
    cases = list(next(iter(data["steps"].values())))
    rows = [(case, *(ratio(data["steps"][target][case]) for target in targets)) for case in cases]
    body = table(("case", *(f"of the step without, {target}" for target in targets)), rows)
    command = "python benchmarks/regularizers.py"
    told = "Four tasks' blocks of total rank 64."
    return section("Terms that keep blocks apart", command, "regularizers.json", told, body)


def prompts() -> str:
    """TA-LoRA beside prefix tuning."""
    data = read("prompts.json")
    dtypes = list(data["steps"])
    cases = list(next(iter(data["steps"].values())))
    rows = [(case, *(ratio(data["steps"][dtype][case]) for dtype in dtypes)) for case in cases]
    body = table(("case", *(f"of PEFT's, {dtype}" for dtype in dtypes)), rows)
    command = "python benchmarks/prompts.py"
    return section("Prompts", command, "prompts.json", "A training step.", body)


def language() -> str:
    """Choices and the vocabulary's head."""
    data = read("language.json")
    choice = [(name, ratio(row)) for name, row in data["choice"]["rows"].items()]
    memory = [
        (name, ratio(row), f"{row['peak_mib']:.0f}") for name, row in data["memory"]["rows"].items()
    ]
    body = "Four options a row:\n\n" + table(("case", "of the prompt once"), choice)
    body += "\nA training step:\n\n" + table(("case", "of labels only", "peak MiB"), memory)
    command = "python benchmarks/language.py"
    return section("Language models", command, "language.json", "SmolLM2-135M.", body)


def init() -> str:
    """HASI beside CorDA."""
    data = read("init.json")
    rows = [
        (part, f"{told['median']:.2f} ({told['least']:.2f} to {told['most']:.2f})")
        for part, told in data["PEFT over HASI"].items()
    ]
    body = table(("part", "PEFT's CorDA a task, of HASI (range)"), rows)
    told = f"{len(data['tasks'])} tasks, {data['rows a task']} rows each, {data['modules']}."
    command = "python benchmarks/init.py --data-root DIR"
    return section("Inits that look at data", command, "init.json", told, body)


def page() -> str:
    """Return the whole page."""
    parts = (steps, scaling, heads, inference, regularizers, prompts, language, init)
    return HEAD + "".join(part() for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
