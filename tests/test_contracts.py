"""Every file in the plug-in folders keeps its contract; new files are picked up by being there."""

import ast
import inspect
import json

import pytest
from packaging.requirements import Requirement

from lepton_edge import registry, transport
from lepton_edge.device import load_devices

STEPS = {s.name: s for s in registry.steps()}
RUNTIMES = {r.name: r for r in registry.runtimes()}
FORMATS = registry.formats()
ESTIMATORS = {e.name: e for e in registry.estimators()}
INSPECTORS = [f for f in sorted(registry.folder("inspectors").glob("*.py")) if not f.stem.startswith("_")]


def tree(file):
    return ast.parse(file.read_text())


def imports(file, top_level_only=False):
    nodes = tree(file).body if top_level_only else ast.walk(tree(file))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("name", STEPS)
def test_a_step(name):
    step = STEPS[name]
    assert not step.broken
    assert 5 < len(step.summary) < 100
    assert {step.source, step.target} <= set(FORMATS)
    assert step.verb == "convert" or step.source == step.target
    assert step.requires and all(Requirement(r) for r in step.requires)
    assert step.cost > 0
    json.dumps({k: v for k, v in step.options.items() if v is not registry.REQUIRED})
    run = next(n for n in tree(step.file).body if isinstance(n, ast.FunctionDef) and n.name == "run")
    assert [a.arg for a in run.args.args] == ["src", "dst"]
    assert ast.get_docstring(run), "the options have to be explained"


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_requires_is_in_an_extra(name):
    if STEPS[name].python:
        pytest.skip("it lives in an environment of its own, made from its requirements")
    for requirement in STEPS[name].requires:
        assert registry._extras_for([requirement])[0], requirement


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_is_self_contained(name):
    runtime = RUNTIMES[name]
    assert not runtime.broken and len(runtime.summary) > 5
    assert runtime.formats and (set(runtime.formats) <= set(FORMATS) or name == "fake")
    assert "lepton_edge" not in set(imports(runtime.file)), "it is copied to devices, where the package is not"
    heavy = {Requirement(r).name.replace("-", "_") for r in runtime.requires} - {"numpy"}
    assert not heavy & set(imports(runtime.file, top_level_only=True)), "heavy imports belong into functions"


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_takes_threads(name):
    load = next(n for n in tree(RUNTIMES[name].file).body if isinstance(n, ast.FunctionDef) and n.name == "load")
    assert [a.arg for a in load.args.args] == ["model"]
    assert "threads" in [a.arg for a in load.args.kwonlyargs]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_declares_its_devices(name):
    runtime = RUNTIMES[name]
    default, *others = runtime.devices
    assert runtime.name == name and runtime.device == default and not runtime.devices[default]
    for device in others:
        entry, on = runtime.devices[device], runtime.on(device)
        assert on.name == f"{name}:{device}" and on.load == entry["options"]
        assert set(entry) <= {"options", "environ"} and set(entry["options"]) <= set(runtime.options)
        assert all(isinstance(value, str) for value in entry.get("environ", {}).values())
    functions = {n.name: n for n in tree(runtime.file).body if isinstance(n, ast.FunctionDef)}
    if others:
        assert [a.arg for a in functions["unusable"].args.args] == ["device"], "it tells why a device cannot be used"


@pytest.mark.parametrize("name", transport.names())
def test_a_transport_is_opened_by_title_and_options(name):
    file = registry.folder("transports") / f"{name}.py"
    connect = next(n for n in tree(file).body if isinstance(n, ast.FunctionDef) and n.name == "connect")
    assert [a.arg for a in connect.args.args] == ["title"]
    assert ast.get_docstring(connect), "the options have to be explained"
    options = transport.options(name)
    assert all(v is registry.REQUIRED or isinstance(v, str | int | float) for v in options.values())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_takes_a_model_and_options(name):
    estimator = ESTIMATORS[name]
    assert not estimator.broken and 5 < len(estimator.summary) < 100
    assert estimator.requires and all(registry._extras_for([r])[0] for r in estimator.requires)
    function = next(n for n in tree(estimator.file).body if isinstance(n, ast.FunctionDef) and n.name == "estimate")
    assert [a.arg for a in function.args.args] == ["model"]
    assert ast.get_docstring(function), "the options and figures have to be explained"
    heavy = {Requirement(r).name.replace("-", "_") for r in estimator.requires}
    assert not heavy & set(imports(estimator.file, top_level_only=True)), "heavy imports belong into functions"


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_can_be_run_and_inspected(name):
    assert any(name in r.formats for r in RUNTIMES.values())
    assert any(f.stem == name for f in INSPECTORS)
    assert list(inspect.signature(FORMATS[name].recognise).parameters) == ["path", "head"]


@pytest.mark.parametrize("name", list(load_devices()))
def test_a_device_names_its_sources(name):
    device = load_devices()[name]
    assert device.title and set(device.formats) <= set(FORMATS)
    assert set(device.runtimes) <= set(RUNTIMES)
    assert name == "local" or device.sources, "facts need a public document"


def test_no_device_is_broken():
    assert not load_devices().broken


@pytest.mark.parametrize("target", ["tflite", "onnx", "openvino"])
@pytest.mark.parametrize("verbs", [(), ("quantize",)])
@pytest.mark.parametrize("source", sorted(FORMATS))
def test_there_is_a_way_from_every_format(source, target, verbs):
    from lepton_edge.plan import plan

    if source == target and verbs == ():
        assert plan(source, target, verbs, list(STEPS.values())) == ()
    elif source not in {s.source for s in STEPS.values() if s.verb == "convert"} and source != target:
        pytest.skip(f"{source} is an end product: no step reads it for another format")
    else:
        steps = plan(source, target, verbs, list(STEPS.values()))
        assert [s.verb for s in steps if s.verb != "convert"] == list(verbs)
