"""A model as a torch function of its own constants: they can be trained, and written back under their names.

    twin = Twin(model, ["logits"])
    (logits,) = twin(feeds)             # gradients flow into twin.numbers: a torch tensor for each constant that can be trained
    trained = written(model, twin.arrays())     # the same operators, names and shapes, other numbers

onnx2torch makes the function. What it raises, and what is wrong with its files, ends here. Needs the extra `torch`.
"""

import copy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes.lift_constants import lift_constants

if TYPE_CHECKING:
    import torch

# Which inputs of an operator are weights, where they are constants. Others (limits of a Clip, statistics of a normalization, exponents) stay.
_TRAINED = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "Add": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
    "Gather": (0,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}
_OWNED = {"weight": 1, "bias": 2}  # a torch module's parameters, and the place of the same among the inputs of the node it was made from
_OPSET = 17  # the newest of which onnx2torch 1.5.15 knows all operators that it knows of any


@dataclass(frozen=True)
class _Place:
    """Where the torch module reads a constant, and how it lies there."""

    path: str
    name: str
    transposed: bool = False
    factor: float = 1.0


class Twin:
    """What the model answers in these tensors, as torch computes it."""

    def __init__(self, model: Model, answers: Sequence[str]) -> None:
        """Raises ModelError without torch or onnx2torch, and for operators that onnx2torch does not know."""
        torch, convert = _imported()
        read = _readable(model, answers)
        with _translated("onnx2torch cannot read the model"):
            self._module = convert(onnx_ir.to_proto(read), attach_onnx_mapping=True).eval().requires_grad_(requires_grad=False)
        for made in self._module.modules():
            if isinstance(made, torch.nn.LayerNorm):  # onnx2torch takes a length that is not inferred for 0
                made.normalized_shape = tuple(made.weight.shape)
        self._inputs = [value.name or "" for value in read.graph.inputs]
        self._torch, self._own = torch, threading.local()
        trained = _trained(read, model)
        self._places = [place for place in _places(self._module, read) if place.name in trained]
        self.numbers = {place.name: self._tensor(trained[place.name]).requires_grad_() for place in self._places}
        if not self.numbers:
            raise ModelError("the model has no weights that could be trained", "leave distilling out")

    def __call__(self, feeds: Feeds) -> list["torch.Tensor"]:
        """The answers, in the order in which they were asked for. Threads may ask at the same time."""
        if not hasattr(self._own, "module"):
            self._own.module = copy.deepcopy(self._module)  # functional_call changes the module while it runs
        given = {place.path: _laid(self.numbers[place.name], place) for place in self._places}
        with _translated("its torch module cannot compute"):
            answers = self._torch.func.functional_call(self._own.module, given, tuple(self._tensor(feeds[name]) for name in self._inputs))
        return list(answers) if isinstance(answers, (list, tuple)) else [answers]

    def gradients(self, loss: "torch.Tensor") -> Sequence["torch.Tensor"]:
        """Of what answers were computed into, one for each of the numbers; 0 for those that had no part in it."""
        with _translated("its torch module cannot be trained"):
            made: Sequence[torch.Tensor] = self._torch.autograd.grad(loss, list(self.numbers.values()), allow_unused=True, materialize_grads=True)
            return made

    def answered(self, feeds: Feeds) -> list[Array]:
        """The same as arrays, without gradients."""
        with self._torch.no_grad():
            return [answer.numpy() for answer in self(feeds)]

    def arrays(self) -> dict[str, Array]:
        """The constants as they are now."""
        return {name: number.detach().numpy().copy() for name, number in self.numbers.items()}

    def _tensor(self, array: Array) -> "torch.Tensor":
        """Images in the layout that convolutions are quickest in."""
        tensor = self._torch.tensor(array)
        return tensor.to(memory_format=self._torch.channels_last) if tensor.ndim == 4 else tensor


def written(model: Model, numbers: Mapping[str, Array]) -> Model:
    """The model with these constants instead of its own of the same names."""
    made = graph.clone(model)
    values = onnx_ir.convenience.create_value_mapping(made.graph)
    for name, array in numbers.items():
        tensor = onnx_ir.tensor(np.ascontiguousarray(array), name=name)
        node = values[name].producer()
        if node is None:
            values[name].const_value = tensor
        else:
            node.attributes["value"] = onnx_ir.AttrTensor("value", tensor)
    return made


def _imported() -> tuple[Any, Any]:
    """torch, and onnx2torch's entry.

    onnx2torch imports torchvision for NonMaxSuppression and RoiAlign, through which nothing is trained. A stand-in is there while it does:
    torchvision from PyPI does not load beside a torch built for CPUs ("operator torchvision::nms does not exist", pytorch/vision#9085).
    """
    vision, operators = ModuleType("torchvision"), ModuleType("torchvision.ops")
    vision.ops, operators.roi_align = operators, None  # type: ignore[attr-defined]
    stands_in = {} if "torchvision" in sys.modules else {"torchvision": vision, "torchvision.ops": operators}
    sys.modules.update(stands_in)
    try:
        import torch
        from onnx2torch import convert
    except ImportError as error:
        raise ModelError(f"distilling needs `{error.name}`, which is not installed here", "pip install 'edgesdk[torch]'") from error
    finally:
        for name in stands_in:
            del sys.modules[name]
    return torch, convert


def _readable(model: Model, answers: Sequence[str]) -> Model:
    """As onnx2torch wants it: an old opset, all constants initializers, nodes under names that torch allows, an output a node."""
    asked = graph.clone(model)
    values = onnx_ir.convenience.create_value_mapping(asked.graph)
    asked.graph.outputs.clear()
    for name in answers:
        node = onnx_ir.node("Identity", [values[name]])
        node.outputs[0].name = graph.fresh(asked.graph, f"{name}_answer")
        node.outputs[0].type, node.outputs[0].shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), values[name].shape
        asked.graph.append(node)
        asked.graph.outputs.append(node.outputs[0])
    with _translated(f"the model cannot be brought to opset {_OPSET}, the newest that onnx2torch reads"):
        if graph.opset(asked) > _OPSET:
            asked = onnx_ir.from_proto(onnx.version_converter.convert_version(onnx_ir.to_proto(asked), _OPSET))
    read = lift_constants(asked)
    for number, node in enumerate(read.graph):
        node.name = f"node_{number}"
    return read


def _trained(read: Model, model: Model) -> dict[str, Array]:
    """The constants that are nothing but weights."""
    known = onnx_ir.convenience.create_value_mapping(model.graph)
    found = {}
    for name, value in read.graph.initializers.items():
        array = graph.constant(known.get(name))
        if array is None or array.dtype != np.float32 or array.size < 2 or not np.isfinite(array).all():
            continue
        if value.uses() and all(not use.node.domain and use.idx in _TRAINED.get(use.node.op_type, ()) for use in value.uses()):
            found[name] = array
    return found


def _places(module: Any, read: Model) -> Iterator[_Place]:
    """Where the module reads each constant: as a parameter of the module made from a node, or out of a container."""
    nodes = {node.name: node for node in read.graph}
    for call in module.graph.nodes:
        if call.op != "call_module":
            continue
        made, node = module.get_submodule(call.target), nodes[call.target]
        for path, _ in made.named_parameters():
            value = node.inputs[_OWNED[path.rpartition(".")[2]]]
            assert value is not None and value.name is not None
            yield _laid_in(node, _Place(f"{call.target}.{path}", value.name))
        given = [name for name in made.onnx_mapping.inputs if name]
        for name, argument in zip(given, (*call.args, *call.kwargs.values()), strict=True):
            if argument.op == "get_attr":
                yield _Place(argument.target, name)


def _laid_in(node: onnx_ir.Node, place: _Place) -> _Place:
    """A Gemm becomes torch's Linear: weights [out, in], its factors multiplied in."""
    if node.op_type != "Gemm":
        return place
    weight = place.path.endswith("weight")
    scale, turned = node.attributes.get("alpha" if weight else "beta"), node.attributes.get("transB")
    return _Place(place.path, place.name, weight and not (turned and turned.as_int()), scale.as_float() if scale else 1.0)


def _laid(number: "torch.Tensor", place: _Place) -> "torch.Tensor":
    turned = number.T if place.transposed else number
    return turned if place.factor == 1.0 else turned * place.factor


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """onnx2torch has no errors of its own: what it does not know is whatever its code raises."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"{what}: {said or type(error).__name__}", "leave distilling out") from error
