"""The three small CNNs of tests/data as the PyTorch modules that they were exported from, for tools that prune PyTorch.

    network = loaded("resnet20_fashion")     # a torch.nn.Module in eval mode with the file's numbers
    export(network, Path("pruned.onnx"))

The exporter kept the parameters' names, so the file's initializers are the module's state.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn import functional

from tests.suite import COMMITTED

OPSET = 17
SAMPLE = torch.zeros(1, 1, 28, 28)


class Block(nn.Module):
    """Two 3x3 convolutions and the input added; a strided 1x1 convolution where the shape changes (He et al. 2015, section 4.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.short(x))


class SqueezeExcite(nn.Module):
    """A factor for each channel, from the means of all (Hu et al. 2018)."""

    def __init__(self, width: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * functional.hardsigmoid(self.up(functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-and-excite, project 1x1 (Howard et al. 2019, figure 4)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        wide = inputs * 4
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            SqueezeExcite(wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.same else self.body(x)


def loaded(name: str) -> nn.Module:
    """The module of that file of tests/data, with its numbers."""
    network = _NETWORKS[name]()
    file = onnx.load(COMMITTED / f"{name}.onnx")
    state = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in file.graph.initializer}
    for key in network.state_dict().keys() - state.keys():
        if key.endswith("short.1.bias"):  # added to norm2's, so trained alike to the last bit: the exporter wrote one for both
            state[key] = state[key.replace("short.1", "norm2")]
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
    network.load_state_dict(state)
    return network.eval()


def macs(network: nn.Module) -> int:
    """Multiply-accumulates of its convolutions and linear layers for one sample."""
    counted: list[int] = []

    def count(layer: nn.Module, _: object, made: torch.Tensor) -> None:
        counted.append(made.numel() * layer.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        network(SAMPLE)
    for hook in hooks:
        hook.remove()
    return sum(counted)


def re_estimate(network: nn.Module, images: torch.Tensor) -> None:
    """Measure what BatchNormalization subtracts and divides by anew, on these images, layer after layer in one run."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all, and all are one batch
            layer.train()
    with torch.inference_mode():
        network(images)
    network.eval()


def export(network: nn.Module, path: Path) -> None:
    """As the files of tests/data were: opset 17, the batch free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the TorchScript exporter is old: it is the one that the files came out of
        torch.onnx.export(
            network,
            (SAMPLE,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )


def _resnet(blocks: int, widths: tuple[int, ...], first_stride: int) -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Block(inputs, width, 1 if block else 2 if stage else first_stride))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def _mobilenet() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()]
    inputs = 16
    for outputs, stride, count in ((24, 1, 2), (40, 2, 3), (64, 2, 2)):
        for block in range(count):
            layers.append(Inverted(inputs, outputs, 1 if block else stride))
            inputs = outputs
    layers += [nn.Conv2d(inputs, 256, 1, bias=False), nn.BatchNorm2d(256), nn.Hardswish()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 10))


_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8_mnist": lambda: _resnet(1, (16, 32, 64), 1),
    "resnet20_fashion": lambda: _resnet(3, (24, 48, 96), 2),
    "mobilenet_fashion": _mobilenet,
}
