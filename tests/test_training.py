"""The training loop without a framework: batches, early stopping, divergence, memory, and going on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.training import checkpoint, core
from lepton_edge.training.core import Plan, train


class Line:
    """Least squares by gradient descent with momentum; ``fail`` is called before each step."""

    def __init__(self, samples=64, rate=0.05, fail=None):
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((samples, 3))
        self.y = self.x @ [1.0, -2.0, 0.5]
        self.w, self.speed, self.rate, self.fail, self.seen = np.zeros(3), np.zeros(3), rate, fail, []

    def learn(self, rows, step):
        if self.fail:
            self.fail(step)
        self.seen.append((step, rows.tolist()))
        miss = self.x[rows] @ self.w - self.y[rows]
        self.speed = 0.5 * self.speed - self.rate * self.x[rows].T @ miss / len(rows)
        self.w = self.w + self.speed
        return float(np.mean(miss**2))

    def loss(self, rows):
        return float(np.mean((self.x[rows] @ self.w - self.y[rows]) ** 2))

    def state(self):
        return {"w": self.w.copy(), "optimizer/speed": self.speed.copy()}

    def restore(self, state):
        self.w = state["w"].copy()
        self.speed = state.get("optimizer/speed", self.speed).copy()


PLAN = Plan(64, epochs=4, batch_size=8, held_out=0.25, seed=3)


def test_it_learns_and_keeps_the_best():
    told = []
    out = train(line := Line(), PLAN, told=lambda *a: told.append(a))
    assert out.ended == "" and len(out.losses) == len(out.held_out) == 4
    assert out.held_out[-1] < 0.05 * out.losses[0]
    assert np.abs(line.w - [1, -2, 0.5]).max() < 0.3
    assert told[-1][0] == told[-1][1] == 24 and told[-1][2].startswith("epoch 4/4, loss") and "left" in told[-1][2]
    assert out.facts()["best_epoch"] == 4 and out.notes() == []


def test_held_out_samples_are_never_trained_on_and_hold_every_class():
    labels = np.repeat([0, 1, 2], [40, 16, 8])
    plan = replace(PLAN, labels=labels)
    rows, held = plan.split()
    assert np.bincount(labels[held]).tolist() == [10, 4, 2]
    train(line := Line(), plan)
    assert {r for _, part in line.seen for r in part} == set(rows.tolist())
    assert not set(rows) & set(held) and len(rows) + len(held) == 64
    assert len(replace(plan, held_out=0.0).split()[1]) == 0


def test_the_same_seed_makes_the_same_batches():
    runs = []
    for seed in (3, 3, 4):
        train(line := Line(), replace(PLAN, seed=seed))
        runs.append(line.seen)
    assert runs[0] == runs[1] != runs[2]


def test_it_stops_when_held_out_samples_gain_nothing():
    line = Line()
    line.loss = lambda rows: 1.0 + len(line.seen)
    out = train(line, replace(PLAN, epochs=30, patience=2))
    assert out.ended == "patience" and len(out.losses) == 3 and out.best == 1
    assert any("stopped after epoch 3 of 30" in n for n in out.notes())
    assert any("weights of epoch 1 were kept" in n for n in out.notes())
    assert len(train(line, replace(PLAN, patience=0)).losses) == 4


def test_weights_count_only_once_a_schedule_is_done():
    line = Line()
    line.loss = lambda rows: 1.0 + len(line.seen)  # the earliest weights look best
    assert train(line, replace(PLAN, settled=13, patience=0)).best == 3
    line.seen.clear()
    assert train(line, replace(PLAN, settled=0, start_counts=True, patience=0)).best == 0


def test_a_loss_that_is_no_number_restores_the_best():
    line = Line()
    good = {}

    def blow_up(step):
        if step == 6:
            good["w"] = line.w.copy()
        if step == 13:
            line.w = line.w * np.nan

    line.fail = blow_up
    out = train(line, PLAN)
    assert out.ended == "diverged" and len(out.losses) == 2
    assert np.isfinite(line.w).all()
    (note,) = out.notes()
    assert "NaN or infinite in epoch 3" in note and "epoch 2 were restored" in note and "learning_rate" in note


def test_running_out_of_memory_names_a_smaller_batch():
    class ResourceExhaustedError(Exception):
        pass

    for error in (MemoryError(), ResourceExhaustedError("OOM"), RuntimeError("CUDA out of memory. Tried")):

        def full(step, error=error):
            raise error

        with pytest.raises(LeptonError, match="out of memory while training with batches of 8") as caught:
            train(Line(fail=full), PLAN)
        assert caught.value.hint == "set batch_size to 4"
    with pytest.raises(ZeroDivisionError):
        train(Line(fail=lambda step: 1 // 0), PLAN)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"epochs": 0}, UsageError, "at least 1"),
        ({"batch_size": 0}, UsageError, "at least 1"),
        ({"held_out": 1.0}, UsageError, "held_out"),
        ({"patience": -1}, UsageError, "patience"),
        ({"samples": 1}, LeptonError, "1 training sample cannot"),
    ],
)
def test_plans_that_make_no_sense(change, kind, text):
    with pytest.raises(kind, match=text):
        train(Line(), replace(PLAN, **change))


SCRIPT = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from test_training import Line, PLAN
from lepton_edge.training import checkpoint, core

def die(step):
    if step == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

with checkpoint.opened("k" * 64) as place:
    place.every = 0.0 if {within} else 1e9
    core.train(Line(fail=die), PLAN, place)
"""


@pytest.mark.parametrize(("at", "within"), [(3, True), (7, False), (14, True), (23, True)])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, monkeypatch, at, within):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path))
    tests = str(Path(__file__).parent)
    code = SCRIPT.format(tests=tests, at=at, within=within)
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with checkpoint.opened("k" * 64) as place:
        resumed = train(line := Line(), PLAN, place)
    whole = train(other := Line(), PLAN)
    assert resumed.resumed == (at if within else 6 * (at // 6))
    assert np.array_equal(line.w, other.w)
    assert resumed.losses == whole.losses and resumed.held_out == whole.held_out
    assert f"checkpoint at batch {resumed.resumed}" in resumed.notes()[0]
    assert list((tmp_path / "training").iterdir()) == []


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path))
    kept = {"w/a:0": np.arange(3.0), "optimizer/n": np.array(7)}
    with pytest.raises(KeyboardInterrupt), checkpoint.opened("a") as place:
        place.save(checkpoint.Snapshot({"epoch": 1}, kept, {"w/a:0": kept["w/a:0"]}))
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), checkpoint.opened("a") as place:
        found = place.load()
        assert found.facts == {"epoch": 1} and list(found.best) == ["w/a:0"]
        assert all(np.array_equal(found.state[k], v) for k, v in kept.items())
        with checkpoint.opened("a") as second:
            assert second is None  # another one trains the same
        raise KeyboardInterrupt
    (file,) = (tmp_path / "training").rglob("state.npz")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with checkpoint.opened("a") as place:
        assert place.load() is None and "damaged checkpoint" in place.notes[0]
    with checkpoint.opened("b") as place:
        assert place.load() is None and place.notes == []


def test_old_checkpoints_go(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path))
    old = tmp_path / "training" / "x"
    old.mkdir(parents=True)
    (old / "state.npz").write_bytes(b"")
    os.utime(old / "state.npz", (0, 0))
    with checkpoint.opened("b"):
        assert not old.exists()


def test_the_key_tells_runs_apart(tmp_path):
    model = tmp_path / "m"
    model.write_bytes(b"1")
    keys = [checkpoint.key(core.__file__, model, {"a": 1}), checkpoint.key(core.__file__, model, {"a": 2})]
    model.write_bytes(b"2")
    keys += [checkpoint.key(core.__file__, model, {"a": 1}), checkpoint.key(checkpoint.__file__, model, {"a": 1})]
    assert len(set(keys)) == 4
