"""Measure late fusion against concatenation on data sets of scikit-learn, and write tables and a figure.

``python scripts/late_fusion_results.py measure`` fits everything on five splits, in about a minute, and keeps
the figures in ``benches/results/late_fusion.json``; ``python scripts/late_fusion_results.py page`` writes the
tables of docs/late_fusion.md and draws docs/images/late_fusion.svg.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from results import interval

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benches" / "results" / "late_fusion.json"
GROUPS: dict[str, dict[str, list[int]]] = {
    "wine": {
        "acids and minerals": [1, 2, 3, 4],
        "phenols": [5, 6, 7, 8],
        "colour": [9, 10, 11],
        "alcohol and proline": [0, 12],
    },
    "breast cancer": {
        "size": [0, 2, 3, 10, 12, 13, 20, 22, 23],
        "surface": [1, 4, 11, 14, 21, 24],
        "shape": [5, 6, 7, 8, 9, 15, 16, 17, 18, 19, 25, 26, 27, 28, 29],
    },
    "diabetes": {"body": [0, 1, 2, 3], "cholesterol": [4, 5, 6, 7], "triglycerides and sugar": [8, 9]},
}
FUSED, JOINED, ANEW = "late fusion", "concatenation, mean imputed", "concatenation, fitted anew"
INDEPENDENT, POOLED = "late fusion, correlation 0", "late fusion, correlation 1"
LOOSE = "half missing, in training too"
DRAWS = 10  # Each row is asked this often where what it lacks is random.


def load(name: str) -> tuple[Any, Any]:
    """Columns and target of a data set that comes with scikit-learn."""
    from sklearn import datasets

    loader = {
        "wine": datasets.load_wine,
        "breast cancer": datasets.load_breast_cancer,
        "diabetes": datasets.load_diabetes,
    }[name]
    return loader(return_X_y=True)


def conditions(groups: dict[str, list[int]], rows: int, rng: Any) -> dict[str, Any]:
    """Which groups each row has ``(M, rows)``, or every copy of the rows, by the name of what happens."""
    M = len(groups)
    found = {"all there": np.ones((M, rows), dtype=bool)}
    for i, group in enumerate(groups):
        found[f"without {group}"] = np.repeat(np.arange(M)[:, None] != i, rows, axis=1)
    for i, group in enumerate(groups):
        found[f"only {group}"] = np.repeat(np.arange(M)[:, None] == i, rows, axis=1)
    found["half missing"] = rng.random((M, DRAWS * rows)) < 0.5
    return found


def without(X: Any, groups: dict[str, list[int]], there: Any) -> Any:
    """The columns, NaN where a group is missing; as many copies of the rows as that needs."""
    X = np.tile(X, (there.shape[1] // len(X), 1))
    for columns, rows in zip(groups.values(), there, strict=True):
        X[np.ix_(~rows, columns)] = np.nan
    return X


def estimator(groups: Any, regression: bool, **how: Any) -> Any:
    """Late fusion of groups; with one group, the same model and calibration over all columns."""
    from sensorium.late_fusion import LateFusionClassifier, LateFusionRegressor

    return (LateFusionRegressor if regression else LateFusionClassifier)(groups, **how)


def joined(regression: bool) -> Any:
    """The same model and calibration over all columns, with means where a column is missing."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    return make_pipeline(SimpleImputer(keep_empty_features=True), estimator(None, regression))


def figures(model: Any, X: Any, y: Any, regression: bool) -> dict[str, float]:
    """What a fitted model reaches: error, and nats of surprise a row."""
    if regression:
        mean, std = model.predict(X, return_std=True)
        off = (y - mean) / std
        return {
            "error": float(np.sqrt(np.mean((y - mean) ** 2))),
            "surprise": float(np.mean(np.log(std) + off**2 / 2) + math.log(2 * math.pi) / 2),
        }
    p = model.predict_proba(X)
    at = p[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    return {
        "error": float(np.mean(model.classes_[p.argmax(1)] != y)),
        "surprise": float(-np.log(np.maximum(at, 1e-300)).mean()),
    }


class Anew:
    """A model fitted for each set of groups that rows have: what nobody can keep ready for many groups."""

    def __init__(self, X: Any, y: Any, groups: dict[str, list[int]], regression: bool) -> None:
        self.X, self.y, self.groups, self.regression = X, y, groups, regression
        self.models: dict[tuple[bool, ...], Any] = {}
        self.classes_ = np.unique(y)
        self.prior = estimator(groups, regression).fit(X, y).prior_

    def model(self, there: tuple[bool, ...]) -> tuple[Any, list[int]]:
        """The model of a set of groups, and its columns."""
        columns = [c for part, has in zip(self.groups.values(), there, strict=True) if has for c in part]
        if there not in self.models and columns:
            self.models[there] = estimator(None, self.regression).fit(self.X[:, columns], self.y)
        return self.models.get(there), columns

    def by_rows(self, X: Any, one: Any, empty: Any) -> Any:
        """Join what each row's model says."""
        sets = [tuple(bool(v) for v in ~np.isnan(row)) for row in X[:, [c[0] for c in self.groups.values()]]]
        out: Any = [empty] * len(X)
        for there in set(sets):
            rows = [i for i, other in enumerate(sets) if other == there]
            model, columns = self.model(there)
            if model is not None:
                for i, value in zip(rows, one(model, X[np.ix_(rows, columns)]), strict=True):
                    out[i] = value
        return np.array(out)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of classes."""
        return self.by_rows(X, lambda model, part: model.predict_proba(part), self.prior)

    def predict(self, X: Any, return_std: bool) -> Any:
        """Means and deviations."""
        empty = (self.prior[0], math.sqrt(self.prior[1]))
        both = self.by_rows(
            X, lambda model, part: np.stack(model.predict(part, return_std=True), axis=1), empty
        )
        return both[:, 0], both[:, 1]


def measure_one(name: str, splits: int = 5, only: int | None = None) -> list[dict[str, Any]]:
    """All figures of a data set: every model, split and condition. ``only`` stops after so many splits."""
    from sklearn.model_selection import KFold, StratifiedKFold

    X, y = load(name)
    groups, regression = GROUPS[name], name == "diabetes"
    folds = (KFold if regression else StratifiedKFold)(splits, shuffle=True, random_state=0)
    runs = []
    for split, (train, test) in enumerate(folds.split(X, y)):
        if only is not None and split >= only:
            break
        rng = np.random.default_rng(split)
        models = {
            FUSED: estimator(groups, regression).fit(X[train], y[train]),
            INDEPENDENT: estimator(groups, regression, correlation=0.0).fit(X[train], y[train]),
            POOLED: estimator(groups, regression, correlation=1.0).fit(X[train], y[train]),
            JOINED: Joined(joined(regression).fit(X[train], y[train])),
            ANEW: Anew(X[train], y[train], groups, regression),
        }
        for condition, there in conditions(groups, len(test), rng).items():
            holes = without(X[test], groups, there)
            truth = np.tile(y[test], len(holes) // len(test))
            for model, fitted in models.items():
                runs.append(
                    {"data": name, "split": split, "condition": condition, "model": model}
                    | figures(fitted, holes, truth, regression)
                )
        gone = without(X[train], groups, rng.random((len(groups), len(train))) < 0.5)
        holes = without(X[test], groups, rng.random((len(groups), DRAWS * len(test))) < 0.5)
        loose = {
            FUSED: estimator(groups, regression).fit(gone, y[train]),
            JOINED: Joined(joined(regression).fit(gone, y[train])),
        }
        for model, fitted in loose.items():
            runs.append(
                {"data": name, "split": split, "condition": LOOSE, "model": model}
                | figures(fitted, holes, np.tile(y[test], DRAWS), regression)
            )
        runs[-1]["correlation"] = models[FUSED].correlation_
    return runs


class Joined:
    """A pipeline that hands on what only its last step knows."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.classes_ = getattr(pipeline, "classes_", None)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of classes."""
        return self.pipeline.predict_proba(X)

    def predict(self, X: Any, return_std: bool) -> Any:
        """Means and deviations."""
        return self.pipeline.predict(X, return_std=return_std)


def measure() -> None:
    """Measure all and keep it."""
    import sklearn
    from results import processor
    from sensorium import _core

    warnings.simplefilter("error")
    runs = [run for name in GROUPS for run in measure_one(name)]
    about = {
        "processor": processor(),
        "date": datetime.date.today().isoformat(),
        "version": _core.__version__,
        "scikit-learn": sklearn.__version__,
    }
    KEPT.write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")


def pick(runs: list[dict[str, Any]], what: str, **where: str) -> list[float]:
    """One figure of every split."""
    return [run[what] for run in runs if all(run[k] == v for k, v in where.items())]


def cell(values: list[float], digits: int) -> str:
    """Mean and half an interval."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def difference(
    runs: list[dict[str, Any]], what: str, data: str, condition: str, other: str
) -> tuple[float, float]:
    """Late fusion less another, split by split: below 0 where late fusion is better."""
    where = {"data": data, "condition": condition}
    pairs = zip(pick(runs, what, model=FUSED, **where), pick(runs, what, model=other, **where), strict=True)
    return interval([a - b for a, b in pairs])


def verdict(mean: float, half: float) -> str:
    """Whether an interval leaves out 0, in words."""
    return "better" if mean + half < 0 else "worse" if mean - half > 0 else "no difference shown"


def names(data: str) -> list[str]:
    """Conditions of a data set, in order."""
    return [*conditions(GROUPS[data], 1, np.random.default_rng(0)), LOOSE]


def table(kept: dict[str, Any], data: str) -> str:
    """All conditions of a data set as Markdown."""
    runs, digits = kept["runs"], 1 if data == "diabetes" else 3
    error = "root mean square error" if data == "diabetes" else "share wrong"
    lines = [
        f"| {data}: {error} | late fusion | mean imputed | fitted anew | late fusion less mean imputed |",
        "|---|---|---|---|---|",
    ]
    for condition in names(data):
        where = {"data": data, "condition": condition}
        cells = [
            cell(found, digits) if (found := pick(runs, "error", model=model, **where)) else ""
            for model in (FUSED, JOINED, ANEW)
        ]
        mean, half = difference(runs, "error", data, condition, JOINED)
        cells.append(f"{mean:+.{digits}f} ± {half:.{digits}f}: {verdict(mean, half)}")
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    return "\n".join(lines)


def surprises(kept: dict[str, Any]) -> str:
    """Nats a row, for the forms of fusion too."""
    runs = kept["runs"]
    models = (FUSED, INDEPENDENT, POOLED, JOINED, ANEW)
    lines = [f"| nats a row | {' | '.join(models)} |", "|---|" + "---|" * len(models)]
    for data in GROUPS:
        for condition in ("all there", "half missing"):
            cells = [
                cell(pick(runs, "surprise", model=model, data=data, condition=condition), 3)
                for model in models
            ]
            lines.append(f"| {data}, {condition} | {' | '.join(cells)} |")
    about = kept["about"]
    found = {
        data: [run["correlation"] for run in runs if run["data"] == data and "correlation" in run]
        for data in GROUPS
    }
    words = "; ".join(f"{data} {min(v):.2f} to {max(v):.2f}" for data, v in found.items())
    lines.append(
        f"\nThe correlations that were fitted: {words}. scikit-learn {about['scikit-learn']}, "
        f"version {about['version']}, {about['date']}."
    )
    return "\n".join(lines)


def draw(kept: dict[str, Any]) -> None:
    """Errors of all conditions, a panel for each data set."""
    import matplotlib as mpl
    from attention_results import save

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sensorium", "svg.fonttype": "none", "font.size": 8})
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
    for axis, data in zip(axes, GROUPS, strict=True):
        rows = [name for name in names(data) if name != LOOSE]
        for i, model in enumerate((FUSED, JOINED, ANEW)):
            points = [
                interval(pick(kept["runs"], "error", data=data, condition=row, model=model)) for row in rows
            ]
            axis.errorbar(
                [p[0] for p in points],
                [len(rows) - k + 0.22 * (1 - i) for k in range(len(rows))],
                xerr=[p[1] for p in points],
                label=model,
                color=f"C{i}",
                marker="os^"[i],
                markersize=4,
                linestyle="none",
                capsize=2,
                linewidth=1,
            )
        axis.set_yticks([len(rows) - k for k in range(len(rows))], rows)
        axis.set_title(data, fontsize=9)
        axis.set_xlabel("root mean square error" if data == "diabetes" else "share wrong")
        axis.set_xlim(left=None if data == "diabetes" else 0)
        axis.grid(axis="x", linewidth=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, "late_fusion.svg")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["measure", "page"])
    if parser.parse_args().command == "measure":
        measure()
        return
    from attention_results import replace

    kept = json.loads(KEPT.read_text())
    page = ROOT / "docs" / "late_fusion.md"
    for data in GROUPS:
        replace(page, f"late fusion {data}", table(kept, data))
    replace(page, "late fusion surprise", surprises(kept))
    draw(kept)


if __name__ == "__main__":
    main()
