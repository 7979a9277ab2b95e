"""The suite thanora_vision, on three rows a task in the form its sources have them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

import coadapt
from coadapt.tasks import HubSource, TaskSuite, load_suite
from tests.tiny_language import write_jsonl
from tests.tiny_pictures import save_llava

FIXTURES = Path(__file__).parents[1] / "fixtures" / "pictures"
NAMES = ("iconqa", "scienceqa", "chartqa", "docvqa")


def rows_of(task: str, folder: Path) -> list[dict[str, Any]]:
    """Return the rows, their pictures drawn into a folder."""
    text = (FIXTURES / f"{task}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        if row["image"] is not None:
            path = folder / f"{task}-{row['image']}.png"
            Image.new("RGB", (12, 10), row["image"]).save(path)
            row["image"] = str(path)
    return rows


@pytest.fixture
def suite(monkeypatch, tmp_path) -> TaskSuite:
    """The suite with rows 1 and 2 to train on and 3 to test on."""
    declared = load_suite("thanora_vision")
    hub = {}
    for task in declared.tasks:
        rows = rows_of(task.name, tmp_path)
        if isinstance(task.data, HubSource):
            hub[task.data.path] = rows
        for split, part in (("train", rows[:2]), ("test", rows[2:])):
            write_jsonl(tmp_path / f"{task.name}/{split}.jsonl", part)

    def load_dataset(path: str, name: str | None, **_: Any) -> Any:
        parts = {"train": hub[path][:2], "validation": hub[path][2:], "test": hub[path][2:]}
        found = {
            k: datasets.Dataset.from_list(rows)
            for k, rows in (parts | {"val": parts["test"]}).items()
        }
        return datasets.DatasetDict(
            {k: rows.cast_column("image", datasets.Image()) for k, rows in found.items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    path = {split: str(tmp_path / f"iconqa/{split}.jsonl") for split in ("train", "test")}
    overrides = [
        f"tasks.iconqa.data.path={json.dumps(path)}",
        "split.validation=0",
        "max_rows=null",
    ]
    return load_suite("thanora_vision", overrides=overrides)


def test_it_has_the_paper_s_tasks_and_metrics():
    declared = load_suite("thanora_vision")
    assert declared.names == NAMES
    assert [task.score_metric for task in declared.tasks] == [
        *("accuracy", "accuracy", "relaxed_accuracy", "anls")
    ]
    for task in declared.tasks:
        for line in (FIXTURES / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines():
            assert set(task.source_columns) <= set(json.loads(line))


def test_every_task_trains_and_scores(suite, tmp_path):
    llava = save_llava(tmp_path / "llava")
    run = coadapt.train(
        {"name": str(llava), "dtype": "float32", "max_length": 160},
        suite,
        "private",
        output=tmp_path / "run",
        budget=4,
        training={"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True},
    )
    shown = {name: run.suite.rows(name, "train").pictures for name in NAMES}
    assert [picture is None for picture in shown["scienceqa"] or ()] == [False, True]
    assert all(
        shown[name] and None not in (shown[name] or ()) for name in NAMES if name != "scienceqa"
    )
    for name, found in run.evaluate(num_resamples=0).items():
        assert found.num_rows == 1, name
        assert all(0 <= score.value <= 1 for score in found.metrics.values())


def test_files_below_a_data_root(suite, tmp_path):
    read = load_suite("thanora_vision", data_root=tmp_path, overrides=["split.validation=0"])
    for name in NAMES:
        assert read.rows(name, "train").texts == suite.rows(name, "train").texts
        pictures = [p and p.digest for p in read.rows(name, "train").pictures or ()]
        assert pictures == [p and p.digest for p in suite.rows(name, "train").pictures or ()]
