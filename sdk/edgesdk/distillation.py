"""A pruned model, trained to answer as the original does on samples that nobody labelled.

    taught = distil(original, pruned, samples)      # the same operators, names and shapes as the pruned, other numbers

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", in the form that Kim et al. 2021, "Comparing
Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation", found better: the squared error of what stands
before a final softmax. Images are moved a little each time, for both models alike (Beyer et al. 2022, "Knowledge distillation: A good
teacher is patient and consistent"). Needs the extra `torch`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from typing import Any

import numpy as np
import onnx_ir
from numpy.random import Generator

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Feeds, Model
from edgesdk.progress import Progress, silent
from edgesdk.sampling import Samples, joined, shapes_of
from edgesdk.torch_twin import Twin, written

HELD_BYTES = 1 << 30  # of samples; later ones are let go beyond it
HELD_BACK = 1 / 8  # of the samples, to see by whether training helps
BATCH, PART = 64, 16  # rows to a step, and to a piece of it: cores share the pieces
RATE = 2e-2  # of Adam, at its highest, as a share of what the weights of a tensor measure: folding and equalizing leave them at any size
SHIFT = 1 / 28  # of an image's height and width: as far as it is moved at most, each time anew
STEEPEST = 0.1  # length of the gradient that a step follows: a single hard batch does not throw the training back
WARM_UP = 0.05  # share of the training in which the rate rises
LOOKS = 20  # at what is held back, spread over the training
_LAST = ("Softmax", "LogSoftmax", "ArgMax", "Identity", "Cast")  # at the end of a model; what it answers is compared before them

Run = Callable[[Feeds], list[Array]]


def distil(
    original: Model,
    pruned: Model,
    samples: Samples,
    *,
    seconds: float = 240.0,
    epochs: int | None = None,
    keep_zeros: bool = False,
    progress: Progress = silent,
) -> Model:
    """The pruned model after so much training; the very same where that brought it no closer to the original on samples held back.

    ``epochs``, where given, end it instead of ``seconds``: the same models and samples then give the same numbers on the same processor.
    ``keep_zeros``: weights that are 0 stay 0. Raises ModelError without PyTorch and for what onnx2torch does not know, SampleError for samples that do not fit.
    """
    began = time.monotonic()
    ours, theirs = _compared(original, pruned)
    twin = Twin(pruned, theirs)
    teacher, student = _running(original, ours), _running(pruned, theirs)
    shown, held_back = (_held(part) for part in samples.split(held_back=HELD_BACK))
    training = _Training(tuple(shown), rows=_rows(teacher, shown))
    with _pool() as each:
        judge = _Judge.of(teacher, list(training.pieces(held_back or shown)), each)
        judge.check(student, twin)

        def done(steps: int) -> float:
            return (time.monotonic() - began) / seconds if epochs is None else steps / (epochs * training.steps)

        numbers = _trained(twin, teacher, judge, training, done, keep_zeros=keep_zeros, progress=progress)
        taught = written(pruned, numbers)
        return taught if judge.distance(_running(taught, theirs)) < judge.distance(student) else pruned


def _compared(original: Model, pruned: Model) -> tuple[list[str], list[str]]:
    """The tensors whose difference is made small, in either model: the outputs, or what stands before a final softmax. Raises ModelError."""
    known, other = graph.clone(original), graph.clone(pruned)
    graph.infer_shapes(known)
    pairs = {}
    for ours, theirs in zip(known.graph.outputs, other.graph.outputs, strict=True):
        while (one := ours.producer()) and (two := theirs.producer()) and one.op_type == two.op_type and one.op_type in _LAST:
            assert one.inputs[0] is not None and two.inputs[0] is not None
            ours, theirs = one.inputs[0], two.inputs[0]
        if ours.dtype == onnx_ir.DataType.FLOAT and ours.producer() and theirs.producer():
            pairs[ours.name or ""] = theirs.name or ""
    if not pairs:
        raise ModelError("the model has no answers in float32 that could be learned", "leave distilling out")
    return list(pairs), list(pairs.values())


def _running(model: Model, names: Sequence[str]) -> Run:
    """onnxruntime's answers in these tensors, for as many samples at once as the graph bears: no input's first length is fixed."""
    asked = graph.answering(model, names)
    for value in asked.graph.inputs:
        if value.shape:
            value.shape = onnx_ir.Shape([None, *value.shape[1:]])
    session = graph.session(asked)
    return lambda feeds: list(graph.run(session, feeds).values())


def _held(samples: Samples) -> list[Feeds]:
    """As many as there is room for."""
    held: list[Feeds] = []
    size = 0
    for feeds in samples:
        size += sum(array.nbytes for array in feeds.values())
        if held and size > HELD_BYTES:
            break
        held.append(feeds)
    return held


def _rows(run: Run, feeds: Sequence[Feeds]) -> int | None:
    """How many samples a feed holds along its first axis; None where feeds side by side are not answered as each is alone."""
    other = next((each for each in feeds[1:] if shapes_of(each) == shapes_of(feeds[0])), None)
    if other is None:
        return None
    try:
        both = run(joined([feeds[0], other]))
        alone = [np.concatenate(parts) for parts in zip(run(feeds[0]), run(other), strict=True)]
    except (ModelError, ValueError):
        return None
    alike = all(
        one.shape == two.shape and np.allclose(one, two, rtol=1e-3, atol=1e-3 * np.abs(two).max(initial=0)) for one, two in zip(both, alone, strict=True)
    )
    return len(next(iter(other.values()))) if alike else None


@dataclass(frozen=True)
class _Training:
    """What is shown, and in what portions: steps of some feeds, in pieces that one core each takes."""

    feeds: tuple[Feeds, ...]
    rows: int | None

    @property
    def size(self) -> int:
        """Feeds to a step."""
        return max(1, BATCH // (self.rows or 1))

    @property
    def steps(self) -> int:
        """Until each was shown once."""
        return math.ceil(len(self.feeds) / self.size)

    def batches(self, random: Generator) -> Iterator[list[Feeds]]:
        """Without end, each time around in another order."""
        while True:
            order = random.permutation(len(self.feeds))
            for step in range(self.steps):
                yield [self.feeds[i] for i in order[step * self.size : (step + 1) * self.size]]

    def pieces(self, feeds: Sequence[Feeds]) -> Iterator["_Piece"]:
        """Of equal shapes, and of one feed only where more cannot be run at once."""
        size = max(1, PART // self.rows) if self.rows else 1
        for _, alike in groupby(sorted(feeds, key=shapes_of), shapes_of):
            group = list(alike)
            for begin in range(0, len(group), size):
                part = group[begin : begin + size]
                yield _Piece(joined(part), len(part) / len(feeds))


@dataclass(frozen=True)
class _Piece:
    feeds: Feeds
    weight: float  # share of the feeds that it was cut from


@dataclass(frozen=True)
class _Judge:
    """How far answers are from the original's: the squared error, as a share of what its answers vary by, over all answers."""

    pieces: Sequence[_Piece]  # of the samples held back
    wanted: Sequence[list[Array]]
    scales: Sequence[float]
    each: Callable[..., Iterator[Any]]

    @classmethod
    def of(cls, teacher: Run, pieces: Sequence[_Piece], each: Callable[..., Iterator[Any]]) -> "_Judge":
        wanted = list(each(lambda piece: teacher(piece.feeds), pieces))
        answers = [np.concatenate([array.ravel() for array in arrays]).astype(np.float64) for arrays in zip(*wanted, strict=True)]
        return cls(pieces, wanted, [1 / float(np.var(array) or np.square(array).mean() or 1.0) for array in answers], each)

    def distance(self, run: Run) -> float:
        return float(sum(self.each(partial(self._part, run), self.pieces, self.wanted)))

    def check(self, student: Run, twin: Twin) -> None:
        """Raises ModelError if torch does not compute what onnxruntime does."""
        first = self.pieces[0].feeds
        for one, two, scale in zip(student(first), twin.answered(first), self.scales, strict=True):
            if one.shape != two.shape or not np.allclose(one, two, rtol=1e-3, atol=1e-3 / math.sqrt(scale)):
                raise ModelError("the torch module that onnx2torch makes of the model answers otherwise", "leave distilling out")

    def _part(self, run: Run, piece: _Piece, wanted: list[Array]) -> float:
        errors = [scale * float(np.square(one - two).mean()) for one, two, scale in zip(run(piece.feeds), wanted, self.scales, strict=True)]
        return piece.weight * sum(errors)


def _trained(
    twin: Twin, teacher: Run, judge: _Judge, training: _Training, done: Callable[[int], float], *, keep_zeros: bool, progress: Progress
) -> dict[str, Array]:
    """The numbers with which the twin came closest to the original on what is held back."""
    import torch

    numbers = list(twin.numbers.values())
    free = [number.detach() != 0 if keep_zeros else None for number in numbers]
    sizes = [max(float(number.detach().square().mean().sqrt()), 1e-2) for number in numbers]  # a bias may begin as 0
    optimizer = torch.optim.Adam([{"params": [number]} for number in numbers])

    def gradients(piece: _Piece, seed: tuple[int, int]) -> Any:
        """Apart from other pieces', so that their sum does not depend on which was first."""
        feeds = _moved(piece.feeds, np.random.default_rng(seed))
        loss = sum(
            scale * (answer - torch.from_numpy(wanted)).square().mean() for answer, wanted, scale in zip(twin(feeds), teacher(feeds), judge.scales, strict=True)
        )
        return twin.gradients(piece.weight * loss)

    best, closest = twin.arrays(), judge.distance(twin.answered)
    looks = 0
    for steps, batch in enumerate(training.batches(np.random.default_rng(0))):
        share = min(done(steps), 1.0)
        progress("distil", round(100 * share), 100)
        if share * LOOKS >= looks + 1:
            looks = int(share * LOOKS)
            if (distance := judge.distance(twin.answered)) < closest:
                best, closest = twin.arrays(), distance
        if share == 1.0:
            return best
        rate = RATE * min((share + 1e-3) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * share))
        for group, size in zip(optimizer.param_groups, sizes, strict=True):
            group["lr"] = rate * size
        found = judge.each(gradients, training.pieces(batch), ((steps, place) for place in count()))
        for number, mask, parts in zip(numbers, free, zip(*found, strict=True), strict=True):
            number.grad = sum(parts) if mask is None else sum(parts) * mask
        torch.nn.utils.clip_grad_norm_(numbers, STEEPEST)
        optimizer.step()
    raise AssertionError("batches do not end")


def _moved(feeds: Feeds, random: Generator) -> Feeds:
    """Each image moved a little, its edge repeated: some hundred samples, seen the same each time, would be learned by heart."""
    return {name: np.stack([_shifted(image, random) for image in array]) if _images(array) else array for name, array in feeds.items()}


def _images(array: Array) -> bool:
    """Grey, in colour or with transparency; channels first or last."""
    return array.ndim == 4 and array.dtype == np.float32 and bool({array.shape[1], array.shape[3]} & {1, 3, 4})


def _shifted(image: Array, random: Generator) -> Array:
    """Along its two axes that are not channels."""
    axes = (1, 2) if image.shape[0] in (1, 3, 4) else (0, 1)
    for axis in axes:
        most = round(image.shape[axis] * SHIFT)
        places = np.arange(image.shape[axis]) + random.integers(-most, most, endpoint=True)
        image = image.take(places.clip(0, image.shape[axis] - 1), axis)
    return image


@contextmanager
def _pool() -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` over this machine's cores, one thread of torch's own in each: its threads wait for one another busily, which costs more than they bring."""
    import torch

    before = cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)
