"""Write the small models of tests/data/language: folders that transformers saved, and the scores it computes.

    python scripts/make_language_models.py          # where torch and transformers are installed

Every parameter is drawn anew, so that no norm is all ones and no bias zero: a test that mixed two of them up
would fail. Scores are computed in float32 from the parameters as they are stored.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

OUT = Path(__file__).parents[1] / "tests" / "data" / "language"
SIZES = {"vocab_size": 53, "hidden_size": 16, "num_hidden_layers": 2}
OTHER = {"use_bias": True, "use_conv_bias": False, "layer_norm_epsilon": 1e-3, "conv_kernel": 3}
MAMBA, MAMBA2 = (MambaConfig, MambaForCausalLM), (Mamba2Config, Mamba2ForCausalLM)

CASES = {
    "mamba": (MAMBA, {**SIZES, "state_size": 4}, torch.float32, None),
    "mamba-options": (
        MAMBA,
        {**SIZES, **OTHER, "state_size": 5, "expand": 3, "time_step_rank": 3, "tie_word_embeddings": False},
        torch.float32,
        "12KB",
    ),
    "mamba-bfloat16": (MAMBA, {**SIZES, "hidden_size": 24, "state_size": 3}, torch.bfloat16, None),
    "mamba2": (
        MAMBA2,
        {**SIZES, "state_size": 6, "num_heads": 4, "head_dim": 8, "n_groups": 1, "tie_word_embeddings": True},
        torch.float32,
        None,
    ),
    "mamba2-options": (
        MAMBA2,
        {
            **SIZES,
            **OTHER,
            "state_size": 3,
            "expand": 3,
            "num_heads": 6,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "time_step_limit": (0.02, 0.3),
        },
        torch.float32,
        "12KB",
    ),
    "mamba2-float16": (
        MAMBA2,
        {**SIZES, "hidden_size": 24, "state_size": 4, "num_heads": 3, "head_dim": 16, "n_groups": 1},
        torch.float16,
        None,
    ),
}


def draw(model, generator):
    """Give every parameter values of its usual size that are all different."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("A_log"):
                p.copy_(noise * 0.5 + 0.5)
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                p.copy_(noise - 2.0)
            elif name.endswith((".D", "norm.weight", "norm_f.weight")):
                p.copy_(1 + 0.3 * noise)
            elif p.ndim >= 2:
                p.copy_(noise * (p[0].numel() ** -0.5))
            else:
                p.copy_(0.2 * noise)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for seed, (name, ((config, kind), options, dtype, shard)) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        model = kind(config(**options, eos_token_id=2, bos_token_id=None, pad_token_id=None)).eval()
        draw(model, generator)
        model = model.to(dtype)
        folder = OUT / name
        model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(0, options["vocab_size"], (2, 19), generator=generator)
        with torch.no_grad():
            logits = model.float()(tokens, use_cache=False).logits
        save_file({"tokens": tokens.numpy(), "logits": logits.numpy()}, folder / "expected.safetensors")
        entries = json.loads((folder / "config.json").read_text())
        bytes_ = sum(p.stat().st_size for p in folder.iterdir())
        deviation = float(np.std(logits.numpy()))
        print(f"{name:<16} {entries['transformers_version']} {bytes_:>7,} bytes  logits {deviation:.2f}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
