"""The messages that the page of troubleshooting quotes are the program's."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/troubleshooting.md"
ANY = "\0"  # stands in a template for what is filled in
QUOTED = re.findall(r"\*\*`([^`]+)`\*\*", PAGE.read_text(encoding="utf-8"))


def templates(source: str) -> list[str]:
    """The texts of a module that are no docstrings, what is filled in replaced."""
    tree = ast.parse(source)
    # Docstrings stand alone as statements; parts of f-strings are read with the whole.
    apart = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            apart.update(node.values)
    return [told for node in ast.walk(tree) if node not in apart and (told := as_template(node))]


def as_template(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else ANY for v in node.values)
        return "".join(map(str, parts))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(\.\d+)?[sdrf]", ANY, node.value)  # of logging
    return ""


@cache
def every_template() -> str:
    files = sorted((ROOT / "src/coadapt").rglob("*.py"))
    return "\n".join(t for file in files for t in templates(file.read_text(encoding="utf-8")))


def occurs(quoted: str, texts: str) -> bool:
    """Whether one of the texts, a line each, holds what is quoted; ``...`` is anything."""
    pattern = "[^\n]*?".join(map(re.escape, quoted.strip(".").split("...")))
    return re.search(pattern, texts) is not None


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_program_s(quoted):
    assert len(re.findall(r"[a-z]", quoted)) >= 8, "too little of the message to be found by"
    assert occurs(quoted, every_template())


def test_the_page_quotes_each_message_once():
    assert len(QUOTED) == len(set(QUOTED)) >= 50


def test_docstrings_and_changed_messages_are_not_taken_for_messages():
    source = '''
def f(name, hint):
    """Raises: there is no task of that name."""
    raise InputError(f"no column '{name}' is " f"there{hint}")
    logger.warning("%s: %d rows removed", name, 3)
'''
    texts = "\n".join(templates(source))
    assert occurs("no column '...' is there", texts)
    assert occurs("... rows removed", texts)
    assert not occurs("no column '...' was there", texts)
    assert not occurs("there is no task", texts)
