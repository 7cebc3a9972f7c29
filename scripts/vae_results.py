"""Measure how experts become a posterior, over several seeds, and write the tables and figure of docs/vae.md.

``python scripts/vae_results.py measure`` trains each kind of model once a seed on the digits and keeps the
figures in ``benches/results/vae.json``, each as soon as it is there: a run that was interrupted goes on, and
several may run at once, one a ``--seeds``. ``python scripts/vae_results.py page`` writes the page.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attention_results import replace, save
from results import interval, processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
KEPT = RESULTS / "vae.json"
PAGE = ROOT / "docs" / "vae.md"
STEPS = 800
LATENTS = 128  # of an importance-weighted bound
EVERY = 3  # of the held-out rows, for likelihoods of parts of rows
LIES = ("noise", "other")
PLAIN = {
    "private_dim": 0,
    "latent_dim": 16,
    "singles": True,
    "subsets": 1,
    "part_weight": 1.0,
    "text_weight": 1.0,
}
KINDS: dict[str, dict[str, Any]] = {
    "product": {"kind": "product", **PLAIN},
    "mixture": {"kind": "mixture"},
    "mixture of products": {"kind": "mixture_of_products"},
    "product, as trained": {"kind": "product"},
}
TRAINED = 1800  # steps of what is trained as the command does
SENSES = ("image", "audio", "text")
ORDER = [*KINDS, "alone", "alone, as trained"]


@contextmanager
def kept() -> Iterator[dict[str, Any]]:
    """Yield what was measured so far, and write it back; one process at a time."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (Path(tempfile.gettempdir()) / "sensorium-vae.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = json.loads(KEPT.read_text()) if KEPT.exists() else {"about": {}, "runs": [], "alone": []}
        yield data
        KEPT.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


# --- measuring ------------------------------------------------------------------------------------------


def conditions(rows: Any, seed: int) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Rows to read and modalities to go by: all, all but one, and all of which one lies."""
    from sensorium.data.multimodal import corrupt

    out = {"all": (rows, SENSES)}
    for one in SENSES:
        out[f"without {one}"] = (rows, tuple(name for name in SENSES if name != one))
    for one in SENSES:
        for how in LIES:
            out[f"{how} {one}"] = (corrupt(rows, one, how, seed=seed), SENSES)
    return out


def figures(model: Any, judges: Any, rows: Any, seed: int) -> dict[str, Any]:
    """All that is kept of a model."""
    import numpy as np
    from sensorium.models.vae import generate
    from sensorium.vae_evaluate import (
        coherence,
        entropy,
        joint_coherence,
        log_likelihood,
        reconstruction,
        sharpness,
        subsets,
    )

    rng = np.random.default_rng(seed)
    out: dict[str, Any] = {"conditions": {}}
    read = conditions(rows, seed)
    for name, (asked, given) in read.items():
        found = coherence(model, judges, asked, given, rng=rng)
        made = generate(model.params, model.config, asked.values, given=given, targets=["image"], rng=rng)
        out["conditions"][name] = {
            "coherence": {target: of["share"] for target, of in found.items()},
            "error": reconstruction(model, asked, given, truth=rows),
            "edges": sharpness(made["image"][0]) / sharpness(rows.values["image"]),
        }
    singles = {}
    for one in SENSES:
        found = coherence(model, judges, rows, [one], rng=rng)
        singles[one] = {target: of["share"] for target, of in found.items()}
    out["singles"] = singles
    out["joint_coherence"] = joint_coherence(model, judges, num_samples=300, rng=rng)["share"]
    out["posterior"] = {
        "+".join(given): entropy(model, rows, given, rng=rng)["entropy"] for given in ((), *subsets(SENSES))
    }

    def nats(asked: Any, **what: Any) -> float:
        return float(log_likelihood(model, asked, num_samples=LATENTS, rng=rng, **what).mean())

    out["log_likelihood"] = {"joint": nats(rows), "clean": {}, "missing": {}, "noise": {}, "other": {}}
    some = np.arange(0, len(rows), EVERY)
    lying = {name: asked.take(some) for name, (asked, _) in read.items()}
    rows = rows.take(some)
    for target in SENSES:
        others = [name for name in SENSES if name != target]
        out["log_likelihood"]["clean"][target] = nats(rows, given=others, targets=[target])
        for one in others:
            key = f"{one} for {target}"
            rest = [name for name in others if name != one]
            out["log_likelihood"]["missing"][key] = nats(rows, given=rest, targets=[target])
            for how in LIES:
                asked = lying[f"{how} {one}"]
                out["log_likelihood"][how][key] = nats(asked, given=others, targets=[target])
    return out


def measure(seeds: list[int], kinds: list[str], steps: int) -> None:
    """Train and ask every kind of model, once a seed, and models of each modality alone."""
    from sensorium import _core, vae
    from sensorium._threads import get_num_threads
    from sensorium.vae_jobs import RECIPE, Source, config_for

    for seed in seeds:
        with kept() as data:
            have = {run["model"] for run in data["runs"] if run["seed"] == seed}
            have |= {run["model"] for run in data["alone"] if run["seed"] == seed}
        wanted = [*kinds, *dict.fromkeys(baseline(name) for name in kinds)]
        missing = [name for name in wanted if name not in have]
        if not missing:
            continue
        rows, test, encoding, judges = prepare(Source(seed=seed))
        for name in missing:
            begin = time.process_time()
            options = dict(KINDS[name.replace("alone", "product")])
            config = config_for(encoding, options.pop("kind"), levels=16, **options)
            long = "as trained" in name
            count, recipe = (TRAINED, RECIPE) if long else (steps, None)
            if name.startswith("alone"):
                result = alone(config, rows, test, count, recipe, seed)
            else:
                fitted = vae.fit(config, rows.values, recipe, steps=count, seed=seed)
                trained = time.process_time() - begin
                result = figures(fitted.model, judges, test, seed)
                result |= {"parameters": fitted.model.parameters, "training_seconds": trained}
            result |= {"model": name, "seed": seed, "steps": count, "threads": get_num_threads()}
            result["processor_seconds"] = time.process_time() - begin
            with kept() as data:
                part = data["alone" if name.startswith("alone") else "runs"]
                if not any(run["model"] == name and run["seed"] == seed for run in part):
                    part.append(result)
                    part.sort(key=lambda run: (ORDER.index(run["model"]), run["seed"]))
                data["about"] = {
                    "processor": processor(),
                    "date": datetime.date.today().isoformat(),
                    "version": _core.__version__,
                    "isa": _core.isa_level(),
                    "held_out": len(test),
                }
            print(f"{name}, seed {seed}: {result['processor_seconds']:.0f} s of a processor", flush=True)


def baseline(name: str) -> str:
    """Models of each modality alone that have the latent width of a kind."""
    return name.replace("product", "alone") if "as trained" in name else "alone"


def prepare(source: Any) -> tuple[Any, Any, Any, Any]:
    """Rows to train on and held out, their encoding, and judges."""
    from sensorium.data.multimodal import Encoding
    from sensorium.vae_evaluate import Judges

    corpus = source.read()
    encoding = Encoding.fit(corpus)
    rows, test = source.rows(corpus, encoding)
    return rows, test, encoding, Judges.fit(corpus, encoding)


def alone(config: Any, rows: Any, test: Any, steps: int, recipe: Any, seed: int) -> dict[str, Any]:
    """Models of each modality alone: what they are worth, and how they write what they read."""
    import numpy as np
    from sensorium.vae_evaluate import fit_alone, log_likelihood, reconstruction

    out: dict[str, Any] = {"log_likelihood": {}, "error": {}}
    for name, model in fit_alone(config, rows, steps=steps, seed=seed, recipe=recipe).items():
        rng = np.random.default_rng(seed)
        out["log_likelihood"][name] = float(log_likelihood(model, test, num_samples=LATENTS, rng=rng).mean())
        own = type(test)({name: test.values[name]}, {name: test.present[name]}, test.group, test.names)
        out["error"] |= reconstruction(model, own)
    return out


# --- the page ---------------------------------------------------------------------------------------------


def cell(
    values: list[float],
    form: str = "{:.3f}",
    scale: float = 1.0,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> str:
    """Mean and its interval."""
    mean, half = interval([scale * value for value in values])
    if math.isnan(half):
        return form.format(mean)
    low, high = max(mean - half, limits[0]), min(mean + half, limits[1])
    return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"


def share(values: list[float]) -> str:
    """A share in per cent, kept within what a share can be."""
    return cell(values, "{:.1f}", 100, (0, 100))


def runs_of(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [run for run in data["runs"] if run["model"] == name]


def cross(run: dict[str, Any], condition: str) -> float:
    """Mean share right over the modalities that a condition does not hold against."""
    found = run["conditions"][condition]["coherence"]
    return statistics.mean(found.values())


def per_kind(
    data: dict[str, Any], head: list[str], lines: Callable[[list[dict[str, Any]]], list[str]]
) -> str:
    """A table with a line for each kind of model."""
    out = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name in KINDS:
        runs = runs_of(data, name)
        if runs:
            out.append(f"| {name} | {' | '.join(lines(runs))} |")
    return "\n".join(out)


def coherence_table(data: dict[str, Any]) -> str:
    """The share right of what is written, from one modality, from two, and from all."""

    def lines(runs: list[dict[str, Any]]) -> list[str]:
        ones = [
            statistics.mean(v for one, of in r["singles"].items() for t, v in of.items() if t != one)
            for r in runs
        ]
        twos = [[r["conditions"][f"without {one}"]["coherence"][one] for r in runs] for one in SENSES]
        whole = [cross(r, "all") for r in runs]
        return [
            share(ones),
            *(share(two) for two in twos),
            share(whole),
            share([r["joint_coherence"] for r in runs]),
        ]

    head = [
        "others from one",
        "image from the rest",
        "sound from the rest",
        "word from the rest",
        "all from all",
        "agreement from the prior",
    ]
    return per_kind(data, head, lines)


def quality_table(data: dict[str, Any]) -> str:
    """Log-likelihood beside models alone, errors, blur and the entropy of the posterior."""
    by_seed = {(run["model"], run["seed"]): run for run in data["alone"]}

    def lines(runs: list[dict[str, Any]]) -> list[str]:
        joint = [r["log_likelihood"]["joint"] for r in runs]
        gain = [
            r["log_likelihood"]["joint"] - sum(by_seed[key]["log_likelihood"].values())
            for r in runs
            if (key := (baseline(r["model"]), r["seed"])) in by_seed
        ]
        error = {name: [r["conditions"]["all"]["error"][name] for r in runs] for name in SENSES}
        edges = [r["conditions"]["all"]["edges"] for r in runs]
        return [
            cell(joint, "{:.1f}"),
            cell(gain, "{:+.1f}") if gain else "",
            cell(error["image"]),
            cell([r["conditions"]["without audio"]["error"]["image"] for r in runs]),
            cell(error["audio"]),
            share(edges) if max(edges) <= 1 else cell(edges, "{:.1f}", 100),
            f"{statistics.mean(r['training_seconds'] for r in runs):.0f}",
        ]

    head = [
        "log-likelihood, nats a row",
        "over models alone",
        "image error",
        "without the sound",
        "sound error",
        "edges, %",
        "seconds",
    ]
    table = per_kind(data, head, lines)
    for name in ("alone", "alone, as trained"):
        runs = [run for run in data["alone"] if run["model"] == name]
        if runs:
            total = [sum(run["log_likelihood"].values()) for run in runs]
            errors = [cell([run["error"][of] for run in runs]) for of in ("image", "audio")]
            words = name.replace("alone", "models alone")
            table += f"\n| {words} | {cell(total, '{:.1f}')} | | {errors[0]} | | {errors[1]} | | |"
    return table


def robust_table(data: dict[str, Any]) -> str:
    """The share right of the modalities that do not lie, where all are given."""

    def honest(run: dict[str, Any], condition: str) -> float:
        found = run["conditions"][condition]["coherence"]
        return statistics.mean(v for target, v in found.items() if target != condition.split()[-1])

    def lines(runs: list[dict[str, Any]]) -> list[str]:
        noise = [statistics.mean(honest(r, f"noise {one}") for one in SENSES) for r in runs]
        other = [share([honest(r, f"other {one}") for r in runs]) for one in SENSES]
        return [share([cross(r, "all") for r in runs]), share(noise), *other]

    head = [
        "nothing lies",
        "one is noise",
        "another digit's image",
        "another digit's sound",
        "another digit's word",
    ]
    return per_kind(data, head, lines)


def lies_table(data: dict[str, Any]) -> str:
    """Nats that a missing or lying modality costs what is predicted from it and another."""

    def lines(runs: list[dict[str, Any]]) -> list[str]:
        out = []
        for what in ("missing", *LIES):
            values = [
                statistics.mean(
                    r["log_likelihood"][what][key] - r["log_likelihood"]["clean"][key.split(" for ")[1]]
                    for key in r["log_likelihood"][what]
                )
                for r in runs
            ]
            out.append(cell(values, "{:+.1f}"))
        return out

    return per_kind(data, ["one is missing", "one is noise", "one is of another digit"], lines)


def foot(data: dict[str, Any]) -> str:
    about = data["about"]
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in data["runs"]}))
    first = data["runs"][0]
    few = [name for name in KINDS if 0 < len(runs_of(data, name)) < len(seeds.split(", "))]
    but = "".join(f"; {name}: {len(runs_of(data, name))} of the seeds" for name in few)
    return (
        f"Seeds {seeds}, with 95 % intervals of Student's t over them{but}; {first['steps']:,} steps, "
        f"{first['threads']} thread; {about['held_out']} held-out rows. {about['processor']}, "
        f"{about['isa']}; version {about['version']}, {about['date']}."
    )


def draw(data: dict[str, Any]) -> None:
    """Coherence in every condition, and entropies as senses are added."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sensorium", "svg.fonttype": "none", "font.size": 9})
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.6), layout="constrained", gridspec_kw={"width_ratios": [2.2, 1]}
    )
    names = [name for name in KINDS if runs_of(data, name)]
    every = list(data["runs"][0]["conditions"])
    order = [c for part in ("all", "without", "noise", "other") for c in every if c.startswith(part)]
    for i, name in enumerate(names):
        runs = runs_of(data, name)
        points = []
        for condition in order:
            lying = condition.split()[-1]
            values = [
                statistics.mean(
                    v
                    for t, v in r["conditions"][condition]["coherence"].items()
                    if condition == "all" or (t == lying) == condition.startswith("without")
                )
                for r in runs
            ]
            points.append(interval(values))
        at = [j + 0.13 * (i - (len(names) - 1) / 2) for j in range(len(order))]
        half = [0 if math.isnan(h) else h for _, h in points]
        left.errorbar(at, [m for m, _ in points], yerr=half, label=name, color=f"C{i}", fmt="o",
                      markersize=4, capsize=2, linewidth=1.1)  # fmt: skip
        ways = [("",), ("image",), ("image", "audio"), SENSES]
        nats = [interval([r["posterior"]["+".join(way)] for r in runs]) for way in ways]
        right.errorbar(range(len(ways)), [m for m, _ in nats],
                       yerr=[0 if math.isnan(h) else h for _, h in nats], color=f"C{i}", marker="o",
                       markersize=4, capsize=2, linewidth=1.1)  # fmt: skip
    words = {"image": "image", "audio": "sound", "text": "word"}
    labels = [c if c == "all" else f"{c.split()[0]}\n{words[c.split()[1]]}" for c in order]
    left.set_xticks(range(len(order)), [label.replace("other", "another\ndigit's") for label in labels])
    left.set_ylim(0, 1.02)
    left.set_ylabel("share right")
    right.set_xticks(range(4), ["nothing", "image", "+ sound", "+ word"])
    right.set_ylabel("entropy of the posterior, nats")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    save(figure, "vae.svg")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("measure")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    run.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    run.add_argument("--steps", type=int, default=STEPS)
    commands.add_parser("page")
    args = parser.parse_args()
    if args.command == "measure":
        measure(args.seeds, args.kinds, args.steps)
        return
    data = json.loads(KEPT.read_text())
    for marker, make in (
        ("vae coherence", coherence_table),
        ("vae quality", quality_table),
        ("vae robust", robust_table),
        ("vae lies", lies_table),
        ("vae foot", foot),
    ):
        replace(PAGE, marker, make(data))
    draw(data)


if __name__ == "__main__":
    main()
