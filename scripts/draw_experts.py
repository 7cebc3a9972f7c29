"""Draw what products, a mixture and a pool make of experts, as docs/images/experts.svg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sensorium.ops import gaussian_log_prob, generalised_product, product_of_experts, student_t_product

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "experts.svg"
CASES = {
    "two that agree": ([-0.5, 0.6], [0.8, 0.8]),
    "one surer than the other": ([-1.5, 1.0], [1.5, 0.5]),
    "two that disagree": ([-3.0, 3.0], [0.7, 0.7]),
    "two, and one that is broken": ([-0.4, 0.4, 6.0], [0.7, 0.7, 0.7]),
}
WIDE = 4.0  # A prior that says little.


def curves(means: list[float], sigmas: list[float]) -> dict[str, tuple[Any, Any]]:
    """Mean and deviation of every way to fuse, but for the mixture, whose density is that of its experts."""
    mu = np.array(means)[:, None, None]
    logvar = 2 * np.log(np.array(sigmas))[:, None, None]
    prior = (np.zeros(1), np.array([2 * np.log(WIDE)]))
    robust = student_t_product(mu, logvar, 3.0, prior=prior, approximation="moments")
    return {
        "product": product_of_experts(mu, logvar, prior=prior),
        "pool, powers that sum to 1": generalised_product(mu, logvar),
        "product of Student-t experts": (robust.mean, robust.logvar),
    }


def draw(path: Path = IMAGE) -> None:
    """Write the figure, the same bytes each time."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sensorium", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(1, len(CASES), figsize=(11, 2.7), layout="constrained", sharey=True)
    for axis, (title, (means, sigmas)) in zip(axes, CASES.items(), strict=True):
        z = np.linspace(min(means) - 3, max(means) + 3, 400)

        def density(mean: Any, logvar: Any, z: Any = z) -> Any:
            return np.exp(gaussian_log_prob(z[:, None], np.ravel(mean), np.ravel(logvar)))

        each = [density(np.array([m]), 2 * np.log(np.array([s]))) for m, s in zip(means, sigmas, strict=True)]
        for one in each:
            axis.fill_between(z, one, color="grey", alpha=0.2, linewidth=0)
        axis.plot(z, np.mean(each, axis=0), color="C3", label="mixture", linewidth=1, linestyle="--")
        for i, (name, (mean, logvar)) in enumerate(curves(means, sigmas).items()):
            axis.plot(z, density(mean, logvar), color=f"C{i}", label=name, linewidth=1.3)
        axis.set_title(title, fontsize=9)
        axis.set_yticks([])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw()
