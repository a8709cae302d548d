"""Accuracy: per-sample scores, the two halves, the interval, the user's code."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk import accuracy
from edgesdk.accuracy import Judge, agree, judging_half, selection_half
from edgesdk.errors import EdgeSDKError, EvaluationError


def nothing(feeds: object) -> dict[str, np.ndarray]:
    return {}


def judge_of(source: str) -> Judge:
    return Judge.load(source, nothing, [], held_back_source="")


def python(folder: Path, body: str) -> str:
    (folder / "evaluation.py").write_text(body)
    return f"{folder / 'evaluation.py'}:evaluate"


@given(st.integers(2, 500))
def test_the_halves_are_disjoint_and_whole(count: int) -> None:
    scores = np.arange(count, dtype=float)
    first, second = selection_half(scores), judging_half(scores)
    assert sorted([*first, *second]) == list(scores)


def test_the_verdict_counts_only_the_judging_half(tmp_path: Path) -> None:
    judge = judge_of(python(tmp_path, "def evaluate(run): return [1.0]"))
    before = np.ones(300)
    after = before.copy()
    after[np.random.default_rng(0).permutation(300)[:150][:40]] = 0  # lost in the selection half only
    assert judge.compare(before, after, candidates=2).drop == 0
    lost = judge.selection(before, after)
    assert lost.drop == pytest.approx(40 / 150)
    assert lost.doubt == pytest.approx((lost.drop * (1 - lost.drop) / 149) ** 0.5)


def test_lost_and_gained_are_told_apart(tmp_path: Path) -> None:
    judge = judge_of(python(tmp_path, "def evaluate(run): return [1.0]"))
    before, after = np.array([1.0, 0.0] * 100), np.array([0.0, 1.0] * 100)
    verdict = judge.compare(before, after, candidates=1)
    assert verdict.lost + verdict.gained == verdict.samples == 100
    assert verdict.interval is not None
    assert verdict.interval[0] < verdict.drop < verdict.interval[1]


def test_no_loss_in_few_samples_is_no_proof_of_none(tmp_path: Path) -> None:
    judge = judge_of(python(tmp_path, "def evaluate(run): return [1.0]"))
    verdict = judge.compare(np.ones(20), np.ones(20), candidates=1)
    assert verdict.drop == 0
    assert verdict.interval is not None
    assert verdict.interval[1] > 0.1


@pytest.mark.parametrize("count", [2, 5, 10])
def test_an_interval_of_few_scores_holds_in_95_percent_of_cases(count: int) -> None:
    """With the normal distribution's 1.96, of five 0.87 held."""
    drawn = np.random.default_rng(count)
    found = [accuracy.drop_interval(drawn.normal(0.5, 0.1, count), drawn.normal(0.5, 0.1, count)) for _ in range(1000)]
    assert np.mean([one is not None and one[0] <= 0 <= one[1] for one in found]) > 0.93


def test_one_number_is_selected_and_judged_on_the_same_samples(tmp_path: Path) -> None:
    judge = judge_of(python(tmp_path, "def evaluate(run): return 0.9"))
    scores = judge.scores(nothing)
    verdict = judge.compare(scores, scores, candidates=3)
    assert verdict.interval is None
    assert "same samples" in verdict.source


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def evaluate(run): raise ValueError('my mistake')", "ValueError: my mistake"),
        ("def evaluate(run): return float('nan')", "not finite"),
        ("def evaluate(run): return [[1.0]]", r"shape \[1, 1\]"),
        ("def evaluate(run): return []", r"shape \[0\]"),
        ("def evaluate(run): return 'good'", "returned str"),
        ("def evaluate(run): run", "returned nothing"),
        ("def evaluate(run): return run([1.0])", "asked with list"),
        ("evaluate = 3", "no function"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def evaluate(run: return", "SyntaxError"),
    ],
)
def test_what_the_users_code_does_wrong_is_shown_as_the_users(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        judge_of(python(tmp_path, body)).scores(nothing)


def test_the_users_traceback_is_in_the_hint(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as failed:
        judge_of(python(tmp_path, "def evaluate(run):\n    return 1 / 0")).scores(nothing)
    assert "return 1 / 0" in failed.value.hint
    assert "users_code.py" not in failed.value.hint, "which is none of the user's business"


def test_what_the_users_code_prints_does_not_mix_with_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge_of(python(tmp_path, "def evaluate(run):\n    print('hello')\n    return 1.0")).scores(nothing)
    assert capsys.readouterr().out == ""


def test_modules_beside_the_users_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("SCORE = 0.5")
    source = python(tmp_path, "def evaluate(run):\n    import beside_it\n    return beside_it.SCORE")
    assert judge_of(source).scores(nothing) == [0.5]


@pytest.mark.parametrize(("source", "words"), [("nowhere.py:evaluate", "no file"), ("words", "names no function"), ("x.py:", "names no function")])
def test_what_names_no_evaluation_is_refused(source: str, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        judge_of(source)


def test_top_1_of_a_labelled_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", x=np.eye(3, dtype=np.float32), labels=np.array([0, 1, 1]))
    assert list(judge_of(str(tmp_path / "e.npz")).scores(lambda feeds: {"y": feeds["x"]})) == [1, 1, 0]
    assert list(judge_of(str(tmp_path / "e.npz")).scores(lambda feeds: {"label": np.array([1]), "y": feeds["x"]})) == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.eye(3), r"labels of shape \[3, 3\]"),
        (np.array([0.5, 1, 2]), "labels that are no classes, such as 0.5"),
        (np.array(["cat", "dog", "cow"]), "labels such as cat, and the model answers 0"),
    ],
)
def test_labels_that_no_answer_could_equal_are_refused(tmp_path: Path, labels: np.ndarray, told: str) -> None:
    np.savez(tmp_path / "e.npz", x=np.eye(3, dtype=np.float32), labels=labels)
    with pytest.raises(EvaluationError, match=told):
        judge_of(str(tmp_path / "e.npz")).scores(lambda feeds: {"y": feeds["x"]})


def test_labels_in_a_column_or_as_floats_are_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", x=np.eye(3, dtype=np.float32), labels=np.array([[0.0], [1.0], [1.0]]))
    assert judge_of(str(tmp_path / "e.npz")).scores(lambda feeds: {"y": feeds["x"]}).tolist() == [1, 1, 0]


def test_a_labelled_file_without_labels_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", x=np.eye(3))
    with pytest.raises(EvaluationError, match="no `labels`, it holds x"):
        judge_of(str(tmp_path / "e.npz"))


def test_agreement_is_by_class_where_outputs_are_probabilities() -> None:
    even, same_class, other = ({"y": np.array([row], np.float32)} for row in ([0.6, 0.4], [0.9, 0.1], [0.4, 0.6]))
    assert agree(even, same_class) == 1
    assert agree(even, other) == 0


def test_agreement_is_by_direction_elsewhere() -> None:
    vector = {"y": np.array([[3.0, -4.0]])}
    assert agree(vector, {"y": np.array([[3.1, -4.0]])}) == 1
    assert agree(vector, {"y": np.array([[4.0, -3.0]])}) == 0
    assert agree(vector, {"y": np.array([[np.nan, -4.0]])}) == 0
    assert agree({"n": np.array([1, 2])}, {"n": np.array([1, 3])}) == 0
    assert agree({"z": np.zeros(3)}, {"z": np.zeros(3)}) == 1


def test_leaving_early_is_the_users_mistake_too(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="SystemExit"):
        judge_of(python(tmp_path, "import sys\ndef evaluate(run): sys.exit(0)")).scores(nothing)


def test_two_samples_are_selected_and_judged_apart(tmp_path: Path) -> None:
    judge = judge_of(python(tmp_path, "def evaluate(run): return [1.0, 1.0]"))
    assert "same samples" not in judge.compare(np.ones(2), np.ones(2), candidates=1).source


@pytest.mark.parametrize("damage", ["truncated", "rank 0"])
def test_a_damaged_labelled_file_is_a_sentence(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "e.npz"
    np.savez_compressed(file, x=np.float32(1) if damage == "rank 0" else np.zeros((100, 10)), labels=np.zeros(100))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EdgeSDKError):
        judge_of(str(file))


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_answers_that_are_no_numbers_agree_with_themselves_only(odd: float) -> None:
    answer = np.array([[1.0, 2.0, odd, 4.0]], np.float32)
    assert agree({"y": answer}, {"y": answer.copy()}) == 1
    assert agree({"y": answer}, {"y": np.nan_to_num(answer)}) == 0
    assert agree({"y": answer}, {"y": answer * np.array([1, -1, 1, 1], np.float32)}) == 0
