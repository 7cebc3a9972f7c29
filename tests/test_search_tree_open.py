"""Trees whose walks add children: progressive widening and adaptive branching."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.search import ReferenceTree
from sensorium.errors import ArgumentError, MemoryLimitError
from sensorium.search import PUCT, UCB1, ABMCTSBeta, ABMCTSGaussian, Tree, UCB1Tuned, Widening

OPEN = [Widening(), Widening(UCB1Tuned(), k=2.0, alpha=0.3), ABMCTSGaussian(), ABMCTSBeta()]


def worth(leaf):
    return (leaf * 37 % 101) / 101


def grow(tree, simulations, batch=1):
    while tree.simulations < simulations:
        leaves = tree.select(batch=min(batch, simulations - tree.simulations))
        tree.backup(leaves, [worth(leaf) for leaf in leaves.tolist()])
    return tree


@st.composite
def searches(draw):
    settings = {
        "discount": draw(st.sampled_from([1.0, 0.9])),
        "players": draw(st.sampled_from([1, 2])),
        "normalise": draw(st.booleans()),
        "virtual_loss": draw(st.sampled_from([1.0, 0.0])),
    }
    policy = draw(st.sampled_from([UCB1(), UCB1Tuned(), PUCT(unvisited=None)]))
    widening = draw(st.sampled_from([(1.0, 0.5), (0.5, 1.0), (3.0, 0.0), (2.0, 0.3)]))
    calls = draw(st.lists(st.sampled_from("SSSSTTTRFE"), min_size=5, max_size=60))
    return policy, widening, settings, calls, draw(st.integers(0, 2**32 - 1))


@given(searches())
def test_widening_agrees_with_the_reference_call_by_call(search):
    policy, (k, alpha), settings, calls, seed = search
    rng = np.random.default_rng(seed)
    tree = Tree(policy=Widening(policy, k=k, alpha=alpha), **settings)
    reference = ReferenceTree((policy.name, *policy.parameters()), widening=(k, alpha), **settings)
    under_way = []
    for call in calls:
        if call == "S":
            batch = int(rng.integers(1, 6))
            got, want = tree.select(batch), reference.select(batch)
            assert got.tolist() == want
            under_way += want
        elif under_way:
            rng.shuffle(under_way)
            some = int(rng.integers(1, len(under_way) + 1)) if call == "T" else 1
            leaves, under_way = under_way[:some], under_way[some:]
            if call in "TE":
                if call == "E":
                    tree.expand(leaves, 0)
                    reference.expand(leaves[0], [])
                values = rng.integers(-4, 5, some) / 4
                tree.backup(leaves, values)
                for leaf, value in zip(leaves, values, strict=True):
                    reference.backup(leaf, value)
            elif call == "R":
                tree.release(leaves)
                reference.release(leaves[0])
            else:
                tree.fail(leaves)
                reference.fail(leaves[0])
        check_same(tree, reference)
    tree.release(under_way)
    for leaf in under_way:
        reference.release(leaf)
    node = int(rng.integers(len(tree)))
    reference.reroot(node)
    tree.reroot(node=node)
    check_same(tree, reference, rounding=1e-10)


def check_same(tree, reference, rounding=0.0):
    columns, nodes = tree.to_arrays(), reference.nodes
    index = {id(node): i for i, node in enumerate(nodes)}
    assert columns["parents"].tolist() == [-1] + [index[id(node.parent)] for node in nodes[1:]]
    assert columns["visits"].tolist() == [node.visits for node in nodes]
    assert columns["waiting"].tolist() == [node.waiting for node in nodes]
    np.testing.assert_allclose(columns["sums"], [node.total for node in nodes], rtol=0, atol=rounding)
    for i, node in enumerate(nodes):
        assert tree.children(i).tolist() == [index[id(child)] for child in node.children]


@pytest.mark.parametrize("policy", OPEN, ids=repr)
@pytest.mark.parametrize("batch", [1, 7])
def test_visits_are_simulations(policy, batch):
    tree = grow(Tree(policy=policy, seed=2), 300, batch)
    columns = tree.to_arrays()
    assert columns["visits"][0] == tree.simulations == 300
    assert len(tree) == 301
    below = np.bincount(columns["parents"][1:], weights=columns["visits"][1:], minlength=301)
    # Every node but the root was evaluated once.
    assert (columns["visits"] - below).tolist() == [0] + [1] * 300
    assert columns["waiting"].sum() == 0
    assert columns["sums"][0] == pytest.approx(sum(worth(leaf) for leaf in range(1, 301)))


@pytest.mark.parametrize(("k", "alpha"), [(1.0, 0.5), (0.7, 0.8), (1.0, 1.0)])
def test_a_node_has_as_many_children_as_its_visits_allow(k, alpha):
    tree = grow(Tree(policy=Widening(k=k, alpha=alpha)), 250)
    columns = tree.to_arrays()
    # The first visit of a node is its own evaluation; each later one adds a child or none.
    want = [0, 0]
    for visits in range(2, 251):
        want.append(want[-1] + (want[-1] < math.ceil(k * visits**alpha)))
    assert columns["counts"][1:].tolist() == [want[visits] for visits in columns["visits"][1:]]
    assert columns["counts"][0] == math.ceil(k * 250**alpha)


def branched(policy, values, parents):
    """The tree of a seed whose walks went to these parents, with these values."""
    for seed in range(5000):
        tree = Tree(policy=policy, seed=seed)
        for value, parent in zip(values, parents, strict=True):
            leaf = tree.select()
            if tree.parents(leaf) != parent:
                break
            tree.backup(leaf, value)
        else:
            return tree
    raise AssertionError("no seed goes there")


def gaussian(rng, values, size):
    """Draws from the posterior of the mean, prior (0.3, 1.5, 2, 0.1), by Murphy's formulas."""
    x, count = np.array(values), len(values)
    strength = 1.5 + count
    mean = (1.5 * 0.3 + x.sum()) / strength
    scale = 0.1 + 0.5 * ((x - x.mean()) ** 2).sum() + 0.5 * 1.5 * count / strength * (x.mean() - 0.3) ** 2
    variance = scale / rng.gamma(2.0 + count / 2, size=size)
    return mean + np.sqrt(variance / strength) * rng.normal(size=size)


def beta(rng, values, size):
    return rng.beta(0.7 + sum(values), 0.9 + len(values) - sum(values), size=size)


@pytest.mark.parametrize(
    ("policy", "posterior"),
    [
        (ABMCTSGaussian(mean=0.3, strength=1.5, shape=2.0, scale=0.1), gaussian),
        (ABMCTSBeta(alpha=0.7, beta=0.9), beta),
    ],
    ids=["gaussian", "beta"],
)
def test_adaptive_branching_draws_from_the_posteriors(policy, posterior):
    """Shares of 4,000 walks from one state against 40,000 draws by NumPy: five standard errors of the difference.

    The root's children came with 0.2 and 0.9; below the second came 0.4 and 0.8.
    """
    tree = branched(policy, [0.2, 0.9, 0.4, 0.8], [0, 0, 2, 2])
    n, size = 4000, 40_000
    seen = np.zeros(3)
    for _ in range(n):
        (leaf,) = tree.select()
        path = tree.path(leaf)
        # A new child of the root, something below its first child, or below its second.
        seen[0 if len(path) == 1 else 1 + path[0]] += 1
        tree.release(leaf)
    rng = np.random.default_rng(0)
    new = posterior(rng, [0.2, 0.9], size) >= posterior(rng, [0.4, 0.8], size)
    first = posterior(rng, [0.2], size) > posterior(rng, [0.9, 0.4, 0.8], size)
    want = np.array([new.mean(), (~new & first).mean(), (~new & ~first).mean()])
    error = 5 * np.sqrt(want * (1 - want) * (1 / n + 1 / size))
    assert (np.abs(seen / n - want) < error).all(), (seen / n, want)


@pytest.mark.parametrize("policy", [ABMCTSGaussian(), ABMCTSBeta()], ids=repr)
def test_adaptive_branching_goes_where_it_pays(policy):
    """Where refining gains it goes deeper than where refining loses, by five standard errors over 20 seeds."""
    depths = {}
    for gain in (0.15, -0.15):
        depths[gain] = []
        for seed in range(20):
            tree = Tree(policy=policy, seed=seed)
            found = {0: 0.35}
            for _ in range(60):
                (leaf,) = tree.select()
                (parent,) = tree.parents(leaf)
                found[leaf] = min(max(found[parent] + (gain if parent else 0.0), 0.0), 1.0)
                tree.backup(leaf, found[leaf])
            depths[gain].append(np.mean([len(tree.path(node)) for node in range(1, len(tree))]))
    deep, wide = depths.values()
    error = math.sqrt((np.var(deep) + np.var(wide)) / 20)
    assert np.mean(deep) - np.mean(wide) > 5 * error


def test_new_children_are_named_and_released_and_failed():
    tree = Tree(policy=ABMCTSBeta(), seed=0)
    leaves = tree.select(batch=3)
    assert leaves.tolist() == [1, 2, 3]
    assert tree.parents(leaves).tolist() == [0, 0, 0]
    tree.rename(leaves, ["a", ("b",), 7])
    assert tree.actions() == ["a", ("b",), 7]
    tree.release([2])
    assert tree.select().tolist() == [2]
    tree.fail([2])
    tree.backup([1, 3], [0.5, 1.0])
    grow(tree, 100)
    assert tree.visits()[1] == 0
    assert tree.visits().sum() == 100
    assert tree.best_action() != ("b",)


def test_a_leaf_without_actions_is_told_again():
    tree = Tree(policy=Widening(k=1.0, alpha=0.0))
    leaf = tree.select()
    tree.expand(leaf, 0)
    tree.backup(leaf, 0.25)
    assert tree.select(batch=3).size == 0
    assert tree.visits().tolist() == [4]
    assert tree.value() == 0.25


def test_limits_and_what_cannot_be():
    tree = Tree(policy=ABMCTSGaussian(), max_nodes=4)
    before = tree.select(batch=2)
    with pytest.raises(MemoryLimitError, match="max_nodes is 4"):
        tree.select(batch=5)
    # Of the call that failed nothing is handed out; what it added waits to be handed out again.
    np.testing.assert_array_equal(tree.pending(), before)
    tree.release(before)
    tree.backup(tree.select(batch=3), 0.5)
    assert tree.visits().tolist() == [1, 1, 1]
    with pytest.raises(ArgumentError, match="children must be 0"):
        tree.expand([3], 2)
    with pytest.raises(ArgumentError, match="win cannot be given"):
        Tree(policy=Widening(), win=1.0)
    with pytest.raises(ArgumentError, match="cannot be widened"):
        Tree(policy=Widening(ABMCTSBeta()))
    with pytest.raises(ArgumentError, match="unknown"):
        Tree(policy=Widening(Widening()))
    with pytest.raises(ArgumentError, match="k must be above 0"):
        Tree(policy=Widening(k=0.0))
    with pytest.raises(ArgumentError, match="alpha must be from 0 to 1"):
        Tree(policy=Widening(alpha=1.5))
    beta = Tree(policy=ABMCTSBeta())
    leaf = beta.select()
    with pytest.raises(ArgumentError, match="values has 2 for leaf 1"):
        beta.backup(leaf, 2.0)


@pytest.mark.parametrize("policy", OPEN, ids=repr)
def test_the_file_goes_on_as_the_tree_does(policy, tmp_path):
    tree = grow(Tree(policy=policy, seed=4), 80, 3)
    tree.save(tmp_path / "tree.safetensors")
    loaded = Tree.load(tmp_path / "tree.safetensors")
    assert loaded.policy == policy
    for one in (tree, loaded):
        grow(one, 160, 3)
    first, second = tree.to_arrays(), loaded.to_arrays()
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_long_chain():
    """Widening with one child a node: every walk goes to the end and adds a node."""
    tree = Tree(policy=Widening(k=1.0, alpha=0.0))
    for _ in range(1500):
        leaf = tree.select()
        tree.backup(leaf, 0.5)
    assert len(tree.path(leaf[0])) == 1500
    assert tree.visits().tolist() == [1500]
