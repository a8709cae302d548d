"""Which ONNX Runtime release reads which file.

needed(20, 9)               # "1.17.0"
newest("1.17.3")            # (20, 9)
"""

import re

# Release, newest opset, newest IR version that it reads. From onnxruntime.ai/docs/reference/compatibility.html
# ("ONNX opset support") and the messages "Unsupported model IR version: 10, max supported IR version: 9" (1.17.1,
# microsoft/onnxruntime#20559) and "… 11, max … 10" (1.20.1, #23602). The list begins where the agent does.
RUNTIMES = (("1.16.0", 19, 9), ("1.17.0", 20, 9), ("1.18.0", 21, 10), ("1.21.0", 22, 10), ("1.23.0", 23, 11))


def needed(opset: int, ir_version: int) -> str | None:
    """The oldest release, from 1.16.0 on, that reads such a file; None where that is not known here.

    >>> needed(17, 8), needed(17, 99)
    ('1.16.0', None)
    """
    return next((release for release, newest_opset, newest_ir_version in RUNTIMES if opset <= newest_opset and ir_version <= newest_ir_version), None)


def newest(version: str) -> tuple[int, int]:
    """The newest opset and IR version that a release reads; of a release newer than the list, the list's last.

    >>> newest("1.20.1")
    (21, 10)
    """
    _, opset, ir_version = [row for row in RUNTIMES if version_of(row[0]) <= version_of(version) or row is RUNTIMES[0]][-1]
    return opset, ir_version


def version_of(text: str) -> tuple[int, ...]:
    """A version's leading numbers, for comparison.

    >>> version_of("1.16.0+cu12") >= version_of("1.16")
    True
    """
    leading = re.match(r"[0-9]+(\.[0-9]+)*", text)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
