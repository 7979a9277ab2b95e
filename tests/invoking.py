"""Running commands in process."""

from typing import Any

from typer.testing import CliRunner

from coadapt.cli import app


def invoke(*words: object, stdin: Any = None, width: int | None = None) -> Any:
    """Run a command, at that width of the terminal."""
    columns = {} if width is None else {"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)}
    return CliRunner(env=columns).invoke(app, [str(word) for word in words], input=stdin)


def succeed(*words: object, stdin: Any = None) -> str:
    """Run a command that has to end well, and return what it printed."""
    result = invoke(*words, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(*words: object) -> str:
    """Run a command that has to end with a mendable error, and return the error."""
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return result.stderr[result.stderr.index("error: ") :].strip()
