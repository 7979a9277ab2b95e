"""Sharded training is refused, however it is asked for."""

import pytest

import coadapt
from tests.toy_runs import TRAINING, model_of


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
@pytest.mark.parametrize("how", ["launched", "configured"])
def test_sharded_training_is_refused(name, how, tiny_bert, toy_suite_files, tmp_path, monkeypatch):
    training = dict(TRAINING)
    if how == "launched":  # what `accelerate launch --use_fsdp` sets
        monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    else:
        training[name.lower()] = {"FSDP": True, "DeepSpeed": "ds.json"}[name]
    with pytest.raises(coadapt.InputError, match=f"{name} is asked for.*launch plain processes"):
        coadapt.train(
            model_of(tiny_bert), toy_suite_files, output=tmp_path / "run", training=training
        )
    assert not (tmp_path / "run").exists()
