"""What runs of one base model share, and what they must not."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from coadapt import load_run, loading
from coadapt.backbone import ModelConfig, load_backbone
from coadapt.config import parse
from coadapt.fitting import fit
from coadapt.loading import Loader, _Shelf
from coadapt.settings import resolve
from coadapt.tasks import load_suite
from tests.toy_runs import QUICK, assert_same_run, log_of, model_of, result_of

RECIPES = ["lora", "private", "frozen", "full"]


@pytest.fixture
def config(tiny_bert) -> ModelConfig:
    return parse(ModelConfig, model_of(tiny_bert, backbone_dropout=True), "test")


@pytest.fixture(scope="module")
def suite(toy_suite_files):
    return load_suite(toy_suite_files)


@pytest.fixture
def calls(monkeypatch):
    """The names of what is really loaded."""
    found: list[str] = []

    def counted(name):
        original = getattr(loading, name)

        def call(*args):
            found.append(name)
            return original(*args)

        monkeypatch.setattr(loading, name, call)

    for name in ("load_backbone", "load_tokenizer", "encode"):
        counted(name)
    return found


def fit_toy(folder, suite, output: Path, loader, recipe="lora", **training):
    data = {
        "model": model_of(folder, backbone_dropout=True),  # which draws random numbers
        "recipe": recipe,
        "training": {**QUICK, "disable_tqdm": True, "logging_steps": 1, **training},
    }
    return fit(resolve(data, suite, where="test"), suite, output, loader=loader)


def state_of(model):
    return {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def assert_same_state(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# Base models -------------------------------------------------------------------------------


def test_base_model_is_loaded_once(config, calls):
    loader = Loader()
    first, pooling = loader.backbone(config, torch.float32, trains=False)
    second, again = loader.backbone(config, torch.float32, trains=True)
    assert calls == ["load_backbone"]
    assert first is not second
    assert pooling == again == load_backbone(config, torch.float32)[1]


def test_frozen_weights_are_shared_and_training_ones_are_not(config):
    loader = Loader()
    (a, _), (b, _) = (loader.backbone(config, torch.float32, trains=False) for _ in range(2))
    own, _ = loader.backbone(config, torch.float32, trains=True)
    assert [n for n, _ in a.named_modules()] == [n for n, _ in own.named_modules()]
    for name, tensor in (*a.named_parameters(), *a.named_buffers()):
        assert (
            tensor.data_ptr()
            == (dict(b.named_parameters()) | dict(b.named_buffers()))[name].data_ptr()
        )
    for name, tensor in own.named_parameters():
        kept = a.get_parameter(name)
        assert torch.equal(tensor, kept)
        assert tensor.data_ptr() != kept.data_ptr()
        assert not kept.requires_grad
    # Modules are never shared: a run puts its adapters in their place.
    assert not set(map(id, a.modules())) & set(map(id, b.modules()))


def test_other_models_and_types_are_told_apart(tiny_bert, calls):
    loader = Loader()
    for changes, dtype in [
        ({}, torch.float32),
        ({}, torch.bfloat16),
        ({"backbone_dropout": True}, torch.float32),
    ]:
        config = parse(ModelConfig, model_of(tiny_bert, **changes), "test")
        model, _ = loader.backbone(config, dtype, trains=False)
        assert model.dtype == dtype
        assert (model.config.hidden_dropout_prob > 0) == config.backbone_dropout
    assert len(calls) == 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_leaves_the_kept_model_as_it_was(recipe, tiny_bert, config, suite, tmp_path):
    loader = Loader()
    kept = loader._models.get(
        [loading.to_plain(config), "torch.float32"], lambda: load_backbone(config, torch.float32)
    )[0]
    before, modules = state_of(kept), [type(m) for m in kept.modules()]
    run = fit_toy(tiny_bert, suite, tmp_path / "run", loader, recipe, learning_rate=0.1)
    run.evaluate("validation", num_resamples=0)
    assert_same_state(state_of(kept), before)
    assert [type(m) for m in kept.modules()] == modules
    assert not any(p.requires_grad or p.grad is not None for p in kept.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in kept.modules())
    if recipe == "full":  # it did train something
        trained = dict(run.model.backbone.named_parameters())
        assert any(not torch.equal(t, before[n]) for n, t in trained.items())


def test_runs_with_and_without_a_loader_are_equal(tiny_bert, suite, tmp_path, calls):
    loader = Loader()
    order = [*RECIPES, "lora"]  # the first again after all others
    for index, recipe in enumerate(order):
        fit_toy(tiny_bert, suite, tmp_path / f"shared{index}", loader, recipe, max_steps=3)
    assert calls.count("load_backbone") == calls.count("load_tokenizer") == 1
    assert calls.count("encode") == 4
    for index, recipe in enumerate(RECIPES):
        fit_toy(tiny_bert, suite, tmp_path / f"alone{index}", None, recipe, max_steps=3)
        assert_same_run(tmp_path / f"shared{index}", tmp_path / f"alone{index}")
    assert_same_run(tmp_path / "shared4", tmp_path / "alone0")
    assert len(log_of(tmp_path / "shared4")) == 3


def test_scores_with_and_without_a_loader_are_equal(tiny_bert, suite, tmp_path, calls):
    loader = Loader()
    for name, recipe in (("a", "lora"), ("b", "full")):
        fit_toy(tiny_bert, suite, tmp_path / name, loader, recipe)
    del calls[:]
    for name in ("a", "b"):
        load_run(tmp_path / name, loader=loader).evaluate("test", num_resamples=0)
        ours = result_of(tmp_path / name)["metrics"]
        load_run(tmp_path / name).evaluate("test", num_resamples=0)
        assert ours == result_of(tmp_path / name)["metrics"]
    # With it the test rows alone were new; without it everything was.
    assert calls.count("load_backbone") == calls.count("load_tokenizer") == 2
    assert calls.count("encode") == 4 + 8


# Rows and tokenizers -----------------------------------------------------------------------


def test_rows_are_encoded_once_for_each_use(tiny_bert, config, toy_suite_dict, calls):
    loader, suite = Loader(), load_suite(toy_suite_dict)
    first = loader.encoded(config, suite, "topic", "train")
    assert loader.encoded(config, suite, "topic", "train") is first
    assert loader.encoded(config, load_suite(toy_suite_dict), "topic", "train") is first
    assert loader.encoded(config, suite.subset(["topic"]), "topic", "train") is first
    assert calls == ["load_tokenizer", "encode"]
    short = parse(ModelConfig, model_of(tiny_bert, max_length=8), "test")
    limited = load_suite({**toy_suite_dict, "max_rows": 5})
    redrawn = load_suite({**toy_suite_dict, "max_rows": 5, "draw": 1})
    found = [
        loader.encoded(config, suite, "topic", "test"),
        loader.encoded(config, suite, "sentiment", "train"),
        loader.encoded(short, suite, "topic", "train"),
        loader.encoded(config, limited, "topic", "train"),
        loader.encoded(config, redrawn, "topic", "train"),
    ]
    assert calls.count("encode") == 6
    assert calls.count("load_tokenizer") == 1
    for index, rows in enumerate([first, *found]):
        assert all(rows != other for other in [first, *found][index + 1 :])
    assert max(len(row["input_ids"]) for row in found[2]) == 8


@pytest.mark.parametrize("limit", [1, 3])
def test_shelf_keeps_what_was_asked_for_last(limit):
    made = []

    class Thing:
        pass

    def get(key):
        def make():
            made.append(key)
            return Thing()

        return shelf.get([key], make)

    shelf = _Shelf(limit)
    kept = [weakref.ref(get(key)) for key in range(limit)]
    get(0)  # now the one asked for last
    assert made == list(range(limit))
    get("new")
    gc.collect()
    gone = [key for key in range(limit) if kept[key]() is None]
    assert gone == ([0] if limit == 1 else [1])
    get(gone[0])
    assert made == [*range(limit), "new", gone[0]]


def test_failing_to_load_keeps_nothing():
    shelf = _Shelf(1)
    with pytest.raises(ZeroDivisionError):
        shelf.get(["a"], lambda: 1 / 0)
    assert shelf.get(["a"], lambda: "there") == "there"


def test_loader_keeps_few_models(tiny_bert, calls):
    loader = Loader()

    def load(max_length):
        config = parse(ModelConfig, model_of(tiny_bert, max_length=max_length), "test")
        return loader.backbone(config, torch.float32, trains=False)

    for length in (8, 16, 8, 24, 8):
        load(length)
    assert len(calls) == 3
    load(16)
    assert len(calls) == 4
