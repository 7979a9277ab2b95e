"""`coadapt plan`: what it prints and writes, and how it refuses."""

import json
import shutil

import numpy as np
import pytest
import yaml

import coadapt
from coadapt.config import dump_yaml, to_plain
from coadapt.diagnosis import Diagnosis, PairMeasure
from coadapt.planners import propose
from tests.invoking import invoke, refuse, succeed
from tests.planners.toy_diagnosis import diagnosis_of, families
from tests.toy_runs import QUICK, content_of, model_of

TASKS = ("sentiment", "topic", "same", "degree")


@pytest.fixture(scope="module")
def folder(toy_suite_files, tmp_path_factory):
    """The toy suite as a file, and a diagnosis of two clear families; not to be changed."""
    folder = tmp_path_factory.mktemp("planning")
    (folder / "toy.yaml").write_text(dump_yaml(toy_suite_files), encoding="utf-8")
    diagnosis_of(families([2, 2]), tasks=TASKS).save(folder / "families.json")
    (folder / "other.json").write_text("{}", encoding="utf-8")
    (folder / "out").mkdir()
    return folder


# plan --------------------------------------------------------------------------------------------


def test_plan_says_who_shares_and_why(folder, tmp_path):
    path = tmp_path / "plan.yaml"
    printed = succeed("plan", folder / "families.json", "--budget", 8, "-o", path).splitlines()
    assert printed[:3] == [
        "clustered (train with recipe: clustered)",
        "  rank 4  sentiment+topic: sentiment, topic",
        "  rank 4  same+degree: same, degree",
    ]
    assert printed[3].startswith("- the tasks' gradients have a median reliability of 0.90")
    assert "- data are scarce (100 rows in the smallest task): share within clusters" in printed
    assert printed[-1] == f"written to {path}; train.yaml takes it by 'plan: plan.yaml'"
    made = propose(coadapt.load_diagnosis(folder / "families.json"), budget=8)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == to_plain(made.plan)


def test_plan_as_json(folder, tmp_path):
    words = ("plan", folder / "families.json", "--budget", 8, "--json")
    found = json.loads(succeed(*words, "-o", tmp_path / "plan.yaml"))
    made = propose(coadapt.load_diagnosis(folder / "families.json"), budget=8)
    assert found == {
        "sharing": "clustered",
        "recipe": "clustered",
        "reasons": list(made.reasons),
        "plan": to_plain(made.plan),
    }
    assert (tmp_path / "plan.yaml").is_file()


def ranks_of(*words):
    """Return the ranks by tasks of the plan that is printed as JSON."""
    blocks = json.loads(succeed("plan", *words, "--json"))["plan"]["blocks"]
    return {tuple(block["tasks"]): block["rank"] for block in blocks.values()}


def test_each_option_of_plan(folder, tmp_path):
    file = folder / "families.json"
    assert ranks_of(file, "--budget", 6, "--sharing", "shared") == {TASKS: 6}
    private = {(task,): rank for task, rank in zip(TASKS, (2, 2, 1, 1), strict=True)}
    assert ranks_of(file, "--budget", 6, "--sharing", "private") == private
    three = ("--budget", 6, "--sharing", "clustered", "--clusters", 3)
    assert len(ranks_of(file, *three)) == 3
    some = ranks_of(file, "--budget", 6, "--tasks", "degree, same,topic", *three[2:4])
    assert some == {("topic",): 2, ("same", "degree"): 4}
    even = ranks_of(file, "--budget", 6, "--tasks", "degree,same,topic", "--ranks", "uniform")
    assert even == {("topic",): 3, ("same", "degree"): 3}
    opposed = tmp_path / "opposed.json"
    diagnosis_of(families([2, 2], within=-0.8), tasks=TASKS).save(opposed)
    two = ("--budget", 6, "--sharing", "clustered", "--clusters", 2)
    assert TASKS[:2] in ranks_of(opposed, *two, "--distance", "1-s^2")
    assert TASKS[:2] not in ranks_of(opposed, *two)


@pytest.mark.parametrize("recipe", ["clustered", "lora"])
def test_a_plan_trains(recipe, folder, tiny_bert, tmp_path):
    sharing = {"clustered": "clustered", "lora": "shared"}[recipe]
    words = ("plan", folder / "families.json", "--budget", 4, "--sharing", sharing)
    assert f"{sharing} (train with recipe: {recipe})" in succeed(
        *words, "-o", tmp_path / "plan.yaml"
    )
    train = {"model": model_of(tiny_bert), "suite": str(folder / "toy.yaml"), "training": QUICK}
    train |= {"recipe": recipe, "plan": "plan.yaml"}
    (tmp_path / "train.yaml").write_text(dump_yaml(train), encoding="utf-8")
    succeed("train", tmp_path / "train.yaml", "-o", tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run" / "plan.yaml").read_text(encoding="utf-8"))
    assert written == yaml.safe_load((tmp_path / "plan.yaml").read_text(encoding="utf-8"))


# plan --sharing search ---------------------------------------------------------------------------


@pytest.fixture
def train_file(folder, tiny_bert, tmp_path):
    train = {"model": model_of(tiny_bert), "suite": str(folder / "toy.yaml"), "recipe": "private"}
    train["training"] = {"use_cpu": True}
    (tmp_path / "train.yaml").write_text(dump_yaml(train), encoding="utf-8")
    return tmp_path / "train.yaml"


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_search(as_json, folder, train_file, tmp_path):
    path = tmp_path / "plan.yaml"
    result = invoke(
        *("plan", folder / "families.json", "--budget", 2, "--sharing", "search"),
        *("--train", train_file, "--set", "search.epochs=0.5", "--set", "search.seeds=[3]"),
        *("--set", "training.learning_rate=1e-3", "-o", path, *(["--json"] if as_json else [])),
    )
    assert result.exit_code == 0, result.output
    told = result.stderr if as_json else result.stdout
    assert "2 candidates, 1 epochs of the suite in all (1 rounds, 1 seed(s))" in told
    assert "0.5 epochs each: clusters" in told
    if as_json:
        found = json.loads(result.stdout)
        assert found["recipe"] == "clustered"
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == found["plan"]
    runs = tmp_path / "plan.search"
    assert sorted(p.name for p in (runs / "round0").iterdir()) == ["clusters1", "clusters2"]
    config = yaml.safe_load((runs / "round0" / "clusters1" / "seed3" / "config.yaml").read_text())
    assert config["training"]["learning_rate"] == 0.001
    assert config["training"]["num_train_epochs"] == 0.5
    assert config["seed"] == 3


# Refusals of plan --------------------------------------------------------------------------------

SEARCH = ("--sharing", "search")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sharing", "sharde"), "unknown sharing 'sharde'; did you mean 'shared'"),
        (("--ranks", "even"), "unknown ranks 'even'"),
        (("--distance", "s"), "unknown distance 's'"),
        (("--clusters", "2"), "num_clusters is for sharing 'clustered', not for 'auto'; drop it"),
        (("--sharing", "shared", "--distance", "1-s^2"), "--distance is for plans that choose"),
        (("--sharing", "private", "--ranks", "uniform"), "--ranks is for plans that choose"),
        (("--sharing", "clustered", "--clusters", "5"), "num_clusters must be 1 to 4, not 5"),
        (("--tasks", "topic,sme"), "not about task 'sme'; did you mean 'same'"),
        (("--tasks", "topic"), "a plan needs two tasks or more"),
        (("--sharing", "private", "--budget", "3"), "a rank budget of 3 is smaller than the 4"),
        (("--train", "t.yaml"), "--train is for --sharing search; drop it"),
        (("--set", "a=1"), "--set is for --sharing search; drop it"),
        (SEARCH, "a search trains: give --train train.yaml, and --output for the plan"),
        ((*SEARCH, "--train", "t.yaml"), "a search trains: give --train train.yaml, and --output"),
        ((*SEARCH, "--clusters", "2"), "--clusters is for --sharing clustered; drop it"),
        ((*SEARCH, "--train", "t.yaml", "-o", "p.yaml"), "t.yaml: cannot be read"),
        (("-o", "no/plan.yaml"), "no is no folder; make it, or choose another --output"),
        (("-o", "out"), "out is a folder; --output is a file to write"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_plan_refuses(words, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = content_of(folder)
    budget = () if "--budget" in words else ("--budget", 8)
    assert message in refuse("plan", "families.json", *budget, *words)
    assert content_of(folder) == before


def test_search_is_refused_to_several_processes(folder, train_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ("plan", folder / "families.json", "--budget", 2, *SEARCH, "--train", train_file)
    told = refuse(*words, "-o", tmp_path / "plan.yaml")
    assert "a search runs in one process, not in 2; start it by itself" in told
    assert not (tmp_path / "plan.search").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.keep=1", "keep of at least 2"),
        ("search.epoch=1", "unknown key 'epoch'; did you mean 'epochs'"),
        ("batchs=mixed", "unknown key 'batchs'; did you mean 'batches'"),
    ],
)
def test_search_refuses_before_it_trains(setting, message, folder, train_file, tmp_path):
    words = ("plan", folder / "families.json", "--budget", 2, *SEARCH, "--train", train_file)
    assert message in refuse(*words, "--set", setting, "-o", tmp_path / "plan.yaml")
    assert not (
        tmp_path / "plan.search" / "round0" / "clusters1" / "seed0" / "result.json"
    ).exists()


def test_plan_by_what_is_no_evidence(folder, tmp_path):
    measure = PairMeasure(title="cosine", reading="", values=np.eye(2))
    found = Diagnosis(tasks=("a", "b"), of="2 adapters", rows={}, pairs={"cosine": measure})
    found.save(tmp_path / "a.json")
    message = refuse("plan", tmp_path / "a.json", "--budget", 8)
    assert "diagnosis of 2 adapters does not say how well its similarities are known" in message
    assert "is no diagnosis" in refuse("plan", folder / "other.json", "--budget", 8)
    assert "none.json does not exist" in refuse("plan", "none.json", "--budget", 8)
    shutil.copy(folder / "toy.yaml", tmp_path)
    assert "not readable JSON" in refuse("plan", tmp_path / "toy.yaml", "--budget", 8)
