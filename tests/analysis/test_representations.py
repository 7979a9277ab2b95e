"""What is collected of a run, against hooks on one row at a time; and maps of it."""

import json

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from coadapt import InputError
from coadapt.analysis import representation_map
from coadapt.analysis._representations import collect
from coadapt.analysis.representation_maps import principal, side_by_side
from coadapt.loading import Loader
from tests.analysis.toys import fill, reopened
from tests.tiny_language import save_model

EVERY = {"modules": None, "rows": 100, "split": "train", "seed": 0}


@pytest.fixture(scope="session")
def lora(make_run):
    return fill(reopened(make_run("lora")))


@pytest.fixture(scope="session")
def spoken(make_run, tiny_decoder, language_suite):
    model = {"name": str(tiny_decoder), "dtype": "float32", "max_length": 96}
    return fill(reopened(make_run("lora", "spoken", suite=language_suite, model=model)))


@pytest.fixture(scope="session")
def apart(make_run, language_suite, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("t5"), "t5")
    model = {"name": str(folder), "dtype": "float32", "max_length": 96}
    return fill(reopened(make_run("lora", "apart", suite=language_suite, model=model)))


def keeping(name, layer, seen):
    def keep(module, args, output):
        seen[name] = (args[0] @ layer.blocks()[0][0].T)[0]

    return keep


@torch.no_grad()
def by_hook(run, items, *, encoder_only=False):
    """A x of every row alone, (tokens, r) by module, from the inputs of the base maps."""
    model, found = run.model, []
    backbone = model.backbone.get_encoder() if encoder_only else model.backbone
    for item in items:
        seen = {}
        handles = [
            layer.base.register_forward_hook(keeping(name, layer, seen))
            for name, layer in model.attached.layers.items()
        ]
        model.route.set(torch.zeros(1, dtype=torch.long))
        ids = torch.tensor([item["input_ids"]])
        backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
        for handle in handles:
            handle.remove()
        found.append(seen)
    return found


@pytest.mark.parametrize("kind", ["lora", "spoken", "apart"])
def test_rows_are_what_each_gives_alone(kind, request):
    run, loader = request.getfixturevalue(kind), Loader()
    found = collect(run, loader, **EVERY)
    names = run.suite.names
    items = [i for t in names for i in loader.encoded(run.config.model, run.suite, t, "train")]
    expected = by_hook(run, items, encoder_only=kind == "apart")
    modules = [n for n in run.model.attached.layers if "decoder." not in n or kind != "apart"]
    assert list(found.values) == modules
    assert len(found.task_ids) == len(items)
    for row, item in enumerate(items):
        size = len(item["input_ids"])
        assert found.valid[row].tolist() == [True] * size + [False] * (found.valid.shape[1] - size)
        assert found.tokens[row, :size].tolist() == item["input_ids"]
        for module in modules:
            torch.testing.assert_close(
                found.values[module][row, :size], expected[row][module], rtol=1e-4, atol=1e-5
            )
    module = modules[-1]
    means = np.stack([row[module].double().mean(dim=0).numpy() for row in expected])
    np.testing.assert_allclose(found.by_row(module), means, rtol=1e-3, atol=1e-5)
    assert len(found.by_token(module)) == sum(len(item["input_ids"]) for item in items)


def test_answers_are_told_from_prompts(spoken, lora):
    loader = Loader()
    found = collect(spoken, loader, **EVERY)
    items = [
        item
        for task in spoken.suite.names
        for item in loader.encoded(spoken.config.model, spoken.suite, task, "train")
    ]
    assert found.learned is not None
    for row, item in enumerate(items):
        # The end of an answer is predicted, but read by nothing.
        size, answer = len(item["input_ids"]), item["num_answer"] - 1
        assert found.learned[row, :size].tolist() == [False] * (size - answer) + [True] * answer
    assert collect(lora, loader, **EVERY).learned is None


def test_rows_are_drawn_by_seed_and_task(lora):
    loader = Loader()
    few = {**EVERY, "rows": 5}
    found, again = (collect(lora, loader, **few) for _ in range(2))
    other = collect(lora, loader, **{**few, "seed": 1})
    assert found.task_ids.tolist() == [0] * 5 + [1] * 5
    assert found.tokens.equal(again.tokens)
    assert not (found.tokens.shape == other.tokens.shape and found.tokens.equal(other.tokens))
    whole = collect(lora, loader, **EVERY)
    rows = {tuple(row[row > 0].tolist()) for row in whole.tokens}
    assert all(tuple(row[row > 0].tolist()) in rows for row in found.tokens)


def test_looking_leaves_nothing_behind(lora):
    collect(lora, Loader(), **{**EVERY, "rows": 2})
    assert all(p.grad is None for p in lora.model.parameters())
    layer = next(iter(lora.model.attached.layers.values()))
    assert (layer.route._watched, layer.route._noted) == ({}, {})


# --- maps


@pytest.mark.parametrize("modules", [["layer.1.attention.self.query"], None], ids=["one", "all"])
def test_components_are_scikit_learns(lora, modules):
    found = representation_map(lora, modules=modules, split="train")
    x = side_by_side(collect(lora, Loader(), **{**EVERY, "modules": modules}))
    pca = PCA(2, svd_solver="full").fit(x)
    assert found.explained is not None
    np.testing.assert_allclose(found.explained, pca.explained_variance_ratio_, atol=1e-9)
    expected = pca.transform(x)
    signs = np.sign((expected * found.points).sum(axis=0))
    np.testing.assert_allclose(found.points, expected * signs, atol=1e-6)
    assert found.task_ids.tolist() == sorted(found.task_ids)
    assert len(found.modules) == (1 if modules else 4)


def test_modules_count_alike_side_by_side(lora):
    """Their distances are averaged, whatever the scale of each."""
    found = collect(lora, Loader(), **EVERY)
    x = side_by_side(found)
    gram = np.zeros((len(x), len(x)))
    for module in found.values:
        rows = found.by_row(module)
        centred = rows - rows.mean(axis=0)
        gram += centred @ centred.T / np.trace(centred @ centred.T) * len(x)
    np.testing.assert_allclose(x @ x.T, gram, atol=1e-9)


def test_rotating_A_changes_no_map(lora, make_run):
    turned = fill(reopened(make_run("lora")))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in turned.model.attached.layers.values():
            turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
            layer.A[0].copy_(turn @ layer.A[0])
            layer.B[0].copy_(layer.B[0] @ turn.T)
    found, other = (representation_map(run, split="train") for run in (lora, turned))
    signs = np.sign((found.points * other.points).sum(axis=0))
    np.testing.assert_allclose(found.points, other.points * signs, atol=1e-3)


def test_of_rank_one_there_is_one_component():
    x = np.arange(-3.0, 4.0)[:, None]
    points, explained = principal(x)
    np.testing.assert_allclose(points, np.hstack([x, np.zeros_like(x)]), atol=1e-12)
    assert explained == (1.0, 0.0)
    flipped, _ = principal(-x)
    np.testing.assert_allclose(flipped, -points, atol=1e-12)


def test_t_sne_is_the_same_twice_and_keeps_neighbors(lora):
    found, again = (representation_map(lora, "tsne", perplexity=5.0, split="train") for _ in "12")
    assert np.array_equal(found.points, again.points)
    assert found.explained is None
    x = side_by_side(collect(lora, Loader(), **EVERY))
    near_x, near = (
        np.argsort(((p[:, None] - p[None]) ** 2).sum(axis=-1), axis=1)[:, 1:6]
        for p in (x, found.points)
    )
    kept = [len(set(a) & set(b)) / 5 for a, b in zip(near_x, near, strict=True)]
    assert np.mean(kept) > 3 * 5 / len(x)
    other = representation_map(lora, "tsne", perplexity=8.0, split="train")
    assert not np.allclose(found.points, other.points)


def test_a_map_as_plain_data(spoken):
    found = representation_map(spoken, rows=3, split="train")
    plain = json.loads(json.dumps(found.to_plain()))
    assert {task: len(points) for task, points in plain["points"].items()} == {
        "verdict": 3,
        "sum": 3,
    }
    assert plain["points"]["sum"] == found.points[3:].tolist()
    assert tuple(plain["explained"]) == found.explained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "umap"}, "unknown method 'umap'; known: pca, tsne"),
        ({"modules": ["quary"]}, "no adapted module is 'quary'"),
        ({"modules": "uery"}, "no adapted module is 'uery'"),
        ({"rows": 1}, "rows must be at least 2 a task, not 1"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"method": "tsne", "perplexity": 500.0}, "perplexity is 500; with .* rows in all"),
    ],
    ids=["method", "module", "no-ending", "rows", "split", "perplexity"],
)
def test_bad_arguments_are_refused(options, message, lora):
    with pytest.raises(InputError, match=message):
        representation_map(lora, **options)


def test_nothing_to_map_is_refused(make_run):
    run = reopened(make_run("lora"))
    with torch.no_grad():
        for layer in run.model.attached.layers.values():
            layer.A[0].zero_()
    with pytest.raises(InputError, match="A x is the same for all rows in every module"):
        representation_map(run)


def test_a_frozen_run_is_refused(make_run):
    run = make_run("frozen", "refused-frozen", budget=None)
    with pytest.raises(InputError, match="has no adapters to look at"):
        representation_map(run.path)
