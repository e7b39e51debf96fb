"""Models on several devices side by side, and what a board that fails costs: its own missing rows."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import board
import nets
import numpy as np
import pytest

from lepton_edge import benching, boards, elsewhere, launch, locate, place, run_feeds, stages
from lepton_edge.agent_link import AgentLink
from lepton_edge.device import get_device, read_device
from lepton_edge.errors import LeptonError
from lepton_edge.progress import Silent
from lepton_edge.recipe import Bench, Recipe
from lepton_edge.remote import Remote

pytestmark = pytest.mark.skipif(bool(board.MISSING), reason=board.MISSING)
RECIPE = Recipe(bench=Bench(seconds=0.2, rounds=2))


@pytest.fixture(scope="module")
def pi(tmp_path_factory):
    made = board.start(tmp_path_factory.mktemp("board"))
    yield made
    made.stop()


@pytest.fixture
def device(pi, tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    monkeypatch.setattr(boards, "PAUSES", (0.1, 0.1))
    return read_device(pi.toml(tmp_path))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two products with a ReLU between them."""
    rng = np.random.default_rng(0)
    from onnx import helper, save

    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("a", "b")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "middle"),
        helper.make_node("MatMul", ["r", "b"], ["y"], "last"),
    ]
    path = tmp_path_factory.mktemp("model") / "two.onnx"
    save(nets.model(nodes, {"x": [1, 8]}, {"y": [1, 8]}, weights), path)
    return path


@pytest.fixture
def road(tmp_path):
    with stages.road(tmp_path, Silent()) as opened:
        yield opened


def subjects(road, *paths: Path):
    return elsewhere.subjects(road, paths, Recipe(), None, compared=True)


def visit(road, devices, its):
    return boards.visit_all(road, devices, benching.work(its, RECIPE, benching.Ask()))


def cut(pi):
    for session in pi.sessions():
        os.kill(session, signal.SIGKILL)


def clean(pi):
    deadline = time.monotonic() + 10
    while pi.left() and time.monotonic() < deadline:
        time.sleep(0.05)
    return pi.left() == []


def test_two_devices_side_by_side(pi, device, road, model):
    there, here = visit(road, [device, get_device("local")], subjects(road, model))
    for found in (there, here):
        row = found.rows["two.onnx"]
        assert row["error"] is None and row["latency"]["p50_ms"] > 0
        assert found.environment["host"]["cores"] >= 1 and found.notes == []
    assert there.rows["two.onnx"]["parity"]["max_abs"] < 1e-5 and here.rows["two.onnx"]["parity"] is None
    assert clean(pi)


MOMENTS = [("agent", "call"), ("agent", "put"), ("worker", "load"), ("worker", "predict"), ("worker", "bench_round")]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: m[1])
def test_a_connection_cut_in_the_middle_costs_nothing(pi, device, road, model, monkeypatch, moment):
    jobs, cuts = subjects(road, model), []
    whose, op = moment

    def strike(seen):
        if seen == op and not cuts:
            cuts.append(op)
            cut(pi)

    call, request, put = launch.Worker.call, AgentLink.request, AgentLink.put
    if whose == "worker":
        monkeypatch.setattr(launch.Worker, "call", lambda self, o, *a, **k: (strike(o), call(self, o, *a, **k))[1])
    monkeypatch.setattr(AgentLink, "request", lambda self, o, *a, **k: (strike(o), request(self, o, *a, **k))[1])
    monkeypatch.setattr(AgentLink, "put", lambda self, *a, **k: (strike("put"), put(self, *a, **k))[1])
    (found,) = visit(road, [device], jobs)
    row = found.rows["two.onnx"]
    assert cuts and row["error"] is None and row["latency"]["count"] >= 30
    assert len(found.notes) == 1 and "tried again" in found.notes[0] and "connection was lost" in found.notes[0]
    assert clean(pi)


def test_a_board_that_stays_away_costs_its_own_rows(pi, device, road, model, monkeypatch):
    call = launch.Worker.call

    def dying(self, op, *a, **k):
        if op == "predict" and "127.0.0.1" in self.what:
            cut(pi)
        return call(self, op, *a, **k)

    jobs = subjects(road, model)
    monkeypatch.setattr(launch.Worker, "call", dying)
    there, here = visit(road, [device, get_device("local")], jobs)
    assert "connection was lost" in there.error.message and len(there.notes) == 2
    assert here.rows["two.onnx"]["error"] is None and here.rows["two.onnx"]["latency"]
    rows, environments = benching.gathered([there, here], jobs, benching.Ask())
    assert [bool(r["latency"]) for r in rows] == [False, True] and "lost" in rows[0]["error"]["message"]
    assert len(environments["board"]["notes"]) == 2 and environments["local"]["notes"] == []
    assert clean(pi)


def test_a_board_that_is_not_there(pi, road, model, tmp_path, device):
    away = read_device(pi.toml(tmp_path, "away", address="127.0.0.1:1"))
    gone, there = visit(road, [away, device], subjects(road, model))
    assert "nothing listens" in gone.error.message
    assert there.rows["two.onnx"]["error"] is None


def test_a_full_disk_costs_one_row(pi, device, road, model, monkeypatch, tmp_path):
    big = tmp_path / "big.onnx"
    big.write_bytes(model.read_bytes())
    jobs = subjects(road, model, big)
    send = Remote.send

    def full(self, path, files=()):
        if Path(path).name == "big.onnx":
            raise LeptonError("board: big.onnx cannot be written there: No space left on device", "free some space")
        return send(self, path, files)

    monkeypatch.setattr(Remote, "send", full)
    (found,) = visit(road, [device], jobs)
    assert "No space left" in found.rows["big.onnx"]["error"]["message"] and not found.rows["big.onnx"]["latency"]
    assert found.rows["two.onnx"]["error"] is None and found.rows["two.onnx"]["latency"]


def test_no_runtime_there(pi, device, road, model):
    (it,) = subjects(road, model)
    with pytest.raises(LeptonError, match=r"no runtime for onnx files is installed on board \(onnxruntime\)") as told:
        elsewhere.runtime_there(it, device, {"numpy": "2"})
    assert "--wheels" in told.value.hint
    carried = elsewhere.runtime_there(it, device, {}, [Path("onnxruntime-1.20.0-cp311-cp311-linux_x86_64.whl")])
    assert carried.name == "onnxruntime"


HOST = {"python": "3.11.2", "machine": "aarch64"}


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("numpy-1.26.4-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", True),
        ("numpy-1.26.4-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", False),
        ("numpy-1.26.4-cp312-cp312-manylinux_2_17_aarch64.whl", False),
        ("protobuf-5-cp39-abi3-manylinux2014_aarch64.whl", True),
        ("tqdm-4-py3-none-any.whl", True),
    ],
)
def test_wheels_of_another_processor_or_python_are_refused(wheel, fits):
    if fits:
        return elsewhere.check_wheels([Path(wheel)], "pi", HOST)
    with pytest.raises(LeptonError, match=r"is not for pi, which has Python 3\.11\.2 on aarch64"):
        elsewhere.check_wheels([Path(wheel)], "pi", HOST)


def test_a_file_that_is_named_like_no_wheel_is_told():
    with pytest.raises(LeptonError, match="not the name of a wheel"):
        elsewhere.check_wheels([Path("numpy-1.whl")], "pi", HOST)


class Wrong:
    """This machine, with a runtime that computes a ReLU wrongly."""

    name, kind, shares_host = "wrong", "measured", True

    def __init__(self, scratch):
        self._here = place.Here(scratch)

    def __getattr__(self, name):
        return getattr(self._here, name)

    def send(self, path, files=()):
        if path.suffix == ".onnx":
            import onnx

            loaded = onnx.load(path)
            for node in loaded.graph.node:
                if node.op_type == "Relu":
                    node.op_type = "Abs"
            path = path.with_name("wrong-" + path.name)
            onnx.save(loaded, path)
        return self._here.send(path, files)


def test_a_device_that_answers_differently_is_found_out(road, model, tmp_path):
    own = tmp_path / "own.onnx"
    own.write_bytes(model.read_bytes())
    (it,) = subjects(road, own)
    found, _ = elsewhere.answered(road, Wrong(lambda: road.folder("there")), it, it.runtime)
    assert "wrong does not answer as this machine does" in found["error"].message
    assert "the first tensor that differs is 'r' (made by Relu 'middle'" in found["error"].message
    assert "'h' before it agrees" in found["error"].message


@pytest.mark.parametrize("target", ["tflite", "openvino"])
def test_a_model_is_cut_in_every_format(road, model, target):
    source = stages.load_source(road, model)
    made = stages.travel(road, source.model(), target, (), {}, {})
    own = stages.load_source(road, made.art.path)
    feed = run_feeds.open_feeds(road, own, Recipe(), seeded=True).evaluation
    whole = stages.answers(road, own.model(), feed)
    file = locate.registry.folder("cuts") / f"{target}.py"
    worker = road.workers.get("cutting")
    tensors = worker.call("inspect", file=str(file), path=str(made.art.path))["tensors"]
    assert len(tensors) >= 2
    last = stages.answers(road, locate._cut(road, file, own.model(), tensors[-1][0]), feed)
    first = stages.answers(road, locate._cut(road, file, own.model(), tensors[0][0]), feed)
    (a,), (b,), (c,) = (list(x.outputs.values()) for x in (whole, last, first))
    assert np.allclose(a, b, atol=1e-5)
    assert not np.allclose(a.reshape(len(a), -1), c.reshape(len(c), -1), atol=1e-5)


def test_threads_of_a_visit_have_their_own_scratch(road):
    assert replace(road, scratch=road.folder("a")).folder("x") != replace(road, scratch=road.folder("a")).folder("x")
