"""RocketQA's four steps in order, over what `preparation` has made ready: tables, initial weights,
tokens. What they leave is measured by `results`.

labelled -> dual_0 -retrieve-> run_0 -> cross          positives + negatives drawn from run_0
                               run_0 -score-> denoise -> dual_1         from the initial weights
unlabelled -retrieve by dual_1-> score -> augment -> dual_2             from the initial weights

With `denoise.rounds` above 1 the second line comes again, over what dual_1 retrieves:

                               dual_1_train -score-> denoise_round_2 -> dual_1_round_2
"""

from __future__ import annotations

from rocketray.labelling import augment, denoise, distant_positives, pool, rerank
from rocketray.learning import first_examples, hard_examples, train_cross, train_dual
from rocketray.preparation import Ready
from rocketray.recipe import in_round
from rocketray.retrieval import retrieve
from rocketray.workflow import Workflow

STEPS = ("dual_0", "cross", "dual_1", "dual_2")


def run(flow: Workflow, ready: Ready) -> None:
    """The whole method. Each line makes versions, or finds that they are there."""
    told = flow.recipe.denoise
    dual_0 = train_dual(flow, ready, "dual_0", first_examples(flow, ready))
    # The untrained weights come here and not first: together they start two pools of workers fewer.
    found = retrieve(
        flow, ready, {"initial": ready.dual, "dual_0": dual_0},
        {"initial": ["test"], "dual_0": ["train", "dev", "test"]},
    )  # fmt: skip
    run_0 = found["dual_0"]
    positives = distant_positives(flow, ready, run_0["train"]) or ready.tables.qrels["train"]
    cross = train_cross(flow, ready, run_0, positives)
    runs, candidates = run_0, run_0["train"]
    for number in range(1, told.rounds + 1):  # One in the paper.
        name = in_round("dual_1", number)
        candidates = pool(flow, ready, runs["train"], told, number, candidates)
        judged = in_round("denoise", number)
        verdicts = denoise(flow, ready, candidates, cross, positives, told, judged)
        examples = hard_examples(flow, ready, name, verdicts, positives, candidates)
        dual_1 = train_dual(flow, ready, name, examples)
        asked = ["unlabelled" if number == told.rounds else "train", "test"]
        runs = retrieve(flow, ready, {name: dual_1}, {name: asked})[name]
    pseudo = augment(flow, ready, runs.get("unlabelled"), cross)
    examples = hard_examples(flow, ready, "dual_2", verdicts, positives, candidates, pseudo)
    dual_2 = train_dual(flow, ready, "dual_2", examples)
    retrieve(flow, ready, {"dual_2": dual_2}, {"dual_2": ["test"]})
    rerank(flow, ready, cross)


def stages(rounds: int) -> tuple[str, ...]:
    """Every stage, in order: what `--until` takes."""
    hard: list[str] = []
    for number in range(1, rounds + 1):
        name, asked = in_round("dual_1", number), "unlabelled" if number == rounds else "train"
        hard += [in_round("denoise", number), f"{name}_examples", name, f"{name}_embeddings",
                 f"{name}_index", f"{name}_{asked}", f"{name}_test",
                 f"{name}_{asked}_scored"]  # fmt: skip
    return (*_BEFORE, *hard, *_AFTER)


def beyond(until: str, rounds: int) -> set[str]:
    """All that is made after a stage: later stages, and what is made on the way to them that nobody
    asks for by name."""
    known = stages(rounds)
    after = known[known.index(until) + 1 :]
    found = {*after, *(f"{name}_cells" for name in after)}
    for name in after:
        if name.endswith("_index"):
            model = name.removesuffix("_index")
            measured = ("exact", "exact_cells", "recall_queries", "recall")
            found |= {f"{name}_trained", *(f"{model}_{stage}" for stage in measured)}
    for number in range(1, rounds + 1):
        if in_round("denoise", number) in after:
            pools = {"bm25_train", f"{in_round('both', number)}_train"}
            found |= pools | {f"{name}_scored" for name in pools}
    return found | {"answer_positives"} if "cross_examples" in after else found


_BEFORE = (
    "passages", "queries",
    "qrels_train", "qrels_hidden", "qrels_hidden_positives", "qrels_dev", "qrels_test",
    "train_queries", "dev_queries", "test_queries", "unlabelled_queries",
    "initial", "initial_cross", "query_tokens", "passage_tokens",
    "dual_0_examples", "dual_0", "initial_embeddings", "dual_0_embeddings",
    "initial_index", "dual_0_index",
    "initial_test", "dual_0_train", "dual_0_dev", "dual_0_test",
    "cross_examples", "cross", "dual_0_train_scored", "dual_0_dev_scored",
)  # fmt: skip
_AFTER = (
    "augment",
    "dual_2_examples", "dual_2", "dual_2_embeddings", "dual_2_index", "dual_2_test",
    "dual_2_test_scored", "bm25_test",
)  # fmt: skip
STAGES = stages(1)
"""Those of one round, as in the paper."""
