"""From a report's data to one HTML file that needs nothing else."""

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from coadapt._files import write_json, write_text
from coadapt.reporting.charts import draw
from coadapt.reporting.collecting import collect


def write_report(
    folder: str | Path, output: str | Path | None = None, diagnoses: Sequence[str | Path] = ()
) -> Path:
    """Write a report, and its data as JSON beside it.

    Args:
        folder: a run, a study, or a folder with runs in it.
        output: the HTML file; ``report.html`` in the folder by default.
        diagnoses: of the same tasks; by default those that lie in the folder.

    Returns:
        The HTML file.

    Raises:
        InputError: if the folder is none of these.
    """
    data = collect(folder, diagnoses)
    path = Path(folder) / "report.html" if output is None else Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(data))
    write_json(path.with_suffix(".json"), data)
    return path


def render(data: Mapping[str, Any]) -> str:
    """Return the page; every text of the data is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    numbers = count(1)

    def drawn(part: Mapping[str, Any]) -> Markup:
        return Markup(draw(part, next(numbers)))  # its texts were escaped by matplotlib and `draw`

    def marked(text: str) -> Markup:
        """Escape, then turn **bold** and `code` into their elements."""
        safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
        return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", safe))

    here = files("coadapt.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"drawn": drawn, "marked": marked, "base64": _base64, "anchor": _anchor}
    template = environment.from_string((here / "report.html.jinja").read_text(encoding="utf-8"))
    css = (here / "report.css").read_text(encoding="utf-8")
    return template.render(report=data, css=Markup(css))


def _base64(svg: str) -> str:
    return base64.b64encode(svg.encode()).decode()


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")
