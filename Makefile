# Every target makes .venv and installs what it needs, then runs. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
WORKERS ?= 2
# glibc keeps what training frees instead of giving it back at each step: 7 % less
# time of a core (two pairs of 40 steps of the U-Net on an AMD EPYC, by hand).
MALLOC := GLIBC_TUNABLES=glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4000000000

.PHONY: demo test test-all lint weights train-smoke train-evidence benchmark-smoke benchmark-mini gpu-check bench \
	package-size clean help

help:
	@echo "make demo | test | test-all | weights | train-smoke | train-evidence | benchmark-smoke | benchmark-mini"
	@echo "     gpu-check | bench | package-size"

# torch first and alone: its pinned CPU build must not be replaced by a CUDA one.
$(VENV)/.base: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[itk,dicom,viz]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/python -m examples.demo --output demo

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS)

test-all: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not gpu and not network"

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.embed_ct
	$(BIN)/python -m benchmarks.embed_ct --memory-limit 2147483648 \
		--output results/benchmark_embed_ct_2gib.json
	$(BIN)/python -m benchmarks.resample
	$(BIN)/python -m benchmarks.readme

package-size: $(VENV)/.base
	$(BIN)/python -m benchmarks.package_size

train-smoke: $(VENV)/.dev
	$(BIN)/python -m training.smoke

# Hours on two cores, and goes on where it stopped. SHORT=1: minutes, offline, into weights-short/.
weights: $(VENV)/.dev
	$(BIN)/python -m training.release.weights $(if $(SHORT),--short --output weights-short)

# 70 minutes on two shared cores (--device cuda for a GPU); goes on where it stopped. Results are committed.
train-evidence: $(VENV)/.dev
	$(BIN)/python -m training.evidence --output results/train_evidence.json

# A sliver of every table in minutes, from nothing.
benchmark-smoke: $(VENV)/.dev
	rm -rf benchmark-smoke
	$(BIN)/python -m training.benchmark --plan benchmark_smoke --output benchmark-smoke --work benchmark-smoke/work

# Every table on synthetic scans, for hours; goes on where it stopped. Committed runs count as done:
# OUT=folder does all of them again.
benchmark-mini: $(VENV)/.dev
	$(MALLOC) $(BIN)/python -m training.benchmark --plan benchmark_mini --output $(or $(OUT),results/benchmark_mini)

# Needs a CUDA build of PyTorch in .venv; without a GPU it says so and fails.
gpu-check: $(VENV)/.dev
	$(BIN)/python -m training.gpu_check --output results/gpu_check.json

clean:
	rm -rf build dist demo benchmark-smoke *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
