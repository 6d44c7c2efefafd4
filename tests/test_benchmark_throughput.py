"""The training-speed benchmark: what it counts as a step, what it keeps, what it goes on with."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
throughput, throughput_kinds = (importlib.import_module(name) for name in ("throughput", "throughput_kinds"))
sys.path.remove(BENCHMARKS)


@pytest.fixture(autouse=True)
def restored():
    """Leave torch's settings to the other tests as they were."""
    threads, products, chosen = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn
    benchmark = chosen.benchmark
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)
    chosen.benchmark = benchmark


def test_a_turn_takes_its_steps_and_times_the_last_ones(monkeypatch):
    monkeypatch.setitem(throughput_kinds.PICTURES, "cpu", 20)
    around = throughput_kinds.Surroundings("resnet20", "cpu", 4, 2)
    fast = throughput_kinds.Fast(around, "32")
    for number in (1, 2, 3):
        assert 0 < fast.turn().seconds < 60
        assert fast.trainer.step == 3 * number  # the second turn goes into the next epoch
    assert fast.trainer.epoch == 1
    plain, stopped = throughput_kinds.Plain(around, "32"), []
    monkeypatch.setattr(around, "now", lambda: stopped.append(1) or throughput_kinds.Taken(len(stopped), 0))
    assert plain.turn().seconds == 1
    counted = [name for name in plain.network.state_dict() if name.endswith("num_batches_tracked")]
    assert {plain.network.state_dict()[name].item() for name in counted} == {3}


def test_minutes():
    assert throughput.minutes(15_000) == pytest.approx(15)
    assert throughput.minutes(30_000, runs=4) == pytest.approx(30)


def test_a_record_is_gone_on_with(tmp_path, monkeypatch, capsys):
    out = tmp_path / "throughput.json"
    line = ["throughput.py", "--networks", "resnet20", "--kinds", "plain", "fast", "--threads", "1"]
    line += ["--rounds", "2", "--batch", "4", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    throughput.main()
    record = json.loads(out.read_text(encoding="utf-8"))
    (case,) = record["cases"]
    speeds = {kind: [4 / each["seconds"] for each in turns] for kind, turns in case["turns"].items()}
    ratios = sorted(fast / plain for fast, plain in zip(speeds["fast"], speeds["plain"], strict=True))
    assert case["times_as_fast"]["fast / plain"] == pytest.approx(sum(ratios) / 2)
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    monkeypatch.setattr(throughput, "measure", None)  # nothing is measured a second time
    throughput.main()
    assert "fast / plain" in capsys.readouterr().out
    record["versions"]["torch"] = "another"
    out.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(SystemExit, match="measured with other versions"):
        throughput.main()
