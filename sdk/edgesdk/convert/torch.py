"""PyTorch → ONNX: `torch.export` first, then `torch.onnx.export` of the program.

The exporter is the one built on `torch.export` (`dynamo=True`), not the TorchScript one, which PyTorch no longer maintains. Its files
were looked at for convolutional, recurrent and attention models with torch 2.13: BatchNorm folded, LSTM, GRU and HardSwish as single
nodes, the batch free, valid without functions or external data. What is not good is mended here: a trace of the source code in each
node, outputs that are named after operators, and an opset that it silently does not reach.
"""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk import users_code
from edgesdk.convert.exported import Exported, Request, first_line, needs
from edgesdk.errors import ConversionError

if TYPE_CHECKING:
    from edge_agent.bundle import TensorInfo
    from edgesdk.graph import Array, Feeds

MIN_OPSET = 17
BUILDER = "name the code that builds it: `module.py:function`"
LABELS = "labels"  # a key of evaluation files that is no input


def export(request: Request) -> Exported:
    """Load the module or program and write it as ONNX. Raises ConversionError."""
    with needs("torch", "PyTorch"):
        import onnxscript  # noqa: F401  # the exporter asks for it late
        import torch
    if request.opset < MIN_OPSET:
        raise ConversionError(f"PyTorch's exporter does not write opset {request.opset}", f"ask for {MIN_OPSET} or later, best 18")
    loaded = _load(request)
    if isinstance(loaded, torch.export.ExportedProgram):
        program, call = loaded, _calling_program(loaded)
    else:
        program, call = _traced(loaded, request), _calling_module(loaded)
    names, kept = _output_names(program)
    return Exported(
        framework=f"PyTorch {torch.__version__}",
        model=type(loaded).__name__,
        onnx=_to_onnx(program, names, request),
        run=lambda feeds: dict(zip(names, _answers(call, kept, feeds), strict=True)),
    )


def _load(request: Request) -> Any:
    """A module in evaluation mode, or an exported program. Raises ConversionError."""
    import torch

    source = request.source
    try:
        loaded = LOADERS[Path(source if Path(source).is_file() else source.rpartition(":")[0]).suffix.lower()](source)
    except ConversionError:
        raise
    except ModuleNotFoundError as error:
        raise ConversionError(f"`{source}` needs the module `{error.name}`, which is not found", f"install it, or {BUILDER}") from error
    except Exception as error:
        hint = BUILDER if Path(source).is_file() else "run it by itself to see where"
        raise ConversionError(f"`{source}` cannot be loaded: {type(error).__name__}: {first_line(error)}", hint) from error
    if isinstance(loaded, torch.export.ExportedProgram):
        return loaded
    if isinstance(loaded, torch.jit.ScriptModule):
        raise ConversionError(f"`{source}` is TorchScript, which PyTorch's exporter no longer takes", BUILDER)
    if isinstance(loaded, dict):
        raise ConversionError(f"`{source}` holds weights without their module", BUILDER)
    if not isinstance(loaded, torch.nn.Module):
        raise ConversionError(f"`{source}` gives a {type(loaded).__name__}, not a torch.nn.Module", "return the module itself")
    return loaded.cpu().eval()


def _load_program(source: str) -> Any:
    import torch

    with _quiet():
        return torch.export.load(source)


def _load_pickle(source: str) -> Any:
    import torch

    with _quiet():
        return torch.load(source, map_location="cpu", weights_only=False)  # the user said --trust


def _call_function(source: str) -> Any:
    """``module.py:function`` that returns a module."""
    return users_code.load(source, ConversionError)()


LOADERS: dict[str, Callable[[str], Any]] = {".py": _call_function, ".pt": _load_pickle, ".pth": _load_pickle, ".pt2": _load_program}


def _traced(module: Any, request: Request) -> Any:
    """The module as a program with a free batch. Raises ConversionError."""
    import torch

    example = _example(module, request)
    batch = torch.export.Dim("batch")
    free = {name: {0: batch} if tensor.ndim else None for name, tensor in example.items()}
    hint = "wrap it in a module whose inputs have the batch first; what depends on values has to become `torch.where`"
    with _translated(request.source, hint), torch.no_grad():
        return torch.export.export(module, (), example, dynamic_shapes=free)


def _example(module: Any, request: Request) -> dict[str, Any]:
    """Two rows for each parameter of the module's `forward` that the user gave: of one alone the exporter would conclude that there is always one."""
    import torch

    parameters = inspect.signature(module.forward).parameters
    given = {info.name: _drawn(info) for info in request.inputs} or _first_rows(request, next(iter(parameters), "x"))
    missing = [name for name, parameter in parameters.items() if parameter.default is parameter.empty and parameter.kind in _NAMED and name not in given]
    strange = [name for name in given if name not in parameters]
    if missing or strange:
        told = [f"lacks `{name}`" for name in missing] + [f"takes no `{name}`" for name in strange]
        signature = f"{type(module).__name__}.forward({', '.join(parameters)})"
        raise ConversionError(f"{signature} {' and '.join(told)}", "name samples and inputs after its parameters")
    example = {name: torch.from_numpy(given[name]) for name in parameters if name in given}
    return {name: torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor for name, tensor in example.items()}


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _drawn(info: "TensorInfo") -> "Array":
    import numpy as np

    shape = [length or 1 for length in info.shape]
    random = np.random.default_rng(0)
    return random.standard_normal(shape).astype(info.dtype) if np.dtype(info.dtype).kind == "f" else random.integers(0, 2, shape).astype(info.dtype)


def _first_rows(request: Request, only: str) -> "dict[str, Array]":
    """Of each array in the samples, since a module itself knows no shapes. Raises ConversionError."""
    import numpy as np

    path = Path(request.samples or "")
    if path.suffix not in (".npz", ".npy"):
        raise ConversionError(
            f"the module in `{request.source}` does not say what shape its inputs have", "give samples in a .npz, or a shape like `--input x=1,3,224,224`"
        )
    if not path.is_file():
        raise ConversionError(f"there are no samples at `{path}`", "check the path")
    try:
        content = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConversionError(f"the samples `{path}` cannot be read: {first_line(error)}", "write them with `numpy.savez`") from error
    arrays = {only: content} if path.suffix == ".npy" else {name: content[name] for name in content.files if name != LABELS}
    return {name: np.ascontiguousarray(_narrow(array[:1])) for name, array in arrays.items()}


def _narrow(array: "Array") -> "Array":
    """Samples in float64 are float32 to a module, as numpy's default is not PyTorch's."""
    return array.astype("float32") if array.dtype == "float64" else array


def _output_names(program: Any) -> tuple[list[str], list[int]]:
    """By the keys of what the module returns; and which of its leaves are tensors. `output`, or `output_0` …, where there are no keys."""
    from torch.utils import _pytree as trees

    returned = program.graph_signature.user_outputs
    kept = [place for place, name in enumerate(returned) if isinstance(name, str)]
    paths = [path for path, _ in trees.tree_flatten_with_path(trees.tree_unflatten(list(range(len(returned))), program.call_spec.out_spec))[0]]
    names = ["_".join(str(_key(part)) for part in paths[place]) for place in kept]
    inputs = set(program.graph_signature.user_inputs)
    return [_distinct(f"output_{name}" if name[:1].isdigit() else name or "output", inputs) for name in names], kept


def _key(part: Any) -> Any:
    return next(getattr(part, kind) for kind in ("key", "idx", "name") if hasattr(part, kind))


def _distinct(name: str, inputs: set[Any]) -> str:
    """ONNX has one set of names for inputs and outputs."""
    return f"{name}_output" if name in inputs else name


def _to_onnx(program: Any, outputs: list[str], request: Request) -> bytes:
    """Raises ConversionError."""
    import onnx_ir
    import torch
    from onnx_ir.passes import common

    from edgesdk import graph

    inputs = program.graph_signature.user_inputs
    if not all(isinstance(name, str) for name in inputs):
        raise ConversionError(f"`{request.source}` takes something other than tensors", "export it with these arguments fixed")
    with _translated(request.source, "take another --opset, or put another operator into the module"):
        written = torch.onnx.export(program, dynamo=True, opset_version=request.opset, input_names=list(inputs), output_names=outputs, verbose=False)
        assert written is not None, "dynamo=True returns a program"  # for the type checker
        model = written.model
        common.ClearMetadataAndDocStringPass()(model)
        model.ir_version = graph.ir_version(model)
        content: bytes = onnx_ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    if graph.opset(model) != request.opset:
        raise ConversionError(f"PyTorch's exporter cannot bring `{request.source}` to opset {request.opset}, only to {graph.opset(model)}", "leave --opset out")
    return content


def _calling_module(module: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: module(**tensors)


def _calling_program(program: Any) -> Callable[[dict[str, Any]], Any]:
    """Arguments come flat, by name, and are put back into the nest of tuples and dicts that the program takes."""
    from torch.utils import _pytree as trees

    module, names = program.module(), program.graph_signature.user_inputs

    def call(tensors: dict[str, Any]) -> Any:
        arguments, keywords = trees.tree_unflatten([tensors[name] for name in names], program.call_spec.in_spec)
        return module(*arguments, **keywords)

    return call


def _answers(call: Callable[[dict[str, Any]], Any], kept: list[int], feeds: "Feeds") -> "list[Array]":
    import torch

    with _quiet(), torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves(call({name: torch.from_numpy(array) for name, array in feeds.items()}))
    return [leaves[place].numpy() for place in kept]


@contextlib.contextmanager
def _translated(source: str, hint: str) -> Iterator[None]:
    """The border to the exporter, which raises whatever the tracing of a user's code raises."""
    try:
        with _quiet():
            yield
    except Exception as error:
        raise ConversionError(f"PyTorch cannot export `{source}`: {first_line(error)}", hint) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of what it tries and of packages that it would know too."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
