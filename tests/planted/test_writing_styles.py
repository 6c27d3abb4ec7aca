"""One ReLU, written in every way that PyTorch allows: each is a site, and its dead units are found."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume


class Styled(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 10), nn.Linear(10, 2)
        self.activation = activation

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


def _assign(x):
    x[x < 0] = 0
    return x


def _imul(x):
    x *= x > 0
    return x


STYLES = {
    "F.relu": (F.relu, "relu"),
    "F.relu inplace": (lambda x: F.relu(x, inplace=True), "relu"),
    "F.relu keyword": (lambda x: F.relu(input=x), "relu"),
    "F.relu_": (F.relu_, "relu"),
    "torch.relu": (torch.relu, "relu"),
    "torch.relu_": (torch.relu_, "relu"),
    "method": (lambda x: x.relu(), "relu"),
    "method inplace": (lambda x: x.relu_(), "relu"),
    "unbound method": (torch.Tensor.relu, "relu"),
    "partial": (functools.partial(F.relu, inplace=False), "relu"),
    "module made on the fly": (lambda x: nn.ReLU()(x), "relu"),
    "clamp": (lambda x: torch.clamp(x, min=0), "clamp"),
    "clamp method": (lambda x: x.clamp(min=0.0), "clamp"),
    "clamp positional": (lambda x: x.clamp(0), "clamp"),
    "clamp inplace": (lambda x: x.clamp_(min=0), "clamp"),
    "clamp with None": (lambda x: torch.clamp(x, 0.0, None), "clamp"),
    "clamp with a tensor": (lambda x: torch.clamp(x, min=torch.tensor(0.0)), "clamp"),
    "clamp to infinity": (lambda x: torch.clamp(x, 0.0, float("inf")), "clamp"),
    "clip": (lambda x: torch.clip(x, min=0), "clip"),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), "clamp_min"),
    "clamp_min inplace": (lambda x: x.clamp_min_(0.0), "clamp_min"),
    "maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), "maximum"),
    "maximum of a scalar": (lambda x: torch.maximum(torch.tensor(0.0), x), "maximum"),
    "maximum of new zeros": (lambda x: x.maximum(x.new_zeros(())), "maximum"),
    "max": (lambda x: torch.max(x, torch.zeros(1)), "max"),
    "fmax": (lambda x: torch.fmax(x, torch.zeros(())), "fmax"),
    "where": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "where"),
    "where scalar": (lambda x: torch.where(x > 0, x, 0.0), "where"),
    "where, greater or equal": (lambda x: torch.where(x >= 0, x, 0.0), "where"),
    "where negated": (lambda x: torch.where(x < 0, 0.0, x), "where"),
    "where, at most": (lambda x: torch.where(torch.le(x, 0), 0.0, x), "where"),
    "where, zero first": (lambda x: torch.where(0 < x, x, 0.0), "where"),  # noqa: SIM300
    "where method": (lambda x: x.where(x > 0, 0.0), "where"),
    "where, inverted": (lambda x: torch.where(~(x > 0), 0.0, x), "where"),
    "product": (lambda x: x * (x > 0), "mul"),
    "product, mask first": (lambda x: (x > 0) * x, "mul"),
    "product, float mask": (lambda x: x * (x > 0).float(), "mul"),
    "product, mask in x's type": (lambda x: x * (x > 0).to(x.dtype), "mul"),
    "product, type_as": (lambda x: x * x.gt(0).type_as(x), "mul"),
    "product, method": (lambda x: x.mul(x > 0), "mul"),
    "product in place": (_imul, "mul"),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), "masked_fill"),
    "masked_fill in place": (lambda x: x.masked_fill_(x <= 0, 0.0), "masked_fill"),
    "assignment": (_assign, "setitem"),
    "threshold": (lambda x: F.threshold(x, 0.0, 0.0), "threshold"),
    "leaky with slope zero": (lambda x: F.leaky_relu(x, 0.0), "leaky_relu"),
    "aten": (lambda x: torch.ops.aten.relu(x), "relu"),
    "aten overload": (lambda x: torch.ops.aten.relu.default(x), "relu"),
    "aten in place": (lambda x: torch.ops.aten.relu_(x), "relu"),
    "aten clamp_min": (lambda x: torch.ops.aten.clamp_min(x, 0), "clamp_min"),
}


@pytest.mark.parametrize("style", STYLES)
def test_a_relu_is_found_however_it_is_written(planted, style):
    activation, called = STYLES[style]
    model = Styled(activation)
    planted.bury(model.fc1, 2, 5)
    census = planted(model, planted.batches(6), lambda x: {f":{called}": model.fc1(x)}, {f":{called}": {2, 5}})
    assert census[":relu"].site.name == f":{called}"
    assert census[":relu"].site.producers == ("fc1",)


def test_a_module_is_named_after_itself(planted):
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    planted.bury(model[0], 0, 9)
    planted.bury(model[2], 3)

    def oracle(x):
        first = model[0](x)
        return {"1": first, "3": model[2](first.clamp(min=0))}

    planted(model, planted.batches(6), oracle, {"1": {0, 9}, "3": {3}})


def test_nested_containers_and_subclasses_of_sequential(planted):
    class Tower(nn.Sequential):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Tower(nn.Linear(20, 20), nn.ReLU()) for _ in range(2)])
            self.heads = nn.ModuleDict({"a": nn.Linear(20, 5), "b": nn.Linear(20, 5)})
            self.scales = nn.ParameterList([torch.full((5,), 2.0), torch.full((5,), 3.0)])

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return [F.relu(head(x) * s) for head, s in zip(self.heads.values(), self.scales, strict=True)]

    model = Model()
    planted.bury(model.blocks[0][0], 1)
    planted.bury(model.blocks[1][0], 2)
    planted.bury(model.heads["a"], 3)
    planted.bury(model.heads["b"], 4)

    def oracle(x):
        one = model.blocks[0][0](x)
        two = model.blocks[1][0](one.clamp(min=0))
        h = two.clamp(min=0)
        return {
            "blocks.0.1": one,
            "blocks.1.1": two,
            ":relu": model.heads["a"](h) * 2,
            ":relu#1": model.heads["b"](h) * 3,
        }

    planted(model, planted.batches(20), oracle, {"blocks.0.1": {1}, "blocks.1.1": {2}, ":relu": {3}, ":relu#1": {4}})


@pytest.mark.parametrize("lines", ["one line", "two lines", "comprehension", "lambda"])
def test_a_helper_called_twice_is_two_sites(planted, lines):
    def helper(layer, x):
        return F.relu(layer(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x):
            if lines == "one line":
                return helper(self.a, x) + helper(self.b, x)
            if lines == "two lines":
                one = helper(self.a, x)
                return one + helper(self.b, x)
            if lines == "comprehension":
                return sum([F.relu(layer(x)) for layer in (self.a, self.b)])
            act = lambda t: t.relu()  # noqa: E731
            return act(self.a(x)) + act(self.b(x))

    model = Model()
    planted.bury(model.a, 0)
    planted.bury(model.b, 7, 6)
    planted(
        model,
        planted.batches(6),
        lambda x: {":relu": model.a(x), ":relu#1": model.b(x)},
        {":relu": {0}, ":relu#1": {6, 7}},
    )


def test_functional_call_with_other_parameters(planted):
    inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    other = {k: torch.randn_like(v) for k, v in inner.state_dict().items()}
    other["0.bias"][3] = -60

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.func.functional_call(self.inner, other, (x,))

    planted(
        Model(),
        planted.batches(6),
        lambda x: {"inner.1": F.linear(x, other["0.weight"], other["0.bias"])},
        {"inner.1": {3}},
    )


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal])
def test_parametrized_weights(planted, wrap):
    model = nn.Sequential(wrap(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 1))
    planted.bury(model[0], 4)
    census = planted(
        model, planted.batches(6), lambda x: {"1": F.linear(x, model[0].weight, model[0].bias)}, {"1": {4}}
    )
    assert census["1"].site.producers == ("0",)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_normed_by_hooks(planted):
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 1))
    planted.bury(model[0], 4)
    planted(model, planted.batches(6), lambda x: {"1": model[0](x)}, {"1": {4}})


PRODUCTS = {
    "@": lambda x, w, b: x @ w + b,
    "matmul": lambda x, w, b: torch.matmul(x, w).add(b),
    "mm": lambda x, w, b: torch.mm(x, w) + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
    "einsum": lambda x, w, b: torch.einsum("bi,io->bo", x, w) + b,
    "einsum, weight first": lambda x, w, b: torch.einsum("io,bi->bo", w, x) + b,
    "transposed": lambda x, w, b: (w.T @ x.T).T + b,
    "linear": lambda x, w, b: F.linear(x, w.t(), b),
    "bmm": lambda x, w, b: (x.unsqueeze(1) @ w).squeeze(1) + b,
    "sum of products": lambda x, w, b: (x[:, :, None] * w[None]).sum(1) + b,
    "tensordot": lambda x, w, b: torch.tensordot(x, w, dims=1) + b,
    "columns stacked": lambda x, w, b: torch.stack([x @ column for column in w.unbind(1)], 1) + b,
    "inner": lambda x, w, b: torch.inner(x, w.T) + b,
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_linear_layer_written_as_a_product_with_a_parameter(planted, product):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 9))
            self.bias = nn.Parameter(torch.zeros(9))

        def forward(self, x):
            return F.relu(PRODUCTS[product](x, self.w, self.bias))

    model = planted.bury(Model(), 1, 8)
    planted(model, planted.batches(6), lambda x: {":relu": x @ model.w + model.bias}, {":relu": {1, 8}})


def test_an_activation_registered_by_the_user(planted):
    @relume.register_activation(name="relu", flat=[(-float("inf"), 0.0)])
    class Rectify(nn.Module):
        def forward(self, x):
            return (x + x.abs()) / 2

    model = nn.Sequential(nn.Linear(6, 8), Rectify(), nn.Linear(8, 1))
    planted.bury(model[0], 5)
    planted(model, planted.batches(6), lambda x: {"1": model[0](x)}, {"1": {5}})


def test_arithmetic_is_not_taken_for_an_activation(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)
            self.scale = nn.Parameter(torch.randn(8))

        def forward(self, x):
            x = x.clamp(min=0)  # the data, cut off
            mask = torch.maximum(x.sum(1, keepdim=True), torch.zeros(1)) > 0  # a mask
            scale = self.scale.clamp(min=0)  # a constraint on a parameter
            y = F.relu(self.fc(x) * scale)
            return y.masked_fill(~mask, 0).clamp(min=1e-6, max=10).sum(1).clamp(min=0).mean()

    model = Model()
    with torch.no_grad():
        model.scale[:2] = -1.0
        model.scale[2:] = 1.0
    planted(
        model,
        planted.batches(6),
        lambda x: {":relu": model.fc(x.clamp(min=0)) * model.scale.clamp(min=0)},
        {":relu": {0, 1}},
    )
