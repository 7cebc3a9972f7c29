"""Tokens a second of a Mamba language model of 130 M parameters, beside transformers on the same machine.

    python benches/bench_mamba.py                          # float32 and bfloat16, Mamba and Mamba-2
    python benches/bench_mamba.py --models mamba --dtypes float32 --tokens 24 --json out.json

The shape is that of the authors' 130 M models (width 768, 24 layers, 50,280 tokens); weights are random,
which costs the same. Both sides read one folder. Scores of both are held against each other before anything
is timed. Writing is timed end to end, from a prompt of four tokens, likeliest token first; reading is one
call over a prompt of 512. Rows are timed in turn, round after round; reported are medians, and the ratio's
median with its quarter and three quarters. Beside them stands what the matrix products of one token alone
cost in NumPy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import limit_processors, machine

PROMPT, LONG = 4, 512


def folders(root: Path, families: list[str], dtypes: list[str]) -> dict[tuple[str, str], Path]:
    """Write a random model of each kind, once."""
    import numpy as np
    from sensorium.models import language, mamba, mamba2

    sizes = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24}
    made = {}
    for family in families:
        config: Any = (
            mamba.Config(**sizes)
            if family == "mamba"
            else mamba2.Config(**sizes, state_size=128, head_dim=64)
        )
        module = mamba if family == "mamba" else mamba2
        model = None
        for dtype in dtypes:
            folder = made[family, dtype] = root / f"{family}-{dtype}"
            if (folder / "config.json").is_file():
                continue
            if model is None:
                model = module.Model.init(config, np.random.default_rng(0))
                model.save(root / f"{family}-float32")
            if dtype != "float32":
                language.load(root / f"{family}-float32", dtype=dtype_of(dtype)).save(folder)
    return made


def dtype_of(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def ours(folder: Path, tokens: int) -> dict[str, Callable[[], Any]]:
    from sensorium.models import language

    model = language.load(folder)
    long = [[i % 1000 for i in range(LONG)]]
    return {
        "write": lambda: model.generate(
            list(range(PROMPT)), max_new_tokens=tokens, temperature=0, stop_tokens=[]
        ).tokens[0],
        "read": lambda: model.step(long, model.new_state(1)),
    }


def theirs(folder: Path, tokens: int, dtype: str) -> dict[str, Callable[[], Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    prompt, long = torch.arange(PROMPT)[None], (torch.arange(LONG) % 1000)[None]

    def write() -> Any:
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return out[0, PROMPT:].tolist()

    def read() -> Any:
        with torch.inference_mode():
            return model(long, use_cache=True, logits_to_keep=1).logits[:, -1].float().numpy()

    return {"write": write, "read": read}


def products(folder: Path) -> Callable[[], Any]:
    """Return the matrix products of one token, in NumPy, in float32."""
    import numpy as np
    from sensorium import checkpoint

    arrays = [a for a in checkpoint.map_arrays(folder / "model.safetensors").values() if a.ndim == 2]
    arrays = [np.array(a, np.float32) for a in arrays if min(a.shape) > 32]
    vectors = [np.ones(a.shape[1], np.float32) for a in arrays]

    def run() -> None:
        for a, v in zip(arrays, vectors, strict=True):
            a @ v

    return run


def timed(rows: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    for call in rows.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, call in rows.items():
            time.sleep(0.12)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mamba", "mamba2"], choices=["mamba", "mamba2"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument(
        "--folder", type=Path, help="where the models are, or go; a temporary place otherwise"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    limit_processors(args.threads)
    warnings.simplefilter("ignore")
    import numpy as np

    results = []
    with tempfile.TemporaryDirectory() as temporary:
        made = folders(args.folder or Path(temporary), args.models, args.dtypes)
        for (family, dtype), folder in made.items():
            mine = ours(folder, args.tokens)
            rows = {"sensorium": mine}
            if not args.no_peer:
                rows["transformers"] = theirs(folder, args.tokens, dtype)
                a, b = mine["read"](), rows["transformers"]["read"]()
                error = float(np.abs(a - b).max())
                assert error < (1e-3 if dtype == "float32" else 0.2) * np.abs(b).max(), error
            for what, count in (("write", args.tokens), ("read", LONG)):
                calls = {name: row[what] for name, row in rows.items()}
                if what == "write" and dtype == "float32":
                    calls["products alone"] = products(folder)
                seconds = timed(calls, args.rounds)
                result = {"model": family, "dtype": dtype, "what": what}
                for name, times in seconds.items():
                    rate = (1 if name == "products alone" else count) / statistics.median(times)
                    result[name] = rate
                    print(f"{family:<7}{dtype:<9} {what:<6} {name:<15}{rate:>9.1f} tokens/s", flush=True)
                if "transformers" in seconds:
                    pairs = zip(seconds["transformers"], seconds["sensorium"], strict=True)
                    ratios = sorted(b / a for b, a in pairs)
                    low, mid, high = np.quantile(ratios, [0.25, 0.5, 0.75])
                    result |= {"ratio": mid, "ratio_low": low, "ratio_high": high}
                    print(f"{'':<24}ratio {mid:.1f} ({low:.1f} to {high:.1f})", flush=True)
                results.append(result)
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1, default=float))


if __name__ == "__main__":
    main()
