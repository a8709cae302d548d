# `make demo` and `make test` are all that a fresh machine with python3 >= 3.11 (and its venv module), git and make needs.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# CI tests the PyTorch converter, the status page and the report in Chromium, bare devices and an aarch64 one too. They want much, so elsewhere they are
# asked for: make test TORCH=1 BROWSER=1 BARE=1 ARM64=1
ifdef CI
TORCH ?= 1
BROWSER ?= 1
BARE ?= 1
ARM64 ?= 1
endif

.PHONY: demo test unit test-oldest test-openvino test-quark check suite-data suite bench lock clean

demo: $(READY)
	$(BIN)/python examples/line_reader/demo.py

test: $(READY) $(if $(TORCH),.venv/.torch) $(if $(BROWSER),.venv/.browser .cache/axe.min.js chromium) $(if $(BARE),mmdebstrap) $(if $(ARM64),mmdebstrap qemu) $(if $(CI),cc-and-node) sshd
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 10 $(ARGS)

unit: $(READY) # seconds: for while you work
	$(BIN)/python -m pytest -n 2 -m "not (e2e or slow or torch or browser or bare or arm64 or gpu)" $(ARGS)

test-oldest: .venv-oldest/.ready sshd # the agent under the oldest onnxruntime and numpy that it promises
	PYTHONPATH=device_agent .venv-oldest/bin/python -m pytest -n 2 --dist loadfile tests/agent $(ARGS)

test-openvino: .venv-openvino/.ready # the agent with a provider that compiles
	PYTHONPATH=device_agent .venv-openvino/bin/python -m pytest tests/agent/test_openvino.py tests/agent/test_engines.py tests/agent/test_placement.py tests/agent/test_worker.py $(ARGS)

test-quark: $(READY) .venv-quark/.ready # AMD's own quantizer for the DPU as an oracle: 1.5 GB, two minutes
	$(BIN)/python -m pytest tests/oracles $(ARGS)

.venv-quark/.ready: tests/oracles/quark/requirements.txt
	$(PYTHON) -m venv .venv-quark
	.venv-quark/bin/python -m pip install --quiet -r tests/oracles/quark/requirements.txt
	@touch $@

.venv-openvino/.ready: requirements-openvino.txt
	$(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python -m pip install --quiet -r requirements-openvino.txt
	@touch $@

.venv-oldest/.ready: requirements-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -r requirements-oldest.txt
	@touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 device_agent/edge_agent # the oldest that mypy 2 knows; ruff holds the agent to 3.9
	$(BIN)/lint-imports

suite-data: $(READY) # the models and data of tests/suite that are not in the repository: 115 MB out of pinned packages
	$(BIN)/python -m tests.suite.fetch

suite: .venv-peers/.ready suite-data # every model for every profile, and in OpenVINO: an hour. Some of them: make suite ARGS="rec det"
	.venv-peers/bin/python -m tests.suite.profiles $(ARGS)
	.venv-peers/bin/python -m tests.suite.prune $(ARGS)
	.venv-peers/bin/python -m tests.suite.counts $(ARGS)

bench: $(READY) .venv-peers/.ready suite-data mmdebstrap sshd rsync # ours beside what a user would pick instead. Some models: make bench ARGS="rec det"
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.asking
	.venv-servers/bin/python -m tests.benchmarks.servers
	$(BIN)/python -m tests.benchmarks.comparing
	$(BIN)/python -m tests.benchmarks.sustained
	$(BIN)/python -m tests.benchmarks.tuning
	$(BIN)/python -m tests.benchmarks.sending
	$(BIN)/python -m tests.benchmarks.faults
	$(BIN)/python -m tests.benchmarks.defences
	.venv-peers/bin/python -m tests.benchmarks.peers $(ARGS)
	.venv-peers/bin/python -m tests.benchmarks.pruning $(ARGS)
	.venv-peers/bin/python -m tests.benchmarks.loadgen

.venv-peers/.ready: requirements.lock requirements-peers.txt pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	.venv-peers/bin/python -m pip install --quiet -r requirements-peers.txt
	.venv-peers/bin/python -m pip uninstall --quiet --yes openvino-telemetry # openvino does without, and nothing is sent anywhere
	.venv-peers/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv-servers/.ready: requirements-servers.txt pyproject.toml
	$(PYTHON) -m venv .venv-servers
	.venv-servers/bin/python -m pip install --quiet -r requirements-servers.txt
	.venv-servers/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edgesdk needs python3 3.11 or newer; say which with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "python3 lacks its venv module: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.torch: $(READY)
	$(BIN)/python -m pip install --quiet -r requirements-torch.txt
	@touch $@

.venv/.browser: $(READY) requirements-browser.txt
	$(BIN)/python -m pip install --quiet -r requirements-browser.txt
	@touch $@

.cache/axe.min.js: tests/vendor.py | $(READY) npm # judges whether everybody can read the report
	$(BIN)/python -m tests.vendor axe
	@touch $@

.PHONY: vendor
vendor: npm $(READY) # what the report draws with, out of npm's packages: pinned and checked in tests/vendor.py
	$(BIN)/python -m tests.vendor

.PHONY: npm
npm:
	@command -v npm >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends npm; } || \
	  { echo "npm fetches what the report is drawn with and judged by: sudo apt-get install npm"; exit 1; }

.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends chromium; } || \
	  { echo "the tests of the status page and of the report need Chromium: sudo apt-get install chromium"; exit 1; }

.PHONY: mmdebstrap
mmdebstrap:
	@command -v mmdebstrap >/dev/null && command -v ip >/dev/null && command -v zstd >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
	  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends mmdebstrap zstd iproute2; } || \
	  { echo "the tests on a bare device need root and: apt-get install mmdebstrap zstd iproute2"; exit 1; }

.PHONY: qemu
qemu:
	@command -v qemu-aarch64-static >/dev/null && command -v strace >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
	  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends qemu-user-static strace; } || \
	  { echo "the tests on an aarch64 device need root and: apt-get install qemu-user-static strace"; exit 1; }

.PHONY: cc-and-node
cc-and-node: # for the examples in C and for Node.js; without them their tests are skipped
	@{ command -v cc >/dev/null && command -v node >/dev/null; } || { apt-get update -qq && \
	  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends gcc libc6-dev nodejs; }

.PHONY: sshd
sshd:
	@{ test -x /usr/sbin/sshd && command -v ssh >/dev/null && command -v skopeo >/dev/null && command -v fish >/dev/null && command -v csh >/dev/null; } || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends openssh-server openssh-client skopeo fish csh; } || \
	  { echo "the end-to-end tests need OpenSSH's server: sudo apt-get install openssh-server openssh-client skopeo fish csh"; exit 1; }

.PHONY: rsync
rsync:
	@command -v rsync >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends rsync; } || \
	  { echo "the benchmark of sending needs rsync: sudo apt-get install rsync"; exit 1; }

lock: # the pins, from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" --extra sklearn --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .venv-oldest .venv-openvino .venv-peers .venv-servers .venv-quark .cache bundles
