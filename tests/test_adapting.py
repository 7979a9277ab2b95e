"""A new task on a finished run: what is frozen, what it starts from, what is learned."""

import copy
import json
import shutil
from typing import Any

import pytest
import torch

from coadapt._errors import InputError
from coadapt.adapting import adapt
from coadapt.exporting import verify_peft
from coadapt.fitting import train
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.runs import Run, load_run
from coadapt.tasks import load_suite
from coadapt.transfer import form_of
from tests.invoking import refuse, succeed
from tests.small import randomize
from tests.toy_runs import QUICK, content_of, model_of, recipe_of, train_toy

TRAINED, NEW = ("sentiment", "topic", "same"), "degree"
CLUSTERS = {"words": ["sentiment", "topic"], "pairs": ["same"]}
RECIPES = ("ta_lora", "lora", "private", "clustered", "shared_private", "m_lora", "pissa")
FEW: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-2, "use_cpu": True}


def part_of(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    found = copy.deepcopy(fields)
    return {**found, "tasks": {name: found["tasks"][name] for name in names}}


@pytest.fixture(scope="module")
def source_of(tiny_bert, toy_suite_files, tmp_path_factory):
    """A function from a recipe to a run of three tasks whose factors are all away from zero."""
    found: dict[str, Run] = {}

    def source(name: str) -> Run:
        if name not in found:
            plan = Plan.clustered(CLUSTERS, 6) if name == "clustered" else None
            run = train(
                model_of(tiny_bert),
                part_of(toy_suite_files, *TRAINED),
                name,
                plan=plan,
                output=tmp_path_factory.mktemp("source") / name,
                training=FEW,
            )
            randomize(run.model, std=0.2, seed=4)
            tensors = run.model.attached.tensors()
            with torch.no_grad():
                for index, prompts in enumerate(run.model.attached.prompts.values()):
                    assert prompts.g is not None
                    prompts.g.fill_(0.5 + index)
                    for u, v in zip(prompts.u, prompts.v, strict=True):
                        u.normal_()
                        v.normal_()
            assert tensors
            from coadapt.saving import save_adapter

            shutil.rmtree(run.path / "adapter")
            save_adapter(run.model, run.path / "adapter")
            found[name] = run
        return found[name]

    return source


@pytest.fixture
def new_task(toy_suite_files):
    return load_suite(part_of(toy_suite_files, NEW))


def fresh(source: Run, suite: Any, **options: Any) -> MultiTaskModel:
    """Return the new task's model before its first step."""
    options = {"learn": None, "by": "mean", "rank": None, **options}
    form = form_of(source.model, suite.tasks[0], **options)
    model = build_model(source.config.model, suite.tasks, form.recipe, form.plan, seed=9)
    form.put_into(model)
    return model.eval()


def deltas(model: MultiTaskModel, task: int) -> dict[str, torch.Tensor]:
    return {name: layer.delta(task) for name, layer in model.attached.layers.items()}


# What it starts from -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "ta_lora"])
@pytest.mark.parametrize("learn", ["block", "gates"])
def test_it_starts_as_the_adapter_of_a_trained_task(source_of, new_task, name, learn):
    source = source_of(name)
    for task, title in enumerate(TRAINED):
        model = fresh(source, new_task, learn=learn, by=f"task:{title}")
        found, wanted = deltas(model, 0), deltas(source.model, task)
        assert found.keys() == wanted.keys()
        for module, delta in wanted.items():
            torch.testing.assert_close(found[module], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["private", "clustered", "shared_private"])
def test_it_starts_at_the_mean_of_the_trained_adapters(source_of, new_task, name):
    source = source_of(name)
    found = deltas(fresh(source, new_task), 0)
    for module, delta in found.items():
        each = [deltas(source.model, task)[module] for task in range(len(TRAINED))]
        torch.testing.assert_close(delta, torch.stack(each).mean(0), rtol=1e-5, atol=1e-6)


def test_shared_takes_what_serves_every_task(source_of, new_task):
    source = source_of("shared_private")
    found = deltas(fresh(source, new_task, by="shared"), 0)
    for module, layer in source.model.attached.layers.items():
        A, B = layer.fold_block(source.model.attached.blocks.index("shared"))
        torch.testing.assert_close(found[module], B @ A, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by", ["mean", "shared", "task:topic"])
def test_prompts_start_from_the_trained_tasks(source_of, new_task, by):
    source = source_of("ta_lora")
    found = fresh(source, new_task, by=by).attached.prompts
    for name, prompts in source.model.attached.prompts.items():
        u = torch.stack(list(prompts.u)).mean(0)
        v = torch.stack(list(prompts.v)).mean(0) * (by != "shared")
        if by == "task:topic":
            u, v = prompts.u[1], prompts.v[1]
        assert prompts.B is not None
        wanted = prompts.theta + prompts.B @ u @ v
        torch.testing.assert_close(found[name].prompts([0])[0], wanted)
        assert torch.equal(found[name].g, prompts.g)  # pyright: ignore[reportArgumentType]
        assert float(u.detach().abs().max()) > 0


@pytest.mark.parametrize("by", ["mean", "task:topic"])
def test_multitask_prompts_start_from_the_trained_tasks(source_of, new_task, by):
    source = source_of("multitask_prompt_tuning")
    (mine,) = fresh(source, new_task, by=by).attached.modules_beside.values()
    (theirs,) = source.model.attached.modules_beside.values()
    places = torch.arange(20)[None]
    with torch.no_grad():
        found = mine(places, torch.zeros(1, dtype=torch.long))
        if by == "mean":
            own = [getattr(theirs, f"prefix_task_{name}").mean(0) for name in ("cols", "rows")]
            wanted = theirs.embedding.weight * (own[0] @ own[1])  # pyright: ignore
        else:
            wanted = theirs(places, torch.tensor([1]))[0]
    torch.testing.assert_close(found[0], wanted)
    with pytest.raises(InputError, match="take mean or task:NAME"):
        fresh(source, new_task, by="shared")


def test_rows_of_the_new_task_see_what_a_trained_one_sees(source_of, new_task, toy_suite_files):
    source = source_of("ta_lora")
    model = fresh(source, new_task, by="task:same")
    inputs = {
        "input_ids": torch.tensor([[5, 9, 11, 0], [6, 7, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
    }
    with torch.no_grad():
        model.route.set(torch.zeros(2, dtype=torch.long))
        source.model.route.set(torch.full((2,), TRAINED.index("same")))
        found, wanted = (m.backbone(**inputs).last_hidden_state for m in (model, source.model))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# What is learned ---------------------------------------------------------------------------------

CASES = {
    ("ta_lora", "fast"): ("/u", "/v"),
    ("ta_lora", "all"): ("/u", "/v", "/g"),
    ("multitask_prompt_tuning", "fast"): ("/prefix_task_cols", "/prefix_task_rows"),
    ("lora", "block"): (f"{NEW}/",),
    ("private", "gates"): ("shares/",),
    ("shared_private", "block"): (f"{NEW}/",),
}


@pytest.mark.parametrize(("name", "learn"), CASES, ids=[f"{n}-{how}" for n, how in CASES])
def test_only_the_tasks_own_part_moves(source_of, new_task, tmp_path, name, learn):
    source = source_of(name)
    before = content_of(source.path)
    start = fresh(source, new_task, learn=learn).state_tensors()
    run = adapt(source.path, new_task, output=tmp_path / "new", learn=learn, training=FEW, seed=9)
    assert content_of(source.path) == before
    after = run.model.state_tensors()
    assert after.keys() == start.keys()
    moved = {key for key in after if not torch.equal(after[key], start[key])}
    parts = CASES[name, learn]
    own = {k for k in after if any(part in k for part in parts) and not k.startswith("heads/")}
    assert own
    assert moved == own | {key for key in after if key.startswith("heads/")}
    told = run.result["adapted"]
    assert told["values"] == sum(after[key].numel() for key in own)
    assert told["bytes"] == 4 * told["values"]
    assert told["trained_on"] == list(TRAINED)
    assert run.result["train"]["trainable"]["adapters"] == told["values"]


def test_the_new_run_needs_nothing_of_the_old_one(source_of, new_task, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(source_of("clustered").path, old)
    run = adapt(old, new_task, output=tmp_path / "new", training=FEW)
    texts = ["a good day", "a bad day for the dog"]
    answers = run.predict(texts, NEW)
    shutil.rmtree(old)
    again = load_run(run.path)
    assert again.predict(texts, NEW) == answers
    assert again.evaluate(num_resamples=10).keys() == {NEW}


@pytest.mark.parametrize("learn", ["block", "gates"])
def test_it_ships_as_one_lora(source_of, new_task, tmp_path, learn):
    source = source_of("private")
    run = adapt(source.path, new_task, output=tmp_path / "new", learn=learn, training=FEW)
    report = run.export(tmp_path / "out")
    encoded = {NEW: run._loader.encoded(run.config.model, run.suite, NEW, "train")[:4]}
    differences = verify_peft(run.model, run.tokenizer, report.folder, encoded)
    assert max(differences.values()) < 1e-5


def test_an_adapted_run_can_be_adapted(source_of, new_task, toy_suite_files, tmp_path):
    first = adapt(source_of("lora").path, new_task, output=tmp_path / "a", training=FEW)
    suite = load_suite(part_of(toy_suite_files, "topic"))
    second = fresh(first, suite, by=f"task:{NEW}")
    for module, delta in deltas(first.model, 0).items():
        torch.testing.assert_close(deltas(second, 0)[module], delta, rtol=1e-5, atol=1e-6)


def test_a_finished_one_is_not_trained_again(source_of, new_task, tmp_path):
    source = source_of("ta_lora")
    run = adapt(source.path, new_task, output=tmp_path / "new", training=FEW)
    before = content_of(run.path)
    adapt(source.path, new_task, output=tmp_path / "new", training=FEW, resume=True)
    assert content_of(run.path) == before
    other = adapt(source.path, new_task, output=tmp_path / "other", training=FEW, seed=1)
    with pytest.raises(InputError, match="adapted_from"):
        adapt(
            source_of("private").path,
            new_task,
            output=other.path,
            training=FEW,
            resume=True,
        )


# Rows and steps ----------------------------------------------------------------------------------


def test_shots_are_rows_of_each_class(source_of, toy_suite_files, tmp_path):
    suite = load_suite(part_of(toy_suite_files, "topic"))
    run = adapt(source_of("ta_lora").path, suite, output=tmp_path / "a", shots=3, training=FEW)
    assert run.result["train"]["rows_an_epoch"] == {"topic": 9}
    degrees = load_suite(part_of(toy_suite_files, NEW))
    run = adapt(source_of("ta_lora").path, degrees, output=tmp_path / "b", shots=5, training=FEW)
    assert run.result["train"]["rows_an_epoch"] == {NEW: 5}


def test_it_takes_the_rate_of_the_run_and_steps_of_its_own(source_of, new_task, tmp_path):
    source = source_of("ta_lora")
    run = adapt(source.path, new_task, output=tmp_path / "a", training={"num_train_epochs": 1})
    assert run.config.training == {
        "learning_rate": FEW["learning_rate"],
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
    }
    rows = run.result["train"]["rows_an_epoch"][NEW]
    assert run.result["train"]["steps"] == -(-rows // 16)


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learn": "gates"}, "'gates' does not fit; for structure 'task_prompt': fast, all"),
        ({"by": "task:spam"}, "by: 'task:spam' is no way"),
        ({"by": "men"}, "known: mean, shared, task:NAME"),
        ({"rank": 2}, "rank 2 is that of a new block"),
        ({"shots": 4000}, "shots is 4000, but there are"),
        ({"shots": 0}, "coadapt evaluate RUN --suite"),
    ],
)
def test_what_does_not_fit_is_refused(source_of, new_task, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        adapt(source_of("ta_lora").path, new_task, output=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_more_shots_than_a_class_has(source_of, toy_suite_files, tmp_path):
    suite = load_suite(part_of(toy_suite_files, "topic"))
    with pytest.raises(InputError, match="num_shots is 400, but class"):
        adapt(source_of("ta_lora").path, suite, output=tmp_path / "new", shots=400)


@pytest.mark.parametrize("name", ["hydra_lora", "frozen", "full", "dora"])
def test_a_run_without_blocks_to_take_is_refused(
    name, tiny_bert, toy_suite_dict, new_task, tmp_path
):
    run = train_toy(tiny_bert, part_of(toy_suite_dict, *TRAINED), tmp_path / "old", name)
    with pytest.raises(InputError, match="needs task prompts or LoRAs that fold"):
        adapt(run.path, new_task, output=tmp_path / "new")


def test_prompts_without_a_part_of_the_tasks_are_refused(
    tiny_bert, toy_suite_dict, new_task, tmp_path
):
    recipe = recipe_of("ta_lora", fast_rank=0)
    recipe["regularizers"] = []
    run = train_toy(tiny_bert, part_of(toy_suite_dict, *TRAINED), tmp_path / "old", recipe)
    with pytest.raises(InputError, match="fast_rank 0"):
        adapt(run.path, new_task, output=tmp_path / "new")


def test_a_base_model_that_is_gone_or_another_is_named(
    tiny_bert, toy_suite_dict, new_task, tmp_path
):
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    suite = part_of(toy_suite_dict, *TRAINED)
    run = train(model_of(base), suite, "ta_lora", output=tmp_path / "old", training=QUICK)
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights = {name: weight + 0.1 for name, weight in weights.items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="was trained on another base model"):
        adapt(run.path, new_task, output=tmp_path / "new")
    shutil.rmtree(base)
    with pytest.raises(InputError, match=f"model '{base}' could not be loaded"):
        adapt(run.path, new_task, output=tmp_path / "new")


# The command -------------------------------------------------------------------------------------


def test_the_command(source_of, toy_suite_files, tmp_path):
    from coadapt.config import dump_yaml

    file = tmp_path / "suite.yaml"
    file.write_text(dump_yaml(toy_suite_files))
    words = ("adapt", source_of("ta_lora").path, "--task", file)
    few = ("--shots", 4, "--set", "max_steps=2", "--set", "disable_tqdm=true")
    out = tmp_path / "new"
    text = succeed(*words, "--tasks", NEW, *few, "-o", out)
    assert text.startswith(f"{NEW}: 40 values of its own (0.2 KB) and a head of 33, learned from 4")
    assert f"coadapt evaluate {out}" in text.replace("\n", "")
    assert json.loads((out / "result.json").read_text())["adapted"]["values"] == 40
    succeed("evaluate", out)
    error = refuse(*words, *few, "-o", tmp_path / "other")
    assert "has 4 tasks (sentiment, topic, same, degree)" in error.replace("\n", " ")
    error = refuse(*words, "--tasks", NEW, "--learn", "slow", "-o", tmp_path / "other")
    assert "known: fast, all, block, gates" in error
