"""The search tree as objects that point to one another, in float64: slow, and each rule as its paper writes it."""

from __future__ import annotations

import math

import numpy as np


class Node:
    def __init__(self, parent=None, prior=1.0, reward=0.0, terminal=False, forbidden=False):
        self.parent, self.children = parent, []
        self.prior, self.reward = float(np.float32(prior)), reward
        self.terminal, self.forbidden, self.failed = terminal, forbidden, False
        self.returns, self.waiting, self.handed_out, self.exact = [], 0, False, None

    @property
    def visits(self):
        return len(self.returns)

    @property
    def total(self):
        # In the order in which they came, so that it rounds alike.
        total = 0.0
        for g in self.returns:
            total += g
        return total


class ReferenceTree:
    """A tree whose policy is ``("ucb1", c)``, ``("ucb1_tuned",)`` or ``("puct", c, base, unvisited)``."""

    def __init__(
        self, policy, discount=1.0, players=1, normalise=False, virtual_loss=1.0, win=None, widening=None
    ):
        self.policy, self.normalise, self.loss, self.win = policy, normalise, virtual_loss, win
        self.widening = widening
        self.gamma = -discount if players == 2 else discount
        self.nodes = [Node()]
        self.low, self.high = math.inf, -math.inf

    # --- what a policy sees ---

    def seen(self, x):
        return (x - self.low) / (self.high - self.low) if self.normalise and self.high > self.low else x

    def value(self, node):
        if not node.visits:
            return 0.0
        mean = node.total / node.visits
        if node.parent is None:
            return mean
        return (mean - node.reward) / self.gamma if self.gamma else 0.0

    def mean(self, child):
        total = child.total
        if self.normalise and self.high > self.low:
            total = self.seen(child.total / child.visits) * child.visits if child.visits else 0.0
        return (total - self.loss * child.waiting) / (child.visits + child.waiting)

    def score(self, node, child):
        if child.forbidden or child.failed:
            return -math.inf
        if child.exact is not None:
            return self.seen(child.exact)
        N, n = max(node.visits + node.waiting, 1), child.visits + child.waiting
        name, *numbers = self.policy
        if name == "puct":
            c, base, unvisited = numbers
            if base is not None:
                c = c + math.log((1.0 + N + base) / base)
            first = self.seen(self.value(node)) if unvisited is None else unvisited
            q = self.mean(child) if n else first
            return q + c * math.sqrt(N) * child.prior / (1.0 + n)
        if not n:
            return math.inf
        log = math.log(N)
        if name == "ucb1":
            return self.mean(child) + numbers[0] * math.sqrt(log / n)
        bound = 0.25
        if child.visits:
            squares = 0.0
            for g in child.returns:
                squares += g * g
            unit = self.high - self.low if self.normalise and self.high > self.low else 1.0
            mean = child.total / child.visits
            variance = max(squares / child.visits - mean * mean, 0.0) / (unit * unit)
            bound = min(variance + math.sqrt(2.0 * log / n), 0.25)
        return self.mean(child) + math.sqrt(log / n * bound)

    # --- ask and tell ---

    def walk(self):
        """The node where a walk ends, and how: ``known``, ``leaf`` or ``closed``."""
        node = self.nodes[0]
        while True:
            if node.terminal or node.exact is not None:
                return node, "known"
            if self.widening:
                k, alpha = self.widening
                alive = [child for child in node.children if not child.failed]
                spare = [child for child in alive if not child.visits and not child.handed_out]
                there = [child for child in alive if child.visits]
                if spare or len(alive) < math.ceil(k * (node.visits + node.waiting + 1.0) ** alpha):
                    return (spare or [self.add_child(node)])[0], "leaf"
                if not there:
                    return node, "wait"
                for child in there:
                    child.prior = float(np.float32(1) / np.float32(len(there)))
                scores = [self.score(node, child) for child in there]
                node = there[scores.index(max(scores))]
                continue
            if not node.children:
                return node, "leaf"
            scores = [self.score(node, child) for child in node.children]
            best = max(scores)
            if best == -math.inf:
                return node, "closed"
            node = node.children[scores.index(best)]

    def select(self, batch):
        found, collided, known, waits = [], [], 0, 0
        most = min(max(batch, 8), 64)
        while not self.nodes[0].failed and len(found) + known + waits < batch and len(collided) < most:
            node, how = self.walk()
            if how == "wait":
                waits += 1
            elif how == "closed":
                node.failed = True
            elif how == "known":
                self.add(node, self.known(node))
                known += 1
            else:
                self.mark(node, 1)
                (collided if node.handed_out else found).append(node)
                node.handed_out = True
        for node in collided:
            self.mark(node, -1)
        return [self.nodes.index(node) for node in found]

    def add_child(self, node):
        child = Node(node)
        node.children.append(child)
        self.nodes.append(child)
        return child

    def mark(self, node, by):
        while node is not None:
            node.waiting += by
            node = node.parent

    def known(self, node):
        if node.exact is not None:
            return node.exact
        return node.total / node.visits if node.visits else node.reward

    def add(self, node, g):
        while True:
            node.returns.append(g)
            if node.parent is None:
                return
            if self.normalise:
                mean = node.total / node.visits
                self.low, self.high = min(self.low, mean), max(self.high, mean)
            node = node.parent
            if node.parent is not None:
                g = node.reward + self.gamma * g

    def expand(self, leaf, children):
        """``children`` has (prior, reward, terminal, forbidden) of each."""
        node = self.nodes[leaf]
        node.terminal = not children
        for prior, reward, terminal, forbidden in children:
            child = Node(node, prior, reward, terminal, forbidden)
            if terminal and self.win is not None:
                child.exact = reward
            node.children.append(child)
            self.nodes.append(child)
        self.prove_from(node)

    def backup(self, leaf, value):
        node = self.nodes[leaf]
        g = value if node.parent is None else node.reward + self.gamma * value
        if node.exact is not None or (node.terminal and node.visits):
            g = self.known(node)
        node.handed_out = False
        self.mark(node, -1)
        self.add(node, g)
        if self.win is not None and node.terminal and node.exact is None:
            node.exact = g
            self.prove_from(node.parent)

    def release(self, leaf):
        self.nodes[leaf].handed_out = False
        self.mark(self.nodes[leaf], -1)

    def fail(self, leaf):
        self.release(leaf)
        self.nodes[leaf].failed = True

    def forbid(self, index):
        self.nodes[index].forbidden = True
        above = []
        node = self.nodes[index].parent
        while node is not None:
            node.exact = None
            above.append(node)
            node = node.parent
        for node in above:
            self.prove_from(node)

    def prove_from(self, node):
        while node is not None and node.exact is None and self.win is not None:
            allowed = [child for child in node.children if not child.forbidden]
            exact = [child.exact for child in allowed if child.exact is not None]
            if not exact or (len(exact) < len(allowed) and max(exact) < self.win):
                return
            best = max(exact)
            node.exact = best if node.parent is None else node.reward + self.gamma * best
            node = node.parent

    def reroot(self, index):
        """Forget what is not below; returns the old indices of the nodes that stay."""
        root = self.nodes[index]
        own = self.value(root)
        kept = {id(root)}
        for node in self.nodes[index + 1 :]:
            if id(node.parent) in kept:
                kept.add(id(node))
        stay = [i for i, node in enumerate(self.nodes) if id(node) in kept]
        self.nodes = [self.nodes[i] for i in stay]
        if root.exact is not None and index:
            root.exact = (root.exact - root.reward) / self.gamma if self.gamma else 0.0
        if index:
            root.returns = [own] * root.visits
            root.parent, root.prior, root.reward, root.forbidden, root.failed = None, 1.0, 0.0, False, False
        return stay
