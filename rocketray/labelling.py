"""What the cross-encoder says of passages found: scores, verdicts, pseudo labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rocketray import calibration, storage
from rocketray.artifacts import Version
from rocketray.errors import UserError
from rocketray.pair_store import keep_pairs, known_pairs
from rocketray.preparation import Ready
from rocketray.recipe import LEXICAL_DEPTH, Recipe, in_round
from rocketray.recipe import Denoise as Rules
from rocketray.retrieval import lexical, lexical_spec, list_depths
from rocketray.stages.answers import AnswerPositives
from rocketray.stages.augment import Augment
from rocketray.stages.denoise import Denoise, TrustAll
from rocketray.stages.pool import LaterPool, Pool
from rocketray.stages.score import Score
from rocketray.workflow import Spec, Workflow


def score(
    flow: Workflow, ready: Ready, name: str, run: Version, cross: Version, depth: int,
    beside: Sequence[Spec] = (), rules: Rules | None = None,
) -> Version:  # fmt: skip
    """A run's top passages with the cross-encoder's probabilities; known pairs are not scored.

    Args:
        beside: other work for the same pool of workers.
        rules: whose thresholds `score.recheck` looks near; None: those of the recipe.
    """
    told = _scoring(flow.recipe, rules or flow.recipe.denoise)
    store = pairs_folder(flow) / cross.digest
    spec = Spec(
        name=name,
        stage=Score,
        inputs={
            "cross": cross,
            "run": run,
            "query_tokens": ready.cross_tokens.queries,
            "passage_tokens": ready.cross_tokens.passages,
        },
        settings={"depth": depth, **told},
        begin=lambda stage: {"known": known_pairs(flow.folder.stages, stage, store, told)},
        over="run",
        people=ready.tables.queries,
    )
    scored = flow.bulk(spec.choosing(), *beside)[0]
    keep_pairs(scored.path, store, told)
    return scored


def pairs_folder(flow: Workflow) -> Path:
    """Where scored pairs are kept: a store that several runs share, or the run's own."""
    return storage.locate(flow.recipe.cluster.pairs or flow.folder.path / "pairs").absolute()


def _scoring(recipe: Recipe, rules: Rules) -> dict[str, Any]:
    """What of the recipe changes a ce_score."""
    told = recipe.score
    if told.recheck is None:
        return {"precision": told.precision}
    thresholds = list(_thresholds(rules).values())
    recheck = {"within": told.recheck, "thresholds": thresholds, "seed": recipe.seed}
    return {"precision": told.precision, "recheck": recheck}


def pool(
    flow: Workflow, ready: Ready, run: Version, told: Rules, number: int = 1,
    before: Version | None = None, name: str = "both_train",
) -> Version:  # fmt: skip
    """The lists that a round takes hard negatives from: a dual encoder's run, BM25's, or both.

    Args:
        run: over the training questions: dual_0's (the paper), in a later round that of the dual_1
            before.
        number: of the round, from 1.
        before: the pool of the round before; the first has none.
        name: what a pool of both retrievers is called in the first round.
    """
    if told.pool == "dual_0":
        return run
    if number > 1 and before:
        return flow.bulk(
            Spec(
                name=f"{in_round('both', number)}_train",
                stage=LaterPool,
                inputs={"dense": run, "before": before},
                settings={"depth": told.deepest, "finder": in_round("dual_1", number - 1)},
                over="dense",
            )
        )[0]
    found = lexical(flow, ready, "train", LEXICAL_DEPTH)
    if told.pool == "bm25":
        return found
    (both,) = flow.bulk(
        Spec(
            name=name,
            stage=Pool,
            inputs={"dense": run, "lexical": found},
            settings={"depth": told.deepest},
            over="dense",
        )
    )
    return both


def denoise(
    flow: Workflow, ready: Ready, run: Version, cross: Version, positives: Version, told: Rules,
    name: str = "denoise",
) -> Version:  # fmt: skip
    """Step 3's verdicts on the passages found for labelled queries."""
    if told.off:
        spec = Spec(
            name=name,
            stage=TrustAll,
            inputs={"run": run, "positives": positives},
            settings={"depth": told.depth, **_beyond(told)},
            over="run",
        )
    else:
        scored = score(flow, ready, f"{run.name}_scored", run, cross, told.depth, rules=told)
        spec = denoise_spec(name, scored, positives, calibrated(flow, ready, cross, told))
    (verdicts,) = flow.bulk(spec)
    return verdicts


def denoise_spec(name: str, scored: Version, positives: Version, told: Rules) -> Spec:
    """Verdicts on a scored run of labelled queries."""
    return Spec(
        name=name,
        stage=Denoise,
        inputs={"scored": scored, "positives": positives},
        settings={**_thresholds(told), **_beyond(told)},
        over="scored",
    )


def augment(flow: Workflow, ready: Ready, run: Version | None, cross: Version) -> Version | None:
    """Step 4's verdicts on the passages that the last dual_1 found for unlabelled queries."""
    if run is None:
        return None
    scored = score(flow, ready, f"{run.name}_scored", run, cross, flow.recipe.augment.depth)
    told = calibrated(flow, ready, cross, flow.recipe.denoise)
    (verdicts,) = flow.bulk(augment_spec("augment", scored, told))
    return verdicts


def augment_spec(name: str, scored: Version, told: Rules) -> Spec:
    """Pseudo labels from a scored run of unlabelled queries."""
    return Spec(
        name=name,
        stage=Augment,
        inputs={"scored": scored},
        settings=_thresholds(told),
        over="scored",
    )


def _thresholds(told: Rules) -> dict[str, float]:
    return told.model_dump(include={"negative_below", "positive_above"})


def _beyond(told: Rules) -> dict[str, Any]:
    """Rules the paper does not have, where they are asked for."""
    return told.model_dump(include={"filter", "promote"}, exclude_defaults=True)


def calibrated(flow: Workflow, ready: Ready, cross: Version, told: Rules) -> Rules:
    """The rules with their thresholds where ce_scores are cut: calibrated probabilities move the
    cuts and leave the scores as they are."""
    scored = dev_scored(flow, ready, cross)
    if told.calibration == "none":
        return told
    assert scored is not None  # `preparation.check_calibration`.
    pairs = calibration.labelled_pairs(scored, ready.tables.qrels["dev"].read())
    moved = calibration.moved(calibration.fit(told.calibration, pairs), _thresholds(told))
    return told.model_copy(update=moved)


def dev_scored(flow: Workflow, ready: Ready, cross: Version) -> Version | None:
    """dual_0's passages for the dev questions with their ce_scores, where something asks: a
    calibration is fitted to them, and `rocketray audit` chooses a threshold by them."""
    name, run = "dual_0_dev_scored", flow.made.get("dual_0_dev")
    asked = flow.recipe.denoise.calibration != "none" or flow.recipe.data.hide_positives
    if run is None or not asked:
        return None
    depth = min(flow.recipe.evaluate.dev_rerank, flow.recipe.denoise.depth)
    return flow.made.get(name) or score(flow, ready, name, run, cross, depth)


def distant_positives(flow: Workflow, ready: Ready, run: Version) -> Version | None:
    """With `data.positives: answers`, what counts as positive from step 2 on."""
    if flow.recipe.data.positives == "labelled":
        return None
    tables = ready.tables
    (found,) = flow.bulk(
        Spec(
            name="answer_positives",
            stage=AnswerPositives,
            inputs={"run": run, "queries": tables.queries, "passages": tables.passages},
            settings={"depth": max(flow.recipe.steps.cross.depth, flow.recipe.denoise.depth)},
            over="run",
        )
    )
    if not found.rows:
        raise UserError(
            "data.positives is `answers`, but no retrieved passage holds an answer string."
            " queries.jsonl needs `answers` (or `metadata.answers`): a list of strings."
        )
    return found


def rerank(flow: Workflow, ready: Ready, cross: Version) -> None:
    """The cross-encoder over dual_2's answers to the test questions, and BM25's own answers."""
    if "test" not in ready.tables.chosen:
        return
    told = flow.recipe.evaluate
    depth = list_depths(flow.recipe)["test"]  # As deep as the models' own, to be measured alike.
    bm25 = [lexical_spec(ready, "test", depth)] if told.bm25 else []
    if told.rerank:
        run = flow.made["dual_2_test"]
        score(flow, ready, "dual_2_test_scored", run, cross, told.rerank, bm25)
    elif bm25:
        flow.bulk(*bm25)
