"""Each bulk verb alone: what it makes, what it leaves for others, what it makes again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from sentence_transformers import SentenceTransformer

from rocketray import artifacts, cli, loop, measures, results
from rocketray.artifacts import RunFolder, Version
from rocketray.engine.bulk import Job, run_jobs
from rocketray.errors import UserError
from rocketray.evaluation import evaluate
from rocketray.formats.examples_file import open_examples
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.progress import Display
from rocketray.schema import Verdict, positives_of
from rocketray.tables import STAGES
from rocketray.verbs import work
from tests.conftest import SMALLER
from tests.verbs.conftest import SMALL, Place


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def made(printed: str) -> list[str]:
    """Stages of the table of times, less those too quick for a line."""
    return re.findall(r"^│ (\w+)", printed, re.MULTILINE)


def stages(out: Path) -> dict[str, str]:
    return RunFolder.open(out).current()


# ---- ingest


def test_ingest_says_what_there_is(place: Place) -> None:
    out = place.folder / "new"
    tables, printed = place.do(work.ingest, data=place.data, out=out)
    assert (tables.passages.rows, tables.queries.rows) == (40, 33)
    assert "40 passages in 3 blocks" in printed
    assert re.search("empty passages +1 of 40", printed)
    assert re.search("train +16 judgements", printed)


def test_a_split_that_the_data_have_no_more_is_forgotten(place: Place) -> None:
    """Its judgements would name rows of other tables."""
    assert {"qrels_test", "test_queries"} <= stages(place.out).keys()
    (place.data / "qrels" / "test.tsv").unlink()
    (place.data / "qrels" / "dev.tsv").unlink()
    place.do(work.ingest, data=place.data)
    names = stages(place.out).keys()
    assert {"qrels_train", "train_queries", "unlabelled_queries"} <= names
    assert names.isdisjoint({"qrels_test", "test_queries", "qrels_dev", "dev_queries"})
    with pytest.raises(UserError, match=r"--queries 'test'.*there are: train, unlabelled"):
        place.do(work.retrieve, model=str(place.told), queries="test")


def tables(out: Path) -> dict[str, str]:
    return {name: folder for name, folder in stages(out).items() if name in STAGES}


def change(data: Path) -> None:
    """Every row gets another number."""
    for name in ("corpus.jsonl", "queries.jsonl"):
        path = data / name
        path.write_text('{"_id": "first", "text": "a new one"}\n' + path.read_text())


BAD = {
    "a broken line": ("corpus.jsonl", "{"),
    "a pid twice": ("corpus.jsonl", '{"_id": "p3", "text": "x"}'),
    "a qid twice": ("queries.jsonl", '{"_id": "test-0", "text": "x"}'),
    "an unknown pid": ("qrels/test.tsv", "test-0\tnowhere\t1"),
}


@pytest.mark.parametrize(("name", "line"), BAD.values(), ids=BAD)
def test_refused_data_are_no_tables(name: str, line: str, place: Place) -> None:
    """Of a new folder, where the next verb would work on what is left of them; nor of one that has
    tables, whose judgements would name rows of others."""
    before, new = tables(place.out), place.folder / "new"
    change(place.data)
    with (place.data / name).open("a") as file:
        file.write(line + "\n")
    for out in (place.out, new):
        with pytest.raises(UserError):
            place.do(work.ingest, data=place.data, out=out)
    assert tables(place.out) == before
    with pytest.raises(UserError, match="holds no passages yet"):
        place.do(work.encode, model=str(place.told), out=new)


def test_at_no_moment_are_tables_of_two_data_sets_current(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So none at which a kill would leave them."""
    before, seen = tables(place.out), list[dict[str, str]]()
    write = artifacts.write_text

    def watched(path: Path, text: str) -> None:
        write(path, text)
        seen.append(tables(place.out))

    monkeypatch.setattr(artifacts, "write_text", watched)
    change(place.data)
    place.do(work.ingest, data=place.data)
    after = tables(place.out)
    assert all(before[name] != after[name] for name in before)
    assert [found for found in seen if found not in (before, after)] == []
    assert before in seen


def test_appended_passages_with_titles_ingest_only_new_blocks(place: Place) -> None:
    data, out = place.folder / "tsv", place.folder / "new"
    data.mkdir()
    lines = [f"{n}\ttext {n}\n" for n in range(33)]
    titles = [f"{n}\tTitle {n}\n" for n in range(33)]

    def ingested(count: int, title: str = "") -> Version:
        (data / "collection.tsv").write_text("".join(lines[:count]))
        (data / "titles.tsv").write_text(title + "".join(reversed(titles[:count])))
        found: Version = place.do(work.ingest, data=data, out=out)[0].passages
        return found

    def shared(old: Version, new: Version) -> list[bool]:
        pairs = zip(old.blocks, new.blocks, strict=False)
        return [a.files["table"].samefile(b.files["table"]) for a, b in pairs]

    first, more = ingested(32), ingested(33)
    assert [block.rows for block in more.blocks] == [16, 16, 1]
    assert shared(first, more) == [True, True]
    assert more.read()["title"].to_pylist() == [f"Title {n}" for n in range(33)]
    other = ingested(33, "20\tAnother\n")  # The first of two titles counts.
    assert shared(more, other) == [True, False, True]
    assert other.read()["title"].to_pylist()[20] == "Another"


def test_a_corpus_alone_is_enough(place: Place) -> None:
    folder = place.folder / "corpus"
    folder.mkdir()
    (place.data / "corpus.jsonl").rename(folder / "corpus.jsonl")
    tables, printed = place.do(work.ingest, data=folder, out=place.folder / "new")
    assert (tables.passages.rows, tables.queries.rows, tables.qrels) == (40, 0, {})
    assert "no queries.jsonl, so there are no questions" in printed


# ---- encode


def test_encode_is_what_sentence_transformers_makes(place: Place) -> None:
    """A file of passages, without titles; pooling, prompts, lengths as the model's folder says."""
    corpus, out = place.folder / "corpus.jsonl", place.folder / "new"
    lines = rows(place.data / "corpus.jsonl")
    texts = [line["text"] for line in lines if len(line["text"]) < 1000]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    to, ids = place.folder / "deep" / "e.npy", place.folder / "ids.txt"
    version, printed = place.do(
        work.encode, data=corpus, model=str(place.told), out=out, to=to, ids=ids
    )
    theirs = SentenceTransformer(str(place.told), device="cpu").encode_document(texts)
    np.testing.assert_allclose(np.load(to), theirs, atol=1e-5)
    assert ids.read_text().splitlines() == [f"corpus.jsonl:{n}" for n in range(1, len(texts) + 1)]
    assert version.name == "told_embeddings"
    assert "pooling 'mean', similarity 'cosine'" in printed
    assert "passage_prompt 'passage: '" in printed


def test_the_same_command_again_makes_nothing(place: Place) -> None:
    before = stages(place.out)
    _, printed = place.do(work.encode, model=str(place.told))
    assert stages(place.out) == before
    assert made(printed) == []
    assert printed.count("finished before, skipped") == 2  # The model, its embeddings.


def test_what_a_bare_folder_does_not_say_is_set(place: Place) -> None:
    _, printed = place.do(
        work.encode, "model.dual.pooling=mean", "model.dual.passage_length=16",
        model=str(place.bare),
    )  # fmt: skip
    assert "bare_model_v1: towers 'one', pooling 'mean'" in printed
    version = RunFolder.open(place.out).version("bare_model_v1")
    model = DualEncoder.open(version.path / "model")
    assert (model.towers, model.pooling, model.similarity) == ("one", "mean", "dot")
    assert (model.query_length, model.passage_length) == (32, 16)


def test_tokens_are_shared_where_they_are_the_same(place: Place) -> None:
    """The published model's store is longer than the bare one needs, of the same tokenizer."""
    place.do(
        work.encode, "model.dual.passage_length=16", "model.dual.query_length=16",
        model=str(place.bare),
    )  # fmt: skip
    assert "bare_model_v1_embeddings" in stages(place.out)
    assert "bare_model_v1_passage_tokens" not in stages(place.out)


def test_tokens_that_are_stored_otherwise_are_not_shared(place: Place) -> None:
    """As an earlier version of the code stored them."""
    path = RunFolder.open(place.out).version("told_passage_tokens").path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["identity"]["code"] -= 1
    path.write_text(json.dumps(manifest))
    place.do(
        work.encode, "model.dual.passage_length=16", "model.dual.query_length=16",
        model=str(place.bare),
    )  # fmt: skip
    assert "bare_model_v1_passage_tokens" in stages(place.out)
    assert "bare_model_v1_query_tokens" not in stages(place.out)


# ---- retrieve


def test_retrieve_leaves_a_run(worked: Place) -> None:
    folder = RunFolder.open(worked.out)
    run = folder.version("told_test_top10").read()
    embeddings = folder.version("told_embeddings")
    p_PD = np.concatenate([embeddings.array(b.number, "embeddings") for b in embeddings.blocks])
    texts = [folder.version("queries").read()["text"][q].as_py() for q in run["query"].to_pylist()]
    q_QD = SentenceTransformer(str(worked.told), device="cpu").encode_query(texts)
    best = np.argsort(-(q_QD @ p_PD.T), axis=1, kind="stable")[:, :10]
    assert run["passages"].to_pylist() == best.tolist()
    trec = measures.read_run(worked.out / "runs" / "told_test_top10.trec")
    pids = folder.version("passages").read()["pid"].to_pylist()
    assert [hits.pids for hits in trec.values()] == [[pids[p] for p in row] for row in best]


def test_retrieve_measures_where_somebody_judged(place: Place) -> None:
    _, printed = place.do(work.retrieve, model=str(place.told), k=10)
    truth = evaluate(
        place.out / "runs" / "told_test_top10.trec", place.data / "qrels" / "test.tsv", ["mrr@10"]
    )
    assert "4 judged questions" in printed
    assert f"{truth['mrr@10']:.4f}" in printed


def test_questions_of_a_file(place: Place) -> None:
    asked = place.folder / "my log.txt"
    asked.write_text("first question\nsecond question\n")
    run, printed = place.do(work.retrieve, model=str(place.told), queries=str(asked), k=3)
    assert run.name == "told_my_log_top3"
    hits = measures.read_run(place.out / "runs" / "told_my_log_top3.trec")
    assert list(hits) == ["my log.txt:1", "my log.txt:2"]
    assert "judged questions" not in printed
    asked.unlink()  # Read before, it has a name.
    again, printed = place.do(work.retrieve, model=str(place.told), queries="my_log", k=3)
    assert again.path == run.path
    assert made(printed) == []


def test_each_row_has_its_id_in_the_table_that_it_is_of(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a row that kills its worker is named: of a file of questions, not of the data set."""
    tables = dict[str, str]()

    def seen(jobs: Sequence[Job], *rest: Any) -> None:
        tables.update({j.draft.stage: j.people and Version.open(j.people).name for j in jobs})
        run_jobs(jobs, *rest)

    monkeypatch.setattr("rocketray.workflow.run_jobs", seen)
    (place.folder / "log.txt").write_text("a question\n")
    log = str(place.folder / "log.txt")
    place.do(work.retrieve, "encode.storage=float16", model=str(place.told), queries=log, k=3)
    place.do(work.score, run="told_log_top3", model=str(place.cross), k=3)
    assert tables == {
        "log_texts": "",
        "told_log_query_tokens": "log_texts",
        "told_embeddings": "passages",
        "told_log_top3": "log_texts",
        "reranker_log_query_tokens": "log_texts",
        "reranker_passage_tokens": "passages",
        "told_log_top3_by_reranker": "log_texts",
    }


def test_refused_questions_have_no_name(place: Place) -> None:
    asked = place.folder / "log.jsonl"
    asked.write_text('{"text": "a question"}\n{"text": 5}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: `text` must be a string"):
        place.do(work.retrieve, model=str(place.told), queries=str(asked))
    with pytest.raises(UserError, match="no such file, and no such questions here"):
        place.do(work.retrieve, model=str(place.told), queries="log")


# ---- score


def test_score_and_its_files(place: Place) -> None:
    scored, printed = place.do(work.score, run="told_test_top10", model=str(place.cross), k=5)
    assert scored.name == "told_test_top10_by_reranker"
    assert "20 pairs: 0 were known, 20 were scored" in printed
    assert printed.count("told_test_top10") >= 2  # Measured before and after.
    hits = measures.read_run(place.out / "runs" / f"{scored.name}.trec")
    frame = pd.read_parquet(place.out / "runs" / f"{scored.name}.parquet")
    assert list(frame.columns) == ["qid", "pid", "score", "ce_score"]
    assert len(frame) == 20
    for qid, part in frame.groupby("qid"):
        ordered = part.sort_values("ce_score", ascending=False)
        assert hits[str(qid)].scores.tolist() == ordered["ce_score"].tolist()
        assert set(hits[str(qid)].pids) == set(part["pid"])


def test_no_run_is_read_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million lists of a hundred passages are gigabytes as Python's numbers."""
    whole: list[str] = []
    read = Version.read

    def recorded(version: Version, columns: Any = None) -> Any:
        whole.append(version.name)
        return read(version, columns)

    monkeypatch.setattr(Version, "read", recorded)
    run, _ = place.do(work.retrieve, model=str(place.told), queries="dev", k=5)
    scored, printed = place.do(work.score, run=run.name, model=str(place.cross), k=3)
    assert "4 judged questions" in printed
    assert {"qrels_dev"} <= {*whole}
    assert {run.name, scored.name}.isdisjoint(whole)


def test_nothing_is_measured_without_judgements(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "per_query", None)
    asked = place.folder / "log.txt"
    asked.write_text("who\nwhy\n")
    run, _ = place.do(work.retrieve, model=str(place.told), queries=str(asked), k=3)
    place.do(work.score, run=run.name, model=str(place.cross), k=2)


def test_a_pair_is_scored_once_for_all_folders(place: Place) -> None:
    """A TREC file of another folder, the same cross-encoder, one store of pairs."""
    store, other = place.folder / "pairs", place.folder / "other"
    first, _ = place.do(work.score, run="told_test_top10", model=str(place.cross), k=5, pairs=store)
    trec = place.out / "runs" / "told_test_top10.trec"
    second, printed = place.do(
        work.score, out=other, data=place.data, run=str(trec), model=str(place.cross), k=6,
        pairs=store,
    )  # fmt: skip
    assert "24 pairs: 20 were known, 4 were scored" in printed
    assert second.name == "told_test_top10_trec_by_reranker"
    ours, theirs = first.read()["ce_scores"].to_pylist(), second.read()["ce_scores"].to_pylist()
    assert ours == [row[:5] for row in theirs]


# ---- denoise and augment


def verdicts_by_query(version: Version) -> dict[int, list[str]]:
    table = version.read()
    return dict(zip(table["query"].to_pylist(), table["verdicts"].to_pylist(), strict=True))


def test_denoise_leaves_examples(place: Place) -> None:
    place.do(work.retrieve, model=str(place.told), queries="train", k=10)
    verdicts, printed = place.do(
        work.denoise, run="told_train_top10", model=str(place.cross), k=8, negatives=2,
        negative_below=0.5, positive_above=0.52,
    )  # fmt: skip
    folder = RunFolder.open(place.out)
    positives = positives_of(folder.version("qrels_train").read())
    queries, passages = (folder.version(name).read() for name in ("queries", "passages"))
    path = place.out / "examples" / f"{verdicts.name}.jsonl"
    lines = rows(path)
    assert lines
    empty = passages["pid"].to_pylist().index("empty")  # No example holds it.
    hard = {
        queries["qid"][row["query"]].as_py(): sum(
            verdict == Verdict.HARD_NEGATIVE and passage != empty
            for passage, verdict in zip(row["passages"], row["verdicts"], strict=True)
        )
        for row in verdicts.read().to_pylist()
    }
    known = {
        queries["qid"][query].as_py(): [passages["pid"][p].as_py() for p in found]
        for query, found in positives.items()
    }
    for line in lines:
        assert line["positive_id"] in known[line["qid"]]
        assert not {*known[line["qid"]]} & {*line["negative_ids"]}
        assert len(line["negatives"]) == min(2, hard[line["qid"]])
        assert len(line["scores"]) == 1 + len(line["negatives"])
        assert all(ce < 0.5 for ce in line["scores"][1:])
    assert len(list(open_examples(path))) == len(lines)  # rocketray train reads it.
    total = sum(len(row) for row in verdicts_by_query(verdicts).values())
    assert f"verdicts on {total} passages of 16 questions" in printed
    assert f"{path}  {len(lines)}, of which" in printed


def test_a_new_threshold_scores_nothing(place: Place) -> None:
    place.do(work.retrieve, model=str(place.told), queries="train", k=10)
    place.do(work.denoise, run="told_train_top10", model=str(place.cross), k=8)
    verdicts, printed = place.do(
        work.denoise, run="told_train_top10", model=str(place.cross), k=8, negative_below=0.6
    )
    assert "were scored (in an earlier call)" in printed
    assert "again, because recipe.negative_below 0.1 -> 0.6" in printed
    kept = {v for row in verdicts_by_query(verdicts).values() for v in row}
    assert kept <= {Verdict.LABELLED_POSITIVE, Verdict.HARD_NEGATIVE, Verdict.UNCERTAIN}


def test_augment_labels_the_best(place: Place) -> None:
    place.do(work.retrieve, model=str(place.told), queries="unlabelled", k=10)
    verdicts, printed = place.do(
        work.augment, run="told_unlabelled_top10", model=str(place.cross), k=8,
        negative_below=0.5, positive_above=0.5001, to=place.folder / "x.jsonl",
    )  # fmt: skip
    table = verdicts.read()
    labelled = 0
    for row in table.to_pylist():
        best = int(np.argmax(row["ce_scores"]))
        assert (row["verdicts"][best] == Verdict.PSEUDO_POSITIVE) == (
            row["ce_scores"][best] > 0.5001
        )
        labelled += Verdict.PSEUDO_POSITIVE in row["verdicts"]
    assert f"{labelled} of 9 unlabelled questions" in printed
    assert len(rows(place.folder / "x.jsonl")) <= labelled


def test_only_training_questions_teach(place: Place) -> None:
    """A run of another tool answers all questions, and `test-0` is judged."""
    run = place.folder / "all.trec"
    qids = ["train-0", "train-1", "dev-0", "test-0"]
    run.write_text("".join(f"{q} Q0 p{n} 1 {9 - n} x\n" for q in qids for n in range(6)))
    verdicts, printed = place.do(
        work.denoise, run=str(run), model=str(place.cross), negative_below=0.9,
        positive_above=0.95, to=place.folder / "x.jsonl",
    )  # fmt: skip
    assert verdicts.rows == 4
    assert {row["qid"] for row in rows(place.folder / "x.jsonl")} == {"train-0", "train-1"}
    assert "left out of the examples: 2 questions of other splits than train" in printed


def test_a_pair_of_two_files_is_one_example(place: Place) -> None:
    train = (place.data / "qrels" / "train.tsv").read_text().splitlines()
    with (place.data / "qrels" / "dev.tsv").open("a") as file:
        file.write(train[1] + "\n")
    run = place.folder / "all.trec"
    run.write_text("".join(f"train-0 Q0 p{n} 1 {9 - n} x\n" for n in range(6)))
    place.do(
        work.denoise, data=place.data, run=str(run), model=str(place.cross), negative_below=0.9,
        positive_above=0.95, to=place.folder / "x.jsonl",
    )  # fmt: skip
    assert len(rows(place.folder / "x.jsonl")) == 1


def test_what_was_asked_before_gets_no_pseudo_label(place: Place) -> None:
    """A log repeats a test question in other letters, and one of its own."""
    said = {row["_id"]: row["text"] for row in rows(place.data / "queries.jsonl")}
    asked = place.folder / "log.txt"
    asked.write_text(f"{said['test-0'].upper()}\nwhat is new\nWhat is new?\n")
    run, _ = place.do(work.retrieve, model=str(place.told), queries=str(asked), k=5)
    _, printed = place.do(
        work.augment, run=run.name, model=str(place.cross), negative_below=0.9999,
        positive_above=0.99999, to=place.folder / "x.jsonl",
    )  # fmt: skip
    assert "left out of the examples: 2 questions with labels, or asked before" in printed


def test_a_split_of_a_file(place: Place) -> None:
    run = place.folder / "all.trec"
    qids = ["train-0", "dev-0", "test-0"]
    run.write_text("".join(f"{q} Q0 p1 1 1.0 x\n" for q in qids))
    scored, _ = place.do(work.score, run=str(run), queries="dev", model=str(place.cross))
    qid = RunFolder.open(place.out).version("queries").read()["qid"].to_pylist().index("dev-0")
    assert scored.read()["query"].to_pylist() == [qid]
    with pytest.raises(UserError, match="holds none of the unlabelled questions"):
        place.do(work.score, run=str(run), queries="unlabelled", model=str(place.cross))
    with pytest.raises(UserError, match=r"--queries 'dev' goes with a TREC file.*Leave it out"):
        place.do(work.score, run="told_test_top10", queries="dev", model=str(place.cross))


def test_unjudged_questions_are_for_augment(place: Place) -> None:
    asked = place.folder / "log.txt"
    asked.write_text("a question\n")
    run, _ = place.do(work.retrieve, model=str(place.told), queries=str(asked), k=3)
    with pytest.raises(UserError, match=r"nobody judged its questions.*rocketray augment"):
        place.do(work.denoise, run=run.name, model=str(place.cross))


# ---- index


def test_an_index_that_faiss_does_not_know_is_refused_before_anything_is_encoded(
    place: Place,
) -> None:
    before = stages(place.out)
    for verb, more in ((work.index, {"factory": "IFV64"}), (work.retrieve, {})):
        with pytest.raises(UserError, match="IFV64"):
            place.do(verb, "retrieve.index=IFV64", model=str(place.bare), **more)
    assert stages(place.out).keys() - before.keys() == {"bare_model_v1"}


def test_the_recall_of_a_verbs_index_is_told(place: Place) -> None:
    _, printed = place.do(work.retrieve, "retrieve.index=Flat", model=str(place.told), k=7)
    assert "told_index" in printed
    assert "finds 100.0% of the 7 nearest passages" in printed


def test_index_opens_in_faiss(place: Place) -> None:
    place.do(work.index, model=str(place.told))
    folder = place.out / "index"
    index = faiss.read_index(str(folder / "told.faiss"))
    ids = (folder / "told.ids.txt").read_text().splitlines()
    embeddings = RunFolder.open(place.out).version("told_embeddings")
    p_PD = np.concatenate([embeddings.array(b.number, "embeddings") for b in embeddings.blocks])
    assert index.ntotal == len(ids) == 40
    _, (found,) = index.search(p_PD[7:8], 1)
    assert ids[int(found[0])] == "p7"


# ---- inside a whole run's folder


@pytest.fixture
def whole(tiny_run: Path, place: Place) -> Path:
    return Path(shutil.copytree(tiny_run, place.folder / "whole"))


def test_a_runs_own_models_tables_and_embeddings_are_used(place: Place, whole: Path) -> None:
    before = stages(whole)
    run, printed = place.do(work.retrieve, out=whole, model="dual_1", queries="dev", k=5)
    assert {**before, run.name: run.path.name} == stages(whole)
    assert re.search(r"dual_1_embeddings +finished before, skipped", printed)
    place.do(work.score, out=whole, run="dual_1_dev_top5", model="cross", k=5)
    same = {name: folder for name, folder in stages(whole).items() if name in before}
    assert same == before


def test_a_runs_own_embeddings_are_not_made_in_another_way(place: Place, whole: Path) -> None:
    """Search would take them for the run's."""
    before = stages(whole)
    with pytest.raises(UserError) as error:
        place.do(work.encode, "encode.storage=float16", out=whole, model="dual_2")
    assert str(error.value) == (
        "--set encode.storage=float16: dual_2 is the run's own, and `rocketray search` would take"
        " the embeddings that this makes for the run's. Leave it out, or name"
        f" {RunFolder.open(whole).version('dual_2').path}/model and another --out."
    )
    assert stages(whole) == before
    place.do(work.encode, "encode.storage=float16", out=whole, model=str(place.told))
    assert {**before, **stages(whole)} == stages(whole)


def test_a_log_asked_by_a_runs_own_models_stays_a_log(place: Place, whole: Path) -> None:
    """Its models have learned from the data set's questions; its rows are others."""
    asked = place.folder / "log.txt"
    asked.write_text("a question\nanother question\n")
    place.do(work.retrieve, out=whole, model="dual_1", queries=str(asked), k=3)
    scored, printed = place.do(work.score, out=whole, run="dual_1_log_top3", model="cross")
    hits = measures.read_run(whole / "runs" / f"{scored.name}.trec")
    assert list(hits) == ["log.txt:1", "log.txt:2"]
    assert "judged questions" not in printed
    for run in ("dual_1_log_top3", scored.name):
        with pytest.raises(UserError, match="nobody judged its questions"):
            place.do(work.denoise, out=whole, run=run, model="cross")


def test_other_data_do_not_replace_a_runs_tables(place: Place, whole: Path) -> None:
    before = stages(whole)
    with pytest.raises(UserError, match="folder of a whole run and has its tables: leave --data"):
        place.do(work.encode, out=whole, data=place.data, model=str(place.told))
    assert stages(whole) == before


def test_a_longer_store_of_tokens_takes_no_others_place(place: Place, whole: Path) -> None:
    """`a_longer_model_...` stands before `passage_tokens`, and holds all that dual_1 reads."""
    longer = place.folder / "a longer model"
    cross = CrossEncoder.open(whole / "models" / "cross")
    cross.length = 64
    cross.save(longer)
    place.do(work.score, out=whole, run="dual_0_dev", model=str(longer), k=2)
    assert "a_longer_model_passage_tokens" in stages(whole)
    _, printed = place.do(work.encode, out=whole, model="dual_1")
    assert re.search(r"dual_1_embeddings +finished before, skipped", printed)


def test_a_models_copy_in_the_folder_is_the_model(place: Place, whole: Path) -> None:
    before = stages(whole)
    place.do(work.encode, out=whole, model=str(whole / "models" / "dual_1"))
    assert stages(whole) == before


def test_a_model_of_another_run_never_takes_a_runs_names(place: Place, whole: Path) -> None:
    version, _ = place.do(work.encode, model=str(whole / "models" / "dual_1"))
    assert version.name == "dual_1_given_embeddings"
    own = RunFolder.open(whole).version("dual_1")
    assert RunFolder.open(place.out).version("dual_1_given").digest == own.digest


def test_a_run_made_before_the_verbs_goes_on_unchanged(whole: Path, place: Place) -> None:
    """denoise of the verb beside denoise of the loop, whose versions stay current."""
    place.do(work.denoise, out=whole, run="dual_0_train", model="cross", k=5, negative_below=0.2)
    flow = loop.run("tiny", whole, overrides=SMALLER, frozen=True, display=Display(quiet=True))
    assert set(flow.made) == set(flow.skipped)


# ---- what is refused


def command(*arguments: str) -> int:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, *settings])
    return int(stop.value.code or 0)


REFUSED = {
    "no data": (["encode", "--model", "{told}", "--out", "{folder}/new"], "holds no passages yet"),
    "no folder": (
        ["encode", "--data", "nowhere", "--model", "{told}", "--out", "{folder}/new"],
        "nowhere: no such folder",
    ),
    "a reranker": (["encode", "--model", "{cross}", "--out", "{out}"], "needs 'dual_encoder'"),
    "a retriever": (
        ["score", "--run", "told_test_top10", "--model", "told", "--out", "{out}"],
        "needs 'cross_encoder'",
    ),
    "no head": (
        ["score", "--run", "told_test_top10", "--model", "{bare}", "--out", "{out}"],
        "are not in its safetensors, classifier.bias first",
    ),
    "saved settings": (
        ["encode", "--model", "told", "--out", "{out}", "--set", "model.dual.pooling=cls"],
        "--set model.dual.pooling=cls: told was saved with its settings",
    ),
    "no model": (["encode", "--model", "./nothing", "--out", "{out}"], "has: told."),
    "no questions": (
        ["retrieve", "--model", "told", "--queries", "nothing", "--out", "{out}"],
        "--queries 'nothing': no such file, and no such questions here (there are: train, dev, "
        "test, unlabelled)",
    ),
    "no run": (
        ["score", "--run", "told", "--model", "{cross}", "--out", "{out}"],
        "--run 'told': no such file, and no such run",
    ),
    "a field": (
        ["encode", "--model", "{bare}", "--out", "{out}", "--set", "model.dual.poling=cls"],
        "unknown field 'model.dual.poling': did you mean 'pooling'?",
    ),
    "thresholds": (
        [
            *["denoise", "--run", "told_test_top10", "--model", "{cross}", "--out", "{out}"],
            *["--negative-below", "0.95"],
        ],
        "negative_below (0.95) must be under positive_above (0.9)",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(
    arguments: list[str], message: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*(word.format(**vars(place)) for word in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (place.folder / "new").exists()


def test_ids_that_no_table_has_name_file_line_value_and_count(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.folder / "foreign.trec"
    lines = ["test-0 Q0 p1 1 2.5 x", "test-0 Q0 p999 2 2.0 x", "who Q0 p1 1 1.0 x"]
    run.write_text("\n".join(lines) + "\n")
    code = command("score", "--run", str(run), "--model", str(place.cross), "--out", str(place.out))
    assert code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{run}, line 2: passage 'p999' is in no table here; 2 lines name what" in error
    assert "(1 queries, 1 passages)" in error


def test_a_foreign_run_is_put_in_order(place: Place) -> None:
    """By score, then by row number, whatever the file's order; as a version it is resumed."""
    run = place.folder / "foreign.trec"
    lines = ["test-1 Q0 p3 1 1 x", "test-0 Q0 p9 7 1.0 x", "test-0 Q0 p2 2 1.0 x"]
    run.write_text("\n".join([*lines, "test-0 Q0 p5 3 2.0 x"]) + "\n")
    place.do(work.score, run=str(run), model=str(place.cross))
    folder = RunFolder.open(place.out)
    table = folder.version("foreign_trec").read()
    pids, qids = (folder.version(n).read()[c] for n, c in (("passages", "pid"), ("queries", "qid")))
    found = {
        qids[query].as_py(): [pids[p].as_py() for p in row]
        for query, row in zip(
            table["query"].to_pylist(), table["passages"].to_pylist(), strict=True
        )
    }
    assert found == {"test-0": ["p5", "p2", "p9"], "test-1": ["p3"]}


def test_a_run_over_older_tables_is_refused(place: Place) -> None:
    with (place.data / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "new", "text": "a"}\n')
    place.do(work.ingest, data=place.data)
    with pytest.raises(UserError, match="made from other tables"):
        place.do(work.score, run="told_test_top10", model=str(place.cross))
