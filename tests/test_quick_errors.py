"""What is misspelled is told before libraries are imported that take seconds."""

import json
import subprocess
import sys

import pytest

GONE = {
    "train": ["train", "gone.yaml", "--output", "new"],
    "evaluate": ["evaluate", "gone"],
    "predict": ["predict", "gone", "--task", "a", "--text", "b"],
    "export": ["export", "gone", "--output", "new"],
    "adapt": ["adapt", "gone", "--task", "gone.yaml", "--output", "new"],
    "compose": ["compose", "gone", "--task", "a", "--output", "new"],
    "merge": ["merge", "gone", "gone", "--method", "ties", "--output", "new"],
    "study": ["study", "gone.yaml", "--output", "new"],
    "compare": ["compare", "gone", "gone"],
    "diagnose": ["diagnose", "gone.yaml", "--model", "asset:minilm", "--output", "new.json"],
    "diagnose_run": ["diagnose", "--run", "gone", "--output", "new.json"],
    "plan": ["plan", "gone.json", "--budget", "8", "--output", "new.yaml"],
}
CODE = """
import json, sys
from typer.testing import CliRunner
from coadapt.cli import app
told = {}
for name, words in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(app, words)
    told[name] = [result.exit_code, result.stderr, sorted({"torch", "numpy"} & set(sys.modules))]
heavy = {"peft", "transformers.modeling_utils", "accelerate", "sklearn"}
from coadapt.diagnosis import load_diagnosis
from coadapt.planners import propose
told["a plan"] = sorted(heavy & set(sys.modules))
import coadapt.recipes
told["the table of methods"] = sorted(heavy & set(sys.modules))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each command said and had imported, all of them in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(GONE)],
        cwd=tmp_path_factory.mktemp("empty"),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", GONE)
def test_a_path_that_leads_nowhere(name, told):
    code, said, imported = told[name]
    assert code == 2
    assert "gone" in said
    assert imported == []


@pytest.mark.parametrize("what", ["a plan", "the table of methods"])
def test_no_model_library_is_imported_for(what, told):
    assert told[what] == []
