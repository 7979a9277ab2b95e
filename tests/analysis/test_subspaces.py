"""Overlap of tasks' subspaces over the steps of a run, against what its files hold."""

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from safetensors.torch import load_file

from coadapt import InputError, load_run
from coadapt._files import write_json
from coadapt.analysis import SubspaceOverlap, draw_overlap, overlap_sheet, subspace_overlap
from tests.analysis.test_subspace_pairs import slow_cosine, slow_rank
from tests.toy_runs import prefer_step, result_of, train_toy

HASI = {
    "structure": {"kind": "single", "scale": 5.0},
    "init": {"kind": "hasi", "rows": 8, "temperature": 0.02},
    "sharing": "cooperative",
}
STEPS = {
    "max_steps": 4,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 10,
    "learning_rate": 1e-3,
}


# --- of runs


@pytest.fixture(scope="module")
def thanora(tiny_bert, toy_suite_files, tmp_path_factory):
    output = tmp_path_factory.mktemp("thanora") / "run"
    return train_toy(tiny_bert, toy_suite_files, output, HASI, budget=20, training=STEPS)


def factors(tensors, module, blocks_of, suffix=""):
    pairs = [(tensors[f"{b}/{module}/A{suffix}"], tensors[f"{b}/{module}/B{suffix}"])
             for b in blocks_of]  # fmt: skip
    return [(A.double().numpy(), B.double().numpy()) for A, B in pairs]


def test_a_run_s_start_checkpoints_and_end(thanora):
    found = subspace_overlap(thanora.path)
    tasks = tuple(thanora.suite.names)
    assert (found.blocks, found.steps, found.notes) == (tasks, (0, 2, 4), ())
    assert found.pairs == tuple(combinations(tasks, 2))
    saved = load_file(thanora.path / "adapter/blocks.safetensors")
    kept = load_file(thanora.path / "checkpoint-2/model.safetensors")
    everything = (*tasks, "cooperative")
    for m, module in enumerate(found.modules):
        start = factors(saved, module, everything, "0")
        for s, now in enumerate(
            (start, factors(kept, module, everything), factors(saved, module, everything))
        ):
            wanted = [slow_cosine(t[1], u[1]) for t, u in combinations(now[:-1], 2)]
            np.testing.assert_allclose(found.columns[s, m], wanted, atol=1e-6)
            wanted = [slow_cosine(t[0].T, u[0].T) for t, u in combinations(now[:-1], 2)]
            np.testing.assert_allclose(found.rows[s, m], wanted, atol=1e-6)
            whole = sum(B @ A for A, B in now)
            assert found.effective_rank[s, m] == pytest.approx(slow_rank(whole), rel=1e-6)
            added = whole - sum(B @ A for A, B in start)
            assert s == 0 or found.added_rank[s, m] == pytest.approx(slow_rank(added), rel=1e-4)
        d_out, d_in = saved[f"{tasks[0]}/{module}/B"].shape[0], start[0][0].shape[1]
        largest = [max(len(t[0]), len(u[0])) for t, u in combinations(start[:-1], 2)]
        np.testing.assert_allclose(found.random_columns[m], np.array(largest) / d_out)
        np.testing.assert_allclose(found.random_rows[m], np.array(largest) / d_in)
    assert np.isnan(found.added_rank[0]).all()


def test_checkpoints_elsewhere_and_runs_without_them(thanora, tmp_path):
    shutil.copytree(thanora.path, tmp_path / "run")
    for step in (2, 4):
        (tmp_path / f"run/checkpoint-{step}").rename(tmp_path / f"checkpoint-{step}")
    assert subspace_overlap(tmp_path / "run").steps == (0, 4)
    found = subspace_overlap(tmp_path / "run", checkpoints=[tmp_path / "checkpoint-2"])
    np.testing.assert_array_equal(found.columns, subspace_overlap(thanora).columns)
    with pytest.raises(InputError, match="adapter is not named checkpoint-STEP"):
        subspace_overlap(thanora, checkpoints=[thanora.path / "adapter"])


def test_a_start_at_zero_is_built_anew_and_foreign_checkpoints_are_refused(thanora, make_run):
    run = make_run("thanora_spr_only", budget=6)
    found = subspace_overlap(run)
    assert found.steps == (0, 3)
    assert found.blocks == ("sentiment", "topic")
    assert np.isnan(found.columns[0]).all()
    assert np.isnan(found.effective_rank[0]).all()
    assert not np.isnan(found.rows).any()
    np.testing.assert_allclose(found.effective_rank[1], found.added_rank[1])
    with pytest.raises(InputError, match=r"checkpoint-2 has no rank-2 factors of block 'topic"):
        subspace_overlap(run, checkpoints=[thanora.path / "checkpoint-2"])


@pytest.mark.parametrize(
    ("options", "metric", "place"),
    [({"best": "overall"}, {}, 1), ({}, {"metric_for_best_model": "overall"}, 2)],
    ids=["loaded", "noted"],
)
def test_an_adapter_of_the_best_checkpoint_is_no_later_state(
    options, metric, place, tiny_bert, toy_suite_files, tmp_path, monkeypatch
):
    prefer_step(monkeypatch, 2)
    training = {**STEPS, "learning_rate": 3e-2, "eval_strategy": "steps", "eval_steps": 2, **metric}
    run = train_toy(
        *(tiny_bert, toy_suite_files, tmp_path / "run", "private"),
        **{"budget": 8, "training": training, **options},
    )
    assert result_of(run.path)["train"]["best_checkpoint"] == "checkpoint-2"
    found = subspace_overlap(run)
    assert found.steps == (0, 2, 4)
    saved = load_file(run.path / "adapter/blocks.safetensors")
    one, other = factors(saved, found.modules[0], found.pairs[0])
    wanted = slow_cosine(one[0].T, other[0].T)
    gaps = np.abs(found.rows[:, 0, 0] - wanted)
    assert gaps.argmin() == place
    assert gaps[place] < 1e-9 < np.delete(gaps, place).min()


def test_a_start_that_is_not_kept_is_said(tiny_bert, toy_suite_files, tmp_path):
    recipe = {**HASI, "init": {**HASI["init"], "subtract": False}}
    run = train_toy(tiny_bert, toy_suite_files, tmp_path / "run", recipe, budget=20, training=STEPS)
    found = subspace_overlap(run)
    assert found.steps == (2, 4)
    assert found.notes == ("the start is not kept, since init.subtract is off",)
    assert np.isnan(found.added_rank).all()


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("lora", {}, r"has 1 block of a task \(shared\)"),
        ("m_lora", {}, "structure 'heads', whose blocks are no task's own"),
        ("frozen", {"budget": None}, "has no adapters to look at"),
    ],
    ids=["lora", "heads", "frozen"],
)
def test_runs_without_blocks_of_tasks_are_refused(recipe, options, message, make_run):
    with pytest.raises(InputError, match=message):
        subspace_overlap(make_run(recipe, f"refused-{recipe}", **options))


def test_a_run_made_from_another_is_refused(thanora, tmp_path):
    shutil.copytree(thanora.path, tmp_path / "run")
    write_json(tmp_path / "run/result.json", {**result_of(thanora.path), "train": None})
    with pytest.raises(InputError, match="was made from another, so it has no steps"):
        subspace_overlap(load_run(tmp_path / "run"))


# --- readings and pictures


def curve(columns, rows, ranks, steps=(0, 10)):
    """An overlap with these medians by step."""
    S = len(steps)
    wide = np.ones((S, 2, 1))
    return SubspaceOverlap(
        run="runs/x",
        blocks=("a", "b"),
        pairs=(("a", "b"),),
        modules=("layer.0.query", "layer.1.query"),
        steps=steps,
        columns=wide * np.reshape(columns, (S, 1, 1)),
        rows=wide * np.reshape(rows, (S, 1, 1)),
        random_columns=np.full((2, 1), 0.125),
        random_rows=np.full((2, 1), 0.125),
        column_share=np.full((S, 2, 2, 2), 0.5),
        row_share=np.full((S, 2, 2, 2), 0.5),
        effective_rank=np.ones((S, 2)) * np.reshape(ranks, (S, 1)),
        added_rank=np.full((S, 2), np.nan),
    )


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "rows", "ranks", "told"),
    [
        ([0.2, 0.6], [0.2, 0.7], [8, 4], "the blocks' B and A came together and the sum lost dir"),
        ([0.2, 0.6], [0.2, 0.2], [8, 8], "the blocks' B came together, the sum lost nothing"),
        ([0.2, 0.2], [0.2, 0.1], [8, 8.5], ": the blocks did not come together"),
        ([0.2, 0.2], [0.2, 0.2], [8, 7], "did not come together, yet the sum lost directions"),
        ([0.01, 0.02], [0.2, 0.2], [8, 8], ": the blocks did not come together"),
        ([NAN, 0.2], [0.2, 0.2], [8, 8], "not to be judged without two steps"),
        ([NAN, NAN], [0.2, 0.2], [8, 8], "never known, a block is zero"),
    ],
    ids=["collapse", "overlap", "apart", "rank-alone", "tiny-rise", "one-step", "zero"],
)
def test_readings(columns, rows, ranks, told):
    reading = curve(columns, rows, ranks).reading
    assert told in reading
    assert "of A: 0.200 at step 0 to" in reading


def test_the_sheet_and_the_plain_data():
    found = curve([NAN, 0.5], [0.2, 0.25], [8, 8])
    sheet, plain = overlap_sheet(found), json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert sheet.rows[0] == ("0", "-", "0.200", "8.00", "-")
    assert sheet.rows[1] == ("10", "0.500", "0.250", "8.00", "-")
    assert sheet.rows[2] == ("random", "0.125", "0.125", "", "")
    assert plain["columns"] == [[[None], [None]], [[0.5], [0.5]]]
    assert plain["pairs"] == [["a", "b"]]


def test_two_runs_in_one_picture(tmp_path):
    runs = {
        "SPR": curve([0.2, 0.1], [0.2, 0.1], [8, 8]),
        "none": curve([0.2, 0.6], [0.2, 0.7], [8, 4]),
    }
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    told = [draw_overlap(runs, file) for file in files]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert told[0] in files[0].read_text(encoding="utf-8").replace("&#x27;", "'")
    assert all(f"{name}: {one.reading}." in told[0] for name, one in runs.items())
    assert "zero" in files[0].read_text(encoding="utf-8")  # nothing is known of what was added
    with pytest.raises(InputError, match="nothing to draw"):
        draw_overlap({}, files[0])
