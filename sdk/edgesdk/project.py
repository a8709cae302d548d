"""`edgesdk.toml`: what the commands of a folder are about. The command line wins over it.

model = "model.onnx"
name = "ocr"
profiles = ["jetson", "x86-cpu"]
calibration = "calibration.npz"
evaluate = "evaluate.py:evaluate"
devices = ["pi@192.168.1.20"]
[budget]
max_drop = 0.01
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesdk.errors import ProjectError
from edgesdk.explaining import first_problem

FILE = "edgesdk.toml"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(_Table):
    """A budget in which everything may be left to the profile."""

    max_drop: float | None = None
    max_latency_ms: float | None = Field(None, gt=0)
    max_size_bytes: int | None = Field(None, gt=0)


class Project(_Table):
    """What `edgesdk.toml` says; paths are as typed, relative to its folder."""

    model: str | None = None
    name: str | None = None
    profiles: tuple[str, ...] = ()
    calibration: str | None = None
    evaluate: str | None = None
    labels: str | None = None
    devices: tuple[str, ...] = ()
    budget: Limits = Limits()


def load(folder: Path) -> Project:
    """The project of that folder; an empty one where there is no file. Raises ProjectError, naming the key."""
    path = folder / FILE
    if not path.is_file():
        return Project()
    try:
        return Project.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProjectError(f"{FILE} is not TOML: {error}") from error
    except ValidationError as error:
        raise ProjectError(f"{FILE}: {first_problem(error, Project)}", f"there are {', '.join(Project.model_fields)}") from error


def find_model(folder: Path, project: Project) -> Path:
    """The model that a command without one means. Raises ProjectError where that is not clear."""
    if project.model:
        return folder / project.model
    models = sorted(folder.glob("*.onnx"))
    if len(models) == 1:
        return models[0]
    found = f"{len(models)} .onnx files are here" if models else "there is neither edgesdk.toml nor an .onnx file here"
    raise ProjectError(f"no model was named, and {found}", "name one: `edgesdk package MODEL --profile P`, or write edgesdk.toml with `edgesdk init MODEL`")


def name_for(model: Path, project: Project) -> str:
    """The bundle's name: the project's, else the file's made fit for one."""
    return project.name or re.sub(r"[^a-z0-9._-]+", "-", model.stem.lower()).strip("._-")[:63] or "model"


def newest_bundle(folder: Path, project: Project) -> Path:
    """The bundle that `deploy` without one means: the project's, else the newest below `bundles/`. Raises ProjectError."""
    packaged = sorted(folder.glob("bundles/*/oci-layout"), key=lambda path: path.stat().st_mtime)
    named = [path for path in packaged if path.parent.name == project.name]
    if not packaged:
        raise ProjectError("no bundle was named, and none was packaged here", "run `edgesdk package` first, or give a bundle's path")
    if project.name and not named:
        raise ProjectError(f"no bundle of `{project.name}` was packaged here", "run `edgesdk package` first, or give a bundle's path")
    return (named or packaged)[-1].parent


def template(model: str, *, calibration: str | None, evaluate: str | None, profiles: list[str]) -> str:
    """A commented `edgesdk.toml` for `edgesdk init`."""

    def line(key: str, value: Any, comment: str) -> str:
        text = f"{key} = {json.dumps(value, ensure_ascii=False)}" if value else f"# {key} = "
        return f"{text}\n" if value and not comment else f"{text:<44} # {comment}\n"

    return "".join(
        (
            "# What `edgesdk package` and `edgesdk deploy` in this folder are about. The command line wins over it.\n",
            line("model", model, "an ONNX file"),
            line("name", name_for(Path(model), Project()), "what programs on the device ask for"),
            line("profiles", profiles, "see `edgesdk profile list`"),
            line("calibration", calibration, "unlabelled samples: .npz, .npy, a folder, or module.py:function"),
            line("evaluate", evaluate, "module.py:function(run) -> scores, or an .npz with `labels`"),
            '# labels = "labels.txt"                        # one class name a line, shipped beside the model\n',
            '# devices = ["pi@192.168.1.20"]                # where `edgesdk deploy` without a host goes\n',
            "\n[budget]\n",
            line("max_drop", 0.01, "greatest loss of accuracy, in units of the metric"),
            "# max_latency_ms = 20\n# max_size_bytes = 10_000_000\n",
        )
    )
