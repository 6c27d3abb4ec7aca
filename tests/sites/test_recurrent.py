"""Activations inside fused recurrent kernels: recomputed, yet never at odds with what the kernel returned."""

import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.sites import recurrent


def test_where_the_kernel_rounds_otherwise_its_own_output_says_what_fired():
    x, h, w = torch.zeros(1, 2), torch.zeros(1, 2), torch.eye(2)
    kernel = torch.tensor([[0.0, 1e-9]])
    bias = torch.tensor([1e-9, -1e-9])
    inner = recurrent.cell(torch.rnn_relu_cell, (x, h, w, w, bias, torch.zeros(2)), kernel)
    assert (inner.x > 0).tolist() == [[False, True]]


def test_a_census_finds_the_batch_axis_although_a_site_comes_before_the_recurrent_module():
    """The module says so only after relume has counted the first site the other way: it starts anew."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.rnn = nn.Linear(6, 6), nn.GRU(6, 5)

        def forward(self, x):
            return self.rnn(x)[0].sum() + F.relu(self.fc(x)).sum()

    class Earlier(Model):
        def forward(self, x):
            return F.relu(self.fc(x)).sum() + self.rnn(x)[0].sum()

    for cls in (Model, Earlier):
        model, x = cls(), torch.randn(9, 300, 6)
        site = relume.census(model, [x])[":relu"]
        assert (site.inputs, site.samples) == (300, 2700)
        assert site.fired.tolist() == (model.fc(x) > 0).any(0).sum(0).tolist()
