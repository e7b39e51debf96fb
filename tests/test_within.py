"""`prune --latency`: the share that meets a latency is found by measuring, and what can't be met is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from slim_nets import random_net
from typer.testing import CliRunner

from lepton_edge import within
from lepton_edge.cli import app
from lepton_edge.device import get_device
from lepton_edge.errors import LeptonError, LimitError, UsageError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def machine(fixed, power=1.0, least=0.0):
    """Shares to ratios: `fixed` of the time stays whatever is removed."""

    def ratio(share):
        if share < least:
            raise LeptonError("at the narrowest widths more is left")
        return {"median": fixed + (1 - fixed) * share**power, "ci95": [0, 1]}

    return ratio


@pytest.mark.parametrize("fixed", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("limit", [0.5, 0.65, 0.9])
def test_the_limit_is_met_and_nearly_used_up(fixed, power, limit):
    ratio = machine(fixed, power)
    share, tried = within.settle(limit, ratio)
    assert ratio(share)["median"] <= limit and len(tried) <= within.TRIES
    assert ratio(share)["median"] >= 0.9 * limit


def test_shares_that_cannot_be_had_are_passed_over():
    share, _ = within.settle(0.5, machine(0.0, 2.0, least=0.6))
    assert 0.6 <= share <= 0.71
    with pytest.raises(LimitError, match=r"0\.5 was asked for; at the narrowest"):
        within.settle(0.5, machine(0.3, 1.0, least=0.6))
    with pytest.raises(LeptonError, match="at the narrowest"):
        within.settle(0.3, machine(0.0, least=1.0))


def test_a_runtime_that_gains_nothing_is_told():
    with pytest.raises(LimitError, match=r"it takes 0\.9") as e:
        within.settle(0.6, machine(0.9))
    assert e.value.exit_code == 4 and e.value.hint


@pytest.mark.parametrize(
    ("limit", "asked", "device", "message"),
    [
        (12, {}, "local", "a share of the model's own, not 12"),
        (0.5, {"macs": 0.5}, "local", "latency takes the place of macs"),
        (0.5, {"method": "depth"}, "local", "latency takes the place of macs"),
        (0.5, {}, "raspberrypi5", "cannot be measured: it is only described"),
    ],
)
def test_what_leaves_nothing_to_measure_is_told_first(limit, asked, device, message):
    with pytest.raises(UsageError, match=message) as e:
        within.check(limit, asked, get_device(device))
    assert e.value.hint
    within.check(0.5, {"round_to": 4}, get_device("local"))


def test_the_command_measures_and_says_what_it_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path / "cache"))
    onnx.save(random_net(1, [0, 1]), tmp_path / "cnn.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(24, 3, 8, 8)).astype(np.float32))
    told = []
    monkeypatch.setattr(within, "timed", lambda *a: told.append(a[2].art.path) or machine(0.1)(_share(a)))
    out = tmp_path / "fast.onnx"
    command = ["prune", str(tmp_path / "cnn.onnx"), "--data", str(tmp_path / "x.npz"), "--latency", "0.8"]
    result = CliRunner().invoke(app, [*command, "--round-to", "4", "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    shares = [row["macs"] for row in made["latency_tried"]]
    figures = next(step["result"] for step in made["steps"] if step["step"] == "prune_onnx")
    used = figures["macs"]["after"] / figures["macs"]["before"]
    assert len(told) == len(shares) and used <= max(shares) and out.exists()
    shown = CliRunner().invoke(app, [*command, "--round-to", "4", "-o", str(out)])
    assert "MACs" in shown.output and "x" in shown.output
    both = CliRunner().invoke(app, [*command, "--macs", "0.5"])
    assert both.exit_code == 2 and "latency takes the place of macs" in both.output


def _share(given):
    result = given[2].steps[-1]["result"]["macs"]
    return result["after"] / result["before"]
