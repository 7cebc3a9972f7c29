"""The objective of a mixture of products over all subsets, beside other ways to compute it.

    python benches/bench_mixture.py [--threads 1] [--json FILE] [--modalities 5] [--rows NAME ...]

Each row computes the sample of the chosen subsets and the mean divergence of all of them, from the same
experts, components and noise, and its gradients; it first agrees with the float64 reference. Rows:

- `sensorium`: one pass forward, one backward, into memory of its own;
- `numpy`: subset by subset without its lowest expert, in float32, with the backward written out;
- `torch`, `compiled`: the same in PyTorch, and under `torch.compile`;
- `libraries`: in PyTorch a subset at a time from all of its experts, as published code has it.

Rows are timed in turn, round after round; printed are milliseconds and how many times as long as `sensorium`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

SIZES = (4096, 128)


def arrays(M: int, B: int, D: int) -> dict[str, Any]:
    """Experts, components, noise, and the gradients of sample and divergence."""
    import numpy as np

    rng = np.random.default_rng(0)
    mu, logvar = rng.standard_normal((2, M, B, D), dtype=np.float32)
    noise, grad_z = rng.standard_normal((2, B, D), dtype=np.float32)
    component = rng.integers(2**M - 1, size=B)
    grad_kl = np.full(B, 1 / B, np.float32)
    return {
        "mu": mu,
        "logvar": logvar,
        "noise": noise,
        "component": component,
        "grad_z": grad_z / np.float32(B),
        "grad_kl": grad_kl,
    }


def ours(a: dict[str, Any], both: bool) -> Any:
    """One call forward, and one backward."""
    from sensorium import ops

    how = {"component": a["component"], "noise": a["noise"]}
    got = ops.mixture_of_products(a["mu"], a["logvar"], **how)
    if not both:
        return got.z, got.kl
    grads = ops.mixture_of_products_backward(a["grad_z"], a["grad_kl"], a["mu"], a["logvar"], **how)
    return got.z, got.kl, grads.mu, grads.logvar


def in_numpy(a: dict[str, Any], both: bool) -> Any:
    """Sums of precisions by the subset without its lowest expert, kept for the backward."""
    import numpy as np

    mu, logvar, noise, component = a["mu"], a["logvar"], a["noise"], a["component"]
    M, B, D = mu.shape
    K = 2**M - 1
    precision = np.exp(-logvar)
    weighted = precision * mu
    taus, sums = np.ones((K + 1, B, D), np.float32), np.zeros((K + 1, B, D), np.float32)
    kl = np.zeros(B, np.float32)
    for s in range(1, K + 1):
        m = (s & -s).bit_length() - 1
        np.add(taus[s & (s - 1)], precision[m], out=taus[s])
        np.add(sums[s & (s - 1)], weighted[m], out=sums[s])
        var = 1 / taus[s]
        mean = sums[s] * var
        kl += (var + mean * mean + np.log(taus[s]) - 1).sum(axis=1)
    kl *= np.float32(0.5 / K)
    rows = np.arange(B)
    var = 1 / taus[component + 1, rows]
    mean, sigma = sums[component + 1, rows] * var, np.sqrt(var)
    z = mean + sigma * noise
    if not both:
        return z, kl
    k = (a["grad_kl"] / np.float32(K))[:, None]
    of_tau, of_sum = np.zeros_like(taus), np.zeros_like(sums)
    of_sum[component + 1, rows] = a["grad_z"] * var
    of_tau[component + 1, rows] = -(a["grad_z"] * (mean + np.float32(0.5) * sigma * noise)) * var
    dmu, dlogvar = np.zeros_like(mu), np.zeros_like(mu)
    for s in range(K, 0, -1):
        m, parent = (s & -s).bit_length() - 1, s & (s - 1)
        var = 1 / taus[s]
        mean = sums[s] * var
        of_sum[s] += k * mean * var
        of_tau[s] -= k * (mean * mean + np.float32(0.5) * (var - 1)) * var
        dmu[m] += of_sum[s]
        dlogvar[m] += of_tau[s]
        if parent:
            of_sum[parent] += of_sum[s]
            of_tau[parent] += of_tau[s]
    dlogvar += dmu * mu
    dlogvar *= -precision
    dmu *= precision
    return z, kl, dmu, dlogvar


def torch_rows(a: dict[str, Any]) -> dict[str, Callable[[bool], Any]]:
    """Rows of PyTorch."""
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in a.items()}
    M, B, _ = a["mu"].shape
    K = 2**M - 1

    def forward(mu: Any, logvar: Any, noise: Any, component: Any) -> Any:
        precision = torch.exp(-logvar)
        weighted = precision * mu
        taus, sums = [torch.ones_like(mu[0])], [torch.zeros_like(mu[0])]
        kl = torch.zeros_like(mu[0])
        mean_of, log_of = torch.zeros_like(mu[0]), torch.zeros_like(mu[0])
        for s in range(1, K + 1):
            m = (s & -s).bit_length() - 1
            taus.append(taus[s & (s - 1)] + precision[m])
            sums.append(sums[s & (s - 1)] + weighted[m])
            mean, log = sums[s] / taus[s], torch.log(taus[s])
            kl = kl + 1 / taus[s] + mean * mean - 1 + log
            here = (component == s - 1)[:, None]
            mean_of, log_of = torch.where(here, mean, mean_of), torch.where(here, log, log_of)
        return mean_of + torch.exp(-0.5 * log_of) * noise, kl.sum(1) * (0.5 / K)

    def libraries(mu: Any, logvar: Any, noise: Any, component: Any) -> Any:
        means, logs, kls = [], [], []
        for s in range(1, K + 1):
            members = [m for m in range(M) if s >> m & 1]
            means_of = torch.stack([mu[m] for m in members] + [torch.zeros_like(mu[0])])
            logs_of = torch.stack([logvar[m] for m in members] + [torch.zeros_like(mu[0])])
            precision = 1 / (torch.exp(logs_of) + 1e-8)
            var = 1 / precision.sum(0)
            means.append((means_of * precision).sum(0) * var)
            logs.append(torch.log(var))
            kls.append(-0.5 * (1 - logs[-1].exp() - means[-1].pow(2) + logs[-1]).sum(1))
        rows = torch.arange(B)
        mean, log = torch.stack(means)[component, rows], torch.stack(logs)[component, rows]
        return mean + torch.exp(0.5 * log) * noise, torch.stack(kls).mean(0)

    def run(function: Callable[..., Any], both: bool) -> Any:
        mu, logvar = (tensors[name].detach().requires_grad_(both) for name in ("mu", "logvar"))
        with torch.set_grad_enabled(both):
            z, kl = function(mu, logvar, tensors["noise"], tensors["component"])
        if not both:
            return z.numpy(), kl.numpy()
        grads = torch.autograd.grad((z, kl), (mu, logvar), (tensors["grad_z"], tensors["grad_kl"]))
        return z.detach().numpy(), kl.detach().numpy(), *(g.numpy() for g in grads)

    compiled = torch.compile(forward)
    return {
        "torch": lambda both: run(forward, both),
        "compiled": lambda both: run(compiled, both),
        "libraries": lambda both: run(libraries, both),
    }


def check(name: str, got: Any, a: dict[str, Any]) -> None:
    """Hold a row to the reference: some rows of the batch in float64."""
    import numpy as np
    from reference import mixture as reference

    few = slice(0, 64)
    how = {"component": a["component"][few], "noise": a["noise"][few]}
    mu, logvar = a["mu"][:, few], a["logvar"][:, few]
    z, kl, _ = reference.mixture_of_products(mu, logvar, **how)
    want = [z, kl]
    if len(got) > 2:
        grads, _ = reference.mixture_of_products_backward(
            a["grad_z"][few], a["grad_kl"][few], mu, logvar, **how
        )
        want += grads[:2]
    for i, (one, ref) in enumerate(zip(got, want, strict=True)):
        part = one[few] if i < 2 else one[:, few]
        worst = np.abs(part - ref).max() / np.abs(ref).max()
        if not worst < 1e-4:
            raise SystemExit(f"{name} is wrong: result {i} is off by {worst:.2g} of its largest")


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modalities", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long to measure a case")
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--json", type=Path, help="file to keep the results in")
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import sensorium

    sensorium.keep_pages()
    cases = {}
    facts = measure.machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    for M in args.modalities:
        a = arrays(M, *SIZES)
        calls: dict[str, Callable[[bool], Any]] = {
            "sensorium": lambda both, a=a: ours(a, both),
            "numpy": lambda both, a=a: in_numpy(a, both),
        }
        try:
            import torch

            torch.set_num_threads(args.threads)
            calls |= torch_rows(a)
        except ModuleNotFoundError:
            print("without torch, which is not installed")
        if args.rows:
            calls = {name: call for name, call in calls.items() if name in args.rows}
        for both in (False, True):
            rows = {name: (lambda call=call, both=both: call(both)) for name, call in calls.items()}
            first = {}
            for name, call in rows.items():
                check(name, call(), a)
                first[name] = measure.once(call)
            times = measure.interleave(rows, first, args.seconds)
            name = f"mixture of products {'both' if both else 'forward'} M{M} B{SIZES[0]} D{SIZES[1]}"
            result = {row: {"ms": measure.spread([1e3 * t for t in of])} for row, of in times.items()}
            for row, of in times.items():
                if "sensorium" in times and row != "sensorium":
                    result[row]["times"] = measure.ratio(of, times["sensorium"])
            cases[name] = result
            print(name)
            for row, of in result.items():
                times_as_long = f"{of['times']['median']:8.1f} times" if "times" in of else ""
                print(f"  {row:10} {of['ms']['median']:9.3f} ms {times_as_long}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"about": facts, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
