"""The command line: start-up, help, exit codes, JSON."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lepton_edge.cli import app

HEAVY = (
    "numpy",
    "tensorflow",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "keras",
    "matplotlib",
    "PIL",
    "rich.markdown",
)
COMMANDS = [
    *(
        "compress",
        "quantize",
        "prune",
        "cluster",
        "qat",
        "convert",
        "evaluate",
        "bench",
        "compare",
        "inspect",
        "analyze",
        "report",
        "bundle",
        "deploy",
        "list",
        "doctor",
    ),
    *("devices list", "devices show"),
]


def imported_by(code):
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


@pytest.mark.parametrize("code", ["import lepton_edge", "import lepton_edge.cli"])
def test_nothing_heavy_is_imported_at_start(code):
    assert not imported_by(code) & set(HEAVY)


def test_the_core_imports_no_framework():
    loaded = imported_by(
        "import lepton_edge.api, lepton_edge.report, lepton_edge.show, lepton_edge.host, lepton_edge.device"
    )
    assert not loaded & (set(HEAVY) - {"numpy"})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert "Example:\n  " in result.output and f"lepton-edge {name}" in result.output
    assert "--json" in result.output


def test_version():
    from lepton_edge import __version__

    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"lepton-edge {__version__}"


def run(*args, **more):
    return subprocess.run([sys.executable, "-m", "lepton_edge", *args], capture_output=True, text=True, **more)


def test_json_is_one_document_and_nothing_else():
    for name in ("list", "doctor", "devices list", "devices show local"):
        done = run(*name.split(), "--json")
        assert done.returncode == 0 and json.loads(done.stdout) and not done.stderr, name


def test_quiet_prints_nothing():
    done = run("list", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_device_is_a_usage_error_with_a_suggestion():
    done = run("devices", "show", "rasberrypi4")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown device") and "raspberrypi4" in done.stderr


def test_a_run_under_nohup_outlives_its_terminal():
    code = (
        "import signal, types\n"
        "from lepton_edge.clikit import guarded\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "heard = lambda: print(*(signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGHUP, signal.SIGTERM)))\n"
        "guarded(heard, types.SimpleNamespace(as_json=False, verbose=False))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True False\n"


def test_a_reader_that_leaves_is_no_error_worth_a_traceback():
    done = subprocess.run(
        f"{sys.executable} -m lepton_edge list | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["evaluate", "compare", "bench", "convert"])
def test_samples_are_those_it_runs_on_where_nothing_is_calibrated(name, monkeypatch):
    from lepton_edge import api
    from lepton_edge.errors import LeptonError

    asked = []

    def stop(*args, **kwargs):
        asked.extend(a.data for a in args if hasattr(a, "data"))
        raise LeptonError("enough")

    monkeypatch.setattr(api, name, stop)
    models = (
        ["a.onnx", "b.onnx"] if name == "compare" else ["a.onnx", *(["--to", "tflite"] if name == "convert" else [])]
    )
    result = CliRunner().invoke(app, [name, *models, "--data", "x.npz", "--samples", "7"])
    assert result.exit_code == 1
    assert [(d.evaluation_samples, d.samples) for d in asked] == [(7, 300)]
