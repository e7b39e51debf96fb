"""PyTorch exported programs (.pt2) on a CPU or GPU, read without running anything the file says."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("torch>=2.9",)
SHARED = True  # with the steps, for importing PyTorch takes seconds
FORMATS = ("pt2",)
DEVICES = {
    "cpu": {},
    "cuda": {
        "options": {"device": "cuda"},
        # TF32 would round the inputs of float products to 10 bits: off, so that what is timed is what was verified.
        "environ": {"LEPTON_EDGE_GPU": "1", "NVIDIA_TF32_OVERRIDE": "0"},
    },
}


def unusable(device: str) -> tuple[str, str] | None:
    """Why PyTorch cannot use a device, and the fix; None where it can. A CPU build is told without importing it."""
    version = metadata.version("torch")
    if version.endswith("+cpu"):
        return f"this build of PyTorch ({version}) is for CPUs", "install a CUDA build of torch"
    import torch

    if torch.version.cuda is None:
        return f"this build of PyTorch ({version}) has no CUDA", "install a CUDA build of torch"
    if not torch.cuda.is_available():
        return (
            f"PyTorch {version} (CUDA {torch.version.cuda}) finds no GPU",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    return None


def load(model: str, *, threads: int = 1, device: str = "cpu") -> Session:
    """Open a .pt2 file written by `torch.export.save`, on the CPU or on a GPU ("cuda"), in the precision it says.

    Raises ValueError for a file that is not a .pt2 archive, one that would run code when loaded, and a device that is
    not there.
    """
    import torch

    if device not in DEVICES:
        raise ValueError(f"unknown device '{device}'; known: {', '.join(DEVICES)}")
    if device != "cpu" and (why := unusable(device)):
        raise ValueError(f"device '{device}': {why[0]}")
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    program = load_program(model)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    info = {
        "runtime": "torch",
        "version": torch.__version__,
        "device": device,
        "precision": "f32",
        "delegated": {"nodes": nodes, "of": nodes, "partitions": 1, "left": {}},
        "threads": threads,
    }
    if device == "cuda":
        info["adapter"] = torch.cuda.get_device_name()
    return Session(program, info)


class Session:
    """A loaded program: `inputs`, `outputs` (name, shape, dtype), `info` and `run`.

    A program made for one sample is run sample by sample when it is fed a batch.
    """

    def __init__(self, program: Any, info: dict[str, Any]) -> None:
        import torch

        self._torch = torch
        self._module = program.module(check_guards=False)
        self._tree = program.call_spec.in_spec
        self._flatten, self._unflatten = torch.utils._pytree.tree_leaves, torch.utils._pytree.tree_unflatten
        self.inputs, self._slots = input_specs(program)
        self.outputs = output_specs(program)
        self.info = info
        self._keys = {spec["name"] for spec in self.inputs}
        self._dtypes = {spec["name"]: np.dtype(spec["dtype"]) for spec in self.inputs}
        self._device = info["device"]
        self._single = bool(self.inputs) and all(spec["shape"][:1] == [1] for spec in self.inputs)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis.

        Raises ValueError for missing, unknown, mistyped or misshapen inputs.
        """
        torch = self._torch
        if feeds.keys() != self._keys:
            raise ValueError(f"the model's inputs are {sorted(self._keys)}, got {sorted(feeds)}")
        if self._single and next(iter(feeds.values())).shape[0] != 1:
            return _one_by_one(self, feeds)
        for name, dtype in self._dtypes.items():
            if feeds[name].dtype != dtype:
                raise ValueError(f"input '{name}' takes {dtype}, got {feeds[name].dtype}")
        flat = [
            # copied: ops may be in place
            torch.from_numpy(np.array(feeds[slot], order="C")).to(self._device) if is_tensor else slot
            for is_tensor, slot in self._slots
        ]
        args, kwargs = self._unflatten(flat, self._tree)
        try:
            with torch.inference_mode():
                results = self._flatten(self._module(*args, **kwargs))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"PyTorch: {_one_line(error)}") from error
        tensors = [r for r in results if isinstance(r, torch.Tensor)]
        if len(tensors) != len(self.outputs):
            raise ValueError(f"the program gave {len(tensors)} tensors where {len(self.outputs)} are declared")
        # Bringing an output to the host waits for the GPU.
        return {s["name"]: np.array(t.cpu().numpy()) for s, t in zip(self.outputs, tensors)}


def input_specs(program: Any) -> tuple[list[dict[str, Any]], list[tuple[bool, Any]]]:
    """Specs of the tensor inputs, and for each argument (True, its name) or (False, its constant value)."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    specs: list[dict[str, Any]] = []
    slots: list[tuple[bool, Any]] = []
    for item in program.graph_signature.input_specs:
        if item.kind.name != "USER_INPUT":
            continue
        if type(item.arg).__name__ == "TensorArgument":
            specs.append(_spec(item.arg.name, values[item.arg.name]))
            slots.append((True, item.arg.name))
        elif type(item.arg).__name__ == "ConstantArgument":
            slots.append((False, item.arg.value))
        else:
            what = f"input '{item.arg.name}' is a {type(item.arg).__name__.removesuffix('Argument')}"
            raise ValueError(f"{what}, only tensors are fed; export the model with a fixed value for it")
    return specs, slots


def output_specs(program: Any) -> list[dict[str, Any]]:
    values = {n.name: n.meta.get("val") for n in program.graph.nodes}
    names = [
        item.arg.name
        for item in program.graph_signature.output_specs
        if item.kind.name == "USER_OUTPUT" and type(item.arg).__name__ == "TensorArgument"
    ]
    specs = [_spec(name, values[name]) for name in names]
    if len(set(names)) != len(names) or set(names) & set(program.graph_signature.user_inputs):
        for i, spec in enumerate(specs):
            spec["name"] = f"{spec['name']}_{i}"
    return specs


def _spec(name: str, value: Any) -> dict[str, Any]:
    if not _NUMPY.fullmatch(str(value.dtype)):
        raise ValueError(f"'{name}' is {value.dtype}, which NumPy does not have; export the model in float32")
    shape = [d if isinstance(d, int) else None for d in value.shape]
    return {"name": name, "shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}


def load_program(model: str) -> Any:
    """The `ExportedProgram` in a .pt2 file, on the CPU.

    `torch.export.load` unpickles what it finds, evaluates shape expressions, and executes guard code and
    generated code that names of the file reach. So the archive is read here as plain zip and JSON, everything
    in it is checked against what torch.export writes for an ordinary model, and only a clean copy of that
    (no pickle, no example inputs, no guards, no module metadata) goes to torch.
    Raises ValueError for anything else.
    """
    import torch

    name = Path(model).name
    try:
        clean = _clean_archive(model)
    except (zipfile.BadZipFile, LookupError, TypeError, AttributeError, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{name}: not a .pt2 archive ({type(error).__name__}: {_one_line(error)})") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        program = torch.export.load(clean)
    except Exception as error:  # torch raises its own SerializeError, AssertionError, KeyError, RuntimeError
        raise ValueError(f"{name}: PyTorch cannot load it: {_one_line(error)}") from error
    if why := _not_for_inference(program):
        raise ValueError(f"{name}: {why}")
    return program


def _not_for_inference(program: Any) -> str:
    """Why the outputs would depend on chance, on other samples or on earlier runs; "" when they do not."""
    training = "it was exported in training mode ({}): call model.eval() before torch.export.export"
    buffers = program.graph_signature.inputs_to_buffers
    changed = list(program.graph_signature.buffers_to_mutate.values())
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        given = dict(zip((a.name for a in schema.arguments), node.args), **node.kwargs)
        kind = schema.name.split("::")[-1]
        if "dropout" in kind and given.get("train") and given.get("p"):
            return training.format("its dropout is random")
        if kind == "batch_norm" and given.get("training") and given.get("running_mean") is not None:
            return training.format("its batch normalisation uses the batch")
        first = getattr(node.args[0], "name", None) if node.args else None
        if schema.is_mutable and first in buffers:
            changed.append(buffers[first])
    return f"it changes its own buffer '{changed[0]}' when it runs, so runs would differ" if changed else ""


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", re.ASCII)
_ARGUMENT = re.compile(r"\*{0,2}[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(\w+)\.(\w+)", re.ASCII)
_HIGHER_ORDER = re.compile(r"torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|wrap_with_set_grad_enabled)")
_SCALAR = re.compile(r"(_operator|math|torch\.sym|torch\._sym)[._]([a-z]\w*)", re.ASCII)
_FILE_OPS = {"from_file", "_print", "_load_for_lite_interpreter", "save"}
_CALLS = {
    "operator": {
        "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "eq", "ne", "lt", "le", "gt",
        "ge", "and_", "or_", "not_", "xor", "lshift", "rshift", "getitem", "abs", "index",
    },
    "math": {"trunc", "ceil", "floor", "sqrt", "log2", "exp", "pow"},
    "sym": {"int", "float", "max", "min", "not", "ite", "sqrt", "sum", "log2"},
}  # fmt: skip
_SYMBOL = re.compile(r"(s|u|zf|zuf)\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d{1,3})?", re.ASCII)
_LITERALS = {"Symbol": _SYMBOL, "Integer": _NUMBER, "Float": _NUMBER, "Rational": _NUMBER}
_OPERATIONS = {
    "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing",
    "Where", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal", "ToFloat",
    "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "LShift", "RShift", "Identity", "Abs", "floor",
    "ceiling", "Piecewise", "ExprCondPair", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality",
    "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan", "And", "Or", "Not",
}  # fmt: skip
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_ASSUMPTIONS = {
    "integer", "positive", "nonnegative", "negative", "nonpositive", "zero", "nonzero", "real", "finite", "even",
    "odd", "rational", "extended_real", "commutative",
}  # fmt: skip
_NAMES = {"oo", "int_oo", "true", "false", "True", "False"}
_NUMPY = re.compile(r"torch\.(bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128))")
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def _clean_archive(model: str) -> io.BytesIO:
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    with zipfile.ZipFile(model) as source:
        members = source.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("its archive is compressed, which torch.export.save never does")
        roots = {m.filename.split("/", 1)[0] for m in members}
        files = {m.filename.split("/", 1)[-1]: m for m in members}
        if "archive_format" not in files or "models/model.json" not in files:
            old = {"serialized_exported_program.json", "version"} & files.keys()
            raise ValueError(
                "its format is older than PyTorch 2.8; save it again with a newer one"
                if old
                else "no exported program named 'model' in it"
            )
        if len(roots) != 1 or len(files) != len(members):
            raise ValueError("it has several roots or a file twice")
        if any(f.startswith("data/aotinductor/") for f in files):
            raise ValueError("it holds compiled native code (AOTInductor), which is never loaded")
        buffer = io.BytesIO()
        with PT2ArchiveWriter(buffer) as target:
            program = _clean_program(json.loads(source.read(files["models/model.json"])))
            target.write_string("models/model.json", json.dumps(program))
            target.write_bytes("data/sample_inputs/model.pt", b"")
            for folder, kind in (("data/weights/", "weights"), ("data/constants/", "constants")):
                config_name = f"{folder}model_{kind}_config.json"
                if config_name not in files:
                    raise ValueError(f"its {kind} are in an old format; save it again with a newer PyTorch")
                config = _clean_payload(json.loads(source.read(files[config_name])))
                target.write_string(config_name, json.dumps(config))
                for path in dict.fromkeys(entry["path_name"] for entry in config["config"].values()):
                    target.write_bytes(folder + path, source.read(files[folder + path]))
            byteorder = source.read(files["byteorder"]) if "byteorder" in files else b"little"
            if byteorder != b"little":
                raise ValueError("it was written on a big-endian machine")
    buffer.seek(0)
    return buffer


def _clean_payload(config: dict[str, Any]) -> dict[str, Any]:
    """Weights or constants: raw tensors on the CPU only."""
    for name, entry in config["config"].items():
        _check(_PATH, name, "tensor name")
        if entry["use_pickle"]:
            raise ValueError(f"'{name}' is pickled, and loading it could run any code")
        if not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError(f"'{name}' is a custom object ('{entry['path_name']}'), which is never loaded")
        _clean_node(entry["tensor_meta"])
    return {"config": config["config"]}


def _clean_program(document: dict[str, Any]) -> dict[str, Any]:
    module = document["graph_module"]
    _clean_node(module["graph"])
    _clean_node(module["signature"])
    ranges = document["range_constraints"]
    root = next((call for call in module["module_call_graph"] if call["fqn"] == ""), None)
    if root is None:
        raise ValueError("nothing in it says how the program is called")
    signature = root["signature"]
    for argument in signature.get("forward_arg_names") or ():
        _check(_ARGUMENT, argument, "argument name")
    call = {
        "inputs": [],
        "outputs": [],
        "in_spec": _clean_tree(signature["in_spec"], _IDENTIFIER),
        "out_spec": _clean_tree(signature["out_spec"], re.compile(r"[^\x00-\x1f]*")),
        "forward_arg_names": signature.get("forward_arg_names"),
    }
    return {
        "graph_module": {
            "graph": module["graph"],
            "signature": module["signature"],
            "module_call_graph": [{"fqn": "", "signature": call}],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": document["opset_version"],
        "range_constraints": {k: v for k, v in ranges.items() if _SYMBOL.fullmatch(k)},
        "schema_version": document["schema_version"],
        "verifiers": document.get("verifiers", []),
        "torch_version": document.get("torch_version", "<=2.4"),
        "guards_code": [],
    }


def _clean_node(node: Any) -> None:
    """Check a piece of the graph's JSON, and drop the metadata of its nodes."""
    if isinstance(node, list):
        for item in node:
            _clean_node(item)
        return
    if not isinstance(node, dict):
        return
    if "target" in node:
        _check_operator(node["target"])
        node["metadata"] = {}
    for key, value in node.items():
        if key in ("as_custom_obj", "custom_obj", "as_string_to_argument") and value:
            raise ValueError("it holds a custom object, which is never loaded")
        if key == "custom_obj_values" and value:
            raise ValueError("it holds custom objects, which are never loaded")
        if key == "as_operator":
            _check_operator(value)
        elif key in ("name", "as_name", "user_input_name") and value:
            _check(_IDENTIFIER, value, "name")
        elif key in ("parameter_name", "buffer_name", "tensor_constant_name"):
            _check(_PATH, value, "tensor name")
        elif key == "expr_str":
            _check_expression(value)
        elif key in ("tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values"):
            for name in value:
                _check(_IDENTIFIER, name, "name")
        elif key in ("device", "as_device") and value and value.get("type") != "cpu":
            value["type"], value["index"] = "cpu", None
        _clean_node(value)


def _check(pattern: re.Pattern[str], text: Any, what: str) -> None:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"odd {what} {str(text)[:60]!r} in it, which could run code")


def _check_operator(target: Any) -> None:
    """Only tensor operators of PyTorch itself, and arithmetic on sizes."""
    import torch

    text = str(target)
    if match := _OPERATOR.fullmatch(text):
        namespace, name, overload = match.groups()
        found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
        if isinstance(found, torch._ops.OpOverload) and name not in _FILE_OPS:
            return
        raise ValueError(f"operator '{text[:80]}' is not one that this PyTorch {torch.__version__} has")
    if _HIGHER_ORDER.fullmatch(text):
        return
    match = _SCALAR.fullmatch(text)
    group = {"_operator": "operator", "math": "math"}.get(match[1], "sym") if match else ""
    if not match or match[2] not in _CALLS[group]:
        raise ValueError(f"it calls '{text[:80]}', which is not an operator of a model")


def _check_expression(text: Any) -> None:
    """A size such as `2*s77 + 1` or `Add(Symbol('s77', integer=True), Integer(1))`: sympy evaluates its text.

    So the text may only be sums, products, comparisons and the functions that torch.export writes, over
    symbols, numbers and nothing else, and no power with a large exponent, which would take for ever.
    """
    try:
        tree = ast.parse(text, mode="eval").body if len(text) <= 100_000 else None
    except (SyntaxError, TypeError, ValueError, MemoryError):
        tree = None
    if tree is None or not _is_arithmetic(tree):
        raise ValueError(f"odd size expression {str(text)[:60]!r} in it, which could run code")


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _is_function(node)
    if isinstance(node, ast.Name):
        return node.id in _NAMES or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float))
    if isinstance(node, ast.UnaryOp):
        return _is_arithmetic(node.operand)
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, (ast.Pow, ast.LShift)) and not _is_small(node.right):
            return False
        return _is_arithmetic(node.left) and _is_arithmetic(node.right)
    if isinstance(node, ast.Compare):
        plain = not any(isinstance(op, (ast.In, ast.NotIn, ast.Is, ast.IsNot)) for op in node.ops)
        return plain and all(map(_is_arithmetic, (node.left, *node.comparators)))
    return isinstance(node, ast.BoolOp) and all(map(_is_arithmetic, node.values))


def _is_function(node: ast.Call) -> bool:
    """`Add(a, b)` and the like of expressions, `Symbol('s0', integer=True)`, `Float('1.5', precision=53)`."""
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if literal := _LITERALS.get(name):
        keys = _ASSUMPTIONS if name == "Symbol" else {"precision"} if name == "Float" else ()
        values = [a.operand if isinstance(a, ast.UnaryOp) else a for a in node.args]
        return (
            bool(values)
            and all(isinstance(v, ast.Constant) and literal.fullmatch(str(v.value)) for v in values)
            and all(
                k.arg in keys and isinstance(k.value, ast.Constant) and k.value.value in range(1001)
                for k in node.keywords
            )
        )
    if name not in _OPERATIONS or node.keywords or not all(map(_is_arithmetic, node.args)):
        return False
    return name not in _POWERS or (len(node.args) == 2 and _is_small(node.args[1]))


def _is_small(node: ast.AST) -> bool:
    """Whether an exponent is a symbol, or a number below 100."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _LITERALS:
        return _is_function(node) and (node.func.id == "Symbol" or all(map(_is_small, node.args)))
    if isinstance(node, ast.UnaryOp):
        return _is_small(node.operand)
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id))
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return False
    return isinstance(value, (int, float, str)) and abs(float(value)) < 100


def _clean_tree(spec: str, key: re.Pattern[str]) -> str:
    """The nesting of arguments: tuples, lists and dicts with plain string keys."""
    version, tree = json.loads(spec)

    def visit(node: dict[str, Any]) -> None:
        if node["type"] not in _TREES:
            raise ValueError(f"its arguments hold a '{node['type']}'; only tuples, lists and dicts are read")
        context = json.loads(node["context"]) if isinstance(node["context"], str) else node["context"]
        if context is not None and not isinstance(context, list):
            raise ValueError("odd argument structure in it")
        for name in context or ():
            _check(key, name, "argument key")
        for child in node["children_spec"]:
            visit(child)

    visit(tree)
    return json.dumps([version, tree])


def _one_by_one(session: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a batch through a model made for one sample: outputs have the samples on their first axis."""
    count = next(iter(feeds.values())).shape[0]
    if count == 0 or any(array.shape[0] != count for array in feeds.values()):
        raise ValueError(f"inputs differ in their number of samples: {[a.shape[0] for a in feeds.values()]}")
    rows = [session.run({k: a[i : i + 1] for k, a in feeds.items()}) for i in range(count)]
    joined = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        is_batched = parts[0].ndim > 0 and parts[0].shape[0] == 1
        joined[name] = np.concatenate(parts) if is_batched else np.stack(parts)
    return joined


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
