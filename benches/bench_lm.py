"""A minute of training from scratch, on real text, beside counted strings of bytes.

    python benches/bench_lm.py                              # both texts, three seeds, about seven minutes
    python benches/bench_lm.py --texts digits --seconds 20 --seeds 5 --families mamba

Texts are handwritten digits as characters and the help topics of Python. A seed holds out other digits or
pages, and begins the model elsewhere. What is told of each is bits a byte on held-out text: of the model,
of Kneser-Ney counts of the order that is best on the held-out text itself (a favour to the counts), and of
a mixture of both with a weight that is fitted on a tenth of the training text, which neither saw for that.
Intervals are Student's, of the differences over seeds. For digits also: how often the digit's name under
which its picture is most probable is the right one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from measure import machine
from sensorium import lm
from sensorium.data.texts import load_help_topics, load_written_digits
from sensorium.models import mamba, mamba2
from sensorium.models.language import LanguageModel
from sensorium.ngram import NGram

SIZES: dict[str, dict[str, Any]] = {
    "digits": {"hidden_size": 64, "num_hidden_layers": 2},
    "help": {"hidden_size": 128, "num_hidden_layers": 3},
}
RECIPES = {
    "digits": lm.LanguageRecipe(rows=16, length=150, learning_rate=8e-3),
    "help": lm.LanguageRecipe(rows=8, length=256, learning_rate=1e-2),
}


def config_of(family: str, text: str) -> Any:
    sizes = {"vocab_size": 256, "tokenizer": "bytes"} | SIZES[text]
    return mamba.Config(**sizes) if family == "mamba" else mamba2.Config(**sizes, head_dim=32, state_size=32)


def mixture(weight: float, a: Any, b: Any) -> Any:
    """Bits of a mixture of two models."""
    return -np.log2(weight * 2.0**-a + (1 - weight) * 2.0**-b)


def named_right(bits: Any, test: Any) -> float:
    """Share of digits whose picture is most probable under its own name; ``bits`` takes rows of bytes."""
    pages = test.reshape(-1, 75)
    told = np.stack(
        [bits(np.concatenate([np.full_like(pages[:, :1], 48 + k), pages[:, 1:]], 1)) for k in range(10)]
    )
    return float(np.mean(told.argmin(axis=0) == pages[:, 0] - 48))


def model_bits(model: LanguageModel, pages: Any) -> Any:
    """Bits of each page after its first byte, all pages at once."""
    scores = model.scores(pages[:, :-1], model.new_state(len(pages))).astype(np.float64)
    top = scores.max(axis=-1)
    lse = top + np.log(np.exp(scores - top[..., None]).sum(axis=-1))
    return (lse - np.take_along_axis(scores, pages[:, 1:, None].astype(int), 2)[..., 0]).sum(axis=1)


def run(text: str, family: str, seed: int, seconds: float, steps: int | None) -> dict[str, Any]:
    """Train, count, mix, and measure; a third of the time goes into the model that tells the weight."""

    def goal(share: float) -> dict[str, Any]:
        return {"seconds": share * seconds} if steps is None else {"steps": max(1, int(share * steps))}

    train, test = load_written_digits(seed=seed) if text == "digits" else load_help_topics(seed=seed)
    counts = {order: NGram(order).fit(train).bits(test) for order in range(2, 9)}
    best = min(counts, key=lambda order: counts[order].mean())
    result = lm.fit(train, config_of(family, text), RECIPES[text], seed=seed, **goal(1))
    bits = lm.bits_per_token(result.model, test, begin=10)
    # The weight: from a model and counts that did not see the last tenth.
    cut = len(train) * 9 // 10
    part = lm.fit(train[:cut], config_of(family, text), RECIPES[text], seed=seed, **goal(1 / 3)).model
    a = lm.bits_per_token(part, train[cut:], begin=10)
    b = NGram(best).fit(train[:cut]).bits(train[cut:])
    weights = np.linspace(0, 1, 51)
    weight = float(weights[np.argmin([mixture(w, a, b).mean() for w in weights])])
    facts = {
        "text": text,
        "family": family,
        "seed": seed,
        "bytes": len(train),
        "parameters": result.model.parameters,
        "steps": result.steps,
        "seconds": result.seconds,
        "tokens_per_second": result.steps * RECIPES[text].rows * RECIPES[text].length / result.seconds,
        "epochs": result.steps * RECIPES[text].rows * RECIPES[text].length / len(train),
        "bits": float(bits.mean()),
        "counts": {order: float(value.mean()) for order, value in counts.items()},
        "order": best,
        "mixture": float(mixture(weight, bits, counts[best]).mean()),
        "weight": weight,
    }
    if text == "digits":
        facts["named"] = named_right(lambda pages: model_bits(result.model, pages), test)
        ngram = NGram(best).fit(train)
        facts["named_counts"] = named_right(
            lambda pages: np.array([ngram.bits(page)[1:].sum() for page in pages]), test
        )
    return facts


def interval(values: list[float]) -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", nargs="+", default=["digits", "help"], choices=list(SIZES))
    parser.add_argument("--families", nargs="+", default=["mamba"], choices=["mamba", "mamba2"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int, help="instead: the same models, however busy the machine")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="added to, where it is there")
    args = parser.parse_args()
    results = json.loads(args.json.read_text())["results"] if args.json and args.json.exists() else []
    for text in args.texts:
        for family in args.families:
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                results.append(run(text, family, seed, args.seconds, args.steps))
                print(json.dumps(results[-1]), flush=True)
                if args.json is not None:
                    args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    for text in args.texts:
        for family in args.families:
            rows = [r for r in results if (r["text"], r["family"]) == (text, family)]
            least = [min(r["counts"].values()) for r in rows]
            print(f"{text}, {family}, {len(rows)} seeds, bits a byte")
            print(f"  counts    {interval(least)}")
            print(f"  model     {interval([r['bits'] for r in rows])}")
            print(f"  saved     {interval([b - r['bits'] for r, b in zip(rows, least, strict=True)])}")
            print(f"  mixture   {interval([r['mixture'] for r in rows])}")
            print(f"  saved     {interval([b - r['mixture'] for r, b in zip(rows, least, strict=True)])}")
            if text == "digits":
                print(f"  named right: model {interval([r['named'] for r in rows])}, ", end="")
                print(f"counts {interval([r['named_counts'] for r in rows])}")


if __name__ == "__main__":
    main()
