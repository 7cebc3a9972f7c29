"""The search tree: against its reference call by call, against traces by hand, and what it refuses."""

import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.search import ReferenceTree
from sensorium.errors import ArgumentError, DTypeError, MemoryLimitError, ShapeError
from sensorium.search import (
    PUCT,
    UCB1,
    UCT,
    EpsilonGreedy,
    ThompsonBeta,
    ThompsonGaussian,
    Tree,
    UCB1Tuned,
)

POLICIES = [UCB1(), UCB1(c=0.3), UCB1Tuned(), PUCT(), PUCT(c=0.7, base=30.0, unvisited=None)]
ALL = [*POLICIES, UCT(), EpsilonGreedy(0.3), ThompsonGaussian(), ThompsonBeta()]


def bandit(policy, arms, **settings):
    """A root of so many arms, which are never expanded: each leaf can be pulled for ever."""
    tree = Tree(policy=policy, **settings)
    tree.expand([0], children=arms)
    return tree


def grow(tree, simulations, batch=1, width=3):
    """Simulations with values in [0, 1] that depend on where a leaf is, and on nothing else."""
    while tree.simulations < simulations:
        leaves = tree.select(batch=min(batch, simulations - tree.simulations))
        tree.expand(leaves, children=width)
        tree.backup(leaves, value_of(tree, leaves))
    return tree


def value_of(tree, leaves):
    return np.array([(hash(tuple(tree.path(leaf))) % 1000) / 1000 for leaf in leaves])


# --- against the reference -------------------------------------------------------------------------------


@st.composite
def searches(draw):
    policy = draw(st.sampled_from(POLICIES))
    settings = {
        "discount": draw(st.sampled_from([1.0, 0.9, 0.0])),
        "players": draw(st.sampled_from([1, 2])),
        "normalise": draw(st.booleans()),
        "virtual_loss": draw(st.sampled_from([1.0, 0.0, 0.25])),
        "win": draw(st.sampled_from([None, 1.0])),
    }
    calls = draw(st.lists(st.sampled_from("SSSSTTTRFX"), min_size=5, max_size=60))
    return policy, settings, calls, draw(st.integers(0, 2**32 - 1))


@given(searches())
def test_agrees_with_the_reference_call_by_call(search):
    """Any order of selecting, expanding, telling, releasing, failing and forbidding gives the same nodes and numbers."""
    policy, settings, calls, seed = search
    rng = np.random.default_rng(seed)
    tree = Tree(policy=policy, **settings)
    numbers = policy.parameters()
    reference = ReferenceTree((policy.name, *numbers), **settings)
    under_way = []
    for call in calls:
        if call == "S":
            batch = int(rng.integers(1, 6))
            want = reference.select(batch)
            if reference.nodes[0].failed and not want:
                with pytest.raises(ArgumentError, match="every action is forbidden or failed"):
                    tree.select(batch)
                break
            got = tree.select(batch)
            assert got.tolist() == want
            under_way += want
            fresh = [leaf for leaf in want if rng.random() < 0.8 and not reference.nodes[leaf].children]
            counts = rng.integers(0, 4, len(fresh))
            counts[rng.random(len(fresh)) < 0.7] = 3
            total = counts.sum()
            priors, rewards = rng.random(total), rng.integers(-1, 2, total) / 1.0
            terminal, forbidden = rng.random(total) < 0.2, rng.random(total) < 0.15
            tree.expand(fresh, counts, priors=priors, rewards=rewards, terminal=terminal, forbidden=forbidden)
            rows = list(zip(priors, rewards, terminal, forbidden, strict=True))
            for leaf, count in zip(fresh, counts, strict=True):
                reference.expand(leaf, rows[:count])
                del rows[:count]
        elif call == "X":
            if len(reference.nodes) > 1:
                child = int(rng.integers(1, len(reference.nodes)))
                tree.forbid(child)
                reference.forbid(child)
        elif under_way:
            rng.shuffle(under_way)
            some = int(rng.integers(1, len(under_way) + 1)) if call == "T" else 1
            leaves, under_way = under_way[:some], under_way[some:]
            if call == "T":
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
    assert tree.pending().tolist() == sorted(under_way)
    tree.release(under_way)
    for leaf in under_way:
        reference.release(leaf)
    node = int(rng.integers(len(tree)))
    stay = reference.reroot(node)
    tree.reroot(node=node)
    check_same(tree, reference, rounding=1e-12)
    assert len(tree) == len(stay)


def check_same(tree, reference, rounding=0.0):
    columns, nodes = tree.to_arrays(), reference.nodes
    index = {id(node): i for i, node in enumerate(nodes)}
    assert columns["parents"].tolist() == [-1] + [index[id(node.parent)] for node in nodes[1:]]
    assert columns["visits"].tolist() == [node.visits for node in nodes]
    assert columns["waiting"].tolist() == [node.waiting for node in nodes]
    np.testing.assert_allclose(columns["sums"], [node.total for node in nodes], rtol=0, atol=rounding * 100)
    for bit, name in ((1, "terminal"), (2, "forbidden"), (4, "failed"), (16, "handed_out")):
        assert ((columns["flags"] & bit) > 0).tolist() == [getattr(node, name) for node in nodes], name
    for i, node in enumerate(nodes):
        if node.exact is None:
            assert tree.proven(i) is None
        else:
            assert tree.proven(i) == pytest.approx(node.exact, abs=rounding)


# --- laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ALL, ids=repr)
@pytest.mark.parametrize("batch", [1, 7])
def test_visits_are_simulations(policy, batch):
    """Every visit of a node is its own evaluation or a visit of a child."""
    tree = grow(Tree(policy=policy, seed=3), 400, batch)
    columns = tree.to_arrays()
    assert tree.simulations == columns["visits"][0] == 400
    below = np.bincount(columns["parents"][1:], weights=columns["visits"][1:], minlength=len(tree)).astype(
        int
    )
    own = columns["visits"] - below
    assert own.sum() == 400
    # Each was evaluated when it was first reached, and then expanded.
    assert set(own.tolist()) <= {0, 1}
    assert ((own == 1) == (columns["visits"] > 0)).all()
    assert columns["sums"][0] == pytest.approx(sum(tree.returns() * tree.visits()) + value_of(tree, [0])[0])


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_the_same_seed_gives_the_same_tree(policy):
    first, second = (grow(Tree(policy=policy, seed=11), 200, 4).to_arrays() for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)


def test_another_seed_gives_another_tree():
    first, second = (grow(Tree(policy=ThompsonGaussian(), seed=s), 200).visits().tolist() for s in (1, 2))
    assert first != second


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_virtual_loss_leaves_no_trace(policy):
    """A tree whose leaves were all released is the tree from before."""
    tree = grow(Tree(policy=policy), 50)
    before = tree.to_arrays()
    leaves = tree.select(batch=20)
    assert leaves.size > 1
    assert (tree.to_arrays()["waiting"] > 0).any()
    tree.release(leaves[::-1])
    after = tree.to_arrays()
    assert all((before[name] == after[name]).all() for name in before)
    assert tree.pending().size == 0


def test_leaves_of_a_batch_differ_and_none_is_dropped():
    tree = grow(Tree(), 30)
    leaves = tree.select(batch=16)
    more = tree.select(batch=16)
    both = np.concatenate([leaves, more])
    assert len(set(both.tolist())) == both.size >= 30
    np.testing.assert_array_equal(tree.pending(), np.sort(both))
    before = tree.simulations
    for leaf in np.random.default_rng(0).permutation(both):
        tree.backup(int(leaf), 0.5)
    assert tree.simulations == before
    assert tree.to_arrays()["waiting"].sum() == 0


def test_threads_may_share_a_tree():
    tree = Tree()

    def work():
        for _ in range(100):
            leaves = tree.select(batch=3)
            tree.expand(leaves, children=4)
            tree.backup(leaves, 0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    columns = tree.to_arrays()
    assert columns["visits"][0] == tree.simulations > 400
    assert columns["waiting"].sum() == 0
    assert columns["sums"][0] == tree.simulations * 0.5


def test_every_instruction_set_gives_the_same_bits(isa):
    tree = grow(Tree(policy=PUCT(unvisited=None), normalise=True), 500, 8, width=9)
    # Of a run at the lowest level.
    assert (tree.to_arrays()["visits"] == ISA_VISITS.setdefault("visits", tree.to_arrays()["visits"])).all()


ISA_VISITS = {}


# --- by hand ---------------------------------------------------------------------------------------------


def pulls(tree, rewards, n):
    out = []
    for _ in range(n):
        (leaf,) = tree.select()
        tree.backup(leaf, rewards[leaf - 1])
        out.append(int(leaf) - 1)
    return out


def test_ucb1_by_hand():
    """Arms that pay 1, 0 and 0.5, with c = 1.

    After one pull each (N = 3, ln 3 = 1.0986, sqrt = 1.048): 2.048, 1.048, 1.548: arm 0.
    N = 4, ln 4 = 1.386: 1 + sqrt(.693) = 1.833, sqrt(1.386) = 1.177, .5 + 1.177 = 1.677: arm 0.
    N = 5, ln 5 = 1.609: 1 + sqrt(.5365) = 1.732, 1.269, .5 + 1.269 = 1.769: arm 2.
    N = 6, ln 6 = 1.792: 1 + sqrt(.597) = 1.773, 1.339, .5 + sqrt(.896) = 1.447: arm 0.
    N = 7, ln 7 = 1.946: 1 + sqrt(.4865) = 1.697, 1.395, .5 + sqrt(.973) = 1.486: arm 0.
    N = 8, ln 8 = 2.079: 1 + sqrt(.4159) = 1.645, 1.442, .5 + sqrt(1.0397) = 1.520: arm 0.
    N = 9, ln 9 = 2.197: 1 + sqrt(.3662) = 1.605, 1.482, .5 + sqrt(1.0986) = 1.548: arm 0.
    N = 10, ln 10 = 2.303: 1 + sqrt(.3289) = 1.574, 1.517, .5 + sqrt(1.1513) = 1.573: arm 0.
    N = 11, ln 11 = 2.398: 1 + sqrt(.2997) = 1.547, 1.549, .5 + sqrt(1.199) = 1.595: arm 2.
    """
    tree = bandit(UCB1(c=1.0), 3)
    assert pulls(tree, [1.0, 0.0, 0.5], 12) == [0, 1, 2, 0, 0, 2, 0, 0, 0, 0, 0, 2]


def test_puct_by_hand():
    """Priors 0.5, 0.3, 0.2, all values 0, c = 1: scores p sqrt(N) / (1 + n), N counts the root's own visit.

    N = 1: .5, .3, .2: 0. N = 2: .354, .424, .283: 1. N = 3: .433, .26, .346: 0. N = 4: .333, .3, .4: 2.
    N = 5: .373, .335, .224: 0. N = 6: .306, .367, .245: 1. N = 7: .331, .265, .265: 0.
    """
    tree = Tree(policy=PUCT(c=1.0))
    (root,) = tree.select()
    tree.expand(root, 3, priors=[0.5, 0.3, 0.2])
    tree.backup(root, 0.0)
    assert pulls(tree, [0.0] * 3, 7) == [0, 1, 0, 2, 0, 1, 0]


def test_uct_is_ucb1_with_twice_its_constant():
    first, second = (grow(Tree(policy=p), 100).visits() for p in (UCT(cp=0.4), UCB1(c=0.8)))
    np.testing.assert_array_equal(first, second)


def test_returns_of_two_players_alternate():
    tree = Tree(players=2, discount=0.5)
    for node in range(3):
        (leaf,) = tree.select()
        assert leaf == node
        tree.expand(leaf, 1, rewards=[0.25])
        tree.backup(leaf, 0.0)
    (leaf,) = tree.select()
    assert tree.path(leaf) == [0, 0, 0]
    tree.backup(leaf, 1.0)
    # Each action has 0.25 less half of what follows: 0.25 - 0.5 x 1, then 0.25 - 0.5 x -0.25, ...
    g3 = 0.25 - 0.5 * 1.0
    g2 = [0.25, 0.25 - 0.5 * g3]
    assert tree.returns(2).tolist() == [g3]
    assert tree.returns(1)[0] == np.mean(g2)
    assert tree.value(3) == 1.0
    # The root's value: nothing but its own 0 at first, then the returns of its action.
    g1 = [0.25, 0.25 - 0.5 * 0.25, 0.25 - 0.5 * g2[1]]
    assert tree.returns(0)[0] == np.mean(g1)
    assert tree.value() == sum(g1) / 4


def test_normalised_means_make_the_scale_of_values_irrelevant():
    """Values times 1000 plus 7 are chosen among as values are, where means are normalised."""
    plain, scaled = Tree(policy=PUCT(), normalise=True), Tree(policy=PUCT(), normalise=True)
    for _ in range(150):
        chosen = []
        for tree, (factor, shift) in ((plain, (1, 0)), (scaled, (1024, 0))):
            leaves = tree.select(batch=2)
            tree.expand(leaves, 3)
            tree.backup(leaves, value_of(tree, leaves) * factor + shift)
            chosen.append(leaves.tolist())
        assert chosen[0] == chosen[1]


@pytest.mark.parametrize("policy", [UCB1(), UCB1Tuned()], ids=repr)
def test_mean_regret_is_below_the_bound(policy):
    """Auer et al. (2002), theorem 1: 8 sum ln n / gap + (1 + pi^2 / 3) sum of gaps, for rewards in [0, 1].

    The mean of 100 seeds lies five standard errors below it, and above zero: a policy that looked at the arms'
    means would have none.
    """
    means, n, seeds = np.array([0.8, 0.5, 0.3]), 400, 100
    gaps = means.max() - means
    bound = 8 * np.sum(np.log(n) / gaps[gaps > 0]) + (1 + math.pi**2 / 3) * gaps.sum()
    regrets = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        tree = bandit(policy, 3)
        pays = rng.random((n, 3)) < means
        for row in pays.astype(float):
            leaf = tree.select()
            tree.backup(leaf, row[leaf - 1])
        regrets.append(float(gaps @ tree.visits()))
    error = np.std(regrets) / math.sqrt(seeds)
    assert np.mean(regrets) - 5 * error > 0
    assert np.mean(regrets) + 5 * error < bound
    # Uniform play would lose more: the bound alone is loose.
    assert np.mean(regrets) + 5 * error < 0.5 * n * gaps.mean()


@pytest.mark.parametrize(
    "policy", [EpsilonGreedy(0.1), ThompsonGaussian(mean=0.5, scale=0.1), ThompsonBeta()], ids=repr
)
def test_random_policies_find_the_best_arm(policy):
    """Over 40 seeds, the best of three arms gets more than half of 300 pulls on average, five standard errors off."""
    shares = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        tree = bandit(policy, 3, seed=seed)
        for _ in range(300):
            leaf = tree.select()
            tree.backup(leaf, rng.random(1) < np.array([0.2, 0.8, 0.5])[leaf - 1])
        shares.append(tree.visits()[1] / 300)
    assert np.mean(shares) - 5 * np.std(shares) / math.sqrt(40) > 0.5


def test_epsilon_greedy_explores_as_often_as_it_says():
    """With equal chance of three arms in a share of 0.3 of pulls, the two bad ones get 0.2 of them."""
    tree = bandit(EpsilonGreedy(0.3), 3, seed=5)
    n = 6000
    for _ in range(n):
        leaf = tree.select()
        tree.backup(leaf, float(leaf[0] == 2))
    bad = 1 - tree.visits()[1] / n
    assert abs(bad - 0.2) < 5 * math.sqrt(0.2 * 0.8 / n)


# --- proofs, ends, actions that are barred ---------------------------------------------------------------


def test_a_terminal_action_is_told_without_evaluation():
    tree = Tree()
    root = tree.select()
    tree.expand(root, 2, rewards=[0.75, 0.0], terminal=[True, False])
    tree.backup(root, 0.0)
    leaves = tree.select(batch=2)
    assert leaves.tolist() == [2]
    assert tree.visits().tolist() == [1, 0]
    assert tree.returns()[0] == 0.75
    assert tree.simulations == 3


def test_a_leaf_without_actions_keeps_its_first_value():
    tree = Tree(players=2)
    root = tree.select()
    tree.expand(root, [["only"]])
    tree.backup(root, 0.0)
    leaf = tree.select()
    tree.expand(leaf, 0)
    tree.backup(leaf, -1.0)
    assert tree.select(batch=3).size == 0
    assert tree.returns().tolist() == [1.0]
    assert tree.visits().tolist() == [4]
    with pytest.raises(ArgumentError, match="names node 1, which is terminal"):
        tree.expand(leaf, 2)


def test_proofs_follow_the_tree():
    """Two players: a win proves without siblings, a loss needs them all, and a draw is what remains."""
    tree = Tree(players=2, win=1.0)
    tree.expand(0, [["a", "b"]])
    a, b = tree.children()
    assert tree.proven() is None
    # After `a` the opponent wins at once.
    tree.expand(a, 2, rewards=[1.0, 0.0], terminal=[True, False])
    assert tree.proven(a) == -1.0
    assert tree.proven() is None
    # After `b` it can only draw or lose.
    tree.expand(b, 2, rewards=[0.0, -1.0], terminal=[True, True])
    assert tree.proven(b) == 0.0
    assert tree.proven() == 0.0
    assert tree.best_path() == ["b", 0]
    assert tree.select(batch=4).size == 0
    assert tree.value() == 0.0


def test_forbidden_actions_are_never_walked_and_prove_nothing():
    tree = Tree(win=1.0)
    tree.expand(0, 3, rewards=[0.5, 1.0, 0.0], terminal=[True, True, False], forbidden=[False, True, False])
    assert tree.proven() is None
    for _ in range(5):
        leaves = tree.select()
        tree.backup(leaves, np.zeros(leaves.size))
    assert tree.visits()[1] == 0
    tree.forbid(3)
    assert tree.proven() == 0.5
    tree.allow(2)
    assert tree.proven() == 1.0
    assert tree.best_action() == 1
    tree.forbid(2)
    assert tree.proven() == 0.5
    tree.allow(3)
    assert tree.proven() is None


def test_failed_leaves_are_left_out_and_so_is_what_leads_nowhere_else():
    tree = Tree()
    root = tree.select()
    tree.expand(root, 2)
    tree.backup(root, 0.0)
    leaves = tree.select(batch=2)
    assert leaves.tolist() == [1, 2]
    tree.expand(1, 1)
    tree.backup(1, 1.0)
    tree.fail(2)
    (leaf,) = tree.select()
    assert leaf == 3
    tree.fail(leaf)
    with pytest.raises(ArgumentError, match="every action is forbidden or failed"):
        tree.select()
    tree.forbid(2)
    tree.allow(2)
    with pytest.raises(ArgumentError, match="every action is forbidden or failed"):
        tree.select()


# --- depth and limits ------------------------------------------------------------------------------------


def test_a_chain_of_a_hundred_thousand_nodes(tmp_path):
    depth = 100_000
    tree = Tree(discount=0.999, win=1.0)
    for node in range(depth - 1):
        tree.expand(node, 1)
    tree.expand(depth - 1, 1, rewards=[1.0], terminal=[True])
    assert len(tree.path(depth)) == depth
    # The end is certain, and so is all above it.
    assert tree.proven() == pytest.approx(0.999 ** (depth - 1), rel=1e-9)
    assert len(tree.best_path()) == depth
    tree.draw(tmp_path / "tree.svg")
    tree.reroot(node=depth - 3)
    assert tree.proven() == pytest.approx(0.999**2)


def test_walks_down_a_long_chain():
    tree = Tree()
    for node in range(20_000):
        tree.expand(node, 1)
    leaf = tree.select()
    assert leaf.tolist() == [20_000]
    tree.backup(leaf, 1.0)
    assert (tree.to_arrays()["visits"] == 1).all()


def test_memory_limits_are_checked_before_memory_is_taken():
    tree = Tree(max_nodes=10)
    tree.expand(0, 5)
    before = tree.to_arrays()
    with pytest.raises(MemoryLimitError, match="would have 11 nodes, max_nodes is 10"):
        tree.expand([1], 5)
    with pytest.raises(MemoryError, match="a tree has at most 4294967294 nodes"):
        tree.expand([1, 2], 2**64)
    assert all((before[name] == column).all() for name, column in tree.to_arrays().items())
    tree.expand(1, 4)
    tree = Tree(max_bytes=1000)
    with pytest.raises(MemoryLimitError, match=r"would take \d+ bytes, max_bytes is 1000"):
        tree.expand(0, 40)
    with pytest.raises(MemoryLimitError, match="max_bytes is 1000"):
        tree.expand(0, 30, priors=np.ones(30))
    tree.expand(0, 30)
    assert tree.nbytes == 31 * 29
    with pytest.raises(MemoryLimitError, match="max_bytes is 10"):
        Tree(max_bytes=10)


def test_a_node_takes_as_many_bytes_as_said():
    tree = Tree(policy=PUCT())
    tree.expand(0, 1000, priors=np.ones(1000))
    assert tree.nbytes == 1001 * 33


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e101])
def test_values_that_are_no_numbers_name_their_leaf(bad):
    tree = grow(Tree(), 5)
    leaves = tree.select(batch=3)
    before = tree.to_arrays()
    values = np.zeros(leaves.size)
    values[1] = bad
    with pytest.raises(ArgumentError, match=rf"values has .* for leaf {leaves[1]},.*fail\(\)"):
        tree.backup(leaves, values)
    assert all((before[name] == column).all() for name, column in tree.to_arrays().items())
    with pytest.raises(ArgumentError, match="priors has"):
        tree.expand(leaves[0], 2, priors=[0.5, bad])
    with pytest.raises(ArgumentError, match="rewards has"):
        tree.expand(leaves[0], 2, rewards=[0.5, bad])
    with pytest.raises(ArgumentError, match=rf"cost has .* for leaf {leaves[0]}"):
        tree.backup(leaves[:1], 0.0, cost=bad)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: t.backup(99, 0.0), ArgumentError, "leaves names node 99, the tree has 4 nodes"),
        (lambda t: t.backup(-1, 0.0), ArgumentError, "leaves names node -1"),
        (lambda t: t.backup(1, 0.0), ArgumentError, "leaves names node 1, which is not handed out"),
        (lambda t: t.backup([2, 2], 0.0), ArgumentError, "leaves names leaf 2 twice"),
        (lambda t: t.backup([2], [0.0, 1.0]), ShapeError, "values has 2 elements, expected 1"),
        (lambda t: t.backup([[2]], 0.0), ShapeError, "leaves has shape"),
        (lambda t: t.backup(2, "x"), DTypeError, "values has dtype"),
        (lambda t: t.backup(2.0, 0.0), DTypeError, "leaves has dtype float64"),
        (lambda t: t.release(1), ArgumentError, "which is not handed out"),
        (lambda t: t.fail(99), ArgumentError, "names node 99"),
        (lambda t: t.expand(0, 2), ArgumentError, "leaves names node 0, which has children already"),
        (lambda t: t.expand([1, 1], 2), ArgumentError, "leaves names node 1, twice"),
        (lambda t: t.expand(1, -1), ArgumentError, "children must be at least 0"),
        (lambda t: t.expand(1, [-2]), ArgumentError, "children must be at least 0"),
        (lambda t: t.expand(1, np.array([-2])), ArgumentError, "children has a count of -2"),
        (lambda t: t.expand(1, [1, 2]), ShapeError, "children has 2 entries"),
        (lambda t: t.expand(1, "ab"), DTypeError, "children must be a number or a sequence"),
        (lambda t: t.expand(1, ["ab"]), DTypeError, "children has 'ab' for a leaf"),
        (lambda t: t.expand(1, [[{}]]), DTypeError, "an action has type dict"),
        (lambda t: t.rename([1], [{}]), DTypeError, "an action has type dict"),
        (lambda t: t.rename([0], ["a"]), ArgumentError, "nodes names the root"),
        (lambda t: t.rename([1, 2], ["a"]), ShapeError, "actions has 1 elements, expected 2"),
        (lambda t: t.rename([1], "a"), DTypeError, "actions must be a sequence"),
        (lambda t: t.expand(1, 2, priors=[1.0]), ShapeError, "priors has 1 elements, expected 2"),
        (lambda t: t.expand(1, 2, priors=[1.0, -1.0]), ArgumentError, "priors has -1"),
        (lambda t: t.expand(1, 2, rewards=["x", "y"]), DTypeError, "rewards has dtype"),
        (lambda t: t.expand(1, 2, terminal=[0.5, 1.0]), DTypeError, "terminal has dtype"),
        (lambda t: t.expand(1, 2, forbidden=[True]), ShapeError, "forbidden has 1 elements"),
        (lambda t: t.select(batch=-1), ArgumentError, "batch must be at least 0"),
        (lambda t: t.select(batch=2**40), ArgumentError, "batch must be at most"),
        (lambda t: t.select(batch=1.5), DTypeError, "batch must be an integer"),
        (lambda t: t.forbid(0), ArgumentError, "nodes names the root"),
        (lambda t: t.reroot(7), ArgumentError, "action 7 is none of node 0"),
        (lambda t: t.reroot(1), ArgumentError, "node cannot become the root while 1 leaves are handed out"),
        (lambda t: t.reroot(node=9), ArgumentError, "node names node 9"),
        (lambda t: t.visits(9), ArgumentError, "node names node 9"),
        (lambda t: t.action(0), ArgumentError, "node is the root"),
        (lambda t: t.best_action(1), ArgumentError, "node 1 has no child that was visited"),
        (lambda t: t.draw("tree.xyz"), ArgumentError, "path ends with .xyz"),
        (lambda t: t.draw("tree.svg", node=9), ArgumentError, "node must be at most 3"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(call, error, words):
    tree = Tree()
    tree.expand(0, 3)
    tree.backup(tree.select(), 0.5)
    assert tree.select().tolist() == [2]
    before = tree.to_arrays()
    with pytest.raises(error, match=words.replace("(", r"\(")):
        call(tree)
    after = tree.to_arrays()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"policy": UCB1(c=-1)}, ArgumentError, "c must be from 0"),
        ({"policy": UCB1(c=math.nan)}, ArgumentError, "policy's c must be finite"),
        ({"policy": PUCT(base=0.0)}, ArgumentError, "base must be from 1"),
        ({"policy": EpsilonGreedy(2.0)}, ArgumentError, "epsilon must be from 0 to 1"),
        ({"policy": ThompsonBeta(alpha=0.0)}, ArgumentError, "alpha must be above 0"),
        ({"policy": ThompsonGaussian(scale=-1.0)}, ArgumentError, "scale must be above 0"),
        ({"policy": ThompsonBeta(), "players": 2}, ArgumentError, "players must be 1"),
        ({"policy": "ucb1"}, DTypeError, "policy must be one of"),
        ({"discount": 1.5}, ArgumentError, "discount must be from 0 to 1"),
        ({"players": 3}, ArgumentError, "players must be at most 2"),
        ({"virtual_loss": -1.0}, ArgumentError, "virtual_loss must be from 0"),
        ({"win": math.inf}, ArgumentError, "win must be finite"),
        ({"seed": -1}, ArgumentError, "seed must be at least 0"),
        ({"max_nodes": 2**33}, ArgumentError, "max_nodes must be at most"),
    ],
)
def test_settings_out_of_range(settings, error, words):
    with pytest.raises(error, match=words):
        Tree(**settings)


def test_shares_are_asked_for_where_the_policy_needs_them():
    tree = bandit(ThompsonBeta(), 2)
    leaf = tree.select()
    with pytest.raises(ArgumentError, match=r"values has 1.5 for leaf \d, the policy takes 0 to 1"):
        tree.backup(leaf, 1.5)


# --- forms of arguments ----------------------------------------------------------------------------------


def test_actions_of_every_kind():
    tree = Tree()
    grid = np.arange(4.0).reshape(2, 2)
    tree.expand(0, [["up", 7, (1, 2), grid, 2**40, -3, True]])
    assert tree.actions()[:3] == ["up", 7, (1, 2)]
    assert tree.actions()[3] is grid
    assert tree.actions()[4:] == [2**40, -3, True]
    assert tree.child(grid.copy()) == 4
    assert tree.child("up") == 1
    tree.expand([1, 2, 3], [2, ["up"], np.array([5, 6])])
    assert [tree.actions(n) for n in (1, 2, 3)] == [[0, 1], ["up"], [5, 6]]
    assert len(tree.labels) == 6
    tree.expand([4, 5], np.array([[3, 1], [2, 0]]))
    assert tree.actions(5) == [2, 0]
    assert tree.path(tree.child(0, 5)) == [2**40, 0]
    np.testing.assert_array_equal(tree.parents([0, 1, tree.child(0, 5)]), [-1, 0, 5])


@pytest.mark.parametrize("form", ["list", "strided", "float32", "byte-swapped", "read-only", "int8"])
def test_arrays_in_any_form(form):
    tree, plain = (grow(Tree(policy=PUCT()), 30) for _ in range(2))
    leaves, same = tree.select(batch=4), plain.select(batch=4)
    values = np.linspace(0, 1, leaves.size)
    priors = np.linspace(0.125, 1, 2 * leaves.size).reshape(-1, 2)
    plain.expand(same, 2, priors=priors)
    plain.backup(same, values.astype(np.float32) if form == "float32" else values)
    forms = {
        "list": lambda x: x.tolist(),
        "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
        "float32": lambda x: x.astype(np.float32) if x.dtype.kind == "f" else x,
        "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
        "int8": lambda x: x.astype(np.int8) if x.dtype.kind == "i" else x,
    }
    if form == "read-only":
        for array in (leaves, values, priors):
            array.flags.writeable = False
        change = forms.get(form, lambda x: x)
    else:
        change = forms[form]
    tree.expand(change(leaves), 2, priors=change(priors))
    tree.backup(change(leaves), change(values))
    one, two = tree.to_arrays(), plain.to_arrays()
    assert all((one[name] == two[name]).all() for name in one)


def test_nothing_at_all():
    tree = Tree()
    assert tree.select(batch=0).size == 0
    tree.expand([], 3)
    tree.expand([], [], priors=[], rewards=np.empty((0, 3)))
    tree.backup([], [])
    tree.release(np.empty(0))
    assert len(tree) == 1
    assert tree.simulations == 0
    assert math.isnan(tree.value())
    assert tree.best_path() == []
    assert tree.actions() == []


def test_costs_add_up_along_the_way():
    tree = Tree()
    for cost in (1.0, 10.0, 100.0):
        leaf = tree.select()
        tree.expand(leaf, 2)
        tree.backup(leaf, 0.5, cost=cost)
    assert tree.cost() == 111.0
    assert tree.costs().tolist() == [10.0, 100.0]


def test_rerooting_keeps_what_is_below():
    tree = grow(Tree(players=2, policy=PUCT()), 300)
    child = int(np.argmax(tree.visits())) + 1
    visits, returns, value = tree.visits(child), tree.returns(child), tree.value(child)
    size = sum(1 for node in range(1, len(tree)) if tree.path(node)[0] == child - 1)
    tree.reroot(child - 1)
    assert len(tree) == size
    np.testing.assert_array_equal(tree.visits(), visits)
    np.testing.assert_array_equal(tree.returns(), returns)
    assert tree.value() == pytest.approx(value, abs=1e-12)
    assert tree.simulations == visits.sum() + 1
    grow(tree, tree.simulations + 100)
    assert tree.visits().sum() == visits.sum() + 100


def test_the_proof_of_the_page():
    """The second block of docs/search.md gives what its last line says."""
    page = (Path(__file__).parents[1] / "docs" / "search.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "win=1.0" in b)
    lines, last = block.strip().rsplit("\n", 1)
    names = {"Tree": Tree}
    exec(lines, names)
    expression, said = last.split("#")
    assert repr(eval(expression.strip(), names)) == said.strip()


def test_draws_and_describes_itself(tmp_path):
    tree = grow(Tree(policy=PUCT()), 60)
    for kind in ("svg", "png"):
        tree.draw(tmp_path / f"tree.{kind}", most=20)
        assert (tmp_path / f"tree.{kind}").stat().st_size > 1000
    assert repr(tree) == f"<Tree {PUCT()!r}, {len(tree)} nodes, 60 simulations>"
