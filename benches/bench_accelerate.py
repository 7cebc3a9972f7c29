"""Models of transformers before and after `sensorium.torch.accelerate`, in tokens a second.

Models have the shape of those of 130 million parameters, and random weights. The two ways run in turn, round
after round, and agree in each: the same greedy tokens, logits and gradients within 1e-3 of their size.
Training has fewer layers and tokens, since the path of transformers takes minutes where ours takes a second.

    python benches/bench_accelerate.py --threads 2 --out benches/results/accelerate.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import limit_processors, machine, ratio, spread

CASES = ("generate", "prefill", "train")
FAMILIES = ("mamba", "mamba2")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--train-layers", type=int, default=2)
    parser.add_argument("--train-length", type=int, default=128)
    parser.add_argument("--prefill-length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16, help="to generate")
    parser.add_argument("--vocabulary", type=int, default=50280)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def model_of(family: str, layers: int, vocabulary: int, dtype: str):
    """A model shaped as the published ones of 130 million parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": 768, "num_hidden_layers": layers, "pad_token_id": 0}
    if family == "mamba":
        config = transformers.MambaConfig(**sizes, state_size=16)
        model = transformers.MambaForCausalLM(config)
    else:
        more = {"num_heads": 24, "head_dim": 64, "state_size": 128, "n_groups": 1, "chunk_size": 256}
        model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes, **more))
    return model.eval().to(getattr(torch, dtype))


def case_of(name: str, args: argparse.Namespace, family: str):
    """The model, what a round runs, what it gives for the comparison, and how many tokens that is."""
    import torch

    train = name == "train"
    layers = args.train_layers if train else args.layers
    model = model_of(family, layers, 4096 if train else args.vocabulary, "float32" if train else args.dtype)
    length = {"train": args.train_length, "prefill": args.prefill_length, "generate": 16}[name]
    tokens = torch.randint(1, 4096, (1, length), generator=torch.Generator().manual_seed(1))

    def generate():
        how = {"max_new_tokens": args.tokens, "do_sample": False, "eos_token_id": None}
        return model.generate(tokens, attention_mask=torch.ones_like(tokens), **how)

    def prefill():
        with torch.no_grad():
            return model(tokens, use_cache=True, logits_to_keep=1).logits

    def step():
        model.train()
        model.zero_grad()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        model.eval()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    run = {"generate": generate, "prefill": prefill, "train": step}[name]
    return model, run, args.tokens if name == "generate" else length, {"layers": layers, "length": length}


def agree(name: str, ours, theirs, dtype: str) -> None:
    """Stop where the two ways do not give the same."""
    import torch

    if name == "generate":
        if dtype == "float32" and not torch.equal(ours, theirs):
            raise SystemExit("greedy tokens differ")
        return
    bound = 1e-3 if dtype == "float32" else 0.1
    error = ((ours - theirs).float().norm() / theirs.float().norm()).item()
    if error > bound:
        raise SystemExit(f"{name} differs by {error:.2g} of its size")


def measure(name: str, family: str, args: argparse.Namespace) -> dict:
    """Seconds of each way, round by round, and their ratio."""
    from sensorium.torch import accelerate

    model, run, tokens, sizes = case_of(name, args, family)
    times: dict[str, list[float]] = {"before": [], "after": []}
    results = {}
    for i in range(args.rounds + 1):
        for way in ("before", "after"):
            acceleration = accelerate(model) if way == "after" else None
            start = time.perf_counter()
            results[way] = run()
            seconds = time.perf_counter() - start
            if i or seconds > 20:  # the first round warms up, unless it takes a good part of a minute
                times[way].append(seconds)
            if acceleration is not None:
                acceleration.undo()
        agree(name, results["after"], results["before"], args.dtype)
    row = {"case": name, "family": family, **sizes, "tokens": tokens, "dtype": args.dtype}
    for way, seconds in times.items():
        row[way] = {"seconds": spread(seconds), "tokens_per_second": tokens / statistics.median(seconds)}
    row["times"] = ratio(times["before"], times["after"])
    return row


def main() -> None:
    args = parsed()
    limit_processors(args.threads)
    import sensorium
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    sensorium.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    rows = []
    for family in args.families:
        for name in args.cases:
            row = measure(name, family, args)
            rows.append(row)
            rates = " -> ".join(f"{row[way]['tokens_per_second']:.1f}" for way in ("before", "after"))
            print(
                f"{family:7} {name:9} {row['layers']:2} layers, length {row['length']:4}: {rates} tokens/s, "
                f"x {row['times']['median']}",
                flush=True,
            )
    if args.out:
        facts = {**machine(), "transformers": transformers.__version__}
        args.out.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
