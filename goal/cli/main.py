"""The command line: one verb per stage of the pipeline, and a few for daily use."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goal import config
from goal.cli import models, own, project, search
from goal.cli.unchanged import Unchanged
from goal.errors import EXIT_RESUMABLE, EXIT_TRANSIENT, EXIT_USER_ERROR, Interrupted, Unavailable, UserError
from goal.runtime import proxies

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="Fine-tune CLIP on long captions with GOAL. The whole pipeline: `dvc repro`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
PIPELINE = "Stages of the pipeline (dvc.yaml runs these)"
DAILY = "Daily use"
UPKEEP = "Upkeep of the package"
# Verbs that load torch or MLflow before they can say anything.
SLOW = {"app", "check", "embed", "evaluate", "export", "fit-batch", "index", "mix", "promote", "register"}
SLOW |= {"report", "rollback", "search", "sync", "train"}


@app.command(rich_help_panel=PIPELINE)
def code() -> None:
    """List the code that each stage can run: DVC then sees which stages an edit makes stale."""
    params = config.load()
    from goal.stages import code as stage

    stage.run(params)


def _stage(name: str, text: str) -> None:
    """A verb that runs goal.stages.<name> with params.yaml."""

    @app.command(name, help=text, rich_help_panel=PIPELINE)
    def verb() -> None:
        inputs = Unchanged(name)
        import_module(f"goal.stages.{name}").run(inputs.params)
        inputs.check()


@app.command(rich_help_panel=PIPELINE)
def data(
    accept_rejected: Annotated[
        bool, typer.Option("--accept-rejected", help="Go on, this once, however many rows cannot be used.")
    ] = False,
) -> None:
    """Draw, read or download the pictures and captions; write one manifest per split."""
    inputs = Unchanged("data")
    from goal.stages import data as stage

    stage.run(inputs.params, accept_rejected)
    inputs.check()


_stage("base", "Load the pretrained CLIP and stretch its text positions.")
_stage("regions", "Propose regions in every picture (LISM, first half).")
_stage("pairs", "Match every sentence with its region (LISM, second half).")


@app.command(rich_help_panel=PIPELINE)
def train(name: Annotated[str, typer.Argument(help=", ".join(config.paths.TRAINED))]) -> None:
    """Fine-tune one model; after a kill, the same command resumes it."""
    inputs = Unchanged("train", name)
    params = inputs.params
    from goal.stages import train as stage
    from goal.tracking import runs
    from goal.training import distributed
    from goal.training.progress import Silent

    if params.train.processes > 1 and not distributed.started():
        stage.check(params, name)
        distributed.launch(["train", name], params.train.processes)
        return
    with runs.training(params, name) if distributed.is_first() else nullcontext(Silent()) as tracker:
        stage.run(params, name, tracker)
        if distributed.is_first():
            inputs.check()


@app.command(rich_help_panel=PIPELINE)
def mix() -> None:
    """Mix a trained model's weights with zero-shot's; alpha is chosen in validation."""
    inputs = Unchanged("mix")
    from goal.stages import mix as stage
    from goal.tracking import runs

    with runs.training(inputs.params, config.paths.MIXED) as tracker:
        stage.run(inputs.params, tracker)
        inputs.check()


@app.command(rich_help_panel=PIPELINE)
def evaluate(
    names: Annotated[
        list[str] | None, typer.Argument(help="zero-shot or trained models [default: all]")
    ] = None,
    on: Annotated[str, typer.Option(help="Another data set; make it first with `goal data`.")] = "",
) -> None:
    """Measure models on every benchmark of the data set, or of another one."""
    inputs = Unchanged("evaluate")
    from goal.stages import evaluate as stage
    from goal.tracking import runs

    measured = stage.run(inputs.params, names or config.paths.MODELS, on)
    inputs.check()
    for name, headline in measured.items():
        runs.evaluation(inputs.params, name, headline, on)


@app.command(rich_help_panel=PIPELINE)
def report() -> None:
    """Write all results as tables, figures and one page."""
    inputs = Unchanged("report")
    from goal.stages import report as stage
    from goal.tracking import runs

    about = stage.run(inputs.params, runs.experiment(inputs.params))
    inputs.check()
    runs.report(inputs.params, about)


_stage("register", "Make a version of the registered model, with the alias `challenger`.")


for verb in (project.init, own.use, own.look):
    app.command(rich_help_panel=DAILY)(verb)


@app.command(rich_help_panel=DAILY)
def check(
    preset: Annotated[str, typer.Argument(help="its name; default: params.yaml")] = "",
) -> None:
    """Report what a preset downloads, trains and needs, and whether it can work here; changes nothing."""
    from goal.config import presets

    params = presets.load(preset) if preset else config.load()
    from goal.cli import check as checks

    facts = checks.facts(params)
    for fact in facts:
        typer.echo(f"{fact.topic:<13} {'FAULT: ' if fact.fault else ''}{fact.text}")
    faults = [f"{fact.topic}: {fact.text}" for fact in facts if fact.fault]
    if faults:
        raise UserError(f"this cannot work; fix {'; '.join(faults)}")


@app.command(rich_help_panel=DAILY)
def fit_batch(name: Annotated[str, typer.Argument(help=", ".join(config.paths.TRAINED))]) -> None:
    """Find the largest batch that fits the training device."""
    params = config.load()
    from goal.cli import fit_batch as search

    found = search.run(params, name)
    processes = params.train.processes
    room = f"{found.memory / 2**30:.1f} of {found.limit / 2**30:.1f} GiB"
    typer.echo(f"{name}: {found.batch_size} pairs per process, {room}")
    typer.echo(f"largest batch_size with train.processes {processes}: {found.batch_size * processes}")


@app.command(rich_help_panel=DAILY)
def table(
    mixed: Annotated[bool, typer.Option(help="Also show results of different protocols, marked.")] = False,
) -> None:
    """Print the benchmark table of all evaluated models."""
    from goal.evaluation import results
    from goal.evaluation import table as benchmark_table

    found = results.load(results.evaluated(), mixed)
    _print(benchmark_table.rich(found), benchmark_table.notes(found))


@app.command(rich_help_panel=DAILY)
def compare(
    first: Annotated[str, typer.Argument(help="an evaluated model, for example stage2")],
    second: Annotated[str, typer.Argument(help="another one, for example global")],
) -> None:
    """Compare two models query by query: differences with intervals and p-values."""
    params = config.load()
    from goal.evaluation import compare as comparison
    from goal.evaluation import results
    from goal.evaluation import table as benchmark_table

    lines = comparison.compare(first, second, params.evaluate.ks)
    notes = benchmark_table.notes(results.load([first, second]))
    _print(comparison.rich(first, second, lines), notes)


for verb in (models.embed, models.export, search.index, search.search, search.app):
    app.command(rich_help_panel=DAILY)(verb)


@app.command(rich_help_panel=UPKEEP)
def pretrain_scenes(
    output: Annotated[Path | None, typer.Option(help="the weights file; default: the package's own")] = None,
) -> None:
    """Pretrain the embedded small CLIP again from its seed, on short captions of drawn scenes."""
    from goal.model import embedded
    from goal.training import pretrain

    pretrain.run(pretrain.Recipe(), output or embedded.ASSET)


@app.command(rich_help_panel=DAILY)
def sync() -> None:
    """Send to MLflow what stages logged while its server was away."""
    from goal.tracking import mlflow_store, sync

    typer.echo(f"{sync.run()} records sent to {mlflow_store.address()}")


@app.command(rich_help_panel=DAILY)
def promote(
    version: Annotated[int | None, typer.Argument(help="a version's number; default: the challenger")] = None,
    alias: Annotated[
        str, typer.Option(help="The alias to set: `champion`, or another one that you serve beside it.")
    ] = "champion",
    reason: Annotated[str, typer.Option(help="Recorded on the version.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the gates, change nothing.")] = False,
    new_data: Annotated[
        bool,
        typer.Option("--new-data", help="The benchmark was changed on purpose: ignore the champion."),
    ] = False,
) -> None:
    """Check a registered version against the gates of params.yaml; if all pass, give it the alias."""
    params = config.load()
    from goal.tracking import promotion

    try:
        decision = promotion.judge(params, version, new_data, alias)
    except promotion.HasAlias as error:
        if not dry_run:
            raise
        typer.echo(f"dry run: {error}")
        return
    _print(decision.rich())
    if not dry_run:
        promotion.promote(params, decision, reason)
    elif not decision.passed:
        raise UserError(f"dry run: version {decision.version} would be refused: {'; '.join(decision.faults)}")
    else:
        typer.echo(f"dry run: version {decision.version} would become the {alias}")


@app.command(rich_help_panel=DAILY)
def rollback(
    reason: Annotated[str, typer.Option(help="Recorded on both versions.")],
    alias: Annotated[str, typer.Option(help="The alias to move back.")] = "champion",
    to: Annotated[
        int | None, typer.Option(help="A version's number; default: the one that had the alias before.")
    ] = None,
) -> None:
    """Give the alias back to the version that had it before, or to a version that you name."""
    params = config.load()
    from goal.tracking import promotion

    promotion.rollback(params, reason, alias, to)


def _print(table: "Table", notes: Sequence[str] = ()) -> None:
    from rich.console import Console

    # If the output is not a terminal, rich would squeeze the table into 80 columns.
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    for note in notes:
        typer.echo(note)


def main() -> None:
    """Run the command line; a fault that the user can fix is one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not sys.stderr.isatty():
        # In a log, a bar drawn ten times a second is noise; tqdm reads this when it is first imported.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    os.environ.update(proxies.bypassing(os.environ))
    if sys.stderr.isatty() and set(sys.argv[1:2]) & SLOW and "--help" not in sys.argv:
        sys.stderr.write(f"goal {sys.argv[1]}: loading ...\n")
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"goal: {error}\n")
        sys.exit(EXIT_TRANSIENT if isinstance(error, Unavailable) else EXIT_USER_ERROR)
    except Interrupted as error:
        sys.stderr.write(f"goal: {error}\n")
        sys.exit(EXIT_RESUMABLE)
