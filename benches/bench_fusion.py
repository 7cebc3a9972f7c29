"""Products of Gaussian experts and fused posteriors against what else there is, and against the memory.

    python benches/bench_fusion.py [--threads 2] [--json FILE] [--cases WORD ...] [--rows NAME ...]

Every row of a case first agrees with the result in float64, where noise is given. Rows are then timed in
turn, round after round. Rows are NumPy as the formula is written, NumPy with every buffer made beforehand,
torch as it is and compiled, JAX compiled, and the formula of multivae's products (`logsumexp` of the
logarithms of precisions, and the exponentials of both), where those are installed. `triad` is `a = b + s c`
over arrays as large as what the case moves: what the memory allows. Arrays that are freed stay with the
process, for all rows alike. Printed are milliseconds, gigabytes a second and the share of the triad, and for
others how many times as long they take.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """What is measured: a product or a posterior, of given noise or drawn, forward alone or with backward."""

    kind: str
    passes: str
    M: int
    B: int
    D: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.passes} M{self.M} B{self.B} D{self.D}"

    @property
    def bytes(self) -> int:
        """What must be read and written: experts, noise, results, their gradients, gradients of experts."""
        noise = int(self.kind == "posterior")
        results = 2 if self.kind == "product" else 1
        forward = 2 * self.M + noise + results
        backward = 4 * self.M + noise + results if self.passes == "both" else 0
        return 4 * self.B * self.D * (forward + backward)


SIZES = [(2, 4096, 128), (2, 16384, 128), (5, 4096, 256), (3, 256, 64)]
CASES = [
    Case(kind, passes, *size)
    for kind in ("product", "posterior", "posterior drawn")
    for passes in ("forward", "both")
    for size in SIZES
]


def numpy_rows(case: Case, x: dict[str, Any]) -> dict[str, Call]:
    """The formula as it is written, and with every buffer made beforehand."""
    import numpy as np

    mu, logvar, g, noise = x["mu"], x["logvar"], x["g"], x["noise"]
    rng = np.random.default_rng(0)

    def formula() -> Any:
        tau = np.exp(-logvar)
        total = 1 + tau.sum(axis=0)
        mean = (tau * mu).sum(axis=0) / total
        log = -np.log(total)
        if case.kind == "product":
            results = mean, log
            of_mean, of_log = g
        else:
            e = noise if case.kind == "posterior" else rng.standard_normal(mean.shape, dtype=np.float32)
            deviation = np.exp(log / 2)
            variance = deviation * deviation
            results = mean + deviation * e, 0.5 * (variance + mean * mean - 1 - log).sum(axis=1)
            if case.passes == "both":
                of_mean = g[0] + mean
                of_log = 0.5 * (g[0] * e * deviation + variance - 1)
        if case.passes == "forward":
            return results
        share = tau / total
        return *results, share * of_mean, share * (of_log - of_mean * (mu - mean))

    tau, dmu, dlogvar = np.empty_like(mu), np.empty_like(mu), np.empty_like(mu)
    total, mean, log, z, one, two, e = (np.empty_like(g[0]) for _ in range(7))

    def buffers() -> Any:
        np.negative(logvar, out=tau)
        np.exp(tau, out=tau)
        np.sum(tau, axis=0, out=total)
        np.add(total, 1, out=total)
        np.multiply(tau[0], mu[0], out=mean)
        for m in range(1, case.M):
            np.multiply(tau[m], mu[m], out=one)
            np.add(mean, one, out=mean)
        np.divide(1, total, out=total)
        np.multiply(mean, total, out=mean)
        np.log(total, out=log)
        of_mean, of_log = g
        results: Any = (mean, log)
        if case.kind != "product":
            noisy = noise
            if case.kind != "posterior":
                rng.standard_normal(dtype=np.float32, out=e)
                noisy = e
            # The variance is one through the total, and its root the deviation.
            np.sqrt(total, out=one)
            np.multiply(one, noisy, out=one)
            np.add(mean, one, out=z)
            np.multiply(mean, mean, out=two)
            np.add(two, total, out=two)
            np.subtract(two, log, out=two)
            results = (z, 0.5 * (two.sum(axis=1) - case.D))
            if case.passes == "both":
                np.multiply(one, g[0], out=one)
                np.add(one, total, out=one)
                np.subtract(one, 1, out=one)
                np.multiply(one, 0.5, out=one)
                np.add(mean, g[0], out=two)
                of_mean, of_log = two, one
        if case.passes == "forward":
            return results
        for m in range(case.M):
            np.multiply(tau[m], total, out=tau[m])
            np.multiply(tau[m], of_mean, out=dmu[m])
            np.subtract(mu[m], mean, out=dlogvar[m])
            np.multiply(dlogvar[m], of_mean, out=dlogvar[m])
            np.subtract(of_log, dlogvar[m], out=dlogvar[m])
            np.multiply(dlogvar[m], tau[m], out=dlogvar[m])
        return *results, dmu, dlogvar

    return {"numpy": formula, "numpy, buffers": buffers}


def native_rows(case: Case, x: dict[str, Any]) -> dict[str, Call]:
    """Ours."""
    import numpy as np
    from sensorium import ops

    mu, logvar, g = x["mu"], x["logvar"], x["g"]
    noise = {"noise": x["noise"]} if case.kind == "posterior" else {"rng": 1}
    ones = np.ones(case.B, np.float32)

    def call() -> Any:
        if case.kind == "product":
            results = ops.product_of_experts(mu, logvar)
            if case.passes == "forward":
                return results
            grads = ops.product_of_experts_backward(g[0], g[1], mu, logvar)
        else:
            results = ops.fused_posterior(mu, logvar, **noise, moments=False)[:2]
            if case.passes == "forward":
                return results
            grads = ops.fused_posterior_backward(g[0], ones, mu, logvar, **noise)
        return *results, grads.mu, grads.logvar

    return {"sensorium": call}


def torch_rows(case: Case, x: dict[str, Any], threads: int) -> dict[str, Call]:
    """Torch as it is and compiled, and the formula of multivae."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    torch.set_num_threads(threads)
    torch.compiler.reset()  # It gives up on a function that it has compiled for eight cases.
    mu, logvar, g, noise = (torch.from_numpy(x[name]) for name in ("mu", "logvar", "g", "noise"))
    if case.passes == "both":
        mu.requires_grad_()
        logvar.requires_grad_()

    def product(mu: Any, logvar: Any) -> Any:
        tau = torch.exp(-logvar)
        total = 1 + tau.sum(dim=0)
        return (tau * mu).sum(dim=0) / total, -torch.log(total)

    def multivae(mu: Any, logvar: Any) -> Any:
        # Experts come as lists there, with the prior's zeros among them, and are stacked.
        logs = torch.stack([-log for log in (*logvar, torch.zeros_like(logvar[0]))])
        means = torch.stack([*mu, torch.zeros_like(mu[0])])
        log = -torch.logsumexp(logs, dim=0)
        return (torch.exp(logs) * means).sum(dim=0) * torch.exp(log), log

    def after(fuse: Callable[..., Any]) -> Callable[..., Any]:
        def whole(mu: Any, logvar: Any, noise: Any) -> Any:
            mean, log = fuse(mu, logvar)
            if case.kind == "product":
                return mean, log
            e = noise if case.kind == "posterior" else torch.randn_like(mean)
            kl = 0.5 * (log.exp() + mean * mean - 1 - log).sum(dim=1)
            return mean + torch.exp(log / 2) * e, kl

        return whole

    def run(function: Callable[..., Any]) -> Call:
        def call() -> Any:
            results = function(mu, logvar, noise)
            if case.passes == "forward":
                return [part.numpy() for part in results]
            seeds = [g[0], g[1] if case.kind == "product" else torch.ones(case.B)]
            grads = torch.autograd.grad(results, (mu, logvar), seeds)
            return [part.detach().numpy() for part in (*results, *grads)]

        return call

    whole = after(product)
    return {
        "torch": run(whole),
        "torch.compile": run(torch.compile(whole, fullgraph=True, dynamic=False)),
        "multivae": run(after(multivae)),
    }


def jax_rows(case: Case, x: dict[str, Any]) -> dict[str, Call]:
    """JAX, compiled."""
    if importlib.util.find_spec("jax") is None:
        return {}
    import jax
    import jax.numpy as jnp

    mu, logvar, g, noise = (jnp.asarray(x[name]) for name in ("mu", "logvar", "g", "noise"))
    key = jax.random.key(0)

    def whole(mu: Any, logvar: Any, noise: Any) -> Any:
        tau = jnp.exp(-logvar)
        total = 1 + tau.sum(axis=0)
        mean, log = (tau * mu).sum(axis=0) / total, -jnp.log(total)
        if case.kind == "product":
            return mean, log
        e = noise if case.kind == "posterior" else jax.random.normal(key, mean.shape)
        return mean + jnp.exp(log / 2) * e, 0.5 * (jnp.exp(log) + mean * mean - 1 - log).sum(axis=1)

    def both(mu: Any, logvar: Any, noise: Any, g: Any) -> Any:
        results, backward = jax.vjp(lambda mu, logvar: whole(mu, logvar, noise), mu, logvar)
        return *results, *backward((g[0], g[1] if case.kind == "product" else jnp.ones(case.B)))

    forward, both = jax.jit(whole), jax.jit(both)
    if case.passes == "forward":
        return {"jax": lambda: jax.block_until_ready(forward(mu, logvar, noise))}
    return {"jax": lambda: jax.block_until_ready(both(mu, logvar, noise, g))}


def triad(case: Case, threads: int) -> Call:
    """`a = b + s c`, three arrays as large together as what the case moves."""
    import numpy as np

    a, b, c = (np.ones(max(1, case.bytes // 12), np.float32) for _ in range(3))
    if importlib.util.find_spec("torch") is None:
        return lambda: np.add(b, c, out=a)
    import torch

    torch.set_num_threads(threads)
    x, y, z = map(torch.from_numpy, (a, b, c))
    return lambda: torch.add(y, z, alpha=0.5, out=x)


def arrays(case: Case) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    mu, logvar = rng.standard_normal((2, case.M, case.B, case.D), dtype=np.float32)
    g = rng.standard_normal((2, case.B, case.D), dtype=np.float32)
    noise = rng.standard_normal((case.B, case.D), dtype=np.float32)
    return {"mu": mu, "logvar": logvar, "g": g, "noise": noise}


def check(case: Case, x: dict[str, Any], name: str, results: Any) -> None:
    """Hold a row to the formula in float64, where noise is given."""
    import numpy as np

    if case.kind == "posterior drawn":
        return
    wide = {key: value.astype(np.float64) for key, value in x.items()}
    want = numpy_rows(case, wide)["numpy"]()
    for got, ref in zip(results, want, strict=True):
        np.testing.assert_allclose(np.asarray(got), ref, rtol=1e-4, atol=1e-4, err_msg=f"{name}, {case.name}")


def run(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every row, its share of the triad's bandwidth, and what it takes beside ours."""
    x = arrays(case)
    rows = native_rows(case, x) | numpy_rows(case, x)
    rows |= torch_rows(case, x, args.threads) | jax_rows(case, x)
    if args.rows:
        rows = {name: call for name, call in rows.items() if name in ("sensorium", *args.rows)}
    for name, call in rows.items():
        check(case, x, name, call())
    rows["triad"] = triad(case, args.threads)
    called = {name: measure.once(call) for name, call in rows.items()}
    times = measure.interleave(rows, called, args.seconds)
    result: dict[str, Any] = {"bytes": case.bytes}
    for name, seconds in times.items():
        result[name] = {
            "ms": measure.spread([1e3 * s for s in seconds]),
            "gigabytes_a_second": measure.spread([case.bytes / s / 1e9 for s in seconds]),
            "of_triad": measure.ratio(times["triad"], seconds),
            "times_ours": measure.ratio(seconds, times["sensorium"]),
        }
    return result


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to measure a case")
    parser.add_argument("--cases", nargs="+", help="words, one of which a case's name has")
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    import sensorium

    sensorium.keep_pages()
    facts, kept = measure.machine(), {}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    for case in CASES:
        if args.cases and not any(word in case.name for word in args.cases):
            continue
        kept[case.name] = result = run(case, args)
        print(f"\n{case.name}: {case.bytes / 1e6:.1f} MB")
        for name, row in result.items():
            if isinstance(row, dict):
                ms, share, beside = (row[key]["median"] for key in ("ms", "of_triad", "times_ours"))
                rate = row["gigabytes_a_second"]["median"]
                print(
                    f"  {name:<15} {ms:9.3f} ms {rate:7.1f} GB/s {share:6.2f} of triad {beside:7.2f} x ours"
                )
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in kept.items()]
            args.json.write_text(
                f'{{"about": {json.dumps(facts)},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
