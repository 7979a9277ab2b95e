"""What a run does with its `training:`, what it writes down, and what it does when it must stop."""

import math

import pytest
import torch

import coadapt
from coadapt import InputError, fitting
from coadapt._environment import describe_command
from coadapt._errors import TrainingDiverged
from coadapt.arguments import DEFAULT_TRAINING, training_arguments
from coadapt.checkpoints import last_checkpoint
from coadapt.evaluation import Score, TaskScores
from coadapt.loading import Loader
from coadapt.settings import merge_for_api, resolve
from coadapt.tasks import load_suite
from coadapt.training import MultiTaskTrainer
from tests.toy_runs import (
    TRAINING,
    assert_same_run,
    content_of,
    log_of,
    model_of,
    result_of,
    tensors_of,
    train_toy,
)

TASKS = ("sentiment", "topic", "same", "degree")
ONE_EPOCH = {**TRAINING, "num_train_epochs": 1}


def at_step(step, change):
    """Return a `compute_loss` that calls ``change(trainer, inputs)`` before the stock one."""
    original = MultiTaskTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.state.global_step + 1 == step:
            change(self, inputs)
        return original(self, model, inputs, *args, **kwargs)

    return compute_loss


# Divergence --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_loss_that_is_not_finite_stops_the_run(
    value, tiny_bert, toy_suite_dict, tmp_path, monkeypatch
):
    def poison(_, inputs):
        inputs["labels"] = inputs["labels"].masked_fill(inputs["task_ids"] == 3, value)

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskTrainer, "compute_loss", at_step(7, poison))
        with pytest.raises(TrainingDiverged, match=r"task degree is not finite at step 7") as error:
            train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=ONE_EPOCH)
    assert f"Checkpoints in {tmp_path / 'run'} are from before" in str(error.value)
    assert result_of(tmp_path / "run")["run"]["status"] == "failed"
    assert result_of(tmp_path / "run")["run"]["error"] == f"TrainingDiverged: {error.value}"
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-6"
    assert not (tmp_path / "run" / "adapter").exists()

    train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=ONE_EPOCH, resume=True)
    train_toy(tiny_bert, toy_suite_dict, tmp_path / "whole", training=ONE_EPOCH)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_weights_that_are_not_finite_are_not_saved(
    strategy, tiny_bert, toy_suite_dict, tmp_path, monkeypatch
):
    def poison(trainer, _):
        # Behind the loss's back, as an overflow in the optimizer would.
        trainer.optimizer.optimizer.register_step_post_hook(
            lambda *_: trainer.multi.heads.bias[1].data.fill_(math.inf)
        )

    monkeypatch.setattr(MultiTaskTrainer, "compute_loss", at_step(8, poison))
    options = {**ONE_EPOCH, "save_strategy": strategy, "save_steps": 4}
    with pytest.raises(TrainingDiverged, match=r"'heads/topic/bias' is not finite after step 8"):
        train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=options)
    assert [p.name for p in (tmp_path / "run").glob("*/")] == (
        ["checkpoint-4"] if strategy == "steps" else []
    )


# The best checkpoint -----------------------------------------------------------------------

SCORES = {"sentiment": (0.9, 0.2, 0.1), "topic": (0.1, 0.2, 0.3), "same": (0.0, 0.9, 0.1)}


def fake_scores(monkeypatch):
    """Let the evaluations after three epochs give SCORES, whatever the model does."""
    rounds = iter(range(3))

    def evaluate_model(model, *_, **__):
        turn = next(rounds)
        return {
            task.name: TaskScores(
                num_rows=1,
                metrics={"accuracy": Score(value=value, low=value, high=value)},
            )
            for task in model.tasks
            for value in [SCORES.get(task.name, (0.0,) * 3)[turn]]
        }

    monkeypatch.setattr(fitting, "evaluate_model", evaluate_model)


@pytest.mark.parametrize(
    ("best", "step"), [("sentiment", 8), ("overall", 16), ("same", 16), ("topic", 24), (None, 24)]
)
def test_best_checkpoint_is_kept(best, step, tiny_bert, toy_suite_dict, tmp_path, monkeypatch):
    fake_scores(monkeypatch)
    options = {**TRAINING, "save_strategy": "epoch", "save_total_limit": None}
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=options, best=best)
    found = {name.partition("/")[2]: t for name, t in tensors_of(run.path / "adapter").items()}
    checkpoint = tensors_of(run.path / f"checkpoint-{step}")
    assert all(torch.equal(t, checkpoint[f"model.safetensors/{n}"]) for n, t in found.items())
    assert len(list(run.path.glob("checkpoint-*"))) == 3
    kept = run.result["train"]["best_checkpoint"]
    assert kept == (f"checkpoint-{step}" if best else None)
    # What is returned is what was saved.
    assert all(torch.equal(t, found[n]) for n, t in run.model.state_tensors().items())


def test_best_checkpoint_survives_the_limit(tiny_bert, toy_suite_dict, tmp_path, monkeypatch):
    fake_scores(monkeypatch)
    options = {**TRAINING, "save_strategy": "epoch", "save_total_limit": 1}
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=options, best="same")
    assert [path.name for path in run.path.glob("checkpoint-*")] == ["checkpoint-16"]


def test_unknown_rule_for_the_best_gives_the_nearest(tiny_bert, toy_suite_dict, tmp_path):
    with pytest.raises(InputError, match=r"best: 'sentimnt' .*; did you mean 'sentiment'\?"):
        train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", best="sentimnt")


def test_best_without_validation_rows_is_refused(tiny_bert, toy_suite_dict, tmp_path):
    toy_suite_dict["split"] = {"validation": 0.0, "test": 0.3}
    with pytest.raises(InputError, match="task 'sentiment' has no validation rows"):
        train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", best="overall")


# training: ---------------------------------------------------------------------------------


def arguments_of(suite, folder, **options):
    """Return the TrainingArguments that `coadapt.train` with these options makes."""
    data = merge_for_api(model_of("model"), "lora", None, **options)
    loaded = load_suite(suite)
    return training_arguments(resolve(data, loaded, where="test"), loaded, folder)


def test_training_reaches_transformers_untouched(toy_suite_dict, tmp_path):
    given = {
        "learning_rate": 3e-4,
        "max_steps": 7,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "optim": "sgd",
        "adam_beta2": 0.95,
        "max_grad_norm": 0.3,
        "save_total_limit": 4,
    }
    args = arguments_of(toy_suite_dict, tmp_path, training=given, seed=5)
    assert {key: getattr(args, key) for key in given} == given
    assert (args.seed, args.output_dir) == (5, str(tmp_path))


def test_training_that_is_silent_gets_our_defaults(toy_suite_dict, tmp_path):
    args = arguments_of(toy_suite_dict, tmp_path)
    for key, value in DEFAULT_TRAINING.items():
        found = getattr(args, key)
        assert found in (value, [], ["none"]) if key == "report_to" else found == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learnin_rate": 1}, r"unknown key 'training.learnin_rate'; did you mean 'learning_rate'"),
        ({"zzz": 1}, r"unknown key 'training.zzz'; see transformers.TrainingArguments"),
        ({"output_dir": "x"}, r"training.output_dir is set by the run itself"),
        ({"seed": 1}, r"training.seed is set by the run itself \(to 0\); drop it"),
        ({"remove_unused_columns": True}, r"training.remove_unused_columns is set by the run"),
        ({"lr_scheduler_type": "spiral"}, r"training: transformers refuses .*spiral"),
        ({"max_steps": "many"}, r"training.max_steps: found 'many'; give int"),
        ({"learning_rate": [0.1]}, r"training.learning_rate: found \[0.1\]; give float"),
        ({"save_strategy": "steps", "best": "overall"}, r"training: transformers refuses .*match"),
        ({"metric_for_best_model": "topic", "best": "overall"}, r"is what best \('overall'\)"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch"},
            r"training.metric_for_best_model: 'loss' is no score; known: overall, sentiment",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_training_that_cannot_be_is_refused(given, message, tiny_bert, toy_suite_dict, tmp_path):
    options = {"best": given.pop("best")} if "best" in given else {}
    with pytest.raises(InputError, match=message):
        train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=given, **options)
    assert not content_of(tmp_path)


def test_a_score_of_ones_own_may_choose(tiny_bert, toy_suite_dict, tmp_path):
    chosen = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "degree_spearman",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "num_train_epochs": 1,
        "use_cpu": True,
    }
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=chosen)
    assert run.result["train"]["best_checkpoint"] is not None


# What is written down ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed_run(tiny_bert, toy_suite_files, tmp_path_factory):
    """A run whose every step is logged, on batches of all tasks."""
    options = {**ONE_EPOCH, "logging_steps": 1, "eval_strategy": "epoch"}
    output = tmp_path_factory.mktemp("runs") / "mixed"
    return train_toy(tiny_bert, toy_suite_files, output, "private", training=options, seed=4)


def test_log_holds_a_loss_a_task(mixed_run):
    lines = log_of(mixed_run.path)
    assert sorted(lines) == list(range(1, 9))
    assert {key for line in lines.values() for key in line} >= {f"loss_{task}" for task in TASKS}
    for step, line in lines.items():
        losses = [line[f"loss_{task}"] for task in TASKS if f"loss_{task}" in line]
        assert losses
        assert line["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        # Three steps of warming up, then down to zero; the rate is that of the step itself.
        done = step - 1
        factor = done / 3 if done < 3 else (8 - done) / 5
        assert line["learning_rate"] == pytest.approx(5e-3 * factor)
        assert line["grad_norm"] > 0
        assert line["epoch"] == step / 8


def test_log_holds_the_scores_and_the_padding(mixed_run):
    (line,) = log_of(mixed_run.path, "eval_overall").values()
    assert line["step"] == 8
    scores = [line[f"eval_{task}"] for task in TASKS]
    assert line["eval_overall"] == pytest.approx(sum(scores) / 4)
    for task in mixed_run.suite.tasks:
        for metric in task.metrics:
            assert f"eval_{task.name}_{metric}" in line
    # What the collator really pads, counted over the batches themselves.
    tokenizer, real, padded = mixed_run.tokenizer, 0, 0
    config, suite = mixed_run.config, mixed_run.suite
    args = training_arguments(config, suite, mixed_run.path.parent / "again")
    trainer = fitting._build_trainer(mixed_run.model, config, suite, args, "", Loader())
    for batch in trainer.get_train_dataloader():
        real += int(batch["attention_mask"].sum())
        padded += batch["attention_mask"].numel()
        assert (batch["input_ids"] == tokenizer.pad_token_id).sum() == (
            batch["attention_mask"] == 0
        ).sum()
    assert 0 < log_of(mixed_run.path)[1]["padding"] == pytest.approx(1 - real / padded)
    assert mixed_run.result["train"]["tokens"] == real


def test_loss_over_rows_weighs_every_row_alike(tiny_bert, toy_suite_dict, tmp_path):
    toy_suite_dict["tasks"]["topic"]["max_rows"] = 5
    options = {"per_device_train_batch_size": 1000, "max_steps": 1, "logging_steps": 1}
    options = {"training": {**options, "use_cpu": True}}
    for mean in ("rows", "tasks"):
        output = tmp_path / mean
        run = train_toy(tiny_bert, toy_suite_dict, output, loss_mean=mean, **options)
        rows = run.result["train"]["rows_an_epoch"]
        weights = {task: rows[task] if mean == "rows" else 1 for task in TASKS}
        line = log_of(output)[1]
        wanted = sum(weights[task] * line[f"loss_{task}"] for task in TASKS) / sum(weights.values())
        assert line["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["proportional", "uniform", "temperature"])
def test_realised_counts_are_written_down(kind, tiny_bert, toy_suite_dict, tmp_path):
    toy_suite_dict["tasks"]["topic"]["max_rows"] = 6
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", mixing={"kind": kind})
    sizes = {task: len(run.suite.rows(task, "train")) for task in TASKS}
    counts = run.result["train"]["rows_an_epoch"]
    assert sum(counts.values()) == sum(sizes.values())
    if kind == "proportional":
        assert counts == sizes
    elif kind == "uniform":
        assert max(counts.values()) - min(counts.values()) <= 1
    else:
        assert sizes["topic"] < counts["topic"] < sum(sizes.values()) / 4


def test_updates_count_the_steps_that_had_rows(tiny_bert, toy_suite_dict, tmp_path):
    toy_suite_dict["tasks"]["topic"]["max_rows"] = 5
    run = train_toy(
        tiny_bert,
        toy_suite_dict,
        tmp_path / "run",
        "shared_private",
        batches="single_task",
        training={**TRAINING, "num_train_epochs": 2, "save_strategy": "no"},
    )
    done = run.result["train"]
    steps = {task: 2 * math.ceil(rows / 14) for task, rows in done["rows_an_epoch"].items()}
    assert steps["topic"] == 2
    assert done["updates"] == {
        "shared": done["steps"],
        **steps,
        **{f"heads/{task}": number for task, number in steps.items()},
    }
    assert done["steps"] == sum(steps.values())


def test_result_says_what_was_run(mixed_run):
    result = result_of(mixed_run.path)
    assert result.keys() == {"run", "train", "metrics", "environment"}
    run, done = result["run"], result["train"]
    assert (run["status"], run["error"], run["seed"], run["recipe"]) == (
        "finished",
        None,
        4,
        "private",
    )
    assert isinstance(run["command"], list)
    assert run["config_hash"] == mixed_run.config.hash(mixed_run.suite)
    assert (done["steps"], done["epochs"]) == (8, 1.0)
    assert done["seconds"] > 0
    assert done["peak_memory_mib"] > 0
    # Rank 2 a task (of the budget of 8), on query and value of two layers of width 32.
    assert done["trainable"] == {"adapters": 8 * (32 + 32) * 4, "heads": 33 * (2 + 3 + 2 + 1)}
    packages = result["environment"]["packages"]
    assert packages["torch"] == torch.__version__
    assert packages["coadapt"] == coadapt.__version__
    assert result["environment"]["device"]


def test_run_folder_can_be_trained_again_from_its_own_config(mixed_run, tmp_path):
    again = coadapt.load_run(mixed_run.path)
    assert again.config == mixed_run.config
    assert again.suite == mixed_run.suite
    run = fitting.fit(again.config, again.suite, tmp_path / "again")
    assert_same_run(run.path, mixed_run.path)


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "cancelled"), (RuntimeError("no memory"), "failed")],
    ids=["interrupt", "failure"],
)
def test_run_that_was_ended_is_kept_and_marked(
    error, status, tiny_bert, toy_suite_dict, tmp_path, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(MultiTaskTrainer, "compute_loss", at_step(5, fail))
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", training=ONE_EPOCH)
    run = result_of(tmp_path / "run")["run"]
    assert run["status"] == status
    assert run["error"].startswith("KeyboardInterrupt" if status == "cancelled" else "RuntimeError")
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-3"


@pytest.mark.parametrize("program", ["/home/me/bin/coadapt", "/home/me/coadapt/__main__.py"])
def test_results_name_the_command_without_its_folder(program, monkeypatch):
    monkeypatch.setattr("sys.argv", [program, "train", "train.yaml"])
    assert describe_command() == ["coadapt", "train", "train.yaml"]
