"""The messages that the page quotes are those that the package writes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)


def literals() -> Iterator[str]:
    """Every text in the source, with … for what is filled in."""
    for path in (ROOT / "src/coadapt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                yield "".join(map(str, parts))


LITERALS = list(literals())


def test_there_are_messages():
    assert len(QUOTED) > 50
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_written_somewhere(quoted: str):
    pattern = re.compile(".*?".join(map(re.escape, quoted.split("…"))), re.DOTALL)
    assert any(pattern.search(literal) for literal in LITERALS)


def test_terms_of_the_glossary_are_in_order_and_lead_to_a_page():
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE)[2:]
    terms = [term for term, _ in rows]
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.casefold)
    assert [term for term, told in rows if "](" not in told] == []
