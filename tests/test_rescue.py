"""The rescue ladder: it stops where the limit is met, takes the best where none does, and tells what each rung cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lepton_edge import rescue
from lepton_edge.errors import LeptonError

ROOT = Path(__file__).parents[1]
ROAD = SimpleNamespace(progress=SimpleNamespace(stage=lambda text: None))


def prover(drops):
    """Gives the next drop at each call, or raises the next error; keeps the options it was called with."""
    seen, left = [], iter(drops)

    def prove(options):
        seen.append(options)
        drop = next(left)
        if isinstance(drop, LeptonError):
            raise drop
        return f"model {drop}", f"answers {drop}", {"drop_points": drop, "parity": {"sqnr_db": 20.0}}

    return prove, seen


def test_it_stops_at_the_first_rung_that_holds():
    prove, seen = prover([3.0, 1.5, 0.9, 0.0])
    tried = rescue.climb(ROAD, prove, {"quantize": {"preset": "fast"}, "convert": {"x": 1}}, 1.0)
    assert [t.rung.name for t in tried] == ["minmax", "ranges", "balance"]
    assert seen[-1] == {"quantize": {"preset": "fast", "rung": "balance"}, "convert": {"x": 1}}
    assert rescue.best(tried, 1.0)[0] == "model 0.9"


def test_where_no_rung_holds_the_least_loss_is_taken():
    drops = [5.0, 4.0, 2.5, LeptonError("no such kernel"), 3.0, 2.0, 4.0, 3.0]
    tried = rescue.climb(ROAD, prover(drops)[0], {}, 1.0)
    assert len(tried) == len(rescue.RUNGS) and tried[3].error.message == "no such kernel"
    assert rescue.best(tried, 1.0)[0] == "model 2.0"


def test_what_stops_the_first_rung_is_the_error():
    prove, seen = prover([LeptonError("cannot be converted")])
    with pytest.raises(LeptonError, match="cannot be converted"):
        rescue.climb(ROAD, prove, {}, 1.0)
    assert len(seen) == 1


@pytest.mark.slow
def test_the_command_climbs_on_the_sample(tmp_path):
    for module in ("tensorflow", "ai_edge_litert", "onnxruntime"):
        pytest.importorskip(module)
    sample = ROOT / "samples"
    recipe = tmp_path / "quick.toml"
    text = (sample / "fashion.toml").read_text().replace('"fashion_', f'"{sample.as_posix()}/fashion_')
    recipe.write_text(text + "\n[bench]\nseconds = 0.3\n")
    command = [sys.executable, "-m", "lepton_edge", "quantize", sample / "fashion_cnn.keras", "--to", "onnx"]
    command += ["--recipe", recipe, "--preset", "fast", "--samples", "40", "--max-drop", "0"]
    done = subprocess.run(
        [*map(str, command), "-o", "q.onnx", "--json"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["drop_points"] <= 0 else 4), done.stderr
    rungs = told["rungs"]
    assert [r["rung"] for r in rungs] == [r.name for r in rescue.RUNGS[: len(rungs)]]
    assert told["drop_points"] == min(r["drop_points"] for r in rungs if r["drop_points"] is not None)
    assert all(r["error"] or (r["latency"] and r["ratio"]["to"] == "float32" and r["size_bytes"]) for r in rungs)
    assert (tmp_path / "q.onnx").stat().st_size == told["size_bytes"]
