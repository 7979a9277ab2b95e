"""The command line: a verb, a file, few options. Thin: every verb is a call of the library."""

import logging
from typing import Annotated

import typer

from coadapt._version import __version__
from coadapt.verbs.adapting import adapt
from coadapt.verbs.checking import check
from coadapt.verbs.common import out
from coadapt.verbs.drafting import init
from coadapt.verbs.importing import import_
from coadapt.verbs.merging import merge
from coadapt.verbs.reporting import report
from coadapt.verbs.running import compose, evaluate, export, predict, train
from coadapt.verbs.sharing import diagnose, plan
from coadapt.verbs.starting import demo, methods
from coadapt.verbs.studying import compare, study

app = typer.Typer(
    name="coadapt",
    help="Adapt one foundation model to many tasks at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        out.print(f"coadapt {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001  (its callback answers)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more of what happens.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


# In the order in which they are listed: from what there is to what comes of it.
for verb in (
    methods,
    demo,
    init,
    check,
    diagnose,
    plan,
    train,
    evaluate,
    predict,
    export,
    adapt,
    compose,
    merge,
    study,
    compare,
    report,
):
    app.command()(verb)
app.command(name="import")(import_)


def main() -> None:
    """Run the command line."""
    app()
