"""Documents that a report is made of, as the verbs write them.

write(folder)                                   # bundles, results, comparisons, an inspection: every section has data
write(folder, hostile=True)                     # the same by somebody who means no good
"""

import json
import math
import random
from pathlib import Path
from typing import Any

from edge_agent.latency import Histogram

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=document.title='owned'>",
    "\u2028\x1b[2J\u202egnp.exe",
    '"></svg><svg onload=document.title="owned">',
    "<!--<script>",
    "javascript:document.title='owned'",
)


def histogram(median_ms: float, *, seed: int = 0, count: int = 3000) -> Histogram:
    """Most near the median, one in thirty late."""
    drawn, made = random.Random(seed), Histogram()
    for _ in range(count):
        ms = median_ms * math.exp(drawn.gauss(0, 0.05)) * (1 + drawn.expovariate(0.5) if drawn.random() < 0.03 else 1)
        made.record(int(ms * 1e6))
    return made


def result(
    name: str, host: str | None, median_ms: float, *, seed: int = 0, kind: str = "bench", started: str = "2026-03-01T08:00:00+00:00", **more: Any
) -> dict[str, Any]:
    """Of `bench`."""
    made = histogram(median_ms, seed=seed)
    told, throughput = made.percentiles(), 1e3 / median_ms
    condition = {"governor": "performance", "mhz": 2400.0, "temperature_c": 61.0, "throttled": [], "load": 0.1}
    restart = {
        "p50_ms": told.p50,
        "p90_ms": told.p90,
        "p99_ms": told.p99,
        "throughput": throughput,
        "runs": made.count,
        "warmup_runs": 20,
        "warmup_s": 0.4,
        "steady": True,
        "load_ms": 40.0,
        "first_answer_ms": 12.0,
        "peak_bytes": 9 << 20,
        "disturbed": [],
        "histogram": made.to_dict(),
        "state": {"before": condition, "after": condition},
    }
    return {
        "schema": 1,
        "kind": kind,
        "name": name,
        "digest": f"sha256:{seed:064x}",
        "release": 2,
        "host": host,
        "device": host or "a PC",
        "cpu": "some CPU",
        "provider": "CPUExecutionProvider",
        "nodes": "all nodes on CPU",
        "threads": 4,
        "onnxruntime": "1.24.0",
        "settings": {},
        "scenario": "single-stream",
        "target_qps": None,
        "inputs": {"source": "golden", "count": 4, "digest": "sha256:00"},
        "via": "agent",
        "started": started,
        "seconds": 30.0,
        "stopped": "narrow enough",
        "disturbed": [],
        "latency_ms": {**told.to_dict(), "mean": median_ms, "std": 0.1},
        "interval_ms": {},
        "throughput": throughput,
        "throughput_interval": None,
        "load_ms": 40.0,
        "first_answer_ms": 12.0,
        "peak_bytes": 9 << 20,
        "energy_j": None,
        "energy_unknown": "no sensor",
        "histogram": made.to_dict(),
        "restarts": [restart],
        "phases_ms": {"queue": 0.02 * median_ms, "input": 0.05 * median_ms, "run": 0.9 * median_ms, "output": 0.03 * median_ms},
        **more,
    }


def sustained(name: str, host: str, median_ms: float) -> dict[str, Any]:
    """Half of the rate from 300 s on, and p99 five times as long."""
    curve = [
        {
            "t_s": float(at),
            "seconds": 10.0,
            "runs": 500,
            "p50_ms": median_ms,
            "p99_ms": median_ms * (1.5 if at < 300 else 7.5),
            "throughput": (100.0 if at < 300 else 50.0) + at % 3,
            "mhz": 2400.0,
            "temperature_c": 85 - 30 * math.exp(-at / 100),
        }
        for at in range(0, 600, 10)
    ]
    levels = [
        {"from_s": a, "to_s": b, "p50_ms": median_ms, "p99_ms": c, "throughput": d} for a, b, c, d in ((0.0, 300.0, 9.0, 101.0), (300.0, 600.0, 45.0, 51.0))
    ]
    return result(name, host, median_ms, kind="sustained", started="2026-03-09T08:00:00+00:00", curve=curve, throttled_at_s=302.0, levels=levels)


def packaged(name: str, *, after_ms: float = 4.6) -> dict[str, Any]:
    """Of `package --json`."""
    tried = (
        ("int8", 4.1, 0.031, "loses 0.031"),
        ("int8, 22 of 31 parts", after_ms, 0.004, "taken"),
        ("int8, 9 of 31 parts", 6.1, 0.0012, ""),
        ("float32", 8.2, 0.0, ""),
    )
    speed = {"before_ms": 8.2, "runs": 100, "warmup": 5, "low": 1.0, "high": 2.1}
    candidates = [
        {"label": label, "scheme": "int8", "speed": {**speed, "after_ms": ms, "speedup": 8.2 / ms}, "error": 0.001, "selection_drop": drop, "note": note}
        for label, ms, drop, note in tried
    ]
    return {
        "bundle": f"bundles/{name}",
        "digest": "sha256:" + "cd" * 32,
        "name": name,
        "release": 3,
        "profile": "raspberry-pi-5",
        "violations": [],
        "signer": None,
        "recipe": [{"pass": "fold_constants", "settings": {}}, {"pass": "quantize", "settings": {"scheme": "int8", "exclude": ["/head/conv"]}}],
        "size_bytes": {"before": 10857958, "after": 3012001},
        "peak_rss_bytes": 10**9,
        "seconds": 412.0,
        "notes": ["int8 of all parts missed the budget"],
        "accuracy": {
            "metric": "top-1",
            "before": 0.912,
            "after": 0.909,
            "drop": 0.003,
            "samples": 4000,
            "lost": 31,
            "gained": 19,
            "interval": [-0.0005, 0.0062],
            "candidates": 4,
            "source": "evaluation.npz",
        },
        "latency_ms": {
            "before": 9.0,
            "after": after_ms,
            "speedup": 9.0 / after_ms,
            "interval": [1.9, 2.0],
            "runs": 200,
            "warmup": 5,
            "device": "Raspberry Pi 5",
            "threads": 4,
            "provider": "CPUExecutionProvider",
        },
        "candidates": [*candidates, {"label": "float16", "scheme": "float16", "speed": None, "error": None, "selection_drop": None, "note": ""}],
    }


def compared(before: str, after: str, verdict: str, speedup: float, low: float, high: float) -> dict[str, Any]:
    """Of `compare --json`."""
    return {
        "before": before,
        "after": after,
        "verdict": verdict,
        "speedup": speedup,
        "low": low,
        "high": high,
        "before_ms": 6.2,
        "after_ms": 6.2 / speedup,
        "restarts": 7,
        "pairs": 4000,
        "stopped": "decided",
        "device": "Raspberry Pi 5",
        "host": "pi",
        "seconds": 20.0,
        "schema": 1,
    }


def inspected(model: str) -> dict[str, Any]:
    """Of `inspect --profile-ops --json`."""
    return {
        "model": model,
        "summary": {"parameters": 5000, "weight_bytes": 20000, "opset": 17},
        "macs": 3000,
        "profile": "kria-kv260",
        "violations": [],
        "memory": {"peak_bytes": 900, "node": "/2/Conv", "tensors": [{"tensor": "a", "node": "/1/Conv", "bytes": 500}], "by_node": [100, 500, 900, 300, 50]},
        "operators": [{"name": "Conv", "count": 3, "macs": 2900}, {"name": "Gemm", "count": 1, "macs": 100}],
        "kernels": [{"node": "/2/Conv", "operator": "Conv", "ms": 0.3, "share": 0.6}, {"node": "", "operator": "ReorderOutput", "ms": 0.2, "share": 0.4}],
        "cut": {"nodes": 3, "of": 5, "macs_share": 0.6, "parts": 2, "fell": ["/3/Erf", "/4/Erf"]},
    }


def tuned(name: str) -> dict[str, Any]:
    """Of `tune --json`."""
    tried = [
        {"settings": {"intra_op_threads": n}, "restarts": 4, "speedup": s, "default_ms": 6.0, "ms": 5.0, "note": "dropped"}
        for n, s in ((1, 0.6), (2, 1.12), (3, None))
    ]
    return {
        "schema": 1,
        "kind": "tune",
        "name": name,
        "host": "pi",
        "device": "Raspberry Pi 5",
        "profile": "raspberry-pi-5",
        "settings": {"intra_op_threads": 2},
        "candidate": {"intra_op_threads": 2},
        "verdict": "faster",
        "speedup": 1.1,
        "low": 1.05,
        "high": 1.15,
        "before_ms": 6.0,
        "after_ms": 5.5,
        "restarts": 7,
        "stopped": "decided",
        "tried": tried,
        "batches": [{"rows": 2, "verdict": "slower", "speedup": 0.8, "low": 0.78, "high": 0.82, "halves_ms": 11.0, "ms": 10.4, "restarts": 5}],
    }


def evaluated(name: str) -> dict[str, Any]:
    """Of `evaluate --json`."""
    against = {"name": "model.onnx", "score": 0.92, "drop": 0.01, "interval": [0.0, 0.02], "lost": 12, "gained": 2}
    return {
        "schema": 1,
        "kind": "evaluate",
        "name": name,
        "release": 2,
        "metric": "top-1",
        "source": "evaluation.npz",
        "score": 0.91,
        "interval": [0.9, 0.92],
        "samples": 1000,
        "asked": 1000,
        "against": against,
        "host": "pi",
        "device": "Raspberry Pi 5",
        "provider": "CPUExecutionProvider",
        "nodes": "all nodes on CPU",
        "started": "2026-03-01T08:00:00+00:00",
        "seconds": 20.0,
    }


def write(folder: Path, *, hostile: bool = False) -> list[Path]:
    """Something for every section; the files."""
    bad = list(HOSTILE) if hostile else ["ocr", "pi-1", "hall-2/camera", "old.onnx", "new.onnx", "model.onnx"]
    model, host, other, before, after, inspection = bad
    documents = [
        *(result(model, host, 6 - n, seed=n, started=f"2026-03-0{n + 1}T08:00:00+00:00") for n in range(3)),
        result(model, other, 3.0, seed=5, nodes=f"409 of 412 nodes on {'<b>CPU</b>' if hostile else 'CPU'}, 3 of 412 nodes on TensorRT"),
        sustained(model, host, 6.0),
        packaged(model),
        packaged(f"{model} small", after_ms=3.0),
        compared(before, after, "faster", 1.2, 1.1, 1.3),
        compared(before, after, "slower", 0.9, 0.85, 0.95),
        compared(after, after, bad[0] if hostile else "no difference seen", 1.0, 0.98, 1.02),
        inspected(inspection),
        tuned(model),
        evaluated(model),
        {**evaluated(other), "interval": None, "against": None},
    ]
    paths = [folder / f"{place}.json" for place in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(json.dumps(document))
    return paths
