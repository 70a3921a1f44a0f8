# make demo: see what the small model does with real video, and tune it on one.   make test: run the tests.
# make demo-train: train a smaller model from nothing.
# make docs: build the site, docs/_build/html/index.html.
# make fuzz MINUTES=60, make soak MINUTES=120: try to break it (docs/reliability.md).
PYTHON ?= python3
BIN := .venv/bin
# On a machine with an NVIDIA GPU JAX comes with CUDA, elsewhere for the CPU.
PACKAGE := .$(shell nvidia-smi -L >/dev/null 2>&1 && echo '[cuda]')
PACKAGE_TEST := .[test$(shell nvidia-smi -L >/dev/null 2>&1 && echo ,cuda)]
PACKAGE_DOCS := .[docs$(shell nvidia-smi -L >/dev/null 2>&1 && echo ,cuda)]
# PyTorch is for the parity tests alone, and on the CPU.
TORCH ?= torch==2.13.0+cpu
DEMO ?= runs/demo
RUNS ?= runs/quick
# A file of tests runs in one process, for its tests share what they have compiled.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: install demo demo-train test test-full docs fuzz soak lint clean

install: .venv/installed

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e '$(PACKAGE)'
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet '$(TORCH)' && $(BIN)/pip install --quiet --no-deps lpips cd-fvd \
	|| { test -z "$$CI" && echo \
	"No CPU build of PyTorch was found, so its parity tests will be skipped. To run them, let pip see" \
	"PyTorch's CPU index (PIP_EXTRA_INDEX_URL), or name another build: make test TORCH=torch"; }
	$(BIN)/pip install --quiet -e '$(PACKAGE_TEST)'
	touch $@

# Two CPU devices keep two cores busy where one does not; the allocator keeps its memory between steps.
demo demo-train: export JAX_NUM_CPU_DEVICES := 2
demo demo-train: export MALLOC_MMAP_THRESHOLD_ := 4000000000
demo demo-train: export MALLOC_TRIM_THRESHOLD_ := 8000000000
demo demo-train: export MALLOC_TOP_PAD_ := 268435456
demo: install
	$(BIN)/odvae demo --output=$(DEMO)

demo-train: install
	$(BIN)/odvae train --config=quick:image --workdir=$(RUNS)/image
	$(BIN)/odvae train --config=quick:video --workdir=$(RUNS)/video \
	    --config.init.from_pretrained=$(RUNS)/image
	$(BIN)/odvae eval --ckpt=$(RUNS)/video --ckpt=$(RUNS)/image --data=sample-clips --frames=17 --size=128 \
	    --start=-17 --nofvd --output=$(RUNS)/eval
	$(BIN)/odvae curves $(RUNS)/image $(RUNS)/video $(RUNS)/curves.png

test: .venv/installed-test
	$(BIN)/python -m pytest $(PARALLEL)

test-full: .venv/installed-test .venv/installed-docs
	$(BIN)/python -m pytest $(PARALLEL) --full

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet -e '$(PACKAGE_DOCS)'
	touch $@

# A warning is an error. It is done for all pages before it ends.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx --quiet -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

fuzz: MINUTES ?= 60
fuzz: .venv/installed-test
	$(BIN)/python -m tests.robustness.fuzz --minutes=$(MINUTES)

soak: MINUTES ?= 120
soak: .venv/installed-test
	$(BIN)/python -m tests.robustness.soak --minutes=$(MINUTES)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .cache runs docs/_build
