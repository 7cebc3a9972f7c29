"""A trace as a page: figures, and the tree in elements that open and close without any script."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._figures import escape
from .budget import Cost

if TYPE_CHECKING:
    from .trace import Node, Trace

__all__ = ["render"]

_DEEPEST = 60  # levels that are nested before a branch goes on in a section of its own
_LONGEST = 4000  # characters of a candidate that are shown
_BRIEF = 100
_STYLE = """
details, .leaf { margin: .15rem 0 .15rem 1.1rem; border-left: 2px solid var(--line); padding-left: .6rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.leaf > summary { list-style: none; }
.score { font-variant-numeric: tabular-nums; color: var(--accent); }
.status { color: var(--soft); font-size: .85em; }
.failed > summary { color: var(--wrong); } .answer > summary { color: var(--right); font-weight: 600; }
.pruned > summary { color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
"""


def render(trace: Trace, limit: int) -> str:
    """Return the page."""
    css = importlib.resources.files("sensorium").joinpath("_report.css").read_text(encoding="utf-8")
    title = f"{trace.header.get('strategy', 'search')}, seed {trace.header.get('seed', '')}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{css}{_STYLE}</style></head>\n'
        f"<body><main><header><h1>{escape(title)}</h1>{_facts(trace)}</header>"
        f"{_spending(trace)}<section><h2>Tree</h2>{_tree(trace, limit)}</section></main></body></html>\n"
    )


def _facts(trace: Trace) -> str:
    failed = sum(node.status == "failed" for node in trace.nodes.values())
    facts = [f"{len(trace.nodes):,} nodes", f"{len(trace.calls):,} calls"]
    if failed:
        facts.append(f"{failed:,} nodes failed")
    if trace.outcome.get("stopped"):
        facts.append(f"ended by {trace.outcome['stopped']}")
    facts.append(f"sensorium {_core.__version__}")
    return f'<p class="lead">{escape(" · ".join(facts))}</p>'


def _spending(trace: Trace) -> str:
    roles: dict[str, Cost] = {}
    for call in trace.calls.values():
        roles[call.role] = sum(call.costs, roles.get(call.role, Cost()))
    if not roles:
        return ""
    heads = "".join(f'<th class="number">{name}</th>' for name in ("calls", "tokens", "seconds", "money"))
    rows = "".join(
        f"<tr><td>{escape(role)}</td>"
        f'<td class="number">{cost.calls:,}</td><td class="number">{cost.tokens:,}</td>'
        f'<td class="number">{cost.seconds:.2f}</td><td class="number">{cost.money:g}</td></tr>'
        for role, cost in roles.items()
    )
    return f"<section><h2>Spent</h2><table><tr><th></th>{heads}</tr>{rows}</table></section>"


def _tree(trace: Trace, limit: int) -> str:
    costs: dict[str, Cost] = {}
    for call in trace.calls.values():
        costs[call.node] = sum(call.costs, costs.get(call.node, Cost()))
    children: dict[str | None, list[Node]] = {}
    for node in trace.nodes.values():
        parent = node.parent if node.parent in trace.nodes else None
        children.setdefault(parent, []).append(node)
    parts: list[str] = []
    shown = 0
    sections: list[tuple[str | None, list[Node]]] = [(None, _ordered(children.get(None, [])))]
    while sections and shown < limit:
        title, nodes = sections.pop(0)
        if title is not None:
            parts.append(f'<h3 id="{escape(title)}">Below {escape(title)}</h3>')
        stack: list[Iterator[Node]] = [iter(nodes)]
        while stack:
            following = next(stack[-1], None) if shown < limit else None
            if following is None:
                stack.pop()
                if stack:
                    parts.append("</details>")
                continue
            node, shown = following, shown + 1
            below = _ordered(children.get(node.id, []))
            cost = costs.get(node.id, Cost())
            parts.append(_node(trace, node, cost, opened=bool(below) and len(stack) <= 2))
            if below and len(stack) >= _DEEPEST:
                parts.append(f'<p><a href="#{escape(node.id)}">goes on below</a></p></details>')
                sections.append((node.id, below))
            elif below:
                stack.append(iter(below))
            else:
                parts.append("</details>")
    if shown < len(trace.nodes):
        parts.append(f'<p class="note">{len(trace.nodes) - shown:,} more nodes are not shown.</p>')
    return "".join(parts)


def _node(trace: Trace, node: Node, spent: Cost, *, opened: bool) -> str:
    value = _text(trace.value(node.id))
    brief = " ".join(value.split())
    brief = brief if len(brief) <= _BRIEF else "… " + brief[-_BRIEF:]
    score = "" if node.score is None else f' <span class="score">{node.score:.4g}</span>'
    cost = ", ".join(f"{name} {amount:g}" for name, amount in spent.as_dict().items())
    rows = [("status", node.status), ("note", node.note), ("spent here", cost), ("call", node.call)]
    details = "".join(f"<div class='status'>{name}: {escape(text)}</div>" for name, text in rows if text)
    whole = f"<pre>{escape(value)}</pre>" if len(value) > _BRIEF else ""
    return (
        f'<details class="{escape(node.status)}"{" open" if opened else ""}>'
        f'<summary><span class="status">{escape(node.id)}</span>{score} {escape(brief)}</summary>'
        f"{whole}{details}"
    )


def _ordered(nodes: list[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: sort_key(node.id))


def sort_key(name: str) -> tuple[Any, ...]:
    """Order names as a reader would: the numbers within them by their size."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in name.split("."))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, np.ndarray) and value.size > 64:
        return f"array {value.shape} {value.dtype}"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"
