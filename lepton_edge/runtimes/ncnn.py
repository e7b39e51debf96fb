"""ncnn on the CPU, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("ncnn>=1.0.20240820",)
FORMATS = ("ncnn",)
MAGIC = "7767517"


def load(model: str, *, threads: int = 1) -> Session:
    """Open a .param file with its .bin beside it, computed in float32: ncnn's own choice is half precision.

    Raises ValueError for files that are damaged, and layers that ncnn does not have.
    """
    layers = read_param(model)
    import ncnn

    path = Path(model)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ValueError(f"{path.name}: its weights {weights.name} are missing")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        if hasattr(net.opt, f"use_{option}"):
            setattr(net.opt, f"use_{option}", False)
    if net.load_param(str(path)) != 0:
        raise ValueError(f"{path.name}: ncnn cannot load it: it has layers that ncnn {ncnn.__version__} does not have")
    # It reads as far as it needs: a file that is too short leaves layers empty, one that is too long is another's.
    if net.load_model(str(weights)) != 0:
        raise ValueError(f"{path.name}: ncnn cannot load {weights.name}: it is damaged or of another model")
    count = sum(layer["type"] != "Input" for layer in layers)
    info = {
        "runtime": "ncnn",
        "version": ncnn.__version__,
        "device": "cpu",
        "precision": "f32",
        "delegated": {"nodes": count, "of": count, "partitions": 1, "left": {}},
        "threads": threads,
    }
    return Session(net, layers, info)


def read_param(model: str) -> list[dict[str, Any]]:
    """The layers of a .param file: {"type", "name", "bottoms", "tops", "values": {number: text}}, without inputs' data.

    Source: ncnn's docs/developer-guide/param-and-model-file-structure. Raises ValueError for anything else.
    """
    path = Path(model)
    if not path.is_file():
        raise ValueError(f"{path.name}: no such file")
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
        if lines[0] != [MAGIC] or len(lines) != int(lines[1][0]) + 2:
            raise ValueError("the magic number or some of its layers are missing")
        layers = []
        for kind, name, takes, gives, *rest in lines[2:]:
            ins, outs = int(takes), int(gives)
            values = dict(entry.split("=", 1) for entry in rest[ins + outs :])
            tops = rest[ins : ins + outs]
            if ins < 0 or outs < 0 or len(tops) != outs:
                raise ValueError(f"layer '{name}' is cut short")
            layers.append({"type": kind, "name": name, "bottoms": rest[:ins], "tops": tops, "values": values})
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: damaged or not an ncnn .param file: {_one_line(error)}") from error
    return layers


class Session:
    """A loaded model: `inputs`, `outputs` (name, shape, dtype), `info` and `run`.

    ncnn has no batch axis: it is put before every shape here, and a batch is run sample by sample.
    """

    def __init__(self, net: Any, layers: list[dict[str, Any]], info: dict[str, Any]) -> None:
        import ncnn

        self.net, self._mat = net, ncnn.Mat
        self.info = info
        used = {name for layer in layers for name in layer["bottoms"]}
        self.inputs = [_spec(layer, 0) for layer in layers if layer["type"] == "Input"]
        self.outputs = [_spec(layer, k) for layer in layers for k, name in enumerate(layer["tops"]) if name not in used]
        self._names = {spec["name"] for spec in self.inputs}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis; they are on the host when it returns.

        Raises ValueError for missing, unknown, mistyped or misshapen inputs.
        """
        if feeds.keys() != self._names:
            raise ValueError(f"the model's inputs are {sorted(self._names)}, got {sorted(feeds)}")
        if next(iter(feeds.values())).shape[0] != 1:
            return _one_by_one(self, feeds)
        extractor = self.net.create_extractor()
        for spec in self.inputs:
            array = feeds[spec["name"]]
            if array.dtype != np.float32:
                raise ValueError(f"input '{spec['name']}' takes float32, got {array.dtype}")
            if spec["shape"] is not None and list(array.shape) != spec["shape"]:
                raise ValueError(f"input '{spec['name']}' has shape {list(array.shape)}, takes {spec['shape']}")
            # A copy, whose channels are aligned as ncnn wants them.
            extractor.input(spec["name"], self._mat(np.ascontiguousarray(array[0])).clone())
        results = {}
        for spec in self.outputs:
            code, mat = extractor.extract(spec["name"])
            if code != 0:
                raise ValueError(f"ncnn: output '{spec['name']}' cannot be computed (code {code})")
            results[spec["name"]] = np.array(mat)[None]
        return results


def _spec(layer: dict[str, Any], top: int) -> dict[str, Any]:
    """An output of a layer as a port; its shape, from the layer's hint, None where the file has none.

    A hint is "-23330=4,dims,w,h,c" (four numbers an output); an Input may also have 0=w 1=h 2=c.
    """
    hint = [int(v) for v in layer["values"].get("-23330", "").split(",") if v]
    sizes = hint[1 + 4 * top : 5 + 4 * top]
    if len(sizes) == 4 and 1 <= sizes[0] <= 3:
        dims = sizes[1 : 1 + sizes[0]]
    else:
        whc = [int(layer["values"].get(key, 0)) for key in "012"] if layer["type"] == "Input" else []
        dims = [size for size in whc if size > 0]
    shape = [1, *reversed(dims)] if dims else None
    return {"name": layer["tops"][top], "shape": shape, "dtype": "float32"}


def _one_by_one(session: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a batch sample by sample: outputs have the samples on their first axis."""
    count = next(iter(feeds.values())).shape[0]
    if count == 0 or any(array.shape[0] != count for array in feeds.values()):
        raise ValueError(f"inputs differ in their number of samples: {[a.shape[0] for a in feeds.values()]}")
    rows = [session.run({k: a[i : i + 1] for k, a in feeds.items()}) for i in range(count)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
