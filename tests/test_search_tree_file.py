"""Trees as files: what comes back, and what a damaged or hostile file may not do."""

import json

import numpy as np
import pytest
from sensorium import checkpoint
from sensorium.errors import CheckpointError, DTypeError, MemoryLimitError
from sensorium.search import PUCT, UCB1, EpsilonGreedy, ThompsonGaussian, Tree, UCB1Tuned

ACTIONS = ["up", ("a", 1, None), 2.5, np.arange(3), 2**50, True, 4]


def grown(policy, **settings):
    tree = Tree(policy=policy, **settings)
    rng = np.random.default_rng(1)
    step(tree, rng, 40)
    return tree, rng


def step(tree, rng, times):
    for _ in range(times):
        leaves = tree.select(batch=3)
        tree.expand(
            leaves,
            [ACTIONS] * leaves.size,
            priors=rng.random((leaves.size, 7)),
            rewards=rng.integers(0, 2, (leaves.size, 7)) / 4,
            terminal=rng.random((leaves.size, 7)) < 0.1,
            forbidden=rng.random((leaves.size, 7)) < 0.1,
        )
        tree.backup(leaves, rng.random(leaves.size), cost=1.0)


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        (UCB1(c=0.5), {"seed": 2**64 - 1}),
        (UCB1Tuned(), {"normalise": True, "players": 2, "discount": 0.9}),
        (PUCT(base=100.0, unvisited=None), {"win": 0.25, "max_nodes": 5000}),
        (EpsilonGreedy(0.4), {"seed": 7}),
        (ThompsonGaussian(), {"seed": 8, "virtual_loss": 0.5}),
    ],
    ids=repr,
)
def test_the_search_goes_on_as_it_would_have(policy, settings, tmp_path):
    tree, rng = grown(policy, **settings)
    tree.save(tmp_path / "tree.safetensors")
    loaded = Tree.load(tmp_path / "tree.safetensors")
    assert loaded.policy == policy
    assert [str(action) for action in loaded.actions()] == [str(action) for action in ACTIONS]
    assert loaded.actions()[1] == ACTIONS[1]
    states = rng.bit_generator.state
    for one in (tree, loaded):
        rng.bit_generator.state = states
        step(one, rng, 30)
    first, second = tree.to_arrays(), loaded.to_arrays()
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_leaves_under_way_are_saved_as_released(tmp_path):
    tree, _ = grown(UCB1())
    before = tree.to_arrays()
    assert tree.select(batch=5).size
    tree.save(tmp_path / "tree.safetensors")
    assert tree.pending().size
    loaded = Tree.load(tmp_path / "tree.safetensors")
    assert loaded.pending().size == 0
    for name, column in loaded.to_arrays().items():
        np.testing.assert_array_equal(column, before[name])


def test_a_new_root_can_be_saved(tmp_path):
    tree, _ = grown(PUCT(), win=1.0)
    tree.reroot(node=int(np.argmax(tree.visits())) + 1)
    tree.save(tmp_path / "tree.safetensors")
    np.testing.assert_array_equal(Tree.load(tmp_path / "tree.safetensors").visits(), tree.visits())


def test_actions_that_are_no_data_are_refused(tmp_path):
    tree = Tree()
    tree.expand(0, [[frozenset({1})]])
    with pytest.raises(DTypeError, match=r"action frozenset\(\{1\}\) cannot be saved"):
        tree.save(tmp_path / "tree.safetensors")
    assert not list(tmp_path.iterdir())


def changed(change):
    """A change to the arrays or the settings of a file."""

    def apply(path):
        arrays, settings = checkpoint.load(path)
        change(arrays, settings)
        checkpoint.save(path, arrays, settings)

    return apply


def column(name, at, value):
    def change(arrays, settings):
        arrays[f"nodes.{name}"][at] = value

    return changed(change)


def setting(name, value):
    return changed(lambda arrays, settings: settings.__setitem__(name, value))


def labels(value):
    def change(arrays, settings):
        arrays["labels"] = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)

    return changed(change)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
        (lambda path: checkpoint.save(path, {"w": np.zeros(3)}), "not the file of a tree"),
        (changed(lambda a, s: a.pop("nodes.parents")), "parents has 0 nodes"),
        (changed(lambda a, s: a.pop("nodes.exact")), "exact must be there"),
        (changed(lambda a, s: a.update({"nodes.sums": a["nodes.sums"][:-1]})), "sums has"),
        (
            changed(lambda a, s: a.update({"nodes.sums": a["nodes.sums"].astype("f4")})),
            "sums has dtype float32",
        ),
        (changed(lambda a, s: a.update({"nodes.sums": a["nodes.sums"][None]})), "more than one dimension"),
        (changed(lambda a, s: a.update({"draws": np.zeros(2, "u8")})), "counters of a wrong size"),
        (changed(lambda a, s: a.update({"range": np.full(2, np.nan)})), "counters have NaN"),
        (changed(lambda a, s: a.pop("labels")), "has no labels"),
        (column("parents", 0, 1), "gives the root a parent"),
        (column("parents", 3, 5), "does not give the children of node 0 back"),
        (column("firsts", 0, 0), "firsts and counts place the children of node 0 wrongly"),
        (column("firsts", 0, 2**32 - 1), "place the children of node 0 wrongly"),
        (column("counts", 0, 2**32 - 1), "place the children of node 0 wrongly"),
        (column("counts", 0, 0), "counts hold"),
        (column("flags", 0, 1), "node 0 terminal, which has children"),
        (column("flags", 2, 224), "flags has 224 for node 2"),
        (column("visits", 0, 2**32 - 1), "visits has 4294967295 for node 0"),
        (column("visits", 0, 1), "visits has 1 for node 0"),
        (column("sums", 4, np.nan), "sums has NaN for node 4"),
        (column("priors", 4, -1.0), "priors has -1 for node 4"),
        (column("rewards", 4, np.inf), "rewards has inf for node 4"),
        (column("exact", 4, np.inf), "exact has inf for node 4"),
        (column("costs", 4, -1.0), "costs has -1 for node 4"),
        (column("actions", 4, -1000), "actions without labels"),
        (labels([[1]]), "an action of an unknown kind"),
        (labels([{"array": "../x"}]), "lacks the array"),
        (labels({}), "no list of actions"),
        (
            changed(lambda a, s: a.update({"labels": np.full(9999, 91, "u1")})),
            "a list of actions that is not JSON",
        ),
        (setting("format", "other"), "not the file of a tree"),
        (setting("policy", {"class": "Policy"}), "an unknown policy"),
        (setting("policy", {"class": "os.system"}), "an unknown policy"),
        (setting("policy", {"class": "PUCT", "d": 1.0}), "d"),
        (setting("policy", {"class": "PUCT", "c": "1"}), "has c of a wrong kind"),
        (setting("discount", 7.0), "discount must be from 0 to 1"),
        (setting("players", "2"), "has players of a wrong kind"),
        (setting("seed", -1), "seed must be at least 0"),
        (setting("more", 1), "lacks settings of a tree, or has others"),
    ],
)
def test_damage_is_found(damage, words, tmp_path):
    path = tmp_path / "tree.safetensors"
    grown(PUCT(), win=1.0)[0].save(path)
    damage(path)
    with pytest.raises(CheckpointError, match=words) as error:
        Tree.load(path)
    assert str(path) in str(error.value)


def test_limits_hold_for_files_too(tmp_path):
    path = tmp_path / "tree.safetensors"
    grown(UCB1())[0].save(path)
    setting("max_nodes", 5)(path)
    with pytest.raises(MemoryLimitError, match="max_nodes is 5"):
        Tree.load(path)
