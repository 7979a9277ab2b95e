"""The glossary is in order, and each of its terms leads to a section where it matters."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
ENTRIES = [
    line
    for line in (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("- ")
]
ENTRY = re.compile(r"- \*\*([^*]+)\*\*: (.+) See \[[^\]]+\]\(([^)#]+)(?:#([^)]+))?\)")


def sections(page: Path) -> set[str]:
    """The page's headings as links name them, as GitHub and MyST do."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.split("**")[1])
def test_a_term_is_defined_and_leads_to_a_section(entry):
    found = ENTRY.fullmatch(entry)
    assert found, "write: - **term**: definition. See [page](page.md#section)"
    _term, definition, page, section = found.groups()
    assert definition.endswith(".")
    assert section is None or section in sections(DOCS / page)


def test_terms_are_in_alphabetic_order_and_stand_once():
    terms = [entry.split("**")[1].lower() for entry in ENTRIES]
    assert terms == sorted(set(terms))
    assert len(terms) >= 40
