"""The package's shape: imports point one way, files stay small, no pickle, no print."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coadapt

PACKAGE = Path(coadapt.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A module may import modules of its own level and below. A package is one unit, its
# modules sit where it does, unless one of them has an entry of its own: the longest entry decides.
LEVELS = [
    [
        *("_errors", "_version", "_environment", "_files", "_folders"),
        *("_lazy", "_processes", "_seeds"),
        *("_stats", "_linalg", "_sheet", "theory"),
    ],
    ["config", "_yaml", "_gguf", "assets"],
    ["tasks", "suites"],
    ["drafting"],
    ["adapters"],
    [
        *("inits", "spectra", "structures", "regularizers", "balancing", "lora_hub"),
        "merge_methods",
        *("groups", "planning"),
    ],
    ["recipe", "recipes"],
    [
        *("backbone", "heads", "language", "moments", "settings", "loading", "model", "modes"),
        *("penalties", "processors", "quantization", "readouts", "token_cache"),
    ],
    [
        *("checkpoints", "saving", "_progress", "arguments", "resuming", "stepping", "training"),
        *("runs", "statistics", "layer_similarity", "starting", "fitting", "transfer", "adapting"),
        *("evaluation", "unseen", "prediction", "predictions", "exporting", "importing", "merging"),
        "harness",
    ],
    ["diagnosis", "analysis"],
    ["planners", "checking", "conversion"],
    ["study", "accounting"],
    ["reporting"],
    ["__init__"],
    ["demo", "_demo_tables"],
    ["verbs"],
    ["cli"],
    ["__main__"],
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}

MAX_LINES = 350
MAX_FUNCTION_LINES = 60
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {"torch.save", "torch.load"}


def module_name(path: Path) -> str:
    """Return the name as in the table: ``tasks.load``, ``tasks``, ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


def level_of(name: str) -> int | None:
    """Return the level of the longest entry that ``name`` is or lies in."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((LEVEL_OF[prefix] for prefix in prefixes if prefix in LEVEL_OF), None)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are refused by ruff (TID252)"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name, as in the table, of every import from the package itself."""
    for line, name in imported_names(tree):
        root, _, rest = name.partition(".")
        if root == "coadapt":
            # `import coadapt` and `from coadapt import train` name no module but the face.
            first = rest.split(".")[0]
            module = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
            yield line, rest if first and (module or first in LEVEL_OF) else "__init__"


def wrong_way(name: str, tree: ast.AST) -> list[str]:
    """Return what ``name`` imports from above it."""
    own = level_of(name)
    assert own is not None
    return [
        f"line {line}: coadapt.{name} (level {own}) imports coadapt.{target} (level {level})"
        for line, target in own_imports(tree)
        if (level := level_of(target)) is None or level > own
    ]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    assert level_of(name) is not None, f"give coadapt.{name} a place in LEVELS in this file"
    assert wrong_way(name, tree_of(path)) == []


@pytest.mark.parametrize(
    ("name", "source", "num_wrong"),
    [
        ("tasks.load", "from coadapt.training import train", 1),
        ("tasks.load", "def f():\n    import coadapt.model", 1),
        ("tasks.load", "from coadapt import train", 1),
        ("tasks.load", "from coadapt import _errors", 0),
        ("tasks.load", "from coadapt.tasks.task import Task\nimport torch", 0),
        ("recipe", "import coadapt.structures\nfrom coadapt.planning.plan import Plan", 0),
        ("structures.bank", "from coadapt.recipe import RECIPES", 1),
    ],
)
def test_the_rule_itself(name, source, num_wrong):
    assert len(wrong_way(name, ast.parse(source))) == num_wrong


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_and_functions_stay_small(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: split it by what changes together"
    long = {
        node.name: size
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and (size := body_lines(node)) > MAX_FUNCTION_LINES
    }
    assert long == {}


def body_lines(function: ast.FunctionDef) -> int:
    """Return the number of lines of a function, without its docstring."""
    assert function.end_lineno is not None
    size = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        size -= first.end_lineno - first.lineno + 1
    return size


@pytest.mark.parametrize("path", [m for m in MODULES if module_name(m) != "cli"], ids=module_name)
def test_print_is_for_the_command_line(path):
    prints = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert prints == [], "log by logging.getLogger(__name__), or print in cli.py"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_is_pickled(path):
    tree = tree_of(path)
    found = [name for _, name in imported_names(tree) if name.split(".")[0] in PICKLERS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in PICKLING_CALLS:
            found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    found += [name for _, name in imported_names(tree) if name in PICKLING_CALLS]
    assert found == [], "weights are written as safetensors, the rest as JSON"


def test_help_and_a_bad_file_need_not_wait_for_torch():
    source = (
        "import sys, coadapt, coadapt.config, coadapt.cli\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
