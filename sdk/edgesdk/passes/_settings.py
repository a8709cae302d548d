"""What a recipe may set of a pass: its keywords, with values of their types.

check("quantize", Scheme, {"operators": ["Conv"], "activations": "uint8"})
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Model

_HANDED = {"model", "samples", "progress"}  # by whoever applies the recipe; not settings


def check(name: str, takes: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Whether the pass of that name can be called so. ``takes`` has its keywords, annotated. Raises ModelError, which names pass and setting."""
    known = {key: each for key, each in inspect.signature(takes).parameters.items() if key not in _HANDED}
    for key, value in settings.items():
        if key not in known:
            raise ModelError(f"the pass `{name}` has no setting `{key}`", _closest(key, known) or f"it has {', '.join(known) or 'none'}")
        try:
            TypeAdapter(known[key].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Input ")
            raise ModelError(f"`{key}` of the pass `{name}` is {value!r}", f"it {told}" if told.startswith("should") else told) from error
    if missing := [key for key, each in known.items() if each.default is inspect.Parameter.empty and key not in settings]:
        raise ModelError(f"the pass `{name}` is not told its {' and '.join(f'`{key}`' for key in missing)}", "say it in the step's `settings`")


def check_excluded(name: str, names: list[str], model: Model) -> None:
    """Whether the model has the nodes that are to be left out. Raises ModelError."""
    there = {str(node.name) for node in graph.nodes(graph.clone(model))}
    for each in names:
        if each not in there:
            hint = "a pass before it may have removed the node, or merged it into another"
            raise ModelError(f"`{name}` is to leave out the node `{each}`, which is not there", f"{_closest(each, there)} {hint}".strip())


def _closest(word: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"did you mean `{close[0]}`?" if close else ""
