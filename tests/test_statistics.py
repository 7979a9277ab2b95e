"""What is gathered before a run, against one row after the other; and runs that start from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coadapt import InputError, load_run, statistics
from coadapt._seeds import named_seed
from coadapt.adapters.linear import linear_weight
from coadapt.analysis import start_of
from coadapt.backbone import ModelConfig, load_backbone
from coadapt.config import parse
from coadapt.inits import POOLED, Corda, Hasi
from coadapt.loading import Loader
from coadapt.moments import moments_of
from coadapt.planning import COOPERATIVE
from coadapt.statistics import Request, gather_spectra
from coadapt.tasks import load_suite
from coadapt.training import MultiTaskTrainer
from tests.small import output_hash
from tests.tiny_language import save_model, write_jsonl
from tests.toy_runs import TRAINING, assert_same_run, model_of, result_of, tensors_of, train_toy

RANK = 4
EVERY = {"target_modules": ["query", "key", "value", "intermediate.dense"]}


def request_of(folder, init, *, seed=0, rank=RANK, **config):
    model = parse(ModelConfig, model_of(folder, **{**EVERY, **config}), "test")
    return Request(model=model, init=init, rank=rank, seed=seed)


def slow_moments(config, loader, suite, task, rows, seed, modules):
    """Return E x x' by module: each row alone, no padding, sums in float64."""
    backbone, _ = load_backbone(config, torch.float32)
    encoded = loader.encoded(config, suite, task, "train")
    order = np.random.default_rng(named_seed(seed, "statistics", task)).permutation(len(encoded))
    sums, count = {}, 0
    handles = []
    for name in modules:

        def hook(_, args, __, name=name):
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.T @ x

        handles.append(backbone.get_submodule(name).register_forward_hook(hook))
    for row in order[:rows]:
        ids = torch.tensor([encoded[int(row)]["input_ids"]])
        extra = {}
        if "token_type_ids" in encoded[int(row)]:
            extra["token_type_ids"] = torch.tensor([encoded[int(row)]["token_type_ids"]])
        if "labels" in encoded[int(row)] and backbone.config.is_encoder_decoder:
            extra["labels"] = torch.tensor([encoded[int(row)]["labels"]])
        with torch.no_grad():
            backbone(input_ids=ids, **extra)
        count += ids.shape[1]
    for handle in handles:
        handle.remove()
    return sums, count, backbone


@pytest.fixture
def suite(toy_suite_dict):
    return load_suite(toy_suite_dict)


def assert_spectra_are(found, C, W):
    U, S, _ = torch.linalg.svd(W.double() @ C, full_matrices=False)
    size = min(RANK, len(S))
    torch.testing.assert_close(found.sigma[:size], S[:size], rtol=1e-4, atol=1e-9)
    cosines = torch.linalg.svdvals(U[:, : size - 1].T @ found.U[:, :size])
    assert cosines.min() > 0.999


@pytest.mark.parametrize("rows", [5, 10_000])
def test_spectra_are_those_of_rows_run_one_by_one(rows, tiny_bert, suite, tmp_path):
    loader, request = Loader(), request_of(tiny_bert, Hasi(rows=rows))
    found = gather_spectra(request, suite, tmp_path / "s", loader=loader, quiet=True)
    task = suite.names[1]
    sums, count, backbone = slow_moments(
        request.model, loader, suite, task, rows, request.seed, list(found)
    )
    for name, by_task in found.items():
        assert set(by_task) == set(suite.names)
        weight = linear_weight(backbone.get_submodule(name))
        assert_spectra_are(by_task[task], sums[name] / count, weight)


def test_pooled_moments_are_of_all_tasks_tokens(tiny_bert, suite, tmp_path):
    loader, request = Loader(), request_of(tiny_bert, Corda(rows=6))
    found = gather_spectra(request, suite, tmp_path / "s", loader=loader, quiet=True)
    total, tokens = {}, 0
    backbone, _ = load_backbone(request.model, torch.float32)
    for task in suite.names:
        sums, count, _ = slow_moments(
            request.model, loader, suite, task, 6, request.seed, list(found)
        )
        total = {name: total.get(name, 0) + value for name, value in sums.items()}
        tokens += count
    for name, by_task in found.items():
        assert list(by_task) == [POOLED]
        weight = linear_weight(backbone.get_submodule(name))
        assert_spectra_are(by_task[POOLED], total[name] / tokens, weight)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_language_models_are_read_with_their_answers(name, tmp_path):
    folder = save_model(tmp_path / name, name)
    rows = [{"q": f"Is {n} one? " + "more " * (n % 3), "label": bool(n % 2)} for n in range(9)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = {
        "kind": "classification",
        "data": str(path),
        "text": ["q"],
        "labels": [False, True],
        "words": ["no", "yes"],
    }
    shares = {"validation": 0.2, "test": 0.2}
    suite = load_suite({"tasks": {"one": task}, "split": shares})
    targets = ("q_proj", "down_proj") if name == "llama" else ("q", "v", "wo")
    config = ModelConfig(name=str(folder), dtype="float32", max_length=64, target_modules=targets)
    request = Request(model=config, init=Hasi(rows=5), rank=RANK, seed=0)
    loader = Loader()
    found = gather_spectra(request, suite, tmp_path / "s", loader=loader, quiet=True)
    sums, _, backbone = slow_moments(config, loader, suite, "one", 5, 0, list(found))
    for module, by_task in found.items():
        # The mean's number of tokens is another in a decoder; directions do not depend on it.
        weight = linear_weight(backbone.get_submodule(module))
        S = torch.linalg.svdvals(weight.double() @ sums[module])
        sigma = by_task["one"].sigma[:RANK]
        torch.testing.assert_close(sigma / sigma[0], S[:RANK] / S[0], rtol=1e-4, atol=1e-6)


def count_passes(monkeypatch):
    passes = []
    original = statistics._Gathering._moments

    def moments(self, items, group, bar):
        passes.append(len(group))
        return original(self, items, group, bar)

    monkeypatch.setattr(statistics._Gathering, "_moments", moments)
    return passes


def test_inputs_that_maps_share_are_summed_once(tiny_bert, suite, tmp_path, monkeypatch):
    passes = count_passes(monkeypatch)
    found = gather_spectra(request_of(tiny_bert, Hasi(rows=4)), suite, tmp_path / "s", quiet=True)
    layers = len(found) // 4
    assert passes == [2 * layers] * len(suite.names)  # query, key and value read one tensor


def test_little_memory_takes_more_passes_and_gives_the_same(
    tiny_bert, suite, tmp_path, monkeypatch
):
    request = request_of(tiny_bert, Hasi(rows=4))
    whole = gather_spectra(request, suite, tmp_path / "a", quiet=True)
    passes = count_passes(monkeypatch)
    parts = gather_spectra(request, suite, tmp_path / "b", quiet=True, memory=1)
    assert set(passes) == {1}
    for name, by_task in whole.items():
        for task, spectrum in by_task.items():
            assert torch.equal(parts[name][task].U, spectrum.U)


def test_what_is_done_is_not_done_again(tiny_bert, suite, tmp_path, monkeypatch):
    request = request_of(tiny_bert, Hasi(rows=4))
    passes = count_passes(monkeypatch)
    original = statistics._write

    def stop(file, spectra):
        if file.name.startswith("2-"):
            raise KeyboardInterrupt
        original(file, spectra)

    with monkeypatch.context() as patch:
        patch.setattr(statistics, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            gather_spectra(request, suite, tmp_path / "s", quiet=True)
    assert len(passes) == 3
    resumed = gather_spectra(request, suite, tmp_path / "s", quiet=True)
    assert len(passes) == 3 + len(suite.names) - 2
    whole = gather_spectra(request, suite, tmp_path / "whole", quiet=True)
    for name, by_task in whole.items():
        assert list(resumed[name]) == list(by_task)
        assert all(torch.equal(resumed[name][t].U, s.U) for t, s in by_task.items())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "suite|seed"),
        ({"rank": 5}, "rank"),
        ({"init": Hasi(rows=5)}, "suite|init"),
        ({"init": Corda(rows=4)}, "init"),
        ({"modules": ["query"]}, "modules"),
    ],
    ids=lambda value: str(value),
)
def test_statistics_of_another_request_are_refused(change, what, tiny_bert, suite, tmp_path):
    gather_spectra(request_of(tiny_bert, Hasi(rows=4)), suite, tmp_path / "s", quiet=True)
    modules = change.pop("modules", None)
    extra = {"target_modules": modules} if modules else {}
    other = request_of(tiny_bert, change.pop("init", Hasi(rows=4)), **change, **extra)
    with pytest.raises(InputError, match=f"statistics of another ({what})"):
        gather_spectra(other, suite, tmp_path / "s", quiet=True)


def test_another_suite_or_a_folder_of_something_else_is_refused(tiny_bert, suite, tmp_path):
    request = request_of(tiny_bert, Hasi(rows=4))
    gather_spectra(request, suite, tmp_path / "s", quiet=True)
    with pytest.raises(InputError, match="statistics of another suite"):
        gather_spectra(request, suite.subset(suite.names[:2]), tmp_path / "s", quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no statistics"):
        gather_spectra(request, suite, tmp_path / "mine", quiet=True)


def test_a_task_without_tokens_is_refused(tiny_bert, suite, tmp_path, monkeypatch):
    loader, request = Loader(), request_of(tiny_bert, Hasi(rows=4))
    original = loader.encoded

    def encoded(config, suite, task, split):
        rows = original(config, suite, task, split)
        return [{**row, "input_ids": []} for row in rows] if task == "topic" else rows

    monkeypatch.setattr(loader, "encoded", encoded)
    with pytest.raises(InputError, match="task 'topic' has no valid token"):
        gather_spectra(request, suite, tmp_path / "s", loader=loader, quiet=True)


# Runs --------------------------------------------------------------------------------------

RECIPES = ("thanora_hasi_only", "corda", "pissa")


@pytest.fixture(scope="module")
def thanora(tiny_bert, toy_suite_files, tmp_path_factory):
    """A run whose ranks differ from layer to layer."""
    recipe = {
        "structure": {"kind": "single", "scale": 5.0},
        "init": {"kind": "hasi", "rows": 8, "temperature": 0.02},
        "sharing": "cooperative",
    }
    output = tmp_path_factory.mktemp("thanora") / "run"
    return train_toy(tiny_bert, toy_suite_files, output, recipe, budget=20)


def plan_of(run):
    plan = run.model.plan
    assert plan is not None
    return plan


def test_ranks_by_layer_are_in_plan_adapter_and_statistics(thanora):
    plan = plan_of(thanora)
    found = {tuple(ranks.values()) for ranks in plan.ranks.values()}
    assert len(found) > 1
    assert all(sum(ranks) == 20 for ranks in found)
    told = json.loads((thanora.path / "statistics.json").read_text())
    assert {m: v["ranks"] for m, v in told["modules"].items()} == plan.ranks
    tensors = tensors_of(thanora.path / "adapter")
    for module, ranks in plan.ranks.items():
        for block, rank in ranks.items():
            assert len(tensors[f"blocks.safetensors/{block}/{module}/A"]) == rank
    assert not list(thanora.path.glob("tmp-*"))


def test_a_loaded_run_gives_the_same_outputs_without_gathering(thanora, monkeypatch):
    def never(*_, **__):
        raise AssertionError("gathered again")

    monkeypatch.setattr(statistics._Gathering, "run", never)
    assert output_hash(load_run(thanora.path)) == output_hash(thanora)


def test_its_fold_has_twice_the_rank_and_ships(thanora, tmp_path):
    for A, B in thanora.model.fold(thanora.suite.names[0]).values():
        assert A.shape[0] == B.shape[1] == 40
    report = thanora.export(tmp_path / "peft")
    assert set(report.tasks) == set(thanora.suite.names)


def test_its_start_is_what_it_froze(thanora):
    start = start_of(thanora).model
    for layer in start.attached.layers.values():
        x = torch.ones(1, layer.in_features)
        torch.testing.assert_close(layer(x), layer.base(x), rtol=0, atol=1e-5)
        assert any(B.any() for B in layer.B)


def test_a_task_joins_all_blocks_or_leaves_them(thanora, tmp_path):
    names = thanora.suite.names
    less = load_run(thanora.path).remove_task(names[0], tmp_path / "less")
    assert plan_of(less).ranks == plan_of(thanora).ranks  # all rows use all blocks
    new = replace(thanora.suite.tasks[0], name="again")
    more = load_run(thanora.path).add_task(new, tmp_path / "more")
    found = plan_of(load_run(more.path))
    assert found.ranks == plan_of(thanora).ranks
    assert found.blocks[COOPERATIVE].tasks == (*names, "again")


@pytest.mark.parametrize("recipe", RECIPES)
def test_runs_resume_to_the_same_bits(recipe, tiny_bert, toy_suite_dict, tmp_path, monkeypatch):
    options = {"budget": 10, "training": {**TRAINING, "num_train_epochs": 1}}
    whole = train_toy(tiny_bert, toy_suite_dict, tmp_path / "whole", recipe, **options)
    original = MultiTaskTrainer.compute_loss

    def stop(self, *args, **kwargs):
        if self.state.global_step + 1 == 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskTrainer, "compute_loss", stop)
        with pytest.raises(KeyboardInterrupt):
            train_toy(tiny_bert, toy_suite_dict, tmp_path / "cut", recipe, **options)
    train_toy(tiny_bert, toy_suite_dict, tmp_path / "cut", recipe, resume=True, **options)
    assert_same_run(tmp_path / "cut", whole.path)
    assert result_of(whole.path)["train"]["trainable"]["adapters"] > 0


def test_a_run_that_was_stopped_while_gathering_goes_on(
    tiny_bert, toy_suite_dict, tmp_path, monkeypatch
):
    passes = count_passes(monkeypatch)
    original = statistics._write

    def stop(file, spectra):
        original(file, spectra)
        if file.name.startswith("1-"):
            raise KeyboardInterrupt

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            train_toy(tiny_bert, toy_suite_dict, output, "thanora_hasi_only", budget=10)
    train_toy(tiny_bert, toy_suite_dict, output, "thanora_hasi_only", budget=10)
    assert len(passes) == 4  # a task each, none twice
    assert not list(output.glob("tmp-*"))


def test_runs_share_a_folder_of_statistics(tiny_bert, toy_suite_dict, tmp_path, monkeypatch):
    passes = count_passes(monkeypatch)
    for number in range(2):
        train_toy(
            tiny_bert,
            toy_suite_dict,
            tmp_path / str(number),
            "thanora_hasi_only",
            budget=10,
            statistics=tmp_path / "kept",
        )
    assert len(passes) == 4
    assert Path(tmp_path / "kept" / "statistics.json").is_file()
    assert (tmp_path / "0" / "plan.yaml").read_text() == (tmp_path / "1" / "plan.yaml").read_text()


@pytest.mark.parametrize("width", [1, 191, 192, 193, 500])
def test_products_are_multiplied_once_and_mirrored(width):
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(0))
    found = moments_of(x[None], None).products
    wide = x.double()
    np.testing.assert_allclose(found, (wide.T @ wide).numpy(), rtol=1e-5, atol=1e-5)
