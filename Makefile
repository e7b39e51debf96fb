# The first two commands: `make demo` and `make test`. Both do all the set-up, once.
PYTHON ?= python3.11
BIN := .venv/bin
INPUTS := pyproject.toml scripts/setup.sh $(wildcard constraints/*.txt)

.PHONY: demo test check bench bench-quant bench-convert bench-harness bench-edge bench-prune bench-train bench-train-prune clean

demo: .venv/.demo
	$(BIN)/lepton-edge compress --out lepton-out

# Two files of tests at a time: more disturb each other's workers.
test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.test
	$(BIN)/python benchmarks/run.py

# Makes an environment for every rival the first time (several GB) and takes hours.
bench-quant: .venv/.test
	$(BIN)/python benchmarks/quantization.py
	$(BIN)/python benchmarks/calibration_memory.py
	$(BIN)/python benchmarks/saturation.py

bench-convert: .venv/.test
	$(BIN)/python benchmarks/convert.py

# About an hour on a quiet machine; makes an environment for LoadGen the first time.
bench-harness: .venv/.test
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/cross_check.py

# Estimates for microcontrollers; the same answers on emulated processors (qemu-user-static, mmdebstrap).
bench-edge: .venv/.test
	$(BIN)/python benchmarks/micro.py
	$(BIN)/python benchmarks/emulated.py

bench-prune: .venv/.test
	$(BIN)/python benchmarks/pruning.py
	$(BIN)/python benchmarks/sparse.py

# Trains for an hour and a half on two cores.
bench-train-prune: .venv/.test
	$(BIN)/python benchmarks/trained_pruning.py

# Fashion-MNIST from the Debian package dataset-fashion-mnist, or in the folder that FASHION_MNIST names.
bench-train: .venv/.test
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf .venv build lepton-out *.egg-info

.venv/.demo: $(INPUTS)
	PYTHON=$(PYTHON) scripts/setup.sh onnx,openvino,tflite,tensorflow
	touch $@

.venv/.test: $(INPUTS)
	PYTHON=$(PYTHON) scripts/setup.sh onnx,openvino,tflite,tflite-runtime,tensorflow,torch,ncnn,micro,dev
	touch $@ .venv/.demo
