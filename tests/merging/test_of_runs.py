"""Merged runs: what they compute, what they hold, and which runs do not merge."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel, BertModel

from coadapt._errors import InputError
from coadapt.evaluation import predict_outputs
from coadapt.inits import RLora
from coadapt.merging import Merge, merge_every_task, merge_folds, merge_runs
from coadapt.planning import Block, Plan
from coadapt.runs import load_run
from coadapt.structures import Bank, Experts, Single
from coadapt.tasks import Collator, encode
from tests.merging.parts import FAST, part
from tests.small import NAMES, make_model, randomize
from tests.tiny_language import save_model, write_jsonl
from tests.toy_runs import content_of, model_of, result_of, train_toy

TIES = Merge(method="ties", density=0.3)


def dense(factors):
    return {name: B @ A for name, (A, B) in factors.items()}


def all_folds(sources):
    private, shared = sources
    folds = {task: private.model.fold(task) for task in ("sentiment", "topic")}
    return {**folds, "same+degree": shared.model.fold("same")}


def merged_of(sources, method, seed=0):
    folds = all_folds(sources)
    return merge_folds(list(folds.values()), list(folds), method, seed)


@torch.no_grad()
def outputs_of(base, update, run, task):
    """Return what stock transformers and the run's head compute with an update of the weights."""
    model = AutoModel.from_pretrained(base).eval()
    for name, delta in update.items():
        model.get_submodule(name).weight += delta
    head = {key: run.model.state_tensors()[f"heads/{task}/{key}"] for key in ("weight", "bias")}
    center, scale = run.suite.task(task).unit or (0.0, 1.0)
    rows = encode(run.tokenizer, run.suite.rows(task, "test"), 64)
    made = []
    for row in rows:
        batch = Collator(run.tokenizer)([{**row, "task_id": 0, "label": 0.0}])
        del batch["labels"], batch["task_ids"]
        output = model(**batch).pooler_output @ head["weight"].T + head["bias"]
        made.append(center + scale * output)
    return torch.cat(made), rows


@pytest.mark.parametrize(
    "method",
    [Merge(), TIES, Merge(method="dare_task_arithmetic", density=0.5), Merge(rank=2)],
    ids=["average", "ties", "dare", "cut"],
)
def test_a_merged_run_is_the_base_model_with_the_update(tiny_bert, sources, tmp_path, method):
    files = [content_of(run.path) for run in sources]
    made = merge_runs([run.path for run in sources], tmp_path / "merged", method, 3, split=None)
    assert [content_of(run.path) for run in sources] == files
    run = load_run(tmp_path / "merged")
    assert run.suite.names == ("sentiment", "topic", "same", "degree")
    wanted = dense(merged_of(sources, method, 3).factors)
    for task in run.suite.names:
        source = sources[task in ("same", "degree")]
        for name, delta in dense(run.model.fold(task)).items():
            torch.testing.assert_close(delta, wanted[name], rtol=1e-5, atol=1e-6)
        expected, rows = outputs_of(tiny_bert, wanted, source, task)
        found = predict_outputs(run.model, Collator(run.tokenizer), rows, task)
        torch.testing.assert_close(torch.tensor(found).float(), expected, rtol=1e-5, atol=1e-5)
    for name, tensor in run.model.state_tensors().items():
        if name.startswith("heads/"):
            source = sources[name.split("/")[1] in ("same", "degree")]
            assert torch.equal(tensor, source.model.state_tensors()[name])
    assert (made.before, made.after, made.sheet().rows) == ({}, {}, ())


def test_scores_before_and_after_stand_in_a_table(sources, tmp_path):
    files = [content_of(run.path) for run in sources]
    made = merge_runs(sources, tmp_path / "merged", TIES)
    assert [content_of(run.path) for run in sources] == files  # their scores were there
    before = {t: s for run in sources for t, s in run.result["metrics"]["test"].items()}
    after = result_of(tmp_path / "merged")["metrics"]["test"]
    plain = json.loads(json.dumps(made.to_plain()))
    assert plain["tasks"] == {t: {"before": before[t], "after": after[t]} for t in before}
    sheet = made.sheet()
    for task, metric, old, new, difference, rows in sheet.rows:
        scores = [told[task]["metrics"][metric]["value"] for told in (before, after)]
        assert [old, new] == [f"{value:.3f}" for value in scores]
        assert difference == f"{scores[1] - scores[0]:+.3f}"
        assert int(rows) == before[task]["num_rows"] == after[task]["num_rows"]
    assert [row[0] for row in sheet.rows[:1]] == ["sentiment"]
    assert {row[0] for row in sheet.rows} == {"sentiment", "topic", "same", "degree"}
    assert "4 tasks have 3 updates, each of which counts once" in sheet.notes


def test_missing_scores_are_made_and_kept(tiny_bert, toy_suite_dict, tmp_path):
    suite = part(toy_suite_dict, "sentiment", "topic")
    source = train_toy(tiny_bert, suite, tmp_path / "source", "m_lora", budget=2)
    made = merge_runs([source.path], tmp_path / "merged", Merge(), split="validation")
    kept = result_of(source.path)["metrics"]
    assert list(kept) == ["validation"]
    # A run of one update merges to itself, with what its start subtracts.
    for task, scores in made.before.items():
        assert made.after[task].score.value == pytest.approx(scores.score.value, abs=1e-4)
    assert set(made.merged.ranks.values()) == {4}


def test_the_folder_is_a_run_like_any_other(tiny_bert, sources, tmp_path):
    first = merge_runs(sources, tmp_path / "first", TIES, split=None)
    result = result_of(first.run.path)
    assert (result["train"], result["metrics"]) == (None, {})
    assert (result["run"]["status"], result["run"]["recipe"]) == ("finished", None)
    assert result["run"]["derived"].startswith("merged (ties) of ")
    told = result["merge"]
    assert told["method"]["density"] == 0.3
    assert told["of"] == ["sentiment", "topic", "same+degree"]
    assert told["error"] < 1e-6
    others = [
        merge_runs(sources, tmp_path / str(index), method, seed, split=None).run.result
        for index, (method, seed) in enumerate([(TIES, 0), (TIES, 1), (Merge(), 0)])
    ]
    hashes = [found["run"]["config_hash"] for found in (result, *others)]
    assert hashes[0] == hashes[1]
    assert len({*hashes, *(run.result["run"]["config_hash"] for run in sources)}) == 5
    assert load_run(first.run.path).predict(["good day"], "sentiment")[0]["label"] in (
        "bad",
        "good",
    )
    report = first.run.export(tmp_path / "export")
    assert len(set(report.tasks.values())) == 1
    first.run.export(tmp_path / "models", "merged")
    again = first.run.remove_task("topic", tmp_path / "less")
    assert again.suite.names == ("sentiment", "same", "degree")


def test_ranks_differ_by_module(sources, tmp_path):
    few = Merge(method="ties", density=0.005)
    run = merge_runs(sources, tmp_path / "few", few, split=None).run
    assert run.config.plan is not None
    ranks = {module: found["shared"] for module, found in run.config.plan.ranks.items()}
    assert len(set(ranks.values())) > 1
    assert run.config.plan.blocks["shared"].rank == max(ranks.values())
    fold = load_run(tmp_path / "few").model.fold("topic")
    assert {name: A.shape[0] for name, (A, _) in fold.items()} == ranks


def test_the_order_of_runs_does_not_change_the_update(sources, tmp_path):
    method = Merge(method="dare_ties", density=0.5)
    folds = [
        merge_runs(runs, tmp_path / name, method, 2, split=None).run.model.fold("topic")
        for name, runs in (("forth", sources), ("back", sources[::-1]))
    ]
    for name, pair in folds[0].items():
        assert all(map(torch.equal, pair, folds[1][name]))


def test_rows_are_those_that_each_run_had(sources, tmp_path):
    run = merge_runs(sources, tmp_path / "merged", Merge(), split=None).run
    assert run.suite.name == "toy+others"
    assert [len(run.suite.rows(task, "train")) > 10 for task in run.suite.names] == [
        *(False, False, True, True)  # one of the suites has a limit
    ]
    for source in sources:
        for task in source.suite.names:
            for split in ("train", "validation", "test"):
                assert run.suite.rows(task, split).texts == source.suite.rows(task, split).texts


def test_language_models_merge_without_heads(tmp_path):
    base, runs = save_model(tmp_path / "llama", "llama"), []
    for name, words in (("first", ("yes", "no")), ("second", ("dog", "cat"))):
        rows = [{"text": f"Say {n} {name}.", "answer": words[n % 2]} for n in range(12)]
        task = {
            "data": str(write_jsonl(tmp_path / f"{name}.jsonl", rows)),
            "kind": "generation",
            "label": "answer",
            "generation": {"max_new_tokens": 2},
        }
        suite = {"name": name, "tasks": {name: task}}
        runs.append(train_toy(base, suite, tmp_path / name, budget=2, training=FAST))
    made = merge_runs(runs, tmp_path / "merged", TIES)
    assert set(made.after) == set(made.before) == {"first", "second"}
    folds = [run.model.fold(name) for run, name in zip(runs, ("first", "second"), strict=True)]
    wanted = dense(merge_folds(folds, ["first", "second"], TIES).factors)
    for name, delta in dense(made.run.model.fold("second")).items():
        torch.testing.assert_close(delta, wanted[name], rtol=1e-5, atol=1e-6)
    assert not any(name.startswith("heads/") for name in made.run.model.state_tensors())


# Of a model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", [None, RLora()], ids=["plain", "with_offset"])
@pytest.mark.parametrize(
    ("plan", "of"),
    [
        (Plan.private(NAMES, 6), ["two", "three", "value"]),
        (Plan.shared_private(NAMES, 6), ["two", "three", "value"]),
        (Plan.clustered({"x": ["two", "value"], "y": ["three"]}, 6), ["two+value", "three"]),
    ],
    ids=["private", "shared_private", "clustered"],
)
def test_every_distinct_update_of_a_model_counts_once(tiny_bert, plan, of, init):
    model = randomize(make_model(tiny_bert, Bank(scale=0.7), plan, init=init))
    found = merge_every_task(model, Merge(method="average"))
    deltas = [dense(model.fold(name.split("+")[0])) for name in of]
    for name, delta in dense(found.factors).items():
        wanted = sum(each[name] for each in deltas) / len(of)
        torch.testing.assert_close(delta, wanted, rtol=1e-5, atol=1e-5)
    assert sorted(found.largest) == sorted(of)


def test_a_model_without_an_update_a_task_is_refused(tiny_bert):
    model = make_model(tiny_bert, Experts(num_experts=2), Plan.shared(NAMES, 2))
    with pytest.raises(InputError, match="structure 'experts' has no exact LoRA form"):
        merge_every_task(model, Merge())


# What is refused ---------------------------------------------------------------------------------


def test_runs_that_do_not_merge_are_refused(tiny_bert, toy_suite_dict, sources, tmp_path):
    other = shutil.copytree(tiny_bert, tmp_path / "other_bert")
    changed = BertModel.from_pretrained(tiny_bert)
    torch.nn.init.ones_(changed.get_parameter("pooler.dense.weight"))
    changed.save_pretrained(other)
    first, rest = sources[0], part(toy_suite_dict, "same")

    def run(name, suite=rest, recipe="lora", base=tiny_bert, **options):
        model = model_of(base, **options)
        return train_toy(model, suite, tmp_path / name, recipe)

    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    before = content_of(first.path)
    for runs, output, message in (
        ([], "out", "there is no run to merge"),
        (sources, "full", "is there already"),
        ([tmp_path / "full"], "out", "is no run"),
        ([first, first], "out", "task 'sentiment' is in .* and in .*remove_task"),
        ([first, run("hydra", recipe="hydra_lora")], "out", "'routed_heads' ships as 'runtime'"),
        ([first, run("frozen", recipe="frozen")], "out", "'frozen' ships as 'none'"),
        ([first, run("whole", recipe="full")], "out", "'full' ships as 'merged'"),
        ([first, run("other", base=other)], "out", "merge runs of one base model"),
        ([first, run("mean", pooling="mean")], "out", "model.pooling mean, .* pooler"),
        ([first, run("long", max_length=32)], "out", "model.max_length 32, .* 64"),
        ([first, run("mlp", target_modules="mlp")], "out", "adapts module .*, which 'same' does"),
        ([first, run("seed", part(rest, "same", seed=3))], "out", "differ in seed \\(3 and 0\\)"),
    ):
        with pytest.raises(InputError, match=message):
            merge_runs(runs, tmp_path / output, Merge())
    assert not (tmp_path / "out").exists()
    assert content_of(first.path) == before


def test_a_merged_run_is_planned_as_one_block(sources, tmp_path):
    run = merge_runs(sources, tmp_path / "merged", Merge(), split=None).run
    assert run.config.recipe.structure == Single(scale=1.0)
    assert run.config.plan == Plan(blocks={"shared": Block(rank=7, tasks=run.suite.names)})
