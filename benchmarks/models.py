"""The models of the quantization benchmark with their data, prepared into the cache folder.

    python benchmarks/models.py [NAME ...]

Every file in cases/ is one model. Each is prepared into <cache>/benchmarks/models/NAME/:

    model.onnx   the float model, batch 1, fixed shapes
    calib.npz    calibration samples; the keys are the names of the model's inputs
    eval.npz     evaluation samples, disjoint from them; with labels `y` where there are some
    case.json    where it all comes from, and the figures that prove the model right

so that `lepton-edge quantize model.onnx --data calib.npz --eval eval.npz` works as it stands.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from common import HERE, Missing, cache


@dataclass(frozen=True)
class Prepared:
    """A prepared model: its folder, its case file as a module, and what case.json says."""

    name: str
    folder: Path
    case: ModuleType
    facts: dict

    @property
    def model(self) -> Path:
        """The float ONNX file."""
        return self.folder / "model.onnx"

    @property
    def calib(self) -> Path:
        """The calibration samples."""
        return self.folder / "calib.npz"

    @property
    def eval(self) -> Path:
        """The evaluation samples."""
        return self.folder / "eval.npz"


def names() -> list[str]:
    """The cases there are, the hardest ones last in the folder's alphabet."""
    return sorted(f.stem for f in (HERE / "cases").glob("*.py") if not f.name.startswith("_"))


def case(name: str) -> ModuleType:
    """The case file as a module."""
    file = HERE / "cases" / f"{name}.py"
    if not file.is_file():
        raise Missing(f"unknown model '{name}': known are {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"case_{name}", file)
    assert spec and spec.loader
    if str(file.parent) not in sys.path:  # for what cases share
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(name: str) -> Prepared:
    """The prepared model; made when it is absent or a file of cases/ that makes it has changed. Raises Missing."""
    module = case(name)
    files = [HERE / "cases" / f"{name}.py", *sorted((HERE / "cases").glob("_*.py"))]
    code = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    folder = cache("models") / name
    record = folder / "case.json"
    facts = json.loads(record.read_text()) if record.is_file() else {}
    if facts.get("code") != code:
        part = cache("models") / f".part-{name}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        start = time.monotonic()
        facts = {"code": code, "about": module.ABOUT, **module.prepare(part)}
        facts["seconds"] = round(time.monotonic() - start, 1)
        facts["model_sha256"] = hashlib.sha256((part / "model.onnx").read_bytes()).hexdigest()
        (part / "case.json").write_text(json.dumps(facts, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    return Prepared(name, folder, module, facts)


def main() -> None:
    """Prepare the models asked for and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())} (all)")
    failed = False
    for name in parser.parse_args().names or names():
        try:
            made = prepare(name)
        except Missing as error:
            failed = True
            print(f"{name}: left out: {error}")
            continue
        told = {k: v for k, v in made.facts.items() if k not in ("code", "about")}
        print(f"{name}: {made.folder}\n  {json.dumps(told)}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
