"""The `rocketray` command. Each verb says what to run; the package knows how."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rocketray.errors import UserError

INTERRUPTED = 130
# Some versions of typer carry their own click, so the class is taken from what typer shows.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train dense passage retrievers the RocketQA way, on Ray.",
)

RecipeName = Annotated[
    str, typer.Argument(help="A recipe's name (small, msmarco, nq, tiny, quickstart) or file.")
]
Out = Annotated[Path, typer.Option("--out", help="The run's folder: new, empty, or to resume.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a recipe field; repeatable."),
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="The folder's writer is gone and cannot say so.")
]


@app.command(
    epilog="""
Examples:

    rocketray run small --data my_corpus --out runs/first

    rocketray run small --data my_corpus --hide-labels 0.5 --out runs/hidden

    rocketray run small --data my_corpus --out runs/first --set steps.dual_0.epochs=2

The same command again goes on where it stopped, and reruns only what a change touches.
"""
)
def run(
    recipe: RecipeName,
    out: Out,
    data: Annotated[
        Path | None, typer.Option(help="BEIR folder (corpus.jsonl, ...) or MS MARCO TSV files.")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="More unlabelled questions: .jsonl, .tsv or .txt.")
    ] = None,
    hide_labels: Annotated[
        float | None,
        typer.Option(help="Share of training questions to treat as unlabelled, truth kept aside."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    frozen: Annotated[bool, typer.Option(help="Refuse to make finished stages again.")] = False,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """The whole loop: corpus, questions and labels in; retriever, reranker, report out."""
    from rocketray import loop

    overrides = list(settings or [])
    if hide_labels is not None:
        overrides.append(f"data.hide_labels={hide_labels}")
    loop.run(
        recipe, out, data=data, unlabelled=unlabelled, overrides=overrides, until=until,
        frozen=frozen, take_over=take_over,
    )  # fmt: skip


@app.command(
    epilog="""
Examples:

    rocketray quickstart

    rocketray search rocketray-quickstart "how do I pad a tensor"
"""
)
def quickstart(
    out: Annotated[
        Path, typer.Option("--out", help="The run's folder: new, empty, or to resume.")
    ] = Path("rocketray-quickstart"),
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """The whole loop over the documentation of the Python packages installed here.

    Some minutes on two cores, no GPU, no download, no data: a retriever that answers
    questions about your own environment.
    """
    from rocketray import loop

    loop.quickstart(out, overrides=list(settings or []), take_over=take_over)


@app.command(
    epilog="""
Examples:

    rocketray search runs/first "how do I pad a tensor"

    rocketray search runs/first "how do I pad a tensor" -k 3 --rerank --json
"""
)
def search(
    folder: Annotated[Path, typer.Argument(help="A finished run.")],
    question: Annotated[str | None, typer.Argument(help="Leave out to ask several.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Answers.")] = 10,
    rerank: Annotated[bool, typer.Option(help="Let the cross-encoder order the best 50.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False,
) -> None:
    """Answers from a finished run: score, title, snippet."""
    from rocketray import search as searching

    searcher = searching.Searcher(folder)
    if question is not None:
        searching.show(searcher.search(question, k, rerank=rerank), as_json=as_json)
        return
    while question := typer.prompt("question", default="", show_default=False):
        searching.show(searcher.search(question, k, rerank=rerank), as_json=as_json)


@app.command(
    epilog="""
Examples:

    rocketray evaluate --run runs/first/runs/dual_2.trec --qrels my_corpus/qrels/test.tsv

    rocketray evaluate --run a.trec --qrels qrels.txt -m map@100 -m P@5
"""
)
def evaluate(
    run_file: Annotated[Path, typer.Option("--run", help="TREC run: qid Q0 pid rank score tag.")],
    qrels: Annotated[Path, typer.Option(help="Qrels, TREC (4 columns) or BEIR (3, header).")],
    measure: Annotated[
        list[str] | None, typer.Option("--measure", "-m", help="Any ir-measures name.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="queries.jsonl with `answers`: adds answer recall.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="corpus.jsonl, where --answers are looked for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Measure any TREC run, as trec_eval does; a question without hits counts zero."""
    from rocketray import evaluation

    found = evaluation.evaluate(run_file, qrels, measure, answers=answers, corpus=corpus)
    evaluation.show(found, as_json=as_json)


@app.command(
    epilog="""
Examples:

    rocketray train dual --examples triples.jsonl --out runs/mine

    rocketray train cross --examples triples.tsv --recipe small --out runs/reranker
"""
)
def train(
    kind: Annotated[str, typer.Argument(help="`dual` or `cross`.")],
    examples: Annotated[
        Path, typer.Option(help="JSON lines {query, positive, negatives} or TSV triples.")
    ],
    out: Out,
    recipe: Annotated[str, typer.Option(help="Where the model and the step come from.")] = "small",
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """Train one dual encoder or cross-encoder on your own examples.

    Fields: `model.dual` and `steps.dual_0`, or `model.cross` and `steps.cross`.
    """
    from rocketray import loop

    loop.train(
        kind, examples, out, recipe=recipe, overrides=list(settings or []), take_over=take_over
    )


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """The recipes that come with the package, or one of them in full."""
    from rocketray import recipe as recipe_module

    if name is None:
        typer.echo("\n".join(recipe_module.names()))
    else:
        typer.echo(recipe_module.dump(recipe_module.load(name)), nl=False)


@app.command(
    epilog="""
Examples:

    rocketray audit runs/first

    rocketray audit runs/first --json | jq .by_rank
"""
)
def audit(
    folder: Annotated[Path, typer.Argument(help="A run that has come to denoising.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object; writes nothing.")] = False,
) -> None:
    """What denoising and pseudo labels did, threshold by threshold, from stored scores.

    Writes audit.json and a section of report.html into the folder.
    """
    from rocketray import audit as auditing

    auditing.write(folder, as_json=as_json)


@app.command(
    epilog="""
Examples:

    rocketray check --data my_corpus

    rocketray check --data my_corpus --recipe msmarco --json
"""
)
def check(
    data: Annotated[Path, typer.Option(help="BEIR folder or MS MARCO TSV files, as for run.")],
    unlabelled: Annotated[
        Path | None, typer.Option(help="More unlabelled questions: .jsonl, .tsv or .txt.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Whose lengths and tokenizer.")] = "small",
    settings: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """A data set before anybody trains: leaks, duplicates, cut texts, labels, languages."""
    from rocketray import checks

    found = checks.check(data, unlabelled, recipe=recipe, overrides=list(settings or []))
    checks.show(found, as_json=as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 a bug or a lost machine, 2 the user can mend it,
    130 interrupted."""
    sys.exit(_guarded(lambda: app(arguments, standalone_mode=False)))


def _guarded(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except UserError as error:
        print(f"rocketray: {error}", file=sys.stderr)
        return 2
    except UsageError as error:
        error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer turns the interrupt into this code, or into its Abort.
        print("\nrocketray: stopped. The same command goes on from here.", file=sys.stderr)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
