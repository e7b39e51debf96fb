"""Damaged model files of every format: whatever is in them, a clean error or a model, never a traceback or a crash.

Each file goes where commands take it: recognised, inspected, checked against a release, loaded in its runtime, and
(some of those that load) through every converter of its format. LEPTON_EDGE_FUZZ is the number of mutations a format;
the default keeps CI short. LEPTON_EDGE_FUZZ_KEEP names a folder for findings.
"""

import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import fuzz_files
import pytest
from fuzz_mutations import spoil

from lepton_edge import check, registry
from lepton_edge.artifact import open_artifact
from lepton_edge.errors import LeptonError, WorkerError
from lepton_edge.launch import Workers, python_path

# How many a format by default: loading costs a millisecond in some, a tenth of a second in others.
DEFAULT = {"onnx": 80, "tflite": 60, "openvino": 60, "pt2": 15, "torchscript": 20, "keras": 15, "h5": 15,
           "savedmodel": 15}  # fmt: skip
NEEDS = {"pt2": "torch", "torchscript": "torch", "keras": "keras", "h5": "keras", "savedmodel": "keras"}
CONVERTED = 4  # one in so many of the files that load is converted too
CHECKED = ("onnx", "tflite", "openvino")
SILENCE = 90.0  # seconds; loading one of them takes less than one
FRESH = 200  # files after which workers are new, for frameworks keep a little of every model
MEMORY_MB = 4000  # what no worker may need for a file of some KB, with every framework loaded and 25 million inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def reading(path: Path, workers: Workers):
    """(name, function) of what commands do with a file before anything else."""
    art = open_artifact(path)
    runtime = registry.runtime_for(art.format)

    def call(op: str, file: Path, **args):
        return lambda: workers.get(op, environ=runtime.environ).call(
            op, silence=SILENCE, file=python_path(file), **args
        )

    yield "inspect", call("inspect", registry.PACKAGE / "inspect_model.py", path=str(path))
    if art.format in CHECKED:
        yield "check", call("inspect", check.TABLES / "facts.py", path=str(path))
    yield "load", call("load", runtime.file, model=str(path), options={})


def converting(path: Path, format_: str, workers: Workers):
    """(name, function) of the converters of a format, each told to write beside the file."""
    for step in registry.steps():
        if step.verb != "convert" or step.source != format_ or step.python:
            continue
        options = {"input_shapes": "input=1,6"} if format_ == "torchscript" else {}
        args = {"file": python_path(step.file), "src": str(path), "options": options}
        out = str(path.parent / "out" / f"made{registry.formats()[step.target].suffix}")
        yield (
            step.name,
            lambda s=step, a=args, o=out: workers.get(s.name, environ=s.environ).call(
                "step", silence=SILENCE, dst=o, **a
            ),
        )


def fault(error: BaseException) -> str:
    """What is wrong with the way in which a file was refused; "" for a clean refusal."""
    if not isinstance(error, LeptonError):
        return f"{type(error).__name__} in the tool: {error}"
    text = error.message
    if not text.strip() or "Traceback" in text:
        return f"no clean words: {text!r}"
    if isinstance(error, WorkerError) and ("no sign of life" in text or "out of memory" in text):
        return text
    raw = isinstance(error, WorkerError) and re.search(r": \w*([Ee]rror|Exception|Iteration): ", text)
    return f"an exception of its own: {text}" if raw else ""


def peak_mb(workers: Workers) -> float:
    """The most that a worker that still lives has needed."""
    peaks = [0.0]
    for worker in workers._open.values():
        status = Path(f"/proc/{worker.pid}/status")
        if status.is_file():
            peaks += [int(x.split()[1]) / 1024 for x in status.read_text().splitlines() if x.startswith("VmHWM")]
    return max(peaks)


class Fuzz:
    """What came of the mutations so far."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.tally: Counter = Counter()
        self.faults: list[str] = []

    def tried(self, case: str, what: str, run) -> bool:
        """Whether the command took the file; how it refused it, where that is a fault, is kept."""
        wrong, took = "", True
        try:
            run()
        except Exception as error:  # whatever it is, it is judged here, and the other commands are tried too
            wrong, took = fault(error), False
            self.tally[what, "crashed" if "crashed" in str(error) else "refused"] += 1
        else:
            self.tally[what, "took"] += 1
        if (peak := peak_mb(self.workers)) > MEMORY_MB:
            wrong = wrong or f"it needed {peak:.0f} MB"
            self.workers.drop()
        if wrong:
            self.faults.append(f"{case} {what}: {wrong}")
        return took

    def all_of(self, path: Path, format_: str, case: str) -> None:
        """One file through every command."""
        commands: list = []
        if not self.tried(case, "open", lambda: commands.extend(reading(path, self.workers))):
            return
        took = [self.tried(case, what, run) for what, run in commands]
        if took[-1] and self.tally["load", "took"] % CONVERTED == 1:
            for what, run in converting(path, format_, self.workers):
                self.tried(case, what, run)


def laid_out(source: Path, place: Path) -> Path:
    """A copy of the model in an empty folder."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "out").mkdir(parents=True)
    for file in source.parent.glob(f"{source.stem}.*" if source.suffix == ".xml" else source.name):
        (shutil.copytree if file.is_dir() else shutil.copyfile)(file, place / file.name)
    return place / source.name


def keep(place: Path, format_: str, case: str, told: list[str]) -> None:
    """Lay a finding where LEPTON_EDGE_FUZZ_KEEP says, to be looked at."""
    if folder := os.environ.get("LEPTON_EDGE_FUZZ_KEEP"):
        shutil.copytree(place, Path(folder) / f"{format_}-{case.split()[0]}", symlinks=True, dirs_exist_ok=True)
        with (Path(folder) / f"{format_}.txt").open("a") as log:
            log.writelines(f"{line}\n" for line in told)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("format_", sorted(DEFAULT))
def test_a_damaged_file_is_a_clean_error_or_a_model(folder, format_, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS.get(format_, "openvino"))
    monkeypatch.setenv("LEPTON_EDGE_MEMORY_GB", "8")
    source = fuzz_files.make(format_, folder)
    rng = random.Random(format_)
    place, canary = tmp_path / "case", tmp_path / "executed"
    with Workers() as workers:
        fuzz = Fuzz(workers)
        for k in range(int(os.environ.get("LEPTON_EDGE_FUZZ", DEFAULT[format_]))):
            if k % FRESH == FRESH - 1:
                workers.drop()
            path, known = laid_out(source, place), len(fuzz.faults)
            case = f"{k} {spoil(path, format_, rng, canary)}"
            fuzz.all_of(path, format_, case)
            if canary.exists():
                fuzz.faults.append(f"{case}: code in the file was run")
                canary.unlink()
            if strays := [p for p in (tmp_path / "outside", tmp_path.parent / "outside") if p.exists()]:
                fuzz.faults.append(f"{case}: a file was written outside, {strays[0]}")
                strays[0].unlink()
            if told := fuzz.faults[known:]:
                keep(place, format_, case, told)
    print(format_, k + 1, dict(fuzz.tally))
    assert not fuzz.faults, f"{len(fuzz.faults)} findings: " + "\n".join(fuzz.faults[:20])
    assert any(count for (what, how), count in fuzz.tally.items() if how == "refused"), "no mutation was noticed"
