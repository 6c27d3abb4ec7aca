"""Rows and columns of products, against what autograd says of them."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from relume.treat.surgery import Anatomy


class Just(nn.Module):
    """One product with weights, made by a function of (x, w)."""

    def __init__(self, weight, call):
        super().__init__()
        self.w, self.call = nn.Parameter(weight), call

    def forward(self, x):
        return self.call(x, self.w)


@st.composite
def convolutions(draw):
    spatial, groups, transposed = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, stride, padding = (draw(st.integers(a, b)) for a, b in ((1, 3), (1, 2), (0, 1)))
    name = f"conv_transpose{spatial}d" if transposed else f"conv{spatial}d"
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    padding = min(padding, kernel - 1)

    def call(x, w):
        return getattr(F, name)(x, w, stride=stride, padding=padding, groups=groups)

    return torch.randn(*shape, *[kernel] * spatial), torch.randn(2, inputs, *[5] * spatial), call, 1


@st.composite
def matrices(draw):
    n, j, o, b = (draw(st.integers(1, 4)) for _ in range(4))
    kind = draw(st.sampled_from(["linear", "x @ w", "w @ x", "bmm", "einsum", "vector", "slice", "expanded"]))
    if kind == "linear":
        return torch.randn(o, j), torch.randn(b, n, j), F.linear, -1
    if kind == "x @ w":
        return torch.randn(j, o), torch.randn(n, j), torch.matmul, -1
    if kind == "w @ x":
        return torch.randn(o, j), torch.randn(j, n), (lambda x, w: w @ x), 0
    if kind == "bmm":
        return torch.randn(b, j, o), torch.randn(b, n, j), torch.bmm, None
    if kind == "einsum" and j > 1:  # over one entry einsum multiplies element by element
        return torch.randn(j, o), torch.randn(b, n, j), (lambda x, w: torch.einsum("bnj,jo->bno", x, w)), -1
    if kind == "vector":
        return torch.randn(j), torch.randn(n, j), torch.mv, None
    if kind == "slice":
        return torch.randn(o + 1, j + 2), torch.randn(n, j), (lambda x, w: x @ w[1:, 1 : 1 + x.shape[1]].t()), -1
    # The same weights for all of a batch.
    return torch.randn(j, o), torch.randn(b, n, j), (lambda x, w: torch.bmm(x, w.expand(len(x), *w.shape))), None


def entries_in_use(model, x, of_x=None, of_out=None):
    """Entries of the weight that take part in a product of just these inputs, and of these outputs."""
    x = x.abs() + 1
    if of_x is not None:
        x = torch.where(of_x, x, torch.zeros_like(x))
    out = model(x)
    model.zero_grad()
    (out if of_out is None else out * of_out).sum().backward()
    return model.w.grad != 0


@given(st.one_of(convolutions(), matrices()), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_columns_and_rows_are_the_entries_that_autograd_names(case, random):
    weight, x, call, _ = case
    torch.manual_seed(0)
    model = Just(weight, call)
    anatomy = Anatomy(model, [(x,)])
    (product,) = anatomy.trace.products.values()
    assert product.weight.name == "w"
    # Columns: those of one element of the data.
    at = tuple(random.randrange(s) for s in product.x.shape)
    element = torch.zeros(product.x.shape, dtype=torch.bool)
    element[at] = True
    mine = torch.zeros(weight.numel(), dtype=torch.bool)
    columns = product.columns(element)
    mine[product.weight.index[product.mask_of(columns)]] = True
    used = entries_in_use(model, x, _in_the_shape_of(element, x))
    assert bool((used.flatten() <= mine).all())
    assert torch.equal(product.touching(product.mask_of(columns)), columns)
    # All of the column, in all elements that share it.
    share = torch.zeros_like(element)
    share = _spread(product, columns, share)
    assert torch.equal(entries_in_use(model, x, _in_the_shape_of(share, x)).flatten(), mine & _any_use(model, x))
    # Rows: those of one element of the output.
    out = call(x, weight)
    number = product.row_numbers(_as_made(product, out))
    rows = torch.zeros(product.rows_of(torch.ones_like(product.weight.index, dtype=torch.bool)).numel()).bool()
    row = random.choice(number.unique().tolist())
    rows[row] = True
    mine = torch.zeros(weight.numel(), dtype=torch.bool)
    mine[product.weight.index[product.rows_to_weight(rows)]] = True
    used = entries_in_use(model, x, of_out=(number == row).reshape(out.shape).float())
    assert torch.equal(used.flatten(), mine & _any_use(model, x))
    assert torch.equal(product.rows_of(product.rows_to_weight(rows)), rows)


def _in_the_shape_of(mask, x):
    return mask.reshape(x.shape)


def _any_use(model, x):
    return entries_in_use(model, x).flatten()


def _spread(product, columns, like):
    """The mask of the data whose columns these are."""
    if product.convolves:
        spatial = like.dim() - 2
        return columns.view(-1, *[1] * spatial).expand(like.shape)
    if like.dim() == 1:
        return columns
    return (columns.unsqueeze(-2) if product.left else columns.unsqueeze(-1)).expand(like.shape)


def _as_made(product, out):
    """The output in the shape of the operator's, before it is viewed."""
    shape = product.weight.index.shape
    if product.convolves or len(shape) == 1:
        return out
    if len(shape) == 3:
        return out.reshape(shape[0], -1, shape[2])
    features = product.weight.index.shape[1 if product.left else 0]
    return out.reshape(-1, features) if product.left else out.reshape(features, -1)
