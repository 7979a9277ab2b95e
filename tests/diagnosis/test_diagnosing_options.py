"""Options of a diagnosis and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from coadapt._errors import InputError
from coadapt.backbone import ModelConfig
from coadapt.diagnosis import DiagnosisConfig, diagnose, examine
from coadapt.diagnosis.collect import Collector
from coadapt.tasks import load_suite
from tests.diagnosis.kin import FAST, between, suite_of
from tests.tasks.toy_rows import write_jsonl


def numbers(found):
    return {name: pair.values for name, pair in found.pairs.items()} | {
        "entropy": found.tables["entropy"].values,
        "samples": found.pair("similarity").samples,
    }


def test_the_same_seed_gives_the_same_and_other_tasks_do_not_matter(kin_model, kin_tasks):
    first, same, other = (
        numbers(
            diagnose(
                kin_model, suite_of(kin_tasks, "mood", "topic"), seed=seed, max_rows=64, **FAST
            )
        )
        for seed in (0, 0, 1)
    )
    for name, values in first.items():
        np.testing.assert_array_equal(values, same[name])
    assert first["similarity"][0, 1] != other["similarity"][0, 1]
    more = diagnose(kin_model, suite_of(kin_tasks, "topic", "degree", "mood"), max_rows=64, **FAST)
    value = between(more, "similarity", "mood", "topic")
    assert value == pytest.approx(first["similarity"][0, 1], abs=1e-6)


def test_max_rows_are_drawn(kin_model, kin_tasks):
    suite = suite_of(kin_tasks, "mood", "topic")
    found = diagnose(kin_model, suite, max_rows=32, **FAST)
    assert found.rows == {"mood": 32, "topic": 32}
    # The planner asks how many rows there are, not how many were looked at.
    assert found.by_task["rows"].values.tolist() == [192.0, 192.0]
    assert set(found.rows.values()) == {32}
    assert found.by_task["rows"].reading == "192 a task; judged by 32 of them"
    other = diagnose(kin_model, suite, max_rows=32, seed=1, **FAST)
    assert found.tables["entropy"].values[0, 0] != other.tables["entropy"].values[0, 0]


def test_on_a_pool_all_gradients_are_on_the_same_rows(kin_model, kin_tasks, kin_found):
    suite = suite_of(kin_tasks, *kin_tasks)
    pooled = diagnose(kin_model, suite, pool=True, max_rows=192, **FAST)
    assert "on the same rows" in pooled.pair("similarity").title
    assert any("teacher" in note for note in pooled.notes)
    assert not any("other rows than those" in note for note in pooled.notes)
    np.testing.assert_array_equal(  # of each task's own rows still
        pooled.pair("representation").values, kin_found.pair("representation").values
    )
    assert between(pooled, "similarity", "mood", "copy") == pytest.approx(1.0, abs=1e-6)
    assert between(pooled, "corrected", "mood", "recoded") == pytest.approx(1.0, abs=1e-4)
    family = ("mood", "copy", "recoded", "other_mood")
    within = [between(pooled, "similarity", a, b) for a in family for b in family if a < b]
    assert min(within) > max(abs(between(pooled, "similarity", a, "topic")) for a in family)


def test_a_pool_does_not_depend_on_the_order_of_a_file(kin_model, kin_tasks, tmp_path):
    """With the first rows of a sorted file a pool would hold one class of it alone."""
    source = Path(kin_tasks["mood"]["data"]["path"]["train"])
    rows = sorted(map(json.loads, source.read_text().splitlines()), key=lambda row: row["label"])
    paths = {**kin_tasks["mood"]["data"]["path"], "train": write_jsonl(tmp_path / "s.jsonl", rows)}
    sorted_task = {**kin_tasks["mood"], "data": {"kind": "file", "path": paths}}
    seen = []
    collect = Collector.gradients

    def spy(self, encoded, *args, **options):
        seen.append({tuple(row["input_ids"]) for row in encoded})
        return collect(self, encoded, *args, **options)

    suite = load_suite({"tasks": {"mood": sorted_task, "topic": kin_tasks["topic"]}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collector, "gradients", spy)
        diagnose(kin_model, suite, pool=True, max_rows=48, **FAST)
    assert seen[0] == seen[1]
    tokenizer = AutoTokenizer.from_pretrained(kin_model["name"])
    of_class = [
        {
            tuple(ids)
            for ids in tokenizer([r["text"] for r in rows if r["label"] == label]).input_ids
        }
        for label in ("bad", "good")
    ]
    assert [len(seen[0] & ids) > 4 for ids in of_class] == [True, True]


def test_examine_takes_a_config_and_shows_progress(kin_model, kin_tasks):
    config = DiagnosisConfig(model=ModelConfig(**kin_model), max_rows=16, **FAST)
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    found = examine(config, suite_of(kin_tasks, "mood", "degree"), console=console)
    assert found.tasks == ("mood", "degree")
    assert "forward and back" in file.getvalue()
    assert "32/32" in file.getvalue()


def test_bfloat16_says_the_same(kin_model, kin_tasks):
    suite = suite_of(kin_tasks, "mood", "other_mood", "topic")
    exact, rounded = (
        diagnose({**kin_model, "dtype": dtype}, suite, **FAST).pair("similarity").values
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(rounded, exact, atol=0.05)


# --- refusals


def test_one_task_is_refused(kin_model, kin_tasks):
    with pytest.raises(InputError, match="suite 'toys' has one task; a diagnosis relates two"):
        diagnose(kin_model, suite_of(kin_tasks, "mood"))


def limited(kin_tasks, **fields):
    mood, topic = ({**kin_tasks[name]} for name in ("mood", "topic"))
    return load_suite({"tasks": {"mood": {**mood, **fields}, "topic": topic}})


def test_few_rows_and_one_class_are_refused(kin_model, kin_tasks, tmp_path):
    with pytest.raises(InputError, match=r"task 'mood' has 15 training rows.*needs 16 at least"):
        diagnose(kin_model, limited(kin_tasks, max_rows=15), **FAST)
    rows = [{"text": f"one {i} good", "label": "good" if i else "bad"} for i in range(40)]
    paths = {**kin_tasks["mood"]["data"]["path"], "train": write_jsonl(tmp_path / "o.jsonl", rows)}
    suite = limited(kin_tasks, data={"kind": "file", "path": paths})
    with pytest.raises(
        InputError, match="task 'mood': its 40 training rows hold 2 classes, of which 1"
    ):
        diagnose(kin_model, suite, **FAST)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_rows": 15}, "max_rows must be at least 16, not 15"),
        ({"max_rows": 31, "num_folds": 4}, "max_rows must be at least 32, not 31"),
        ({"num_folds": 1}, "num_folds must be at least 2, not 1"),
        ({"num_chunks": 3}, "num_chunks must be at least 4, not 3"),
        ({"num_chunks": 5, "num_folds": 6}, "num_chunks must be at least 6, not 5"),
        ({"num_bootstrap": 19}, "num_bootstrap must be at least 20"),
        ({"rank": 1}, "rank must be at least 2"),
        ({"num_probe": 3}, "num_probe.*did you mean"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, told, kin_model, kin_tasks):
    with pytest.raises(InputError, match=told):
        diagnose(kin_model, suite_of(kin_tasks, "mood", "topic"), **options)
