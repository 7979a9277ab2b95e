"""A run that was stopped, however, goes on to the very same end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import coadapt
from coadapt import InputError, _files, fitting, resuming, saving
from coadapt.checkpoints import last_checkpoint
from coadapt.training import MultiTaskTrainer
from tests.toy_runs import (
    TRAINING,
    assert_same_run,
    assert_same_tensors,
    content_of,
    log_of,
    model_of,
    prefer_step,
    recipe_of,
    result_of,
    tensors_of,
    train_toy,
)

# Everything that has a state: dropout, accumulation, a schedule, mixing, a best checkpoint.
EVERYTHING = {
    "recipe": recipe_of("shared_private", dropout=0.1),
    "training": {**TRAINING, "eval_strategy": "steps", "eval_steps": 3},
    "mixing": {"kind": "temperature", "temperature": 2.0},
    "best": "overall",
}
STEPS_AN_EPOCH = 8
BEST = 15


class Stopped(BaseException):
    """Stands for whatever ends a process."""


@pytest.fixture(autouse=True)
def one_thread():
    """The order of a sum depends on the number of threads, which other processes may not share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def best_in_the_middle():
    """The best checkpoint is neither the first nor the last, or taking it would prove little."""
    with pytest.MonkeyPatch.context() as patch:
        prefer_step(patch, BEST)
        yield


@pytest.fixture(scope="module")
def model(tiny_bert):
    """The tiny BERT with its own dropout, which draws random numbers too."""
    return model_of(tiny_bert, backbone_dropout=True)


@pytest.fixture(scope="module")
def undisturbed(model, toy_suite_files, tmp_path_factory):
    """The folder of a run with everything that has a state, never stopped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = train_toy(model, toy_suite_files, tmp_path_factory.mktemp("runs") / "run", **EVERYTHING)
    torch.set_num_threads(threads)
    return run.path


def stop_in_step(step: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Stop in the second micro-batch of a step, counted from 1."""

    def arm(patch: pytest.MonkeyPatch) -> None:
        seen = []

        def compute_loss(self, *args, **kwargs):
            seen.append(self.state.global_step + 1)
            if seen.count(step) == 2:
                raise Stopped
            return original(self, *args, **kwargs)

        original = MultiTaskTrainer.compute_loss
        patch.setattr(MultiTaskTrainer, "compute_loss", compute_loss)

    return arm


def stop_before(module: object, name: str, call: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Stop instead of a function's call, counted from 1."""

    def arm(patch: pytest.MonkeyPatch) -> None:
        calls = []

        def stopping(*args, **kwargs):
            calls.append(name)
            if len(calls) == call:
                raise Stopped
            return original(*args, **kwargs)

        original = getattr(module, name)
        patch.setattr(module, name, stopping)

    return arm


def remove_half(patch: pytest.MonkeyPatch) -> None:
    """Stop when of the first checkpoint that is to go one file has gone."""

    def rmtree(path: str, **options: Any) -> None:
        if "checkpoint-" in Path(path).name and not Path(path).name.startswith("tmp-"):
            (Path(path) / "model.safetensors").unlink()
            raise Stopped
        original(path, **options)

    original = shutil.rmtree
    patch.setattr(shutil, "rmtree", rmtree)


STOPS = {
    "before-first-checkpoint": stop_in_step(2),
    "within-epoch": stop_in_step(14),
    "first-step-of-epoch": stop_in_step(STEPS_AN_EPOCH + 1),
    "last-step": stop_in_step(3 * STEPS_AN_EPOCH),
    "between-files-of-checkpoint": stop_before(resuming, "save_state", 3),
    "before-manifest-of-checkpoint": stop_before(resuming, "seal", 4),
    "before-rename-of-checkpoint": stop_before(resuming, "put_in_place", 3),
    "before-rename-of-last-checkpoint": stop_before(resuming, "put_in_place", 8),
    "removing-old-checkpoint": remove_half,
    "before-final-adapter": stop_before(fitting, "save_adapter", 1),
    "between-files-of-final-adapter": stop_before(saving, "save_tensors", 2),
    "before-rename-of-final-adapter": stop_before(_files, "put_in_place", 1),
    "before-final-result": stop_before(fitting, "_finish", 1),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
def test_resumed_equals_undisturbed(
    stop, undisturbed, model, toy_suite_dict, tmp_path, monkeypatch
):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(Stopped):
            train_toy(model, toy_suite_dict, output, **EVERYTHING)
    assert result_of(output)["run"]["status"] == "failed"
    with pytest.raises(InputError, match=r"'failed'; finish it with .*--resume"):
        coadapt.load_run(output)
    train_toy(model, toy_suite_dict, output, resume=True, **EVERYTHING)
    assert_same_run(output, undisturbed)
    assert not list(output.glob("tmp-*"))
    # What is returned, what is on disk, and what a stopped run leaves behind agree.
    assert coadapt.load_run(output).model


def test_undisturbed_run_exercises_what_it_should(undisturbed):
    done = result_of(undisturbed)["train"]
    assert done["steps"] == 3 * STEPS_AN_EPOCH
    assert done["best_checkpoint"] == f"checkpoint-{BEST}"
    rates = [line["learning_rate"] for line in log_of(undisturbed).values()]
    assert len(set(rates)) == len(rates)


@pytest.mark.parametrize("recipe", ["full", "frozen", "lora"])
def test_other_recipes_resume_too(recipe, tiny_bert, toy_suite_dict, tmp_path, monkeypatch):
    options = {"recipe": recipe, "training": {**TRAINING, "num_train_epochs": 1}}
    train_toy(tiny_bert, toy_suite_dict, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_in_step(5)(patch)
        with pytest.raises(Stopped):
            train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", **options)
    train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", resume=True, **options)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("max_steps", [5, STEPS_AN_EPOCH], ids=["within-epoch", "end-of-epoch"])
def test_resuming_after_last_step_takes_no_further_step(
    max_steps, tiny_bert, toy_suite_dict, tmp_path, monkeypatch
):
    options = {"training": {**TRAINING, "max_steps": max_steps}}
    train_toy(tiny_bert, toy_suite_dict, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_before(fitting, "save_adapter", 1)(patch)
        with pytest.raises(Stopped):
            train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", **options)
    train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", resume=True, **options)
    assert result_of(tmp_path / "run")["train"]["steps"] == max_steps
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_stopped_run_may_be_moved(undisturbed, model, toy_suite_dict, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before(fitting, "save_adapter", 1)(patch)
        # Without a limit the last checkpoint stays beside the best one.
        options = {**EVERYTHING, "training": {**EVERYTHING["training"], "save_total_limit": None}}
        with pytest.raises(Stopped):
            train_toy(model, toy_suite_dict, tmp_path / "here", **options)
    (tmp_path / "here").rename(tmp_path / "there")
    train_toy(model, toy_suite_dict, tmp_path / "there", resume=True, **options)
    assert_same_tensors(tmp_path / "there" / "adapter", undisturbed / "adapter")


# A real kill ------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A process that forks trainings, see _train_worker.py."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests._train_worker", str(BEST)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.kill()
    process.communicate()


def start(server: subprocess.Popen, job: dict) -> int:
    """Start a training and return its process id."""
    assert server.stdin is not None
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    return answer(server)


def answer(server: subprocess.Popen) -> int:
    """Return the server's next word: a process id, then that process's exit status."""
    assert server.stdout is not None
    return int(server.stdout.readline())


def wait_for_lines(path: Path, number: int) -> None:
    """Wait until the log has so many lines."""
    deadline = time.monotonic() + 60
    while number and not (path.is_file() and path.read_bytes().count(b"\n") >= number):
        assert time.monotonic() < deadline, f"{path} never had {number} lines"
        time.sleep(0.002)


def test_killed_run_ends_like_an_undisturbed_one(
    server, undisturbed, model, toy_suite_dict, tmp_path
):
    output = tmp_path / "run"
    job = {"model": model, "suite": toy_suite_dict, "output": str(output)}
    job |= {**EVERYTHING, "resume": True}
    rng, kills = random.Random(0), 0
    # The log has a line at each of the steps 3, 5, 6, 9, 10, 12, 15, 15, 18, 20, 20, 21, 24.
    for lines in (0, 1, 4, 7, 10):
        pid = start(server, job)
        wait_for_lines(output / "metrics.jsonl", lines)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        if answer(server) == signal.SIGKILL:
            kills += 1
            with pytest.raises(InputError, match=r"--resume|is no run"):
                coadapt.load_run(output)
    assert kills >= 3
    assert start(server, job)
    assert answer(server) == 0
    assert_same_run(output, undisturbed)


# Folders that are not what they should be --------------------------------------------------


@pytest.fixture(scope="module")
def stopped_run(tiny_bert, toy_suite_files, tmp_path_factory):
    """A run of one epoch, stopped in its last step: it has the checkpoints 3 and 6."""
    output = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_in_step(8)(patch)
        with pytest.raises(Stopped):
            train_toy(tiny_bert, toy_suite_files, output, training=STOPPED)
    return output


STOPPED = {**TRAINING, "num_train_epochs": 1, "save_total_limit": 3}


@pytest.fixture
def stopped(stopped_run, tmp_path):
    """The test's own copy of the stopped run."""
    return shutil.copytree(stopped_run, tmp_path / "run")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_newest_checkpoint_is_found(stopped):
    assert last_checkpoint(stopped) == stopped / "checkpoint-6"
    assert last_checkpoint(stopped / "nowhere") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: folder.rename(folder.with_name("tmp-checkpoint-6")),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "optimizer.safetensors").unlink(),
        lambda folder: truncate(folder / "model.safetensors"),
    ],
    ids=["temporary-name", "no-manifest", "missing-file", "truncated-file"],
)
def test_unfinished_checkpoint_is_ignored(damage, stopped, tiny_bert, toy_suite_dict):
    damage(stopped / "checkpoint-6")
    assert last_checkpoint(stopped) == stopped / "checkpoint-3"
    train_toy(tiny_bert, toy_suite_dict, stopped, training=STOPPED, resume=True)
    assert result_of(stopped)["train"]["steps"] == STEPS_AN_EPOCH


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "random_0.safetensors",
        "random_0.json",
        "training_state.json",
        "trainer_state.json",
    ],
)
def test_changed_checkpoint_is_refused(name, stopped, tiny_bert, toy_suite_dict):
    path = stopped / "checkpoint-6" / name
    flip_byte(path)
    before = content_of(stopped)
    with pytest.raises(InputError, match=r"is not the file that was written") as raised:
        train_toy(tiny_bert, toy_suite_dict, stopped, training=STOPPED, resume=True)
    assert str(path) in str(raised.value)
    assert content_of(stopped) == before


def test_checkpoint_of_another_configuration_is_refused(
    stopped, tiny_bert, toy_suite_dict, tmp_path
):
    train_toy(tiny_bert, toy_suite_dict, tmp_path / "other", training=STOPPED, seed=1)
    shutil.copytree(tmp_path / "other" / "checkpoint-8", stopped / "checkpoint-8")
    with pytest.raises(InputError, match="checkpoint-8 is of another configuration"):
        train_toy(tiny_bert, toy_suite_dict, stopped, training=STOPPED, resume=True)


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"seed": 1}, ["seed"]),
        ({"training": {**STOPPED, "learning_rate": 1e-4}}, ["training.learning_rate"]),
        ({"training": {**STOPPED, "learning_rate": 1}}, ["training.learning_rate"]),
        ({"recipe": recipe_of("lora", dropout=0.2)}, ["recipe.structure.dropout"]),
        ({"loss_mean": "rows", "batches": "single_task"}, ["loss_mean", "batches"]),
        ({"budget": 4}, ["plan.blocks.shared.rank"]),
    ],
    ids=["seed", "rate", "whole-number", "structure", "two-keys", "budget"],
)
def test_resuming_with_another_configuration_names_the_keys(
    options, keys, stopped, tiny_bert, toy_suite_dict
):
    before = content_of(stopped)
    with pytest.raises(InputError, match="was started with another configuration") as raised:
        train_toy(
            tiny_bert, toy_suite_dict, stopped, **{"training": STOPPED, "resume": True, **options}
        )
    assert all(key in str(raised.value) for key in keys)
    assert content_of(stopped) == before


def test_resuming_with_other_tasks_names_them(stopped, tiny_bert, toy_suite_dict):
    del toy_suite_dict["tasks"]["degree"]
    with pytest.raises(InputError, match=r"plan\.blocks.*suite\.tasks\.degree"):
        train_toy(tiny_bert, toy_suite_dict, stopped, training=STOPPED, resume=True)


def test_resuming_a_finished_run_does_nothing(
    undisturbed, model, toy_suite_dict, tmp_path, monkeypatch
):
    output = shutil.copytree(undisturbed, tmp_path / "run")
    before = content_of(output)
    monkeypatch.setattr(fitting, "_build_trainer", None)
    run = train_toy(model, toy_suite_dict, output, resume=True, **EVERYTHING)
    assert content_of(output) == before
    assert run.result == result_of(undisturbed)


def test_resume_starts_a_run_where_there_is_none(tiny_bert, toy_suite_dict, tmp_path):
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "new", resume=True)
    assert run.result["run"]["status"] == "finished"


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resume"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("mine"), "is a file; choose another output"),
        (
            lambda path: (path.mkdir(), (path / "thesis.tex").write_text("mine")),
            "is not empty and no run; choose another output",
        ),
    ],
    ids=["file", "foreign-folder"],
)
def test_output_that_is_no_run_is_refused(
    make, message, resume, tiny_bert, toy_suite_dict, tmp_path
):
    make(tmp_path / "out")
    before = content_of(tmp_path)
    with pytest.raises(InputError, match=message):
        train_toy(tiny_bert, toy_suite_dict, tmp_path / "out", resume=resume)
    assert content_of(tmp_path) == before


def test_output_that_holds_another_run_is_refused(undisturbed, model, toy_suite_dict):
    before = content_of(undisturbed)
    with pytest.raises(InputError, match=r"holds another run; choose another output.*--resume"):
        train_toy(model, toy_suite_dict, undisturbed, **EVERYTHING)
    assert content_of(undisturbed) == before


def test_run_holds_safetensors_and_text_only(stopped, undisturbed):
    for folder in (stopped, undisturbed):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in paths} == {".safetensors", ".json", ".jsonl", ".yaml"}
        for path in paths:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    assert file.keys()
            else:
                path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
    assert tensors_of(stopped / "checkpoint-6").keys() >= {"random_0.safetensors/cpu"}
