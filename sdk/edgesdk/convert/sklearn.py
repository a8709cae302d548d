"""scikit-learn → ONNX, by skl2onnx: classifiers, regressors, and pipelines that end in one.

The file takes `input`, float32 [n, features], and answers under skl2onnx's names: `label` and `probabilities`, or `variable`.
A classifier without probabilities answers with its decision values there, one column a class.
"""

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk.convert.exported import Exported, Request, first_line, needs
from edgesdk.errors import ConversionError

if TYPE_CHECKING:
    from edgesdk.graph import Array, Feeds

INPUT = "input"
ML_OPSET = 3  # of the domain ai.onnx.ml: the newest that ONNX Runtime 1.16 reads


def export(request: Request) -> Exported:
    """Load the estimator and write it as ONNX. Raises ConversionError."""
    with needs("sklearn", "scikit-learn"):
        import skl2onnx  # noqa: F401  # asked for first, so that nothing is loaded in vain
        import sklearn
    estimator = _estimator(_load(request), request.source)
    last = _last_step(estimator)
    ask = _asking(estimator, request.source)
    proto = _to_onnx(estimator, last, request, _options(last))
    names = [output.name for output in proto.graph.output]
    return Exported(
        framework=f"scikit-learn {sklearn.__version__}",
        model=type(last).__name__,
        onnx=proto.SerializeToString(deterministic=True),
        run=lambda feeds: dict(zip(names, ask(feeds), strict=True)),
    )


def _load(request: Request) -> Any:
    """What the file holds. Raises ConversionError: the libraries raise whatever the file makes them raise."""
    path = Path(request.source)
    load = LOADERS[path.suffix.lower()]
    try:
        return load(path, request)
    except ConversionError:
        raise
    except ModuleNotFoundError as error:
        raise ConversionError(f"`{path}` needs the module `{error.name}`, which is not installed here", "install what the model was trained with") from error
    except Exception as error:
        raise ConversionError(f"`{path}` cannot be loaded: {first_line(error)}", "save it again, with the scikit-learn that is installed here") from error


def _load_skops(path: Path, request: Request) -> Any:
    with needs("sklearn", "a skops file"):
        import skops.io
    strange = skops.io.get_untrusted_types(file=path)
    if strange and not request.trust:
        raise ConversionError(f"`{path}` holds types that skops does not vouch for: {', '.join(strange)}", "give --trust if you know them")
    return skops.io.load(path, trusted=strange)


def _load_pickle(path: Path, request: Request) -> Any:  # noqa: ARG001  # one signature for all loaders
    with path.open("rb") as stream:
        return pickle.load(stream)  # noqa: S301  # the user said --trust


def _load_joblib(path: Path, request: Request) -> Any:  # noqa: ARG001
    import joblib

    return joblib.load(path)


LOADERS: dict[str, Callable[[Path, Request], Any]] = {".skops": _load_skops, ".pkl": _load_pickle, ".pickle": _load_pickle, ".joblib": _load_joblib}


def _estimator(loaded: Any, source: str) -> Any:
    """A fitted one with numbers for input; of a search the best. Raises ConversionError."""
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    estimator = getattr(loaded, "best_estimator_", loaded)
    if not isinstance(estimator, BaseEstimator):
        raise ConversionError(f"`{source}` holds a {type(estimator).__name__}, not a scikit-learn model", "save the fitted model itself")
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ConversionError(f"the {type(estimator).__name__} in `{source}` is not fitted", "save it after `fit`") from error
    if not hasattr(estimator, "n_features_in_"):
        raise ConversionError(f"the {type(estimator).__name__} in `{source}` does not take rows of numbers", "convert the part behind the text processing")
    return estimator


def _last_step(estimator: Any) -> Any:
    return _last_step(estimator.steps[-1][1]) if hasattr(estimator, "steps") else estimator


def _asking(estimator: Any, source: str) -> "Callable[[Feeds], list[Array]]":
    """The source's own answers, in the order of the file's outputs. Raises ConversionError for a kind that is not supported."""
    from sklearn.base import is_classifier, is_regressor

    name = type(_last_step(estimator)).__name__
    if is_regressor(estimator):
        answers: list[Callable[[Array], Array]] = [lambda rows: _columns(estimator.predict(rows))]
    elif not is_classifier(estimator):
        raise ConversionError(f"`{source}` ends in a {name}, which is neither a classifier nor a regressor", "convert one that ends in one of these")
    elif isinstance(estimator.classes_, list):
        raise ConversionError(f"the {name} in `{source}` answers several questions at once", "fit one classifier for each")
    elif hasattr(estimator, "predict_proba"):
        answers = [estimator.predict, estimator.predict_proba]
    elif hasattr(estimator, "decision_function"):
        answers = [estimator.predict, lambda rows: _one_column_a_class(estimator.decision_function(rows))]
    else:
        raise ConversionError(f"the {name} in `{source}` gives labels without scores", "wrap it in `CalibratedClassifierCV`")

    def ask(feeds: "Feeds") -> "list[Array]":
        rows = feeds[INPUT].astype("float64")  # as its user calls it
        with _quiet():
            return [answer(rows) for answer in answers]

    return ask


def _columns(values: "Array") -> "Array":
    return values.reshape(len(values), -1)


def _one_column_a_class(values: "Array") -> "Array":
    """Of two classes scikit-learn gives one number: how much speaks for the second."""
    import numpy as np

    return np.stack([-values, values], axis=1) if values.ndim == 1 else values


def _to_onnx(estimator: Any, last: Any, request: Request, attempts: "tuple[dict[str, bool], ...]") -> Any:
    """Raises ConversionError: skl2onnx has no base class for its own errors."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    options, *others = attempts
    rows = [(INPUT, FloatTensorType([None, estimator.n_features_in_]))]
    try:
        with _quiet():
            return convert_sklearn(
                estimator,
                name=type(last).__name__,  # else a random number, and the same model gives another file
                initial_types=rows,
                target_opset={"": request.opset, "ai.onnx.ml": ML_OPSET},
                options={id(last): options},
            )
    except Exception as error:
        if others and isinstance(error, NameError):  # skl2onnx: this model has no such option
            return _to_onnx(estimator, last, request, tuple(others))
        named = hasattr(estimator, "feature_names_in_")  # steps that pick columns by name find none in rows of numbers
        raise ConversionError(
            f"skl2onnx cannot convert the {type(last).__name__} in `{request.source}`: {first_line(error)}",
            "fit it on arrays, with columns chosen by number" if named else "take a model that skl2onnx supports, or another --opset",
        ) from error


def _options(last: Any) -> tuple[dict[str, bool], ...]:
    """To be tried in turn. No list of dicts for probabilities (zipmap), and decision values as one column a class (raw_scores)."""
    from sklearn.base import is_classifier

    if not is_classifier(last):
        return ({},)
    if hasattr(last, "predict_proba"):
        return ({"zipmap": False},)
    return ({"zipmap": False, "raw_scores": True}, {"raw_scores": True})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about lost column names: rows of numbers are what is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
