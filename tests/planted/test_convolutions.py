"""Convolutions: units are channels, wherever the layout puts them; positions are samples, not inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

KINDS = {
    "conv1d": (lambda: nn.Conv1d(3, 6, 3), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1), (3, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 6, 2), (2, 3, 4, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 6, 3), (3, 5)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(3, 6, 2, stride=2), (3, 4, 4)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 6, 2), (2, 2, 2, 2)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), (3, 6, 6)),
    "pointwise": (lambda: nn.Conv2d(3, 6, 1), (3, 6, 6)),
    "one position": (lambda: nn.Conv2d(3, 6, 6), (3, 6, 6)),
    "as wide as channels": (lambda: nn.Conv2d(6, 6, 3, padding=1), (6, 6, 6)),
    "lazy": (lambda: nn.LazyConv2d(6, 3), (3, 6, 6)),
    "circular padding": (lambda: nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["module", "function"])
def test_the_units_of_a_convolution_are_its_channels(planted, kind, style):
    make, shape = KINDS[kind]
    conv = make()
    x = planted.batches(*shape, inputs=320, batch=64)
    conv(x[0])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = conv, nn.ReLU(inplace=True)

        def forward(self, x):
            return self.act(self.conv(x)) if style == "module" else torch.relu_(self.conv(x))

    planted.bury(conv, 1, 4)
    name = "act" if style == "module" else ":relu"
    census = planted(Model(), x, lambda x: {name: conv(x)}, {name: {1, 4}})
    assert census[name].site.axis == 1


def test_channels_last(planted):
    conv = planted.bury(nn.Conv2d(8, 8, 3, padding=1), 0, 7)
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU6()).to(memory_format=torch.channels_last)
    planted.bury(model[2], 2)
    batches = [b.to(memory_format=torch.channels_last) for b in planted.batches(8, 8, 8, inputs=256, batch=64)]

    def oracle(x):
        h = conv(x.contiguous())
        return {"1": h, "3": ("relu6", model[2](h.clamp(min=0)))}

    planted(model, batches, oracle, {"1": {0, 7}, "3": {2}})


def test_channels_moved_to_the_end_by_permute(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, 7)

        def forward(self, x):
            x = F.relu(self.conv(x).permute(0, 2, 3, 1))
            return F.relu(self.fc(x)).movedim(-1, 1)

    model = Model()
    planted.bury(model.conv, 2)
    planted.bury(model.fc, 6)

    def oracle(x):
        h = model.conv(x)
        return {":relu": h, ":relu#1": model.fc(h.clamp(min=0).movedim(1, -1)).movedim(-1, 1)}

    census = planted(model, planted.batches(3, 6, 6, inputs=256, batch=64), oracle, {":relu": {2}, ":relu#1": {6}})
    assert census[":relu"].site.axis == -1


def test_a_channel_that_is_zero_at_the_borders_only_is_alive(planted):
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 0, 1, 1] = 1.0
        model[0].weight[1, 0, 1, 1] = -1.0
        model[0].weight[2, 0, 1, 1] = 2.0
    inside = [F.pad(torch.rand(128, 1, 4, 4) + 0.1, (2, 2, 2, 2)) for _ in range(3)]
    planted(model, inside, lambda x: {"1": model[0](x)}, {"1": {1}})


def test_a_channel_that_fires_at_one_pixel_of_one_input_is_alive(planted):
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([-99.5, -100.5, 0.0]))
    data = [torch.rand(128, 1, 5, 5) for _ in range(4)]
    data[2][17, 0, 4, 0] = 100.0
    census = planted(model, data, lambda x: {"1": model[0](x)}, {"1": {1}})
    assert census["1"].fired.tolist() == [1, 0, 512]


def test_pooling_flattening_and_dropout_between(planted):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, 8),
        nn.Dropout(0.1),
        nn.ReLU(),
    )
    planted.bury(model[0], 3)
    planted.bury(model[7], 0, 1, lift=1.0)

    def oracle(x):
        h = model[:3](x)
        z = model[4:9](h.clamp(min=0))
        return {"3": h, "9": z}

    # Dropout zeroes a buried channel on some inputs; zero is still flat.
    planted(model, planted.batches(1, 10, 10), oracle, {"3": {3}, "9": {0, 1}})


def test_relu_after_flattening_a_convolution_has_its_channels_for_units(planted):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(64, 2))
    planted.bury(model[0], 1)
    planted(model, planted.batches(2, 6, 6), lambda x: {"2": model[0](x)}, {"2": {1}})


def test_global_average_before_the_activation(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x):
            return F.relu(self.conv(x).mean((2, 3)))

    model = Model()
    planted.bury(model.conv, 5)
    planted(model, planted.batches(3, 6, 6), lambda x: {":relu": model.conv(x).mean((2, 3))}, {":relu": {5}})


def test_an_image_without_a_batch_axis_is_one_input_per_batch(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x):
            return F.relu(self.conv(x[None]))

    model = Model()
    planted.bury(model.conv, 5)
    images = [torch.randn(3, 6, 6) for _ in range(300)]
    planted(model, images, lambda x: {":relu": model.conv(x[None])}, {":relu": {5}})


def test_unfold_and_a_matrix_in_place_of_a_convolution(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 27) / 5)
            self.bias = nn.Parameter(torch.zeros(5, 1))

        def forward(self, x):
            return F.relu(self.w @ F.unfold(x, 3) + self.bias)

    model = planted.bury(Model(), 2)
    planted(model, planted.batches(3, 6, 6), lambda x: {":relu": model.w @ F.unfold(x, 3) + model.bias}, {":relu": {2}})


def test_pixel_shuffle_folds_channels_into_positions(planted):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PixelShuffle(2), nn.ReLU())
    planted.bury(model[0], 4, 5, 6, 7)  # the four that make up channel 1
    planted(model, planted.batches(3, 4, 4), lambda x: {"2": F.pixel_shuffle(model[0](x), 2)}, {"2": {1}})
