"""The sections of the page of benchmarks: each one result file."""

from statistics import mean, median

from _tables import ratio, section, table
from aims import read


def steps() -> str:
    """Training steps, beside PEFT."""
    data = read("step.json")
    body = ""
    for name, found in data["settings"].items():
        rows = [(case, ratio(row), f"{row['peak_mib']:.0f}") for case, row in found.items()]
        body += f"{name.capitalize()}:\n\n"
        body += table(("case", "of the floor", "peak MiB"), rows) + "\n"
    sizes = data["options"]
    told = (
        f"Forward, backward and AdamW on {sizes['batch']} rows of {sizes['length']} tokens, "
        "all-MiniLM-L6-v2 in bfloat16; the rank is summed over adapters. *PEFT by task* is "
        "`set_adapter` and a sub-batch a task."
    )
    command = f"python benchmarks/step.py --rounds {sizes['rounds']}"
    return section("A training step", command, "step.json", told, body)


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


def sweeps() -> str:
    """Cost as heads, rows and tokens grow."""
    data = read("sweeps.json")
    rows = [
        (number, ratio(row["heads"]), ratio(row["LoRA"]), ratio(row["heads of LoRA"]))
        for number, row in data["heads"].items()
    ]
    body = "Routed heads of rank 8, and one LoRA of their summed rank:\n\n"
    columns = ("heads", "heads, of the floor", "LoRA, of the floor", "heads, of LoRA")
    body += table(columns, rows)
    body += "\nOne LoRA of rank 8, of the floor of as many rows and tokens:\n\n"
    batches = [(size, ratio(row)) for size, row in data["batches"].items()]
    body += table(("batch", "step"), batches)
    sizes = data["options"]
    told = f"BERT of random weights, width {sizes['width']}, {sizes['layers']} layers, all maps."
    command = f"python benchmarks/sweeps.py --rounds {sizes['rounds']}"
    return section("As heads, rows and tokens grow", command, "sweeps.json", told, body)


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
    command = f"python benchmarks/inference.py --rounds {data['rounds']}"
    told = (
        "A forward, or eight tokens a row one by one after 128 that are cached; rank 64, all "
        "linear maps."
    )
    return section("Inference", command, "inference.json", told, body)


def mixed_inference() -> str:
    """Rows of 16 tasks in a batch."""
    data = read("mixed_inference.json")
    rows = [
        (
            setting,
            ratio(found["of the base"]["coadapt"]),
            ratio(found["of the base"]["PEFT adapter_names"]),
            ratio(found["of the base"]["PEFT, a task at a time"]),
            ratio(found["of PEFT adapter_names"]["coadapt"]),
        )
        for setting, found in data["settings"].items()
    ]
    columns = ("adapters", "ours", "`adapter_names`", "a task at a time", "ours, of the second")
    told = (
        f"A forward of {data['rows']} rows of {data['tokens']} tokens of {data['tasks']} tasks, "
        "an adapter each, of the base model's; all-MiniLM-L6-v2."
    )
    command = f"python benchmarks/mixed_inference.py --rounds {data['rounds']}"
    body = table(columns, rows)
    return section("Rows of 16 tasks at once", command, "mixed_inference.json", told, body)


def products() -> str:
    """Products together and in place, and not."""
    data = read("products.json")
    rows = [
        (
            rank,
            ratio(found["floor"]["ours"]),
            ratio(found["floor"]["by autograd"]),
            ratio(found["by autograd"]["ours"]),
        )
        for rank, found in data["ranks"].items()
    ]
    columns = ("rank", "ours, of the floor", "by autograd", "ours, of the latter")
    told = (
        "One LoRA on all linear maps: query, key and value in one product and gradients added in "
        "place, and the same layers map by map with autograd's products."
    )
    command = f"python benchmarks/products.py --rounds {data['rounds']}"
    body = table(columns, rows)
    return section("Products together and in place", command, "products.json", told, body)


def compiling() -> str:
    """What torch.compile gives."""
    data = read("compiling.json")
    rows = [
        (case, ratio(found["rows"]["compiled"]), f"{found['first_two_steps_s']:.0f} s")
        for case, found in data["cases"].items()
    ]
    body = table(("case", "compiled, of the step as it stands", "the first two steps"), rows)
    told = (
        "The step on all linear maps, with `training: {torch_compile: true}`: correct, and on "
        "processors not worth it."
    )
    command = f"python benchmarks/compiling.py --rounds {data['rounds']}"
    return section("torch.compile", command, "compiling.json", told, body)


def tokenizing() -> str:
    """Tokenising, and reading what was tokenised."""
    data = read("tokenizing.json")
    rows = [
        (
            case,
            f"{found['tokens']:,}",
            f"{found['rows']['tokenise']['median_s']:.2f} s",
            ratio(found["rows"]["read"]),
        )
        for case, found in data["cases"].items()
    ]
    columns = ("tokenizer and rows", "tokens", "tokenised in", "read, of that")
    told = "Tokenised rows on disk ([where](files.md#tokenised-rows)); small suites are not kept."
    command = "python benchmarks/tokenizing.py"
    return section("Tokenised once", command, "tokenizing.json", told, table(columns, rows))


def end_to_end() -> str:
    """Seconds to an accuracy."""
    data = read("end_to_end.json")
    rows = []
    for case, schedules in data["cases"].items():
        for epochs, row in schedules.items():
            times = sorted(row["processor_s"])
            told = f"{median(times):.0f} ({times[0]:.0f} to {times[-1]:.0f})"
            rows.append((case, epochs, f"{mean(row['accuracy']):.3f}", told))
    body = table(("case", "epochs", "mean accuracy", "processor seconds (range)"), rows)
    told = (
        f"Seven tasks of {data['rows']} rows, from loading the model to the last step, "
        f"{len(data['seeds'])} seeds; the shortest of schedules of "
        f"{' and '.join(map(str, data['epochs']))} epochs whose mean accuracy is {data['target']}."
    )
    command = "python benchmarks/end_to_end.py"
    return section("End to end", command, "end_to_end.json", told, body)


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
    spent = data["processor seconds"]
    parts = ("moments", "decompose", "all")
    seconds = [
        (side, *(f"{told[part]:.0f}" if part in told else "" for part in parts))
        for side, told in spent.items()
    ]
    body += "\n" + table(("seconds of the processor", *parts), seconds)
    told = f"{len(data['tasks'])} tasks, {data['rows a task']} rows each, {data['modules']}."
    sizes = f"--rows {data['rows a task']} --rounds {data['rounds']}"
    command = f"python benchmarks/init.py --data-root DIR {sizes}"
    return section("Inits that look at data", command, "init.json", told, body)


def evaluation() -> str:
    """Evaluation by sorted batches."""
    data = read("evaluation.json")
    body = ""
    for kind, unit in (("classification", "rows"), ("generation", "answers")):
        found = data[kind]
        rows = [(c, ratio(row), f"{row['peak_mib']:.0f}") for c, row in found["rows"].items()]
        body += f"{kind.capitalize()}, {found['number']} {unit}:\n\n"
        body += table(("at once", "of the first", "MiB above the model"), rows) + "\n"
    told = "Batches of like length, and the ways of a first script, which give the same."
    command = f"python benchmarks/evaluation.py --rounds {data['rounds']}"
    return section("Evaluation", command, "evaluation.json", told, body)


def shipping() -> str:
    """Export and merging."""
    data = read("shipping.json")
    body = ""
    for kind in ("exports", "merges"):
        rows = [
            (case, f"{row['median_s']:.2f} s", f"{max(row['peak_mib'], 0):.0f}")
            for case, row in data[kind].items()
        ]
        body += f"{kind.capitalize()}:\n\n"
        body += table(("what", "median", "MiB above the model"), rows) + "\n"
    told = (
        "Four LoRAs of rank 8 on all linear maps of all-MiniLM-L6-v2. Merged models are compared "
        "with the run before they are written. DARE and TIES decompose the merged update of each "
        "map, here and in PEFT, to cut it to rank 32."
    )
    command = f"python benchmarks/shipping.py --rounds {data['rounds']}"
    return section("Export and merging", command, "shipping.json", told, body)
