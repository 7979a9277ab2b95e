import pytest

from tests.tasks.toy_rows import ROWS, write_jsonl


@pytest.fixture
def rows_file(tmp_path):
    """A JSONL file with the forty rows."""
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)
