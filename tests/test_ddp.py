"""Two processes train, diagnose and plan what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import BertModel

import coadapt
from tests.invoking import succeed
from tests.toy_runs import (
    EXACT,
    TRAINING,
    assert_same_tensors,
    content_of,
    log_of,
    model_of,
    result_of,
    train_toy,
)

# PEFT asks transformers for what it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

# 33 training rows: a step takes 16 of them, so that an epoch's last step has a single row. One of
# its two micro-batches is empty, the other one is empty on the second process.
ROWS = {"sentiment": 8, "topic": 8, "same": 8, "degree": 9}
STEP = {**TRAINING, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "save_steps": 2}
# Whoever launches processes where there is no accelerator need not say so a second time.
del STEP["use_cpu"]

JOBS: dict[str, dict[str, Any]] = {
    "mean-over-tasks": {"recipe": "shared_private"},
    "mean-over-rows": {"recipe": "private", "loss_mean": "rows"},
    "one-task-a-step": {"recipe": "private", "batches": "single_task"},
    # SGD: the bias of a key has a gradient of zero but for rounding, which Adam would blow up.
    "every-weight": {"recipe": "full", "training": {"optim": "sgd"}},
    "resumed": {"recipe": "shared_private", "stop_at": 4},
    "best": {
        "recipe": "lora",
        "best": "overall",
        "training": {"eval_strategy": "steps", "eval_steps": 2},
    },
    "routed-heads": {
        "recipe": {
            "structure": {"kind": "routed_heads", "num_heads": 2},
            "init": {"kind": "r_lora"},
            "sharing": "shared",
        }
    },
    # A term of the statistics on each process; factors are as exact as float32 moments.
    "statistics": {"recipe": "corda", "budget": 3},
    "weighted-losses": {"recipe": "lora+uncertainty"},
    "weighted-gradients": {"recipe": "lora+grad_norm"},
}
DIAGNOSES = {"each": (), "pool": ("--set", "pool=true")}
COMMANDS = (*DIAGNOSES, "plan", "adapters", "run")
# A term on each micro-batch and process is another one with other micro-batches.
UNLIKE: dict[str, dict[str, Any]] = {"regularized": {"recipe": "align_kl"}}


def job_of(name: str, folder: Path, suite: dict, output: Path, rows: int) -> dict:
    """Return the arguments of `coadapt.train` with so many rows a micro-batch and process."""
    options = dict((JOBS | UNLIKE)[name])
    size = {"per_device_train_batch_size": rows}
    return {
        "model": model_of(folder),
        "suite": suite,
        "output": str(output),
        **options,
        "training": {**STEP, **size, **options.get("training", {})},
    }


@pytest.fixture(scope="module")
def suite(toy_suite_files):
    tasks = {name: {**toy_suite_files["tasks"][name], "max_rows": n} for name, n in ROWS.items()}
    return {**toy_suite_files, "tasks": tasks}


@pytest.fixture(scope="module")
def two_processes(tiny_bert, suite, toy_suite_files, tmp_path_factory):
    """The folder with the runs of all JOBS, each trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "suite.yaml").write_text(yaml.safe_dump(toy_suite_files), encoding="utf-8")
    words = {name: command_of(name, folder, tiny_bert) for name in COMMANDS}
    for name in COMMANDS:
        (folder / "commands" / name).mkdir(parents=True)
    # A run is judged by its validation rows, twenty a task at the least.
    judged = {**toy_suite_files, "split": {"validation": 0.75, "test": 0.1}}
    train_toy(tiny_bert, judged, folder / "finished")
    for name in ("a", "b"):
        write_peft(folder / name, tiny_bert)
    commands = [
        {
            "output": f"{folder}/commands/{name}",
            "command": [*words[name], "-o", found_by(folder, name)],
        }
        for name in COMMANDS
    ]
    trained = [job_of(name, tiny_bert, suite, folder / name, 4) for name in JOBS | UNLIKE]
    (folder / "jobs.json").write_text(json.dumps([*commands, *trained]), encoding="utf-8")
    # `--cpu` leaves it to MPI to start more than one process; `--multi_gpu` starts them itself, and
    # without a GPU they talk by gloo.
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    worker = Path(__file__).with_name("_ddp_worker.py")
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(worker), str(folder / "jobs.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def command_of(name: str, folder: Path, model: Path) -> list[str]:
    """Return the words of one of COMMANDS, without where it writes."""
    if name == "plan":
        return ["plan", found_by(folder, "each"), "--budget", "8"]
    if name == "adapters":
        return ["diagnose", "--adapters", str(folder / "a"), str(folder / "b")]
    if name == "run":
        return ["diagnose", "--run", str(folder / "finished")]
    settings = ("model.dtype=float32", "model.max_length=32", "num_bootstrap=20")
    words = [word for setting in settings for word in ("--set", setting)]
    suite = str(folder / "suite.yaml")
    return ["diagnose", suite, "--model", str(model), *words, *DIAGNOSES[name]]


def found_by(folder: Path, name: str) -> str:
    """Return the file that a command of that name writes."""
    return str(folder / "commands" / name / "found")


def write_peft(folder: Path, model: Path) -> None:
    """Write a LoRA of random factors."""
    config = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    get_peft_model(BertModel.from_pretrained(model), config).save_pretrained(str(folder))


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_find_what_one_finds(name, two_processes, tiny_bert, tmp_path):
    succeed(*command_of(name, two_processes, tiny_bert), "-o", tmp_path / "one")
    found = yaml.safe_load(Path(found_by(two_processes, name)).read_text(encoding="utf-8"))
    wanted = yaml.safe_load((tmp_path / "one").read_text(encoding="utf-8"))
    assert found.pop("seconds", {}).keys() == wanted.pop("seconds", {}).keys()
    assert found == wanted  # every number to its last bit


@pytest.mark.parametrize("name", COMMANDS)
def test_only_the_first_process_tells(name, two_processes):
    folder = two_processes / "commands"
    assert json.loads((folder / f"{name}.seen.json").read_text(encoding="utf-8")) == []
    assert (folder / f"{name}.1.txt").read_text(encoding="utf-8") == "0 "
    told = (folder / f"{name}.0.txt").read_text(encoding="utf-8")
    assert told.startswith("0 ")
    assert f"written to {found_by(two_processes, name)}" in told


def test_what_one_process_refuses_is_refused_by_all(two_processes):
    for rank in (0, 1):
        told = (two_processes / f"refused.{rank}.txt").read_text(encoding="utf-8")
        assert told == "second is refused"


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_equal_one(name, two_processes, tiny_bert, suite, tmp_path):
    job = job_of(name, tiny_bert, suite, tmp_path / "one", 8)
    job.pop("stop_at", None)
    job["training"]["use_cpu"] = True
    coadapt.train(**job)
    assert_same_tensors(
        two_processes / name / "adapter", tmp_path / "one" / "adapter", tolerance=1e-5
    )
    two, one = result_of(two_processes / name)["train"], result_of(tmp_path / "one")["train"]
    # Padding alone differs: each process pads its rows to their own longest.
    for key in (*EXACT, "best_checkpoint"):
        assert two[key] == one[key] or key == "padding", key
    found, wanted = log_of(two_processes / name), log_of(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for step, line in wanted.items():
        assert found[step].keys() == line.keys()
        for key in line.keys() - {"padding"}:
            assert found[step][key] == pytest.approx(line[key], rel=1e-4, abs=1e-5), key


def test_a_regularizer_trains_on_two_processes(two_processes):
    log = log_of(two_processes / "regularized")
    assert result_of(two_processes / "regularized")["run"]["status"] == "finished"
    assert all(line["penalty_align_kl"] > 0 for line in log.values() if "loss" in line)


def test_some_rank_had_no_row(suite):
    rows = sum(ROWS.values())
    assert rows % 16 == 1
    assert coadapt.load_suite(suite).rows("degree", "train").labels.shape == (9,)


@pytest.mark.parametrize("name", JOBS)
def test_only_the_first_process_writes(name, two_processes):
    seen = json.loads((two_processes / f"{name}.seen.json").read_text(encoding="utf-8"))
    # But for its own random state, into a checkpoint that the first one has begun.
    assert all("tmp-checkpoint-" in line and "random_1.json" in line for line in seen), seen
    assert seen


def test_checkpoint_has_the_random_state_of_each_process(two_processes):
    (checkpoint,) = (two_processes / "resumed").glob("checkpoint-*")
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {f"random_{rank}.{end}" for rank in (0, 1) for end in ("json", "safetensors")}


def test_resuming_on_more_processes_is_refused(two_processes, tiny_bert, suite, tmp_path):
    from coadapt.checkpoints import load_random_state

    (checkpoint,) = (two_processes / "resumed").glob("checkpoint-*")
    with pytest.raises(coadapt.InputError, match="no random state of process 2; resume on as many"):
        load_random_state(checkpoint, 2)
    assert content_of(checkpoint)
