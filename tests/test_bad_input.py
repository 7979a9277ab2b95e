"""What cannot be is refused, by a message with the place and the remedy, and nothing is lost.

Data that cannot be read are tested in tests/tasks, settings in test_config.py, the folder of a run
in test_resume.py, `training:` in test_training.py, and the command line's own words in test_cli.py.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import BertModel

import coadapt
from coadapt import InputError, Plan
from coadapt._files import load_tensors, read_json, seal
from coadapt.config import dump_yaml
from coadapt.settings import read_train_file
from tests.toy_runs import QUICK, content_of, model_of, train_toy

TASKS = ("sentiment", "topic", "same", "degree")


@pytest.fixture(scope="module")
def finished_run(tiny_bert, toy_suite_files, tmp_path_factory):
    return train_toy(tiny_bert, toy_suite_files, tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def finished(finished_run, tmp_path):
    """The test's own copy of a finished run."""
    return shutil.copytree(finished_run, tmp_path / "run")


def refuse(model, suite, recipe, output, **options) -> str:
    """Return the message with which `coadapt.train` refuses; the output is as it was."""
    before = content_of(output)
    with pytest.raises(InputError) as raised:
        coadapt.train(model, suite, recipe, output=output, **{"training": QUICK, **options})
    assert content_of(output) == before
    return str(raised.value)


def blocks(**named):
    """Return a plan's plain data from ``name=(rank, tasks)``."""
    return {
        "blocks": {k: {"rank": rank, "tasks": list(tasks)} for k, (rank, tasks) in named.items()}
    }


ALL = (2, TASKS)
CONFIGURATIONS = {
    "recipe": (
        {"recipe": "privat"},
        ["no recipe is named 'privat'; did you mean 'private'?"],
    ),
    "recipe-from-afar": ({"recipe": "zzz"}, ["known: full, frozen, lora, private"]),
    "recipe-that-is-a-list": ({"recipe": ["lora"]}, ["train(): recipe: found ['lora']", "mapping"]),
    "recipe-that-is-nothing": ({"recipe": None}, ["train(): recipe: found None; give a mapping"]),
    "option": ({"batch": "mixed"}, ["train(): unknown key 'batch'; did you mean 'batches'?"]),
    "batches": ({"batches": "mix"}, ["train(): batches: found 'mix'", "'mixed', 'balanced' or"]),
    "loss-mean": ({"loss_mean": "task"}, ["train(): loss_mean: found 'task'", "'tasks'"]),
    "mixing-without-kind": (
        {"mixing": {"temperature": 2}},
        ["train(): mixing: add 'kind'; known: proportional, uniform, temperature"],
    ),
    "temperature": (
        {"mixing": {"kind": "temperature", "temperature": 0}},
        ["temperature is 0", "give a number above 0"],
    ),
    "dropout": (
        {"recipe": {"structure": {"kind": "single", "dropout": 1.0}, "sharing": "shared"}},
        ["dropout must be in [0, 1), not 1.0"],
    ),
    "scale": (
        {"recipe": {"structure": {"kind": "single", "scale": 0.0}, "sharing": "shared"}},
        ["scale (lora_alpha / r) must be positive, not 0.0"],
    ),
    "seed": ({"seed": "one"}, ["train(): seed: found 'one'; give a whole number"]),
    "training-that-is-a-list": (
        {"training": ["max_steps"]},
        ["train(): training: found ['max_steps']; give a mapping"],
    ),
    "budget-below-blocks": (
        {"recipe": "private", "budget": 3},
        ["a rank budget of 3 is smaller than the 4 blocks", "raise budget to at least 4"],
    ),
    "budget-below-blocks-and-common-one": (
        {"recipe": "shared_private", "budget": 4},
        ["a rank budget of 4 is smaller than the 5 blocks"],
    ),
    "budget-of-nothing": ({"budget": 0}, ["a rank budget of 0", "raise budget to at least 1"]),
    "budget-below-nothing": ({"budget": -3}, ["a rank budget of -3"]),
    "budget-of-a-half": ({"budget": 2.5}, ["train(): budget must be a whole number, not 2.5"]),
    "budget-that-is-true": ({"budget": True}, ["budget must be a whole number, not True"]),
    "budget-of-frozen": (
        {"recipe": "frozen", "budget": 4},
        ["train(): recipe 'frozen' has no rank axis; drop budget"],
    ),
    "budget-of-full-written-out": (
        {"recipe": {"structure": {"kind": "full"}}, "budget": 4},
        ["train(): recipe 'full' has no rank axis; drop budget"],
    ),
    "plan-of-frozen": (
        {"recipe": "frozen", "plan": blocks(all=ALL)},
        ["recipe 'frozen' has no rank axis; drop plan"],
    ),
    "no-plan-for-clusters": (
        {"recipe": "clustered"},
        ["recipe 'clustered' needs a plan that says which tasks share", "plan: {blocks: {NAME:"],
    ),
    "plan-and-other-budget": (
        {"plan": blocks(all=ALL), "budget": 3},
        ["budget is 3 but the plan's ranks sum to 2; drop one of the two"],
    ),
    "plan-of-unknown-task": (
        {"recipe": "clustered", "plan": blocks(all=(2, (*TASKS, "topics")))},
        ["the plan names task 'topics', which the suite lacks; did you mean 'topic'?"],
    ),
    "plan-without-a-task": (
        {"recipe": "clustered", "plan": blocks(all=(2, TASKS[:3]))},
        ["the plan leaves out task 'degree'; add it to a block"],
    ),
    "plan-with-a-task-twice": (
        {"recipe": "clustered", "plan": blocks(all=(2, (*TASKS, "topic")))},
        ["a block lists a task twice: sentiment, topic, same, degree, topic"],
    ),
    "plan-of-rank-nothing": (
        {"recipe": "clustered", "plan": blocks(all=(0, TASKS))},
        ["a block's rank must be at least 1, not 0"],
    ),
    "plan-that-is-a-list": ({"plan": ["topic"]}, ["train(): plan has no 'blocks'"]),
    "plan-that-is-a-number": ({"plan": 8}, ["train(): plan has no 'blocks'"]),
    "plan-with-unknown-key": (
        {"plan": {"blocks": {"all": {"rank": 2, "tasks": list(TASKS), "alpha": 1}}}},
        ["train(): unknown key 'plan.blocks.all.alpha'"],
    ),
    "plan-that-is-no-file": ({"plan": "no.yaml"}, ["no.yaml: cannot be read", "check the path"]),
    "suite": ({"suite": "dmo"}, ["'dmo' is neither a YAML file nor a ready suite", "'demo'?"]),
    "suite-without-tasks": ({"suite": {"tasks": {}}}, ["suite: tasks: found {}", "give a mapping"]),
}


@pytest.mark.parametrize("where", ["new-folder", "finished-run"])
@pytest.mark.parametrize(("options", "parts"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_configuration_that_cannot_be(
    options, parts, where, tiny_bert, toy_suite_dict, finished_run, tmp_path
):
    options = dict(options)
    suite, recipe = options.pop("suite", toy_suite_dict), options.pop("recipe", "lora")
    output = finished_run if where == "finished-run" else tmp_path / "run"
    message = refuse(model_of(tiny_bert), suite, recipe, output, **options)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (
            {"target_modules": ["query", "valeu"]},
            ["target_modules: no linear module is named 'valeu'; did you mean 'value'?"],
        ),
        (
            {"target_modules": r".*\.nothing"},
            [r"target_modules '.*\\.nothing' matches no linear module"],
        ),
        (
            {"target_modules": "(query"},
            ["target_modules '(query' is no regular expression: ", "unterminated"],
        ),
        ({"pooling": "max"}, ["model.pooling: found 'max'", "'mean'"]),
        ({"dtype": "float8"}, ["model.dtype: found 'float8'", "'bfloat16'"]),
        ({"max_length": 0}, ["model.max_length must be at least 1, not 0"]),
        ({"max_length": 65}, ["max_length is 65; give 1 to 64"]),
        ({"targets": "query"}, ["unknown key 'model.targets'"]),
        ({"name": 5}, ["model.name: found 5; give a text"]),
        ({"name": "nobody/nothing"}, ["model 'nobody/nothing'"]),
        ({"name": "./no/such/folder"}, ["model './no/such/folder'"]),
        ({"name": "asset:minilmm"}, ["'minilmm'", "did you mean 'minilm'?"]),
        ({"attn_implementation": "slow"}, ["could not be loaded", "slow"]),
    ],
    ids=lambda value: "-".join(f"{k}" for k in value) if isinstance(value, dict) else "",
)
def test_model_that_cannot_be(config, parts, tiny_bert, toy_suite_dict, tmp_path):
    model = {**model_of(tiny_bert), **config}
    message = refuse(model, toy_suite_dict, "lora", tmp_path / "run")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resume"])
def test_model_that_cannot_be_loses_no_finished_run(
    resume, tiny_bert, toy_suite_dict, finished_run
):
    model = model_of(tiny_bert, target_modules="nothing")
    message = refuse(model, toy_suite_dict, "lora", finished_run, resume=resume)
    assert ("(changed: model.target_modules)" if resume else "holds another run") in message


def test_model_without_tokenizer(tiny_bert, toy_suite_dict, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(tiny_bert) / name, folder)
    message = refuse(model_of(folder), toy_suite_dict, "lora", tmp_path / "run")
    assert "no tokenizer could be loaded" in message
    assert str(folder) in message


def test_model_with_truncated_weights(tiny_bert, toy_suite_dict, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = refuse(model_of(folder), toy_suite_dict, "lora", tmp_path / "run")
    assert f"model '{folder}' could not be loaded" in message


def test_model_in_pickle_is_refused(tiny_bert, toy_suite_dict, tmp_path):
    import torch

    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refuse(model_of(folder), toy_suite_dict, "lora", tmp_path / "run")
    assert f"model '{folder}' could not be loaded" in message


@pytest.mark.parametrize("trust", [False, True], ids=["by-default", "when-told"])
def test_code_that_comes_with_a_model_is_not_run(trust, tiny_bert, toy_suite_dict, tmp_path):
    folder, mark = shutil.copytree(tiny_bert, tmp_path / "model"), tmp_path / "mark"
    code = "from pathlib import Path\nfrom transformers import BertConfig\n"
    code += f"Path({str(mark)!r}).touch()\n"
    code += 'class OwnConfig(BertConfig):\n    model_type = "own"\n'
    (folder / "configuration_own.py").write_text(code, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = model_of(folder, **({"trust_remote_code": True} if trust else {}))
    message = refuse(model, toy_suite_dict, "lora", tmp_path / "run")
    assert str(folder) in message
    # Where the code was trusted, only the class of the model itself is missing.
    assert mark.exists() is trust


# train.yaml --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- model: x\n", "found a list at the top; write 'key: value' lines"),
        ("", "the file is empty"),
        ("model: x\nrecipe: lora\n", "'suite' is missing; name a suite file or a ready suite"),
        ("model: x\nsuite: [demo]\nrecipe: lora\n", "suite: found ['demo']; give a file"),
        ("model: x\nsuite: no.yaml\nrecipe: lora\n", "no.yaml: cannot be read"),
        ("suite: SUITE\nrecipe: lora\n", "model: is missing; add it"),
        ("model: x\nsuite: SUITE\n", "recipe: is missing; add it"),
        ("model: [x]\nsuite: SUITE\nrecipe: lora\n", "model: found ['x']; give a mapping"),
        ("model: x\nsuite: SUITE\nrecipe: lora\nplan: no.yaml\n", "no.yaml: cannot be read"),
        ("model: x\nsuite: SUITE\nrecipe: lora\nmixing: []\n", "mixing: found []; give a mapping"),
        ("model: x\nsuite: SUITE\nrecipe: lora\nseed: 1.5\n", "seed: found 1.5; give a whole"),
        ("model: x\n  suite: y\n", "line 2: mapping values are not allowed here"),
    ],
    ids=lambda value: value.splitlines()[-1] if "\n" in value else "",
)
def test_file_that_cannot_be(text, message, toy_suite_dict, tmp_path):
    (tmp_path / "toy.yaml").write_text(dump_yaml(toy_suite_dict), encoding="utf-8")
    path = tmp_path / "train.yaml"
    path.write_text(text.replace("SUITE", "toy.yaml"), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_train_file(path)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)


# A run's files -----------------------------------------------------------------------------


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["blocks.safetensors", "heads.safetensors", "adapter.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "truncated or changed since"),
        (flip_byte, "truncated or changed since"),
        (lambda path: path.write_bytes(b""), "truncated or changed since"),
        (Path.unlink, "is missing; the folder is incomplete"),
    ],
    ids=["truncated", "flipped", "emptied", "removed"],
)
def test_damaged_adapter_is_refused_by_file(damage, message, name, finished):
    damage(finished / "adapter" / name)
    run = coadapt.load_run(finished)
    for use in (lambda: run.model, lambda: run.predict(["a dog"], "topic"), run.evaluate):
        with pytest.raises(InputError, match=message) as raised:
            use()
        assert str(finished / "adapter" / name) in str(raised.value)


def test_adapter_without_manifest_is_refused(finished):
    (finished / "adapter" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"adapter is no whole adapter folder \(no manifest.json"):
        assert coadapt.load_run(finished).model


def test_adapter_of_another_shape_is_refused(finished):
    adapter = finished / "adapter"
    tensors = load_file(adapter / "heads.safetensors")
    for change, message in (
        (tensors["heads/topic/bias"][:2].clone(), r"'heads/topic/bias' has shape \(2,\), the conf"),
        (None, r"has no tensor 'heads/topic/bias'; it is of another configuration"),
    ):
        changed = {**tensors, "heads/topic/bias": change}
        save_file(
            {k: v for k, v in changed.items() if v is not None}, adapter / "heads.safetensors"
        )
        (adapter / "manifest.json").unlink()
        seal(adapter)
        with pytest.raises(InputError, match=message):
            assert coadapt.load_run(finished).model


def test_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"x.safetensors does not exist"):
        load_tensors(path)
    for content in (b"", b"\x80\x04pickle", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x.safetensors is truncated or no safetensors file"):
            load_tensors(path)


def test_json_that_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match=r"x.json does not exist"):
        read_json(path)
    for content in (b'{"a": ', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x.json is not readable JSON"):
            read_json(path)


def test_run_on_another_base_model_is_refused(finished, tiny_bert, tmp_path):
    """The base that the run names was replaced by another one of the same shape."""
    import torch

    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(folder)
    config = finished / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(tiny_bert), str(folder)), "utf-8")
    with pytest.raises(InputError, match="was trained on another base model") as raised:
        assert coadapt.load_run(finished).model
    assert str(finished / "adapter") in str(raised.value)
    assert str(folder) in str(raised.value)


def test_run_with_another_unit_of_its_labels_is_refused(finished):
    """Its head would answer in the wrong unit, without a sign of it."""
    config = finished / "config.yaml"
    content = yaml.safe_load(config.read_text("utf-8"))
    unit = content["suite"]["tasks"]["degree"]["unit"]
    assert unit != [0.0, 1.0]
    content["suite"]["tasks"]["degree"]["unit"] = [0.0, 1.0]
    config.write_text(yaml.safe_dump(content), "utf-8")
    with pytest.raises(InputError, match=r"task 'degree' was trained with its labels in") as raised:
        assert coadapt.load_run(finished).model
    assert str(unit) in str(raised.value)
    assert "[0.0, 1.0]" in str(raised.value)


def test_run_whose_base_model_is_gone_is_refused(finished, tiny_bert):
    config = finished / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(tiny_bert), "./gone"), "utf-8")
    with pytest.raises(InputError, match=r"model './gone'"):
        assert coadapt.load_run(finished).model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), r"is no run: it has no config.yaml"),
        (lambda run: (run / "config.yaml").write_text("a: 1"), r"config.yaml has no suite"),
        (lambda run: (run / "config.yaml").write_text("a: ["), r"config.yaml, line 1: "),
        (lambda run: (run / "result.json").unlink(), r"is marked 'unfinished'; finish .* --resume"),
        (lambda run: (run / "result.json").write_text("{"), r"result.json is not readable JSON"),
        (lambda run: shutil.rmtree(run / "adapter"), r"; finish it with .* --resume"),
    ],
    ids=["no-config", "no-suite", "broken-config", "no-result", "broken-result", "no-adapter"],
)
def test_folder_that_is_no_finished_run_is_refused(change, message, finished):
    change(finished)
    with pytest.raises(InputError, match=message):
        coadapt.load_run(finished)


def test_unknown_dtype_on_opening_is_refused(finished):
    with pytest.raises(InputError, match=r"model.dtype: found 'float31'"):
        coadapt.load_run(finished, dtype="float31")


def test_parts_made_in_python_are_checked_too(tiny_bert, toy_suite_dict, tmp_path):
    plan = Plan.shared(TASKS[:2], budget=2)
    message = refuse(model_of(tiny_bert), toy_suite_dict, "lora", tmp_path / "run", plan=plan)
    assert "the plan leaves out task 'same'" in message
    assert json.dumps(content_of(tmp_path), default=str) == "{}"
