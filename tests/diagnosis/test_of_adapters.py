"""Folders that a run exported and that stock PEFT wrote, compared with dense matrices."""

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertModel

from coadapt import InputError, diagnose_adapters, load_diagnosis
from tests.small import randomize
from tests.toy_runs import train_toy

# PEFT asks transformers for what it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TITLES = ("cosine", "overlap_in", "overlap_out")


@pytest.fixture(scope="module")
def exported(tiny_bert, toy_suite_files, tmp_path_factory):
    """The folder of an export of private adapters, and what each adds to each weight."""
    folder = tmp_path_factory.mktemp("exported")
    run = train_toy(tiny_bert, toy_suite_files, folder / "run", "private")
    randomize(run.model)
    run.export(folder / "out")
    updates = {
        task: {name: (B @ A).double().numpy() for name, (A, B) in run.model.fold(task).items()}
        for task in run.suite.names
    }
    return folder / "out", updates


@pytest.fixture(scope="module")
def stock(tiny_bert, tmp_path_factory):
    """A LoRA that stock PEFT wrote, of rank 3 and scale 2."""
    folder = tmp_path_factory.mktemp("stock") / "stock"
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["query"], init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(BertModel.from_pretrained(tiny_bert), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(stock, tmp_path):
    """The test's own copy."""
    return shutil.copytree(stock, tmp_path / "copied")


def edit(folder, **keys):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_an_adapter_and_its_copy_are_one(stock, copied):
    found = diagnose_adapters([stock, copied])
    assert found.tasks == ("stock", "copied")
    assert found.of == "2 adapters"
    for key in TITLES:
        np.testing.assert_allclose(found.pair(key).values, np.ones((2, 2)), atol=1e-6)
        np.testing.assert_allclose(
            found.tables["by_module"].values, np.ones((2, 3)), atol=1e-6
        )  # of two modules
    assert found.by_task["rank"].values.tolist() == [3, 3]
    assert len(found.notes) == 1


def test_the_scale_of_an_adapter_does_not_matter(stock, copied):
    edit(copied, lora_alpha=1, use_rslora=True)
    assert diagnose_adapters([stock, copied]).pair("cosine").values[0, 1] == pytest.approx(1)


def test_cosines_of_an_export_are_those_of_the_dense_updates(exported):
    out, updates = exported
    found = diagnose_adapters([out / "adapters" / task for task in updates])
    assert found.tasks == tuple(updates)
    vectors = {task: np.concatenate([m.ravel() for m in u.values()]) for task, u in updates.items()}

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    for (i, a), (j, b) in combinations(enumerate(updates), 2):
        wanted = cosine(vectors[a], vectors[b])
        assert found.pair("cosine").values[i, j] == pytest.approx(wanted, abs=1e-6)
    modules = list(updates["topic"])
    by_module = found.tables["by_module"]
    assert by_module.rows == tuple(modules)
    assert by_module.columns == TITLES
    for module, value in zip(modules, by_module.values[:, 0], strict=True):
        each = [
            cosine(updates[a][module].ravel(), updates[b][module].ravel())
            for a, b in combinations(updates, 2)
        ]
        assert value == pytest.approx(sum(each) / len(each), abs=1e-6)


def test_overlaps_of_an_export_are_those_of_projections(exported):
    out, updates = exported
    a, b = "topic", "degree"
    found = diagnose_adapters([out / "adapters" / a, out / "adapters" / b])
    for key, of in (("overlap_in", lambda M: M.T), ("overlap_out", lambda M: M)):
        each = []
        for module in updates[a]:
            first, second = (of(updates[task][module]) for task in (a, b))
            rank = np.linalg.matrix_rank(first, tol=1e-4)
            P, Q = (M @ np.linalg.pinv(M, rcond=1e-4) for M in (first, second))
            each.append(np.trace(P @ Q) / rank)
        assert found.pair(key).values[0, 1] == pytest.approx(np.mean(each), abs=1e-4)


def test_modules_that_one_of_them_lacks(exported, stock):
    out, _ = exported
    found = diagnose_adapters([stock, out / "adapters" / "topic"])
    values = dict(
        zip(found.tables["by_module"].rows, found.tables["by_module"].values, strict=True)
    )
    assert len(values) == 4
    for module, row in values.items():
        assert np.isnan(row).all() == module.endswith("value")


def test_names_may_be_given(stock, copied):
    found = diagnose_adapters([stock, copied], names=["mine", "theirs"])
    assert found.tasks == ("mine", "theirs")
    with pytest.raises(InputError, match="there are 2 folders but 1 names; give one each"):
        diagnose_adapters([stock, copied], names=["mine"])


def test_a_folder_is_called_by_its_own_name(stock, copied, monkeypatch):
    monkeypatch.chdir(copied)
    assert diagnose_adapters([stock, "."]).tasks == ("stock", "copied")


def test_other_base_models_are_told(stock, copied):
    edit(copied, base_model_name_or_path="elsewhere/bert")
    base = json.loads((stock / "adapter_config.json").read_text())["base_model_name_or_path"]
    notes = diagnose_adapters([stock, copied]).notes
    assert notes[-1].startswith(f"they name different base models ({base}, elsewhere/bert)")


def test_it_comes_back_from_its_file(stock, exported, tmp_path):
    out, _ = exported
    found = diagnose_adapters([stock, *sorted((out / "adapters").iterdir())])
    found.save(tmp_path / "d.json")
    assert load_diagnosis(tmp_path / "d.json").to_plain() == found.to_plain()


# Refusals ----------------------------------------------------------------------------------------


def test_fewer_than_two_are_refused(stock):
    for folders in ([], [stock]):
        with pytest.raises(InputError, match=f"two adapter folders .*, not {len(folders)}"):
            diagnose_adapters(folders)


def test_equal_names_are_refused(stock, tmp_path):
    other = shutil.copytree(stock, tmp_path / "stock")
    with pytest.raises(InputError, match="two of the folders are called 'stock'; rename one"):
        diagnose_adapters([stock, other])


def test_what_is_no_adapter_is_refused(stock, copied, exported, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=f"{path} is no PEFT adapter: it has no adapter_conf"):
            diagnose_adapters([stock, path])
    out, _ = exported
    with pytest.raises(InputError, match=rf"give the folders in {out / 'adapters'}"):
        diagnose_adapters([stock, out])
    edit(copied, use_dora=True)
    with pytest.raises(InputError, match=r"the adapter has DoRA .* only a plain LoRA"):
        diagnose_adapters([stock, copied])


def test_an_adapter_of_another_shape_is_refused(stock, copied):
    path = copied / "adapter_model.safetensors"
    tensors = load_file(path)
    cut = {k: t[:, :8].contiguous() if "lora_A" in k else t for k, t in tensors.items()}
    save_file(cut, path)
    with pytest.raises(InputError, match="query"):
        diagnose_adapters([stock, copied])
