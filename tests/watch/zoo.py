"""Small trainings of every kind, each written as its author would, without a thought of relume.

`ZOO[name](run)` trains for a few steps. It hands the model and its optimizers to `run.begin`, calls `run.loss(x)` once
per step, and `run.evaluated(y)` for what it evaluates; a `Run` is what the training is compared by.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

ZOO: dict[str, Callable] = {}
STEPS = 7


def member(train):
    ZOO[train.__name__] = train
    return train


def fit(run, model, make_x, *, optimizer=None, loss=None, evaluate=True, steps=STEPS):
    """The common loop: train, with an evaluation in the middle and one at the end."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    run.begin(model, optimizer)
    loss = loss or (lambda y: y.square().mean())
    held_out = make_x()
    for step in range(steps):
        model.train()
        value = loss(model(make_x()))
        run.loss(value)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if evaluate and step in (2, steps - 1):
            model.eval()
            with torch.no_grad():
                run.evaluated(model(held_out))


@member
def mlp(run):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3))
    fit(run, model, lambda: torch.randn(8, 6), optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))


@member
def cnn_with_batch_norm_and_dropout(run):
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 4, 3), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2),
    )  # fmt: skip
    fit(run, model, lambda: torch.randn(6, 2, 8, 8))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        h += x
        return self.relu(h)


@member
def residual_with_inplace_relu(run):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), Residual(), Residual(), nn.Flatten(), nn.Linear(64, 2))
    fit(run, model, lambda: torch.randn(6, 1, 4, 4))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.mid = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        a = F.relu(self.down(x))
        b = F.leaky_relu(self.mid(F.max_pool2d(a, 2)), 0.1)
        return self.out(torch.cat([torch.relu_(self.up(b)), a], 1))


@member
def unet(run):
    fit(run, UNet(), lambda: torch.randn(4, 1, 8, 8))


@member
def depthwise_and_channels_last(run):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(inplace=True), nn.Conv2d(8, 2, 1)
    ).to(memory_format=torch.channels_last)
    fit(run, model, lambda: torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last))


class Recurrent(nn.Module):
    def __init__(self, core):
        super().__init__()
        self.core, self.head = core, nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.core(x)[0])


@member
def rnn_with_relu(run):
    fit(run, Recurrent(nn.RNN(4, 8, 2, nonlinearity="relu", batch_first=True)), lambda: torch.randn(5, 6, 4))


@member
def rnn_with_dropout_between_layers(run):
    core = nn.RNN(4, 8, 2, nonlinearity="tanh", dropout=0.4)
    fit(run, nn.Sequential(Recurrent(core), nn.Sigmoid()), lambda: torch.randn(6, 5, 4))


@member
def lstm(run):
    core = nn.LSTM(4, 8, 2, batch_first=True, dropout=0.2)
    fit(run, nn.Sequential(Recurrent(core), nn.Sigmoid()), lambda: torch.randn(5, 6, 4))


@member
def transformer_encoder(run):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    fit(run, model, lambda: torch.randn(4, 5, 4))


@member
def transformer_encoder_as_the_root(run):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    fit(run, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), lambda: torch.randn(4, 5, 8))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.at = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.Dropout(0.1))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.at(torch.arange(tokens.shape[1]))
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return self.head(x + self.mlp(x))


@member
def gpt(run):
    model = GPT()
    fit(run, model, lambda: torch.randint(0, 11, (4, 6)), optimizer=torch.optim.AdamW(model.parameters(), 0.01))


@member
def gan(run):
    generator = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2, inplace=True), nn.Linear(16, 1))
    both = nn.ModuleDict({"generator": generator, "critic": critic})
    og = torch.optim.Adam(generator.parameters(), 0.01)
    oc = torch.optim.RMSprop(critic.parameters(), 0.01)
    run.begin(both, og, oc, called=generator)
    for _ in range(STEPS):
        for _ in range(2):
            fake = generator(torch.randn(8, 3)).detach()
            loss = F.softplus(critic(fake)).mean() + F.softplus(-critic(torch.randn(8, 2))).mean()
            oc.zero_grad()
            loss.backward()
            oc.step()
        loss = F.softplus(-critic(generator(torch.randn(8, 3)))).mean()
        run.loss(loss)
        og.zero_grad()
        loss.backward()
        og.step()


@member
def lbfgs_with_a_closure(run):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    run.begin(model, optimizer)
    x = torch.randn(16, 4)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        run.loss(loss)
        return loss

    for _ in range(4):
        optimizer.step(closure)


@member
def gradient_accumulation_and_clipping(run):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.begin(model, optimizer)
    for _ in range(STEPS):
        for _ in range(3):
            loss = model(torch.randn(4, 6)).square().mean() / 3
            run.loss(loss)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


class SparseAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Parameter(torch.randn(8, 32) * 0.3), nn.Parameter(torch.randn(32, 8) * 0.3)
        self.bias = nn.Parameter(torch.zeros(32) - 0.2)

    def forward(self, x):
        code = torch.clamp((x @ self.encode) + self.bias, min=0)
        return code @ self.decode, code


@member
def sparse_autoencoder(run):
    data = torch.randn(8, 8)
    fit(run, SparseAutoencoder(), lambda: data + torch.randn(8, 8) * 0.1,
        loss=lambda out: (out[0] - data).square().mean() + 0.01 * out[1].abs().sum())  # fmt: skip


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 8) * 0.3)

    def forward(self, x):
        return F.linear(F.relu(F.linear(x, self.w)), self.w.t())


@member
def weight_tied_autoencoder(run):
    fit(run, Tied(), lambda: torch.randn(8, 8))


@member
def autocast_to_bfloat16(run):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    run.begin(model, optimizer)
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(6, 1, 4, 4)).float().square().mean()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@member
def grad_scaler_that_skips_steps(run):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    run.begin(model, optimizer)
    for step in range(STEPS):
        loss = model(torch.randn(8, 6)).square().mean() * (torch.inf if step == 3 else 1)
        run.loss(loss)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    run.evaluated(torch.tensor(scaler.get_scale()))


@member
def averaged_copies(run):
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.begin(model, optimizer)
    mean = torch.optim.swa_utils.AveragedModel(model)  # a deep copy, of the model as it is being watched
    for _ in range(STEPS):
        loss = model(torch.randn(8, 6)).square().mean()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean.update_parameters(model)
    torch.optim.swa_utils.update_bn([torch.randn(8, 6) for _ in range(3)], mean)
    mean.eval()
    run.evaluated(mean(torch.randn(8, 6)))


@member
def the_users_own_hooks(run):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    model.register_forward_pre_hook(lambda m, a: (run.called("root before"), (a[0] * 2,))[1])
    model.register_forward_hook(lambda m, a, y: (run.called("root after"), y + 1)[1])
    model[1].register_forward_pre_hook(lambda m, a: run.called("relu before"))
    model[1].register_forward_hook(lambda m, a, k, y: run.called("relu after"), with_kwargs=True, always_call=True)
    model[0].register_full_backward_pre_hook(lambda m, g: run.called("linear before backward"))
    model[0].register_full_backward_hook(lambda m, gi, go: (run.called("linear backward"), None)[1])
    model.register_full_backward_hook(lambda m, gi, go: run.called("root backward"))
    model[2].weight.register_hook(lambda g: (run.called("gradient"), g * 0.5)[1])
    model[2].weight.register_post_accumulate_grad_hook(lambda p: run.called("accumulated"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *_: run.called("before step"))
    optimizer.register_step_post_hook(lambda *_: run.called("after step"))
    run.begin(model, optimizer)
    model.register_forward_hook(lambda m, a, y: run.called("root after, registered late"))
    for _ in range(STEPS):
        x = torch.randn(8, 6, requires_grad=True)
        loss = model(x).square().mean()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()
        run.evaluated(x.grad)
        optimizer.step()


@member
def gradient_penalty_by_double_backward(run):
    model = nn.Sequential(nn.Linear(4, 16), nn.Softplus(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    run.begin(model, optimizer)
    for _ in range(STEPS):
        x = torch.randn(8, 4, requires_grad=True)
        y = model(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        loss = y.mean() + (slope.norm(dim=1) - 1).square().mean()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.a = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3))
        self.b = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 1))

    def forward(self, x):
        return self.b(checkpoint(self.a, x.requires_grad_(), use_reentrant=self.reentrant))


@member
def checkpointed_segment(run):
    fit(run, Checkpointed(False), lambda: torch.randn(8, 6))


@member
def checkpointed_segment_reentrant(run):
    fit(run, Checkpointed(True), lambda: torch.randn(8, 6))


@member
def checkpointed_as_a_whole(run):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.begin(model, optimizer)
    for _ in range(STEPS):
        loss = checkpoint(model, torch.randn(8, 6), use_reentrant=False).square().mean()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@member
def frozen_parts(run):
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4), nn.ELU(), nn.Linear(4, 1))
    for part in model[:3]:
        part.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    run.begin(model, optimizer)
    for _ in range(STEPS):
        model.train()
        model[1].eval()
        loss = model(torch.randn(8, 6)).square().mean()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Noisy(nn.Module):
    """Draws from all three sources of chance in its forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x):
        x = x + torch.randn_like(x) * 0.1 + float(np.random.rand())
        h = F.rrelu(self.a(x), training=self.training)
        return self.b(h if random.random() < 0.5 else F.relu(h))


@member
def draws_in_the_loop_and_in_the_model(run):
    fit(run, Noisy(), lambda: torch.randn(8, 6) * random.random() + torch.from_numpy(np.random.rand(8, 6)).float())


@member
def reused_module_and_branches(run):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.act, self.out = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)

        def forward(self, x):
            for _ in range(2 + int(x.sum() > 0)):
                x = self.act(self.inner(x))
            return self.out(torch.where(x > 0.1, x, torch.zeros(())) if x.mean() > 0.2 else torch.maximum(x, 0 * x))

    fit(run, Model(), lambda: torch.randn(8, 6))


@member
def embedding_with_sparse_gradients(run):
    model = nn.Sequential(nn.Embedding(11, 6, sparse=True), nn.Flatten(), nn.Linear(18, 8), nn.CELU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fit(run, model, lambda: torch.randint(0, 11, (8, 3)), optimizer=optimizer)


@member
def parametrized_weights_and_a_scheduler(run):
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16)), nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(16, 8)), nn.PReLU(8), nn.Linear(8, 1),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=STEPS)
    optimizer.register_step_post_hook(lambda *_: run.called("step"))
    run.begin(model, optimizer)
    for _ in range(STEPS):
        loss = model(torch.randn(8, 6)).square().mean()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
