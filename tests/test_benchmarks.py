"""The benchmarks run: what they measure is not tested, but that they measure it."""

import json
import shutil

import pytest

from benchmarks import accelerator


def test_the_accelerator_benchmark_runs_on_cpu(tmp_path, capsys):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"device": "another", "runs": {}}))
    accelerator.main(["--quick", f"--output={path}"])
    results = json.loads(path.read_text())
    assert results.keys() == {"device", "softmax float32 32"}
    assert results["device"]["platform"] == "cpu"
    figures = results["softmax float32 32"]
    assert figures["n"] == 2
    assert figures["compile_seconds"].keys() == {"train_steps", "train_step", "flax"}
    rates = figures["images_per_second"]
    assert rates.keys() == {"train_steps", "train_step", "flax", "evaluation"}
    for rate in rates.values():
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert figures["peak_bytes"] is None
    assert figures["parity"] < 1e-5
    said = capsys.readouterr().out
    assert "softmax float32 32, n=2" in said
    assert "peak memory unknown" in said

    # What was measured on the same device stays.
    results["runs"] = {"kept": True}
    path.write_text(json.dumps(results))
    accelerator.benchmark(path, [], lambda task: accelerator.WORK[task](), 1, 0, ["-"])
    assert json.loads(path.read_text())["runs"] == {"kept": True}


def test_arrays_of_other_bits_are_counted(finished_run, tmp_path, monkeypatch, capsys):
    def train(workdir, flags, kill_after=None):
        if workdir.exists():
            return
        shutil.copytree(finished_run[0], workdir)
        if workdir.name == "again":
            path = workdir / "checkpoints/40/record/metadata"
            record = json.loads(path.read_text())
            record["checksums"]["state/params/Dense_0/bias"] += 1
            path.write_text(json.dumps(record))

    monkeypatch.setattr(accelerator, "train", train)
    found = accelerator.compare_runs(tmp_path)
    assert found["again_differing"] == 1
    assert found["resumed_differing"] == 0
    accelerator.print_runs(found)
    said = capsys.readouterr().out
    assert f"trained again: 1 of {found['arrays']} arrays differ" in said
    assert "killed and resumed: equal bits" in said


@pytest.mark.slow
def test_runs_of_the_command_line_are_killed_resumed_and_compared(tmp_path):
    flags = [flag for flag in accelerator.FLAGS if flag != "--config=cnn"]
    flags += ["--config=mlp:smoke", "--platform=cpu"]
    found = accelerator.compare_runs(tmp_path, flags, kill_after=20)
    assert found["arrays"] > 10
    assert found["again_differing"] == found["resumed_differing"] == 0
    with pytest.raises(RuntimeError, match=r"exit code 2: flaxmnist: .*learning_rate"):
        accelerator.train(
            tmp_path / "wrong", ["--config=mlp", "--config.optimizer.learning_rate=0"]
        )
