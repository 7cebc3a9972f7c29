"""What tests of the recurrences under PyTorch share: tensors, packings, and comparisons with `ops`."""

import numpy as np
import pytest
import torch

QUIET = pytest.mark.filterwarnings(
    # opcheck itself reads .grad of tensors that are not leaves.
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    # torch's own modules, while it compiles.
    "ignore:`torch.jit.script:FutureWarning",
    "ignore:`torch.jit.script:DeprecationWarning",
)

#: Sequences of two rows of seven tokens, and of one.
SEQUENCES = torch.tensor([[0, 0, 0, 1, 1, 4, 4], [2, 2, 2, 2, 2, 2, 3]])
CUTS = torch.tensor([0, 2, 2, 7], dtype=torch.int32)


def draw(*shape, dtype=torch.float64, seed=0, grad=True, low=None):
    """Normal numbers, or uniform ones from `low` to one above it."""
    rng = np.random.default_rng([seed, *shape])
    values = rng.normal(size=shape) if low is None else rng.uniform(low, low + 1, size=shape)
    return torch.from_numpy(values).to(dtype).requires_grad_(grad)


def arrays(tensors):
    return [None if tensor is None else tensor.detach().numpy() for tensor in tensors]


def assert_same(got, want):
    """Tensors hold the bits of arrays."""
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours.detach().numpy(), theirs)


def opcheck(call, args):
    """What torch checks of an operator: its schema, its gradient, its rule for fake tensors, its graphs."""
    done = torch.library.opcheck(call.default, args)
    assert len(done) == 4
    assert set(done.values()) == {"SUCCESS"}
