"""TorchScript archives (.pt), checked before PyTorch compiles what is in them."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("torch>=2.9",)
SHARED = True
FORMATS = ("torchscript",)
# A TorchScript archive is code, in a language that has no more than PyTorch's operators: these namespaces, less those
# that reach files. Others (`--trust` lets them) are of extensions, whose operators may do anything.
_SPACES = ("aten", "prim", "prims", "quantized", "torchvision", "profiler")
_REFUSED = ("from_file", "save", "load", "_print", "read_file", "write_file", "_load_for_lite_interpreter")
_NUMBERS = {"int": "int64", "float": "float32", "bool": "bool"}


def load(model: str, *, threads: int = 1, trust: bool = False) -> Session:
    """Open a TorchScript archive on the CPU. Raises ValueError for one that is damaged, or may reach beyond tensors."""
    import torch

    torch.set_num_threads(threads)
    module = load_module(model, trust)
    info = {"runtime": "torchscript", "version": torch.__version__, "device": "cpu", "threads": threads}
    return Session(module, info)


class Session:
    """A loaded module: `inputs`, `outputs` (name, shape, dtype), `info`, `run`. An archive holds no shapes: None."""

    def __init__(self, module: Any, info: dict[str, Any]) -> None:
        self._module = module
        self.inputs = input_specs(module)
        self.outputs: list[dict[str, Any]] = [
            {"name": n, "shape": [], "dtype": "float32"} for n in output_names(module)
        ]
        self.info = info

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name. Raises ValueError for what PyTorch does not take."""
        import torch

        try:
            with torch.inference_mode():
                found = self._module(*(_argument(spec, feeds[spec["name"]]) for spec in self.inputs))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"PyTorch: {_last_line(error)}") from error
        results = [found] if isinstance(found, torch.Tensor) else list(found)
        return {s["name"]: np.array(r.numpy()) for s, r in zip(self.outputs, results)}


def _argument(spec: dict, value: np.ndarray) -> Any:
    import torch

    return np.asarray(value).item() if spec.get("number") else torch.from_numpy(np.array(value, order="C"))


def load_module(model: str, trust: bool = False) -> Any:
    """The ScriptModule of an archive, in evaluation mode. Raises ValueError, naming what is refused."""
    import torch

    name = Path(model).name
    try:
        if not trust:
            _check_archive(model)
        module = torch.jit.load(model, map_location="cpu")
        module.eval()
        graph = module.inlined_graph
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # PyTorch passes on whatever C++ raised
        raise ValueError(f"{name}: PyTorch cannot load it: {_last_line(error)}") from error
    for node in _nodes(graph):
        if node.kind() == "prim::SetAttr":
            raise ValueError(
                f"{name}: it keeps state between runs ('{node.s('name')}'), which a converted file cannot; "
                "export a module that takes its state as an input and gives it back"
            )
    return module


def _check_archive(model: str) -> None:
    with zipfile.ZipFile(model) as archive:
        members = archive.infolist()
        if sum(m.file_size for m in members) > 4 * Path(model).stat().st_size + 2**20:
            raise ValueError("its archive would unpack to many times its size")
        for member in members:
            if "/code/" not in member.filename or not member.filename.endswith(".py"):
                continue
            text = archive.read(member).decode("utf-8", "replace")
            # PyTorch's reader never comes back from a statement outside of a class or function.
            if odd := re.search(r"^(?!class |def |op_version_set\b|[\s#@)]).+", text, re.MULTILINE):
                raise ValueError(f"its code holds '{odd[0][:60]}', which is no TorchScript")
            for space, operator in re.findall(r"\bops\.(\w+)\.(\w+)", text):
                if space not in _SPACES:
                    raise ValueError(f"it calls '{space}::{operator}', which is not one of PyTorch's own operators")
            for operator in re.findall(r"\b(?:torch|ops\.\w+)\.(\w+)\(", text):
                if operator in _REFUSED:
                    raise ValueError(f"it calls '{operator}', which reads or writes files")


def _nodes(block: Any) -> Any:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def input_specs(module: Any) -> list[dict[str, Any]]:
    """Name, shape (None: the archive does not say) and dtype; numbers are scalars, marked "number"."""
    specs = []
    values = list(module.inlined_graph.inputs())[1:]
    for argument, value in zip(module.forward.schema.arguments[1:], values):
        kind = str(argument.type)
        if kind in _NUMBERS:
            specs.append({"name": argument.name, "shape": [], "dtype": _NUMBERS[kind], "number": True})
        elif kind == "Tensor":
            indexes = any(_indexes(use) for use in value.uses())
            specs.append({"name": argument.name, "shape": None, "dtype": "int64" if indexes else "float32"})
        elif not argument.has_default_value():
            raise ValueError(f"input '{argument.name}' is a {kind}; only tensors and numbers are fed")
    return specs


def _indexes(use: Any) -> bool:
    """Whether a use of a value takes it as indices."""
    kind = use.user.kind()
    place = {"aten::embedding": 1, "aten::index_select": 2, "aten::gather": 2}.get(kind)
    return place is not None and use.offset == place


def output_names(module: Any) -> list[str]:
    """A name for each tensor that `forward` gives back."""
    (returned,) = module.forward.schema.returns
    kind = str(returned.type)
    if kind == "Tensor":
        return ["output"]
    count = len(re.findall(r"\bTensor\b", kind))
    if not re.fullmatch(r"(Tuple)?[\[(](Tensor(, )?)+[\])]", kind):
        raise ValueError(f"it gives back a {kind}; only tensors and tuples of them are read")
    return [f"output_{k}" for k in range(count)]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]
