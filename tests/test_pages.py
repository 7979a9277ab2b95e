"""Commands of README and docs run as they stand, on tiny models in the place of the assets."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml
from transformers import AutoConfig, AutoModel, AutoTokenizer

import coadapt
from coadapt import assets
from coadapt.cli import app
from tests.invoking import invoke, succeed
from tests.tiny_language import save_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("```", "```bash", "```sh", "```console")
# What is read and not run: what stands for something of the reader's; what trains for hours, or, as
# studies do, in processes of its own, where assets are what they are; what needs the recipe that a
# page adds (test_walk_through.py), or more rows than the example has.
PLACEHOLDERS = (r"\b(RUN|DIR|OUTPUT|OWNER)\b", r"\.\.\.", r"\[--", "hub:", "Qwen", "adapters/sst2")
LONG = ("coadapt study", "benchmarks/", "runs/study", "studies/", "--data-root")
LONG += ("runs/glue", "runs/pictures")
READ_ONLY = re.compile("|".join((*PLACEHOLDERS, *LONG, "milora", "--run runs/mine")))


def commands(page: Path) -> list[str]:
    """The page's `coadapt` commands in indented and fenced blocks, a line each, in order."""
    lines, fence = [], None
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line
        elif line.startswith("    ") if fence is None else fence in SHELLS:
            lines.append(line.strip())
    return [re.sub(r"\s{2,}#.*", "", line) for line in lines if line.startswith("coadapt ")]


def words(command: str) -> list[str]:
    return [word for word in shlex.split(command) if not word.startswith("[")][1:]


EVERY = [(page, command) for page in PAGES for command in commands(page)]
RUN = {page: [c for p, c in EVERY if p is page and not READ_ONLY.search(c)] for page in PAGES}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    ("page", "command"), EVERY, ids=[f"{name_of(page)}: {command[:60]}" for page, command in EVERY]
)
def test_a_command_s_options_exist(page: Path, command: str):
    verb, *rest = words(command)
    parser = typer.main.get_command(app).commands[verb]  # pyright: ignore[reportAttributeAccessIssue]
    known = {option for parameter in parser.params for option in parameter.opts}
    known |= {option for parameter in parser.params for option in parameter.secondary_opts}
    given = {word.partition("=")[0] for word in rest if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}
    assert given <= known


def files(page: Path) -> dict[str, str]:
    """The files that a page has its reader write: the block that it names, below or above."""
    text = page.read_text(encoding="utf-8")
    blocks = [(found.start(), found[1]) for found in YAML.finditer(text)]
    made = {}
    for named in re.finditer(r"`(examples/[^`]+\.yaml)`", text):
        if (ROOT / named[1]).exists() or named[1] in made:
            continue
        below = [block for start, block in blocks if text[named.end() : start].count("\n\n") == 1]
        above = [block for start, block in blocks if start < named.start() and "suite:" in block]
        made[named[1]] = (below or above[-1:])[0]
    return made


# How the folders came about that pages take for granted.
TRAIN = (
    "train examples/tickets/train.yaml --set plan=null --set training.max_steps=2 --set budget=6"
)
TA_LORA = f"{TRAIN} --set recipe=ta_lora --set budget=null --output runs/ta_lora"
NEEDED = {
    "docs/methods/merging.md": [
        f"{TRAIN} --set recipe=lora --set suite=a.yaml --output runs/a",
        f"{TRAIN} --set recipe=lora --set suite=b.yaml --output runs/b",
        "export runs/a --output shipped/a",
        "export runs/b --output shipped/b",
    ],
    "docs/adapting.md": [TA_LORA],
    "docs/methods/ta_lora.md": [TA_LORA],
    "docs/methods/README.md": [f"{TRAIN} --set recipe=hydra_lora --output runs/hydra"],
    "docs/methods/lora_hub.md": [f"{TRAIN} --set recipe=private --output runs/private"],
    "docs/shipping.md": [
        f"{TRAIN} --set recipe=private --output runs/mine",
        "export runs/mine --output shipped",
    ],
    "docs/studies.md": [
        f"{TRAIN} --set recipe={recipe} --output runs/{name}"
        for name, recipe in zip("abc", ("lora", "private", "m_lora"), strict=True)
    ],
}


def furnish(workplace: Path) -> None:
    """Write the example's tasks as two suites, a.yaml and b.yaml, and the files of a new task."""
    rows = (workplace / "topics.csv").read_text(encoding="utf-8").splitlines()[1:]
    texts = [row.rpartition(",")[0] for row in rows]
    new = ["text,label", *(f"{text},{'de' if n % 2 else 'en'}" for n, text in enumerate(texts))]
    (workplace / "language.csv").write_text("\n".join(new), encoding="utf-8")
    task = {"kind": "classification", "data": "language.csv"}
    suite = {"name": "new", "tasks": {"language": task}}
    (workplace / "new.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    tasks = yaml.safe_load((workplace / "suite.yaml").read_text(encoding="utf-8"))["tasks"]
    for name, mine in (("a", ("topic", "urgency")), ("b", ("duplicate",))):
        part = {"name": name, "tasks": {task: tasks[task] for task in mine}}
        file = workplace / f"examples/tickets/{name}.yaml"
        file.write_text(yaml.safe_dump(part), encoding="utf-8")


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_bert) -> Iterator[Path]:
    """The examples, those of the tickets at hand, and tiny models for assets."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "examples/tickets", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "decoder", "llama")
    config = AutoConfig.from_pretrained(tiny_bert, max_position_embeddings=512)
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=512)
    tokenizer.save_pretrained(tmp_path / "encoder")
    tiny = {"minilm": tmp_path / "encoder", "smollm2": tmp_path / "decoder"}
    monkeypatch.setattr(assets, "fetch", lambda name: Path(tiny[name]))
    return tmp_path


def shortened(command: str) -> list[str]:
    """The command with fewer steps, which alone differ from what the page says."""
    verb, *rest = words(command)
    few = {"train": ["training.max_steps=2", "training.eval_strategy=no"]}.get(verb, [])
    return [verb, *rest, *(word for value in few for word in ("--set", value))]


@pytest.mark.parametrize("page", [p for p in PAGES if RUN[p]], ids=name_of)
def test_the_page_s_commands_run(page: Path, workplace: Path):
    for name, block in files(page).items():
        (workplace / name).write_text(block, encoding="utf-8")
    furnish(workplace)
    for command in NEEDED.get(name_of(page), ()):
        succeed(*command.split())
    for command in RUN[page]:
        result = invoke(*shortened(command))
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception}"


CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Theirs runs in tests of its own.
ELSEWHERE = (
    *("README.md", "docs/theory.md", "docs/analysis.md", "docs/add_a_method.md"),
    "docs/serving.md",
)
CODED = [p for p in PAGES if CODE.search(p.read_text("utf-8")) and name_of(p) not in ELSEWHERE]


@pytest.mark.parametrize("page", CODED, ids=name_of)
def test_the_page_s_code_runs(page: Path, workplace: Path, capsys):
    furnish(workplace)
    for command in NEEDED.get(name_of(page), ()):
        succeed(*command.split())
    shipped = workplace / "shipped"
    for made, place in (
        (shipped / "adapters/urgency", "peft_folder"),
        (shipped / "heads/urgency.safetensors", "head.safetensors"),
        (shipped / "a/adapters/shared", "adapters/a"),
        (shipped / "b/adapters/duplicate", "adapters/b"),
    ):
        if made.exists():
            (workplace / place).parent.mkdir(exist_ok=True)
            made.rename(workplace / place)
    names = {"coadapt": coadapt}
    for block in CODE.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), names)
