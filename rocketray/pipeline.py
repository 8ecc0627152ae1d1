"""RocketQA's four steps in order, over what `preparation` has made ready: tables, initial weights,
tokens. What they leave is measured by `results`.

labelled -> dual_0 -retrieve-> run_0 -> cross          positives + negatives drawn from run_0
                               run_0 -score-> denoise -> dual_1         from the initial weights
unlabelled -retrieve by dual_1-> score -> augment -> dual_2             from the initial weights
"""

from __future__ import annotations

from rocketray.labelling import augment, denoise, distant_positives, pool, rerank
from rocketray.learning import first_examples, hard_examples, train_cross, train_dual
from rocketray.preparation import Ready
from rocketray.retrieval import retrieve
from rocketray.workflow import Workflow

STEPS = ("dual_0", "cross", "dual_1", "dual_2")


def run(flow: Workflow, ready: Ready) -> None:
    """The whole method. Each line makes versions, or finds that they are there."""
    dual_0 = train_dual(flow, ready, "dual_0", first_examples(flow, ready))
    # The untrained weights come here and not first: together they start two pools of workers fewer.
    found = retrieve(
        flow, ready, {"initial": ready.dual, "dual_0": dual_0},
        {"initial": ["test"], "dual_0": ["train", "dev", "test"]},
    )  # fmt: skip
    run_0 = found["dual_0"]
    positives = distant_positives(flow, ready, run_0["train"]) or ready.tables.qrels["train"]
    cross = train_cross(flow, ready, run_0, positives)
    candidates = pool(flow, ready, run_0["train"], flow.recipe.denoise)
    verdicts = denoise(flow, ready, candidates, cross, positives, flow.recipe.denoise)
    examples = hard_examples(flow, ready, "dual_1", verdicts, positives, candidates)
    dual_1 = train_dual(flow, ready, "dual_1", examples)
    run_1 = retrieve(flow, ready, {"dual_1": dual_1}, {"dual_1": ["unlabelled", "test"]})["dual_1"]
    pseudo = augment(flow, ready, run_1.get("unlabelled"), cross)
    examples = hard_examples(flow, ready, "dual_2", verdicts, positives, candidates, pseudo)
    dual_2 = train_dual(flow, ready, "dual_2", examples)
    retrieve(flow, ready, {"dual_2": dual_2}, {"dual_2": ["test"]})
    rerank(flow, ready, cross)


STAGES = (
    "passages", "queries",
    "qrels_train", "qrels_hidden", "qrels_hidden_positives", "qrels_dev", "qrels_test",
    "train_queries", "dev_queries", "test_queries", "unlabelled_queries",
    "initial", "initial_cross", "query_tokens", "passage_tokens",
    "dual_0_examples", "dual_0", "initial_embeddings", "dual_0_embeddings",
    "initial_index", "dual_0_index",
    "initial_test", "dual_0_train", "dual_0_dev", "dual_0_test",
    "cross_examples", "cross", "dual_0_train_scored", "dual_0_dev_scored", "denoise",
    "dual_1_examples", "dual_1", "dual_1_embeddings", "dual_1_index", "dual_1_unlabelled",
    "dual_1_test",
    "dual_1_unlabelled_scored", "augment",
    "dual_2_examples", "dual_2", "dual_2_embeddings", "dual_2_index", "dual_2_test",
    "dual_2_test_scored", "bm25_test",
)  # fmt: skip
"""Every stage, in order: what `--until` takes."""
