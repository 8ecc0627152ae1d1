"""The `rocketray` command. Each verb says what to run; the package knows how."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
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
    str,
    typer.Argument(help="A recipe's name (small, msmarco, nq, ablate, tiny, quickstart) or file."),
]
Out = Annotated[Path, typer.Option("--out", help="The run's folder: new, empty, or to resume.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a recipe field; repeatable.",
    ),
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="The folder's writer is gone and cannot say so.")
]
HidePositives = Annotated[
    float | None,
    typer.Option(
        help="Share of relevant passages to hide from training where a question has several."
    ),
]
Place = Annotated[Path, typer.Option("--out", help="The folder to work in: a run's, or a new one.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="BEIR or MS MARCO folder, or one file of passages. Only for a folder without tables."
    ),
]
Dual = Annotated[
    str,
    typer.Option(
        "--model", help="Dual encoder: a name in OUT/models, a folder, or a model on the hub."
    ),
]
CrossModel = Annotated[
    str,
    typer.Option(
        "--model", help="Cross-encoder: a name in OUT/models, a folder, or a model on the hub."
    ),
]
RunName = Annotated[str, typer.Option("--run", help="A run in OUT by its name, or a TREC file.")]
Questions = Annotated[
    str | None,
    typer.Option(help="train, dev, test, unlabelled, or a file: .jsonl, .tsv, .txt."),
]
Depth = Annotated[int, typer.Option("-k", min=1, help="Score the first k of each question.")]
Pairs = Annotated[
    Path | None, typer.Option(help="A store of scored pairs that several folders share.")
]
Below = Annotated[
    float | None, typer.Option(help="ce_score under which a passage may be a negative [0.1].")
]
Above = Annotated[
    float | None, typer.Option(help="ce_score over which a passage is called relevant [0.9].")
]
Negatives = Annotated[int, typer.Option(min=1, help="Hard negatives of an example, at most.")]
Examples = Annotated[
    Path | None, typer.Option("--to", help="The file of examples; else OUT/examples/NAME.jsonl.")
]


@app.command(
    epilog="""
Examples:

    rocketray run small --data my_corpus --out runs/first

    rocketray run small --data my_corpus --hide-labels 0.5 --out runs/hidden

    rocketray run small --data my_corpus --hide-positives 0.3 --out runs/hidden

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
    hide_positives: HidePositives = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    frozen: Annotated[bool, typer.Option(help="Refuse to make finished stages again.")] = False,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """The whole loop: corpus, questions and labels in; retriever, reranker, report out."""
    from rocketray import loop

    overrides = _overrides(settings, hide_labels, hide_positives)
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
    while question := _question():
        searching.show(searcher.search(question, k, rerank=rerank), as_json=as_json)


def _question() -> str:
    """The next one; "" at the end of the input, which typer takes for an interrupt."""
    try:
        return str(typer.prompt("question", default="", show_default=False))
    except typer.Abort:
        return ""


@app.command(
    epilog="""
Examples:

    rocketray evaluate --run runs/first/runs/dual_2.trec --qrels runs/first/runs/test.qrels

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


@app.command(
    epilog="""
Examples:

    rocketray ingest --data my_corpus --out runs/first

    rocketray ingest --data passages.jsonl --out runs/first --set blocks.passages=8192
"""
)
def ingest(
    data: Annotated[Path, typer.Option(help="BEIR or MS MARCO folder, or one file of passages.")],
    out: Place,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """Validate a data set and make it tables, before anything is computed."""
    from rocketray.verbs import work

    work.ingest(out, data=data, overrides=list(settings or []), take_over=take_over)


@app.command(
    epilog="""
Examples:

    rocketray encode --data my_corpus --model BAAI/bge-small-en-v1.5 --out runs/enc

    rocketray encode --model BAAI/bge-small-en-v1.5 --out runs/enc --to e.npy --ids ids.txt

    rocketray encode --data passages.txt --model weights/mine --set model.dual.pooling=mean --out
    runs/enc

    rocketray encode --model dual_1 --out runs/first

A sentence-transformers folder says its pooling, prompts, similarity and lengths; what a bare one
does not say is set by `--set model.dual.FIELD=VALUE`.
"""
)
def encode(
    model: Dual,
    out: Place,
    data: Data = None,
    to: Annotated[Path | None, typer.Option(help="Also as one .npy file.")] = None,
    ids: Annotated[Path | None, typer.Option(help="The ids in its order, one a line.")] = None,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """Embeddings of all passages by any dual encoder."""
    from rocketray.verbs import work

    work.encode(
        out, model=model, data=data, to=to, ids=ids, overrides=list(settings or []),
        take_over=take_over,
    )  # fmt: skip


@app.command(
    epilog="""
Examples:

    rocketray retrieve --model dual_1 --queries dev --out runs/first

    rocketray retrieve --data my_corpus --model BAAI/bge-small-en-v1.5 --queries log.txt -k 20 --out
    runs/enc
"""
)
def retrieve(
    model: Dual,
    out: Place,
    queries: Questions = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages for each question.")] = 100,
    data: Data = None,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """The best passages of many questions, as a run and a TREC file; measured where judged."""
    from rocketray.verbs import work

    work.retrieve(
        out, model=model, queries=queries, k=k, data=data, overrides=list(settings or []),
        take_over=take_over,
    )  # fmt: skip


@app.command(
    epilog="""
Examples:

    rocketray score --run dual_1_test_top100 --model cross --out runs/first

    rocketray score --run bm25.trec --model cross-encoder/ms-marco-MiniLM-L6-v2 -k 20 --out runs/enc
    --pairs pairs
"""
)
def score(
    run: RunName,
    model: CrossModel,
    out: Place,
    queries: Questions = None,
    k: Depth = 50,
    pairs: Pairs = None,
    data: Data = None,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """A run's passages scored by a cross-encoder; no pair is ever scored twice."""
    from rocketray.verbs import work

    work.score(
        out, run=run, model=model, queries=queries, k=k, pairs=pairs, data=data,
        overrides=list(settings or []), take_over=take_over,
    )  # fmt: skip


@app.command(
    epilog="""
Examples:

    rocketray denoise --run dual_0_train --model cross --out runs/first

    rocketray denoise --run bm25.trec --model cross-encoder/ms-marco-MiniLM-L6-v2 --data my_corpus
    --negative-below 0.05 --to examples.jsonl --out runs/mined
"""
)
def denoise(
    run: RunName,
    model: CrossModel,
    out: Place,
    k: Depth = 50,
    negative_below: Below = None,
    positive_above: Above = None,
    negatives: Negatives = 5,
    to: Examples = None,
    pairs: Pairs = None,
    data: Data = None,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """Hard negatives without the false ones: a verdict on every passage, and training examples."""
    from rocketray.verbs import work

    work.denoise(
        out, run=run, model=model, k=k, negative_below=negative_below,
        positive_above=positive_above, negatives=negatives, to=to, pairs=pairs, data=data,
        overrides=list(settings or []), take_over=take_over,
    )  # fmt: skip


@app.command(
    epilog="""
Examples:

    rocketray augment --run dual_1_unlabelled_top50 --model cross --out runs/first

    rocketray augment --run log.trec --queries log.txt --model cross --out runs/first
"""
)
def augment(
    run: RunName,
    model: CrossModel,
    out: Place,
    queries: Questions = None,
    k: Depth = 50,
    negative_below: Below = None,
    positive_above: Above = None,
    negatives: Negatives = 5,
    to: Examples = None,
    pairs: Pairs = None,
    data: Data = None,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """Pseudo labels for unlabelled questions: their verdicts, and training examples."""
    from rocketray.verbs import work

    work.augment(
        out, run=run, model=model, queries=queries, k=k, negative_below=negative_below,
        positive_above=positive_above, negatives=negatives, to=to, pairs=pairs, data=data,
        overrides=list(settings or []), take_over=take_over,
    )  # fmt: skip


@app.command(
    epilog="""
Examples:

    rocketray index --data my_corpus --model BAAI/bge-small-en-v1.5 --out runs/enc

    rocketray index --model dual_2 --out runs/first --index IVF1024,Flat
"""
)
def index(
    model: Dual,
    out: Place,
    data: Data = None,
    factory: Annotated[
        str, typer.Option("--index", help="A string of faiss.index_factory; Flat is exact.")
    ] = "Flat",
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """A faiss index of all passages, and their ids, for other tools."""
    from rocketray.verbs import work

    work.index(
        out, model=model, factory=factory, data=data, overrides=list(settings or []),
        take_over=take_over,
    )  # fmt: skip


@app.command(
    epilog="""
Examples:

    rocketray status runs/first

    rocketray status runs/first --json
"""
)
def status(
    folder: Annotated[Path, typer.Argument(help="A run's folder, also while it works.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """What a folder holds: stages, how far they are, who writes, how much disk it takes."""
    from rocketray.progress import Display
    from rocketray.verbs import upkeep

    found = upkeep.status(folder)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        upkeep.show_status(found, Display())


@app.command(
    epilog="""
Examples:

    rocketray clean runs/first --dry-run

    rocketray clean runs/first --keep 1
"""
)
def clean(
    folder: Annotated[Path, typer.Argument(help="A run's folder that nobody writes.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, do not do it.")] = False,
    keep: Annotated[
        int, typer.Option(min=0, help="Spare so many of each stage's newest old versions.")
    ] = 0,
    take_over: TakeOver = False,
) -> None:
    """Remove old versions of stages: those that neither are current nor went into one that is."""
    from rocketray.progress import Display
    from rocketray.verbs import upkeep

    chosen = upkeep.clean(folder, keep=keep, dry_run=dry_run, take_over=take_over)
    upkeep.show_cleaning(chosen, Display(), dry_run=dry_run)


@app.command(
    epilog="""
Examples:

    rocketray convert nghuyong/ernie-2.0-base-en --out weights/ernie-base

    rocketray run small --data my_corpus --set model.dual.weights=weights/ernie-base --out runs/1
"""
)
def convert(
    model: Annotated[str, typer.Argument(help="A folder, or a model on the hub.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
) -> None:
    """Weights published only as .bin -> safetensors, once. Nothing but tensors is read."""
    from rocketray.model import published

    tensors = published.convert(model, out)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    typer.echo(f"{out}: model.safetensors, {len(tensors):,} tensors, {numbers:,} numbers")


@app.command(
    epilog="""
Examples:

    rocketray recipes

    rocketray recipes small > mine.yaml
"""
)
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """The recipes that come with the package, or one of them in full."""
    from rocketray import recipe as recipe_module

    if name is None:
        for known, words in recipe_module.ABOUT.items():
            typer.echo(f"{known:<10}  {words}")
        return
    text = recipe_module.dump(recipe_module.load(name))
    if name in recipe_module.ABOUT:
        typer.echo(f"# Every field; with reasons and sources: {recipe_module.path_of(name)}")
    typer.echo(text, nl=False)


@app.command(
    epilog="""
Examples:

    rocketray ablate ablate --data squad --hide-labels 0.5 --out runs/ablation

    rocketray ablate small --data my_corpus --unlabelled log.txt --out runs/ablation --seeds 1

    rocketray ablate small --data my_corpus --out runs/rules --also percpos --also simans

The same command again goes on where it stopped and trains only what is missing.
"""
)
def ablate(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", help="A folder: new, empty, or to resume.")],
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
    hide_positives: HidePositives = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from the recipe's on.")] = 3,
    in_batch: Annotated[int, typer.Option(help="Questions in a group of the in-batch row.")] = 16,
    figure: Annotated[
        list[str] | None, typer.Option(help="`negatives` or `augmented`; repeatable.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Other initial weights for dual_0; repeatable.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="dual_1 with one other rule, such as `percpos`, `kl`; repeatable."),
    ] = None,
    settings: Set = None,
    take_over: TakeOver = False,
) -> None:
    """The paper's Table 3 on your data: each of its ideas switched off, over several seeds."""
    from rocketray import ablation

    overrides = _overrides(settings, hide_labels, hide_positives)
    asked = ablation.Asked(in_batch, tuple(figure or ()), tuple(weights or ()), tuple(also or ()))
    ablation.ablate(
        recipe, out, data=data, unlabelled=unlabelled, overrides=overrides, seeds=seeds,
        asked=asked, take_over=take_over,
    )  # fmt: skip


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


@app.command(
    epilog="""
Examples:

    rocketray plan small --data my_corpus --unlabelled log.txt

    rocketray plan msmarco --passages 8841823 --queries 502939 --machine p5.48xlarge

    rocketray plan msmarco --passages 8841823 --queries 502939 --machine g6.xlarge:64@0.35 --json

    rocketray plan small --data my_corpus --machine mine=cpus:16,gpus:1,tflops:120,dollars:0.8:4

Of a machine of your own say cpus, and with gpus tflops (peak of one in bfloat16); if you know them
gbit (to other machines, for hours), memory (of a GPU, GB), link (between GPUs, GB/s), dollars.

With --data and without --machine, a minute of work on a sample measures this machine.
"""
)
def plan(
    recipe: RecipeName,
    data: Annotated[
        Path | None, typer.Option(help="Count its rows; and probe, where no machine is named.")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="More unlabelled questions: .jsonl, .tsv or .txt.")
    ] = None,
    hide_labels: Annotated[
        float | None, typer.Option(help="Share of training questions to treat as unlabelled.")
    ] = None,
    passages: Annotated[int | None, typer.Option(min=1)] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Training questions.")] = None,
    test_queries: Annotated[int | None, typer.Option(min=0)] = None,
    unlabelled_queries: Annotated[int | None, typer.Option(min=0)] = None,
    query_tokens: Annotated[
        float | None,
        typer.Option(help="Mean of a question, special ones included [12; measured with --data]."),
    ] = None,
    passage_tokens: Annotated[
        float | None, typer.Option(help="Mean of a passage [80; measured with --data].")
    ] = None,
    pseudo: Annotated[
        float | None, typer.Option(help="Share of unlabelled questions to become examples [0.5].")
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME:COUNT, NAME:COUNT@DOLLARS (an hour), or your own (below)."),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(min=0.001, help="Gbit/s of each machine [its type's for hours, else 10]."),
    ] = None,
    settings: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list, an entry a machine.")] = False,
) -> None:
    """What a recipe will take: time, GPU-hours, storage, network, money, and what limits it."""
    from rocketray import forecast

    overrides = _overrides(settings, hide_labels)
    told = {
        "passages": passages, "train": queries, "labels": queries, "test": test_queries,
        "unlabelled": unlabelled_queries, "query_tokens": query_tokens,
        "passage_tokens": passage_tokens, "pseudo": pseudo,
    }  # fmt: skip
    forecast.forecast(
        recipe, counts={name: value for name, value in told.items() if value is not None},
        machines=machine or [], network=network, data=data, unlabelled=unlabelled,
        overrides=overrides, as_json=as_json,
    )  # fmt: skip


def _overrides(
    settings: list[str] | None, hide_labels: float | None, hide_positives: float | None = None
) -> list[str]:
    """`--set`, and the fields that have an option of their own."""
    own = {"data.hide_labels": hide_labels, "data.hide_positives": hide_positives}
    hidden = [f"{field}={share}" for field, share in own.items() if share is not None]
    return [*(settings or []), *hidden]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 a bug or a lost machine, 2 the user can mend it,
    130 interrupted."""
    # Sent by `ray job stop`, Kubernetes and the like: as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
