"""The whole model: loss, pooling, precision, checkpointing, target modules, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel

from coadapt import InputError
from coadapt.adapters import PartitionedLinear, target_names
from coadapt.backbone import ModelConfig, fingerprint, load_backbone
from coadapt.planning import Plan
from coadapt.structures import Bank, Frozen, Full, Single
from tests.small import (
    MIXED,
    NAMES,
    TASKS,
    blocks_of,
    gradients,
    make_batch,
    make_model,
    randomize,
    take,
)

PRIVATE = Plan.private(NAMES, 6)
STRUCTURES = {
    "lora": (Single(), Plan.shared(NAMES, 4)),
    "private": (Bank(), PRIVATE),
    "clustered": (Bank(), Plan.clustered({"classes": NAMES[:2], "values": NAMES[2:]}, 5)),
    "shared_private": (Bank(), Plan.shared_private(NAMES, 8)),
}


# Loss --------------------------------------------------------------------------------------------


def loss_by_hand(outputs, labels, task_ids, loss_mean):
    """The definition, in a loop: a mean over tasks of means over their rows, or over all rows."""
    by_task = {}
    for row, label, task in zip(outputs, labels, task_ids, strict=True):
        if TASKS[task].kind == "regression":
            loss = (row[0] - label) ** 2
        else:
            loss = F.cross_entropy(row[None, : TASKS[task].num_outputs], label[None].long())
        by_task.setdefault(task, []).append(loss)
    if loss_mean == "tasks":
        means = [sum(losses) / len(losses) for losses in by_task.values()]
        return sum(means) / len(means)
    every = [loss for losses in by_task.values() for loss in losses]
    return sum(every) / len(every)


@pytest.fixture(params=["tasks", "rows"])
def loss_mean(request):
    return request.param


@pytest.mark.parametrize("task_ids", [MIXED, (0, 0, 1), (2,)], ids=["mixed", "two", "one_row"])
def test_loss_is_the_mean_it_says(tiny_bert, loss_mean, task_ids):
    model = randomize(make_model(tiny_bert, Bank(), PRIVATE, loss_mean=loss_mean))
    batch = make_batch(task_ids)
    result = model(**batch)
    exact = loss_by_hand(result["outputs"], batch["labels"], task_ids, loss_mean)
    torch.testing.assert_close(result["loss"], exact, rtol=1e-6, atol=1e-6)
    assert result["row_losses"].shape == (len(task_ids),)


def test_the_two_means_differ(tiny_bert):
    one = randomize(make_model(tiny_bert, Bank(), PRIVATE, loss_mean="tasks"))
    other = randomize(make_model(tiny_bert, Bank(), PRIVATE, loss_mean="rows"))
    batch = make_batch(MIXED)
    difference = one(**batch)["loss"] - other(**batch)["loss"]
    assert abs(difference.item()) > 1e-3


@pytest.mark.parametrize("cuts", [(3, 5), (1, 2, 3, 4, 5, 6), (0, 7), (2, 2)], ids=str)
def test_micro_batches_sum_to_the_step(tiny_bert, loss_mean, cuts):
    model = randomize(make_model(tiny_bert, Bank(), PRIVATE, loss_mean=loss_mean))
    whole = make_batch(MIXED)
    exact, wanted = model(**whole)["loss"].detach(), gradients(model, whole)
    counts = torch.bincount(whole["task_ids"], minlength=3)
    model.zero_grad()
    total = torch.zeros(())
    for start, stop in zip((0, *cuts), (*cuts, len(MIXED)), strict=True):
        loss = model(**take(whole, slice(start, stop)), task_counts=counts)["loss"]
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, exact, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_the_counts_weigh_a_row_by_its_task(tiny_bert, loss_mean):
    """Three tasks in the step, of which this micro-batch holds two rows of one."""
    model = randomize(make_model(tiny_bert, Bank(), PRIVATE, loss_mean=loss_mean))
    result = model(**make_batch((0, 0)), task_counts=torch.tensor([4, 1, 5]))
    weight = 1 / (3 * 4) if loss_mean == "tasks" else 1 / 10
    torch.testing.assert_close(result["loss"], result["row_losses"].sum() * weight)


def test_a_task_that_the_step_lacks_has_no_share_in_the_mean(tiny_bert):
    model = randomize(make_model(tiny_bert, Bank(), PRIVATE))
    result = model(**make_batch((0, 0)), task_counts=torch.tensor([2, 0, 0]))
    torch.testing.assert_close(result["loss"], result["row_losses"].mean())


# Pooling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_pooling_of_padded_rows_is_that_of_the_rows_alone(tiny_bert, pooling):
    model = make_model(tiny_bert, Single(), STRUCTURES["lora"][1], pooling=pooling, dtype="float64")
    randomize(model).eval()
    base = AutoModel.from_pretrained(tiny_bert, dtype=torch.float64).eval()
    with torch.no_grad():
        for name, (A, B) in model.fold("two").items():
            base.get_submodule(name).weight += (B @ A).double()
        batch = make_batch((0,) * 6)
        lengths = batch["attention_mask"].sum(dim=1)
        assert len(set(lengths.tolist())) > 2
        outputs = model(**batch)["outputs"]
        for row, length in enumerate(lengths.tolist()):
            alone = base(input_ids=batch["input_ids"][row : row + 1, :length])
            hidden = alone.last_hidden_state[0]
            pooled = {
                "mean": hidden.sum(dim=0) / length,
                "cls": hidden[0],
                "pooler": alone.pooler_output[0],
            }[pooling]
            exact = model.heads.weight[0].double() @ pooled + model.heads.bias[0].double()
            torch.testing.assert_close(outputs[row], exact, rtol=0, atol=1e-5)


def test_poolings_differ_and_are_named(tiny_bert):
    found = {}
    for pooling in ("mean", "cls", "pooler"):
        model = make_model(tiny_bert, Frozen(), None, pooling=pooling)
        assert model.pooling == pooling
        found[pooling] = model.eval()(**make_batch((0, 0)))["outputs"]
    assert not torch.allclose(found["mean"], found["cls"])
    assert not torch.allclose(found["cls"], found["pooler"])


def test_auto_pooling_takes_what_the_model_brings(tiny_bert, tmp_path):
    assert make_model(tiny_bert, Frozen(), None, pooling="auto").pooling == "pooler"
    for key, pooling in (("pooling_mode_mean_tokens", "mean"), ("pooling_mode_cls_token", "cls")):
        folder = tmp_path / pooling
        shutil.copytree(tiny_bert, folder)
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({key: True}))
        assert make_model(folder, Frozen(), None, pooling="auto").pooling == pooling
    bare = save_without_pooler(tiny_bert, tmp_path / "bare")
    assert make_model(bare, Frozen(), None, pooling="auto").pooling == "cls"


def test_an_untrained_pooler_is_refused(tiny_bert, tmp_path):
    bare = save_without_pooler(tiny_bert, tmp_path / "bare")
    with pytest.raises(InputError, match=r"no trained pooler; set model\.pooling to mean or cls"):
        make_model(bare, Frozen(), None, pooling="pooler")


def save_without_pooler(tiny_bert, folder):
    shutil.copytree(tiny_bert, folder)
    AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(folder)
    return folder


# Fingerprint -------------------------------------------------------------------------------------


def test_a_fingerprint_is_blind_to_the_dtype_and_to_adapters(tiny_bert):
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    config = ModelConfig(name=str(tiny_bert), pooling="mean", backbone_dropout=False)
    found = {fingerprint(load_backbone(config, dtype)[0]) for dtype in dtypes}
    assert len(found) == 1
    models = [make_model(tiny_bert, *STRUCTURES["lora"]), make_model(tiny_bert, Full(), None)]
    assert {model.base_fingerprint for model in models} == found


@pytest.mark.parametrize("change", ["weight", "shape", "name"])
def test_a_fingerprint_tells_models_apart(change):
    def make(**options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
            return BertModel(BertConfig(vocab_size=30, num_hidden_layers=1, **sizes, **options))

    one, other = make(), make()
    assert fingerprint(one) == fingerprint(other)
    if change == "weight":
        with torch.no_grad():
            other.get_parameter("encoder.layer.0.output.dense.bias")[3] += 0.1
    elif change == "shape":
        other = make(max_position_embeddings=400)
    else:
        other.extra = torch.nn.LayerNorm(8)
    assert fingerprint(one) != fingerprint(other)


# Activation checkpointing ------------------------------------------------------------------------

RECOMPUTED = {"re_entrant": True, "non_re_entrant": False}


CASES = STRUCTURES | {
    "full": (Full(), None),
    **{f"{name}_dropout": (replace(s, dropout=0.3), p) for name, (s, p) in STRUCTURES.items()},
}


@pytest.mark.parametrize(("structure", "plan"), CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("re_entrant", RECOMPUTED.values(), ids=list(RECOMPUTED))
def test_gradients_are_the_same_with_checkpointing(tiny_bert, structure, plan, re_entrant):
    model = randomize(make_model(tiny_bert, structure, plan)).train()
    batch = make_batch(MIXED)
    calls = count_calls(model)
    exact = seeded_gradients(model, batch)
    assert set(calls.values()) == {1}

    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": re_entrant}
    )
    assert model.is_activation_checkpointing
    found = seeded_gradients(model, batch)
    assert set(calls.values()) == {3}  # one more in the forward, one in the backward
    assert found.keys() == exact.keys()
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=0, atol=1e-6)
    assert any(gradient.abs().max() > 1e-2 for gradient in exact.values())


def seeded_gradients(model, batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return gradients(model, batch)


def count_calls(model):
    """Count the forwards of every map that the encoder's layers hold."""
    calls = {}
    for name, module in model.backbone.encoder.named_modules():
        if name.endswith("query"):
            calls[name] = 0
            module.register_forward_hook(
                lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
            )
    assert len(calls) == 2
    return calls


def test_checkpointing_is_off_unless_asked_for(tiny_bert):
    assert not make_model(tiny_bert, *STRUCTURES["lora"]).is_activation_checkpointing


# Precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_only_the_backbone_is_in_bfloat16(tiny_bert, name):
    model = randomize(make_model(tiny_bert, *STRUCTURES[name], dtype="bfloat16"))
    for parameter in model.parameters():
        wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == wanted
    batch = make_batch(MIXED)
    result = model(**batch)
    assert {t.dtype for t in result.values()} == {torch.float32}
    assert {g.dtype for g in gradients(model, batch).values()} == {torch.float32}
    exact = randomize(make_model(tiny_bert, *STRUCTURES[name]))(**batch)
    torch.testing.assert_close(result["loss"], exact["loss"], rtol=0.1, atol=0.1)


def test_a_backbone_that_trains_keeps_float32_weights(tiny_bert):
    model = make_model(tiny_bert, Full(), None, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    batch = make_batch(MIXED)
    seen = []
    query = model.backbone.get_submodule("encoder.layer.0.attention.self.query")
    query.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    result = model(**batch)
    assert seen == [torch.bfloat16]
    assert result["loss"].dtype == torch.float32


def test_auto_dtype_is_what_the_processor_has(tiny_bert, monkeypatch):
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("coadapt.backbone.has_fast_bfloat16", lambda fast=fast: fast)
        model = make_model(tiny_bert, *STRUCTURES["lora"], dtype="auto")
        assert model.backbone.get_input_embeddings().weight.dtype == dtype


def test_backbone_dropout_can_be_turned_off(tiny_bert):
    assert ModelConfig(name="any").backbone_dropout
    batch = make_batch(MIXED)
    model = make_model(tiny_bert, *STRUCTURES["lora"], backbone_dropout=False).train()
    assert torch.equal(model(**batch)["outputs"], model(**batch)["outputs"])
    model = make_model(tiny_bert, *STRUCTURES["lora"], backbone_dropout=True).train()
    assert not torch.equal(seeded_outputs(model, batch, 0), seeded_outputs(model, batch, 1))


def seeded_outputs(model, batch, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(**batch)["outputs"]


# Target modules ----------------------------------------------------------------------------------

ATTENTION = ("attention.self.query", "attention.self.value")
EVERY = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)


@pytest.mark.parametrize(
    ("targets", "endings"),
    [
        ("attention", ATTENTION),
        ("all-linear", EVERY),
        (("key",), ("attention.self.key",)),
        (("key", "intermediate.dense"), ("attention.self.key", "intermediate.dense")),
        (("self.query", "self.value"), ATTENTION),
        (r"encoder\.layer\.\d\.attention\.self\.(query|value)", ATTENTION),
        (r".*\.intermediate\.dense", ("intermediate.dense",)),
    ],
    ids=["attention", "all-linear", "name", "names", "endings", "regex", "regex_dots"],
)
def test_target_modules(tiny_bert, targets, endings):
    backbone = AutoModel.from_pretrained(tiny_bert)
    found = target_names(backbone, targets)
    order = [name for name, _ in backbone.named_modules()]
    wanted = {f"encoder.layer.{layer}.{ending}" for layer in range(2) for ending in endings}
    assert found == tuple(name for name in order if name in wanted)
    assert len(found) == 2 * len(endings)


def test_target_modules_of_a_model(tiny_bert):
    target = "encoder.layer.1.attention.self.query"
    model = make_model(tiny_bert, *STRUCTURES["lora"], target_modules=(target,))
    assert list(model.attached.layers) == [target]
    adapted = [n for n, m in model.backbone.named_modules() if isinstance(m, PartitionedLinear)]
    assert adapted == [target]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("qurey",), "no linear module is named 'qurey'; did you mean 'query'"),
        (("query", "valu"), "no linear module is named 'valu'; did you mean 'value'"),
        (("uery",), "no linear module is named 'uery'; did you mean 'query'"),
        (("embeddings",), "no linear module is named 'embeddings'"),
        (r"encoder\.layers\..*", "matches no linear module"),
        ("query", r"regular expression for full names, write \['query'\] for the ending"),
        ("(query", "is no regular expression"),
        ((), "matches no linear module"),
    ],
    ids=["typo", "one_of_two", "part_of_a_name", "not_linear", "regex", "bare", "broken", "empty"],
)
def test_target_modules_that_match_nothing_are_refused(tiny_bert, targets, message):
    with pytest.raises(InputError, match=f"target_modules.*{message}"):
        make_model(tiny_bert, *STRUCTURES["lora"], target_modules=targets)


def test_a_family_without_default_is_refused(tiny_bert):
    backbone = AutoModel.from_pretrained(tiny_bert)
    backbone.config.model_type = "novel"
    with pytest.raises(InputError, match=r"known for model type 'novel'.*'all-linear'"):
        target_names(backbone, "attention")


# Loading and state -------------------------------------------------------------------------------


def test_weights_that_are_only_there_as_pickle_are_refused(tiny_bert, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").unlink()
    torch.save(AutoModel.from_pretrained(tiny_bert).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"could not be loaded.*safetensors"):
        make_model(folder, Frozen(), None)


def test_a_model_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'.*nowhere' could not be loaded"):
        make_model(tmp_path / "nowhere", Frozen(), None)


def test_state_comes_back(tiny_bert):
    model, other = (randomize(make_model(tiny_bert, Bank(), PRIVATE), seed=s) for s in (1, 2))
    state = {name: tensor.clone() for name, tensor in model.state_tensors().items()}
    other.load_state_tensors(state, "here")
    batch = make_batch(MIXED)
    assert torch.equal(model(**batch)["outputs"], other(**batch)["outputs"])


def test_state_of_another_configuration_is_refused(tiny_bert):
    model = make_model(tiny_bert, Bank(), PRIVATE)
    state = dict(model.state_tensors())
    name = next(iter(blocks_of(model)))
    with pytest.raises(InputError, match=f"a.file: tensor '{name}' has shape"):
        model.load_state_tensors({**state, name: torch.zeros(9, 9)}, "a.file")
    del state[name]
    with pytest.raises(InputError, match=f"a.file has no tensor '{name}'"):
        model.load_state_tensors(state, "a.file")


@pytest.mark.parametrize(
    ("structure", "ships"), [(Full(), "merged"), (Frozen(), "none")], ids=["full", "frozen"]
)
def test_what_has_no_lora_form_is_not_folded(tiny_bert, structure, ships):
    with pytest.raises(InputError, match=f"no exact LoRA form .* '{ships}'"):
        make_model(tiny_bert, structure, None).fold("two")


def test_lazy_parameters_are_the_blocks_and_heads_a_task_owns(tiny_bert):
    heads = [((0,), 2), ((1,), 2), ((2,), 2)]
    wanted = {
        "lora": heads,
        "private": [*heads, ((0,), 8), ((1,), 8), ((2,), 8)],
        "clustered": [*heads, ((0, 1), 8), ((2,), 8)],
        "shared_private": [*heads, ((0, 1, 2), 8), ((0,), 8), ((1,), 8), ((2,), 8)],
    }
    for name, (structure, plan) in STRUCTURES.items():
        model = make_model(tiny_bert, structure, plan)
        found = model.lazy_parameters()
        assert [(owners, len(parameters)) for owners, parameters in found] == wanted[name]
        every = [id(p) for _, parameters in found for p in parameters]
        assert len(every) == len(set(every))


def test_a_model_that_lacks_weights_is_refused(tiny_bert, tmp_path):
    folder = tmp_path / "holes"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("attention.self.query.weight"))
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of its weights, such as '.*query\.weight'"):
        load_backbone(ModelConfig(name=str(folder)), torch.float32)
