"""What pydantic finds wrong with what a person wrote, in a sentence.

first_problem(error, Profile)         # "quantization.sheme: unknown key (did you mean schemes?)"
"""

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong, after the path of its key."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a typing error makes a key missing, too
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("literal["))  # which pydantic adds of a choice
    if first["type"] == "tuple_type":  # so a list is called here, and nowhere in TOML
        return f"{where}: wants a list: [ … ]"
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
    there = keys(model, first["loc"][:-1])
    close = difflib.get_close_matches(str(first["loc"][-1]), there, n=1)
    return f"{where}: unknown key ({f'did you mean {close[0]}?' if close else 'there are ' + ', '.join(there)})"


def keys(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """Those that may stand in the table at that path."""
    table: Any = model
    for part in where:
        if isinstance(part, str):
            table = table.model_fields[part].annotation
    if not hasattr(table, "model_fields"):  # tuple[Provider, ...]
        table = table.__args__[0]
    return list(table.model_fields)
