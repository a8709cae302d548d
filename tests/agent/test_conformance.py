"""A running agent is held to our OpenAPI document, and to any other that OPEN_INFERENCE_OPENAPI names: KServe's own, say,
specification/protocol/open_inference_rest.yaml of github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from toys import Agent, everything_feeds

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]  # of what schemathesis is made of

OURS = Path(__file__).parents[2] / "docs" / "openapi.yaml"
DOCUMENTS = [OURS, *map(Path, filter(None, [os.environ.get("OPEN_INFERENCE_OPENAPI")]))]
EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "12"))  # of each operation on a model, valid and invalid ones each; a third of the others

MODELS = ["linear", "everything"]
X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}
DATATYPES = {"bool": "BOOL", "string": "BYTES", "float16": "FP16", "float32": "FP32", "float64": "FP64"}
GOOD = [
    {"inputs": [X]},
    {"id": "7", "inputs": [{**X, "data": [[0.5, 1, -2, 3e5]]}], "outputs": [{"name": "y"}]},
    {
        "inputs": [
            {"name": name, "datatype": DATATYPES.get(name[3:], name[3:].upper()), "shape": [2], "data": array.tolist()}
            for name, array in everything_feeds().items()
        ]
    },
]
BINARY = {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}  # KServe's document knows JSON alone


@pytest.fixture(scope="module")
def reachable(shared: Agent) -> Iterator[tuple[str, dict[str, str]]]:
    """The agent's address, and the header that it wants."""
    reply = shared.ask("POST", "/edge/tcp", {"port": 0})
    yield reply["url"], {"Authorization": f"Bearer {Path(reply['token_file']).read_text().strip()}"}
    shared.ask("POST", "/edge/tcp", {"port": None})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_answer_violates_the_document(reachable: tuple[str, dict[str, str]], path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    import yaml
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    url, headers = reachable
    document = for_these_models(yaml.safe_load(path.read_text()), [*GOOD, BINARY] if path == OURS else GOOD)
    schema = schemathesis.openapi.from_dict(document)
    wanted = [checks.response_schema_conformance, checks.content_type_conformance]
    if path == OURS:
        wanted += [checks.status_code_conformance, checks.response_headers_conformance]
    calls = real = answered = 0

    def judge(case: Any) -> None:
        nonlocal calls, real, answered
        response = case.call(base_url=url, headers=headers)
        calls += 1
        named = (case.path_parameters or {}).get("MODEL_NAME")
        real += named in MODELS
        answered += response.status_code == 200 and case.method == "POST"
        if response.status_code in (401, 403, 413, 429):
            return
        if response.status_code == 503:
            assert response.headers["retry-after"]
            return
        case.validate_response(response, checks=[not_a_server_error, *wanted])

    for operation in schema.get_all_operations():
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            run(operation.ok(), mode, judge)
    share = real / calls
    sys.stdout.write(f"\n{path.name}: {calls} calls, {share:.0%} of them name a real model, {answered} inferences answered\n")
    assert share >= 0.3
    assert answered > 0


def run(operation: Any, mode: Any, judge: Any) -> None:
    from schemathesis.core.errors import InvalidSchema

    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except InvalidSchema as error:
        pytest.fail(str(error))
    examples = EXAMPLES if "MODEL_NAME" in operation.path else max(1, EXAMPLES // 3)
    examples *= 3 if mode.is_positive else 1  # the valid ones name the models that are there
    phases = [Phase.explicit, Phase.generate]

    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=phases)
    @given(strategy)
    def ask(case: Any) -> None:
        judge(case)

    with contextlib.suppress(Unsatisfiable):  # an operation that takes nothing has nothing invalid
        ask()


def for_these_models(document: Any, good: list[Any]) -> Any:
    """The same, with the names of models that are there among those allowed, and requests that they can answer among the others."""
    document = copy.deepcopy(document)
    document["paths"] = {path.replace("${", "{"): item for path, item in document["paths"].items()}  # the official one writes ${MODEL_NAME}
    parameters = [*document["components"].get("parameters", {}).values(), *(p for item in document["paths"].values() for p in item.get("parameters", []))]
    for parameter in parameters:
        if parameter.get("name") == "MODEL_NAME":
            parameter["schema"] = {"type": "string", "enum": [*MODELS, "nothing"]}
        elif parameter.get("name") == "MODEL_VERSION":
            parameter["schema"] = {"type": "string", "enum": ["1", "latest"]}
    for path, item in document["paths"].items():
        if path.endswith("/infer"):
            content = item["post"]["requestBody"]["content"]["application/json"]
            content["schema"] = {"anyOf": [{"type": "object", "enum": good}, content["schema"]]}
    return document
