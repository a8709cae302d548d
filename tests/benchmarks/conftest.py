"""What needs packages of .venv-peers is no module to look for doctests in."""

import importlib.util

NEEDS = {"torch_pruning": ["pruners.py", "pruning.py", "pruning_page.py"], "torch": ["networks.py"], "mlperf_loadgen": ["loadgen.py"]}

collect_ignore = [file for package, files in NEEDS.items() if importlib.util.find_spec(package) is None for file in files]
