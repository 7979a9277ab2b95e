"""The table of methods: every row loads, comes back from plain data, and trains."""

import json
import math

import pytest
import torch
from transformers import AutoModel

from coadapt import InputError
from coadapt.analysis import start_of
from coadapt.config import dump_yaml, load_yaml, parse, to_plain
from coadapt.fitting import train
from coadapt.groups import Uniform
from coadapt.merge_methods import Merge
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES, find_recipe, list_methods
from coadapt.runs import load_run
from coadapt.structures import Bank, Single
from tests.small import TASKS, make_model

COLUMNS = {"name", "paper", "summary", "depends_on", "ships_as", "mergeable"}


@pytest.fixture(params=RECIPES)
def name(request):
    return request.param


def test_a_row_comes_back_from_plain_data_and_yaml(name, tmp_path):
    recipe = RECIPES[name].recipe
    assert parse(Recipe, to_plain(recipe), name) == recipe
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_yaml(to_plain(recipe)), encoding="utf-8")
    assert parse(Recipe, load_yaml(file), str(file)) == recipe


def test_a_row_is_found_by_name_and_says_where_it_comes_from(name):
    row = RECIPES[name]
    assert find_recipe(name) is row.recipe
    assert find_recipe(row.recipe) is row.recipe
    assert row.paper
    assert row.summary


def test_an_unknown_recipe_is_named_with_its_nearest():
    with pytest.raises(InputError, match="no recipe is named 'lorra'; did you mean 'lora'"):
        find_recipe("lorra")


ROUTED = ("hydra_lora", "r_lora", "r_lora_code", "lora_moe", "mix_lora", "r_lora+align")
ROUTED += ("hydra_lora_3b1a", "hydra_lora_4b1a")


def test_methods_are_listed_for_programs():
    rows = {row["name"]: row for row in list_methods()}
    assert list(rows) == list(RECIPES)
    assert all(set(row) == COLUMNS for row in rows.values())
    assert json.loads(json.dumps(list_methods())) == list_methods()
    facts = {n: (r["depends_on"], r["ships_as"], r["mergeable"]) for n, r in rows.items()}
    assert facts == dict.fromkeys(rows, ("nothing", "lora", True)) | {
        "full": ("nothing", "merged", False),
        "frozen": ("nothing", "none", False),
        "private": ("task", "lora", True),
        "clustered": ("task", "lora", True),
        "shared_private": ("task", "lora", True),
        "lora_hub": ("task", "lora", True),
        "dare": ("task", "lora", True),
        "ties": ("task", "lora", True),
        "dora": ("nothing", "dora", False),
        "ta_lora": ("task", "runtime", False),
        "prompt_tuning": ("nothing", "runtime", False),
        "prefix_tuning": ("nothing", "runtime", False),
        "multitask_prompt_tuning": ("task", "runtime", False),
        **dict.fromkeys(ROUTED, ("token", "runtime", False)),
    }


# Training ----------------------------------------------------------------------------------------

CLUSTERS = {"words": ["sentiment", "degree"], "subjects": ["topic", "same"]}
_COOPERATIVE = {"sentiment": 2, "topic": 2, "same": 2, "degree": 1, "cooperative": 1}
# The blocks that the recipe's own plan makes of a budget of 8 and four tasks, with their ranks.
RANKS = {
    "full": {},
    "ta_lora": {},
    "prompt_tuning": {},
    "prefix_tuning": {},
    "multitask_prompt_tuning": {},
    "frozen": {},
    "private": {"sentiment": 2, "topic": 2, "same": 2, "degree": 2},
    "lora_hub": {"sentiment": 2, "topic": 2, "same": 2, "degree": 2},
    "clustered": {"words": 4, "subjects": 4},
    "shared_private": {"shared": 4, "sentiment": 1, "topic": 1, "same": 1, "degree": 1},
    "dare": {"sentiment": 2, "topic": 2, "same": 2, "degree": 2},
    "ties": {"sentiment": 2, "topic": 2, "same": 2, "degree": 2},
    "thanora": _COOPERATIVE,
    "thanora_hasi_only": _COOPERATIVE,
    "thanora_spr_only": _COOPERATIVE,
}


TARGETS = {"mix_lora": "all-linear"}  # whole feed-forwards


# Packages of the extra `gradients`.
NEEDED = {
    "lora+pcgrad": ["torchjd"],
    "lora+upgrad": ["torchjd", "quadprog"],
    "lora+cagrad": ["torchjd", "cvxpy"],
}


@pytest.fixture
def trained(name, tiny_bert, toy_suite_dict, tmp_path):
    """A run of two steps, each on all rows of all tasks."""
    for needed in NEEDED.get(name, ()):
        pytest.importorskip(needed)
    return train(
        {
            "name": str(tiny_bert),
            "dtype": "float32",
            "max_length": 32,
            "pooling": "mean",
            "backbone_dropout": False,
            "target_modules": TARGETS.get(name, "attention"),
        },
        toy_suite_dict,
        name,
        plan=Plan.clustered(CLUSTERS, 8) if name == "clustered" else None,
        output=tmp_path / "run",
        training={
            "max_steps": 2,
            "per_device_train_batch_size": 256,  # all rows
            "lr_scheduler_type": "constant",
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
        },
    )


def test_a_row_trains_exactly_its_own_parameters(name, trained, tiny_bert):
    config = trained.config
    blocks = config.plan.blocks if config.plan else {}
    assert {block: b.rank for block, b in blocks.items()} == RANKS.get(name, {"shared": 8})
    updates = trained.result["train"]["updates"]
    assert updates == dict.fromkeys(updates, 2)
    log = (trained.path / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, log) if "loss" in row]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)

    if isinstance(config.recipe.compose, Merge):
        assert_merged(trained, config.recipe.compose)
        return
    options = {
        "tasks": trained.suite.tasks,
        "seed": config.seed,
        "init": config.recipe.init,
        "target_modules": config.model.target_modules,
    }
    if config.recipe.init.statistics == "none":
        fresh = make_model(tiny_bert, config.recipe.structure, config.plan, **options)
    else:
        fresh = start_of(trained).model
    before, after = fresh.state_tensors(), trained.model.state_tensors()
    assert before.keys() == after.keys()
    beside = {"heads", "shared", "router", "backbone", "magnitude"}
    parts = {key.split("/")[0] for key in after} - beside
    assert parts == set(trained.model.attached.blocks) - {"shared"}
    assert any(key.startswith("router/") for key in after) == (name in ROUTED)
    start = [key for key in after if key.endswith(("/A0", "/B0"))]
    assert bool(start) == config.recipe.init.offset
    if config.recipe.compose is None:
        kept = [key for key in after if torch.equal(before[key], after[key])]
        # An expert that no token of a layer chose has no gradient there.
        assert [k for k in kept if not (name == "mix_lora" and k.startswith("expert"))] == start
    else:  # the adapters were trained and are composed of each other, perhaps with weights of zero
        found = trained.result["composition"]
        assert list(found) == list(trained.suite.names)
        assert all(task not in row["weights"] for task, row in found.items())
        assert all(len(row["history"]) == 40 for row in found.values())
    base = AutoModel.from_pretrained(tiny_bert).state_dict()
    backbone = trained.model.backbone.state_dict()
    ours = (".A.", ".B.", ".A0.", ".B0.", ".gate.", ".m.", ".attention_extension.")
    ours += (".prompt_encoder.",)
    own = {key: w for key, w in backbone.items() if not any(part in f".{key}." for part in ours)}
    assert len(own) == len(base) - 2  # its pooler is left out
    moved = {key for key, w in own.items() if not torch.equal(w, base[key.replace(".base.", ".")])}
    assert moved == (set(backbone) if name == "full" else set())


def assert_merged(run, merge):
    """One update for all tasks, that of the recipe's merge, and every task's own head."""
    model = load_run(run.path).model
    assert model.recipe.structure == Single(scale=1.0)
    assert set(model.attached.blocks) == {"shared"}
    assert run.result["merge"]["method"] == to_plain(merge)
    first, *others = (model.fold(task) for task in run.suite.names)
    for other in others:
        assert all(torch.equal(B @ A, other[m][1] @ other[m][0]) for m, (A, B) in first.items())
    assert any((B @ A).any() for A, B in first.values())
    assert len(model.heads.names) == len(run.suite.names)
    with pytest.raises(InputError, match="was merged after training"):
        start_of(run)


# Optimizer groups --------------------------------------------------------------------------------


def test_uniform_groups_hold_each_parameter_once():
    heads = torch.nn.Linear(4, 2).named_parameters()
    adapters = [
        ("matrix", torch.nn.Parameter(torch.zeros(2, 3))),
        ("frozen", torch.nn.Parameter(torch.zeros(2, 3), requires_grad=False)),
    ]
    groups = Uniform(head_rate=5.0).split(adapters, heads, learning_rate=0.1, weight_decay=0.2)
    found = [([p.shape for p in g["params"]], g["lr"], g["weight_decay"]) for g in groups]
    assert found == [
        ([(2, 3)], 0.1, 0.2),
        ([(2, 4)], 0.5, 0.2),
        ([(2,)], 0.5, 0.0),
    ]


def test_b_may_have_a_rate_of_its_own():
    """LoRA+: factors are told apart by the names that the adapted layers give them."""
    names = ("layer.0.query.A.0", "layer.0.query.B.0", "layer.0.query.B.1", "layer.0.B.gate.weight")
    adapters = [(name, torch.nn.Parameter(torch.zeros(2, 3))) for name in names]
    groups = Uniform(b_rate=16.0).split(adapters, [], learning_rate=0.1, weight_decay=0.2)
    found = [[name for name, p in adapters if any(p is q for q in g["params"])] for g in groups]
    assert found == [[names[0], names[3]], list(names[1:3])]
    assert [g["lr"] for g in groups] == [0.1, pytest.approx(1.6)]


@pytest.mark.parametrize("head_rate", [0.0, -1.0, float("nan")])
def test_a_head_rate_that_is_not_positive_is_refused(head_rate):
    with pytest.raises(InputError, match="head_rate must be positive"):
        Uniform(head_rate=head_rate)


@pytest.mark.parametrize("part", [Single, Bank])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", 0.0, "must be positive, not 0.0"),
        ("scale", float("nan"), "must be positive, not nan"),
        ("dropout", 1.0, r"must be in \[0, 1\), not 1.0"),
        ("dropout", -0.1, r"must be in \[0, 1\), not -0.1"),
    ],
)
def test_a_structures_ranges_are_checked(part, field, value, message):
    with pytest.raises(InputError, match=f"{field}.*{message}"):
        part(**{field: value})


def test_a_model_is_refused_without_the_plan_it_needs(tiny_bert):
    with pytest.raises(InputError, match="structure 'bank' needs a plan"):
        make_model(tiny_bert, Bank(), None)
    with pytest.raises(InputError, match="leaves out task 'value'"):
        make_model(tiny_bert, Single(), Plan.shared([task.name for task in TASKS[:2]], 4))
