"""What needs packages of .venv-peers is no module to look for doctests in."""

import importlib.util

collect_ignore = ["pruners.py", "pruning.py", "pruning_page.py"] if importlib.util.find_spec("torch_pruning") is None else []
