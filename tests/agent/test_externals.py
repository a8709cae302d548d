from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from toys import counter, everything, linear

from edge_agent.bundle import BundleError
from edge_agent.externals import check


def outside(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def holding(tensor: TensorProto, where: str) -> bytes:
    """A model with that tensor as an initializer, a constant, within a branch, or within a function."""
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    info = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    branch = helper.make_graph([constant], "branch", [], [info])
    nodes = {
        "initializer": [],
        "constant": [constant],
        "branch": [helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)],
        "function": [],
    }
    graph = helper.make_graph(nodes[where], "toy", [], [info], [tensor] if where == "initializer" else [])
    opsets = [helper.make_opsetid("", 17)]
    functions = [helper.make_function("local", "f", [], ["w"], [constant], opsets)] if where == "function" else []
    return helper.make_model(graph, opset_imports=opsets, functions=functions).SerializeToString()


@pytest.mark.parametrize("model", [linear(), everything(), counter()])
def test_honest_models_pass(model: bytes) -> None:
    check(model)


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "function"])
def test_weights_beside_the_model_pass_and_all_others_do_not(where: str) -> None:
    check(holding(outside("weights.bin"), where))
    for location in ("../../../etc/shadow", "/etc/shadow", "sub/weights.bin", "./weights.bin", "golden.npz", ""):
        with pytest.raises(BundleError, match=r"wants its weights from|no ONNX"):
            check(holding(outside(location), where))


def test_graphs_in_graphs_without_end_are_refused() -> None:
    message = b""
    for field in [6, 5, 1] * 40:  # an attribute's graph, a node's attribute, a graph's node: written by hand, since protobuf itself refuses to
        message = bytes([field << 3 | 2]) + length(len(message)) + message
    with pytest.raises(BundleError, match="nests graphs"):
        check(b"\x3a" + length(len(message)) + message)


def length(size: int) -> bytes:
    return bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])


@given(st.binary(max_size=200))
def test_noise_gives_nothing_but_a_bundle_error(noise: bytes) -> None:
    for data in (noise, b"\x3a" + bytes([len(noise) & 127]) + noise):
        try:
            check(data)
        except BundleError as error:
            assert error.hint


@given(st.data())
def test_a_cut_model_gives_nothing_but_a_bundle_error(data: st.DataObject) -> None:
    model = counter()
    try:
        check(model[: data.draw(st.integers(0, len(model)))])
    except BundleError as error:
        assert error.hint


def test_a_tag_of_more_than_32_bits_hides_nothing() -> None:
    """A reader that drops the upper bits would see the graph in it, and we would have passed it over."""
    plain = holding(outside("../secret.bin"), "initializer")
    assert b"\x3a" in plain
    start = plain.index(b"\x3a")
    with pytest.raises(BundleError):
        check(plain[:start] + b"\xba\x80\x80\x80\x10" + plain[start + 1 :])
