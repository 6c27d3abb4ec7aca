"""A pole on a cart, balanced by a value network that learns from its own play: deep Q-learning, in small.

The network's targets move as it learns, which is where dormant units were found to gather (Sokar et al. 2023).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.errors import RelumeError, missing_extra
from relume.lab.tasks.networks import Choice, mlp
from relume.lab.tasks.task import PARTS, Kind, Lesson, Part, PartName, Split, Task

# Episodes by whose mean return a part is judged, and states of random play that stand for it as data.
EPISODES, STATES = 20, 300
# Starts that a part of a split may use, and the first of those that are for training.
_STARTS, _TRAINING = 1000, 2**64
# What position, speed, angle and angular speed are divided by: about what they range over.
_SCALE = (2.4, 2.0, 0.2, 2.0)


@dataclass(frozen=True)
class CartPole(Task):
    """CartPole-v1 of gymnasium: push the cart left or right, a point for each step that the pole stands, 500 at most.

    A member learns by deep Q-learning (Mnih et al. 2015): each training step it plays `plays` steps, ε-greedily, into
    its replay memory, and then lowers the Huber loss of a batch drawn from there. Its scores are mean returns of greedy
    play in 20 episodes, from other starts for each part and none of them those of training. Play at random scores 22.

    The census counts, while training, the passes of the value network on replayed batches, and at the end all states
    then in the memory. Neither the passes by which it plays nor those of the target network are counted.

    With Adam at a learning rate of 0.003 and two layers of 32 units it has learnt after 500 steps (mean return 280 over
    8 seeds, between 92 and 500), and so it has with SGD at 0.1. More steps do not make it better, as the targets go on
    moving: 204 after 1000, 116 after 3000.

    As data, a part is states that random play meets from its starts; y is the action taken and the discounted return
    that followed. An initialization may look at them; no member is trained on them. A part has a thousand starts of its
    own for each split.

    Attributes:
        discount: γ, of a reward one step later.
        plays: steps of play for each step of training.
        warm: steps of random play before the first.
        exploring: share of the training steps over which ε falls from 1 to `least`.
        least: ε from then on.
        synced: training steps after which the target network is set to the value network again.
        memory: transitions that the replay memory holds, the latest.
    """

    name: str = "cartpole"
    kind: Kind = "control"
    metric: str = "return"
    higher_is_better: bool = True
    outputs: int = 2
    about: str = "CartPole-v1 of gymnasium (simulated): a value network that learns from its own play (DQN)"
    discount: float = 0.95
    plays: int = 2
    warm: int = 500
    exploring: float = 0.6
    least: float = 0.1
    synced: int = 50
    memory: int = 20_000

    def data(self, seed: int = 0) -> Split:
        return Split(*(self._random_play(part, seed) for part in PARTS))

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return mlp(choice, len(_SCALE), self.outputs, width, depth)

    def lesson(self, model: nn.Module, *, batch: int, steps: int, seed: int, split: int) -> Lesson:
        return _QLearning(self, model, batch, steps, seed, split)

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        """Huber loss of the value of an action: y [inputs, 2] is the action taken and what its value should be."""
        value = output.gather(1, y[:, :1].long()).squeeze(1)
        return F.smooth_l1_loss(value, y[:, 1], reduction="none")

    def score(self, output: Tensor, y: Tensor) -> float:
        """Raises RelumeError: a value network is judged by what it does."""
        raise RelumeError(f"'{self.name}' is scored by play, not by outputs on data: take the mean of `play(model)`")

    def play(self, model: nn.Module, part: PartName = "test", split: int = 0) -> tuple[float, ...]:
        """Returns of greedy play in 20 episodes, NaN where a value is not finite. The model is left in its mode.

        The calls are of `model.forward`, so that no watch counts them.

        Raises:
            MissingExtraError: gymnasium is not installed.
        """
        worlds = [_world() for _ in range(EPISODES)]
        states = [_reset(world, start) for world, start in zip(worlds, self._starts(part, split), strict=False)]
        returns, going = [0.0] * EPISODES, list(range(EPISODES))
        while going:
            values = _values(model, [states[i] for i in going])
            if not bool(torch.isfinite(values).all()):
                return (float("nan"),) * EPISODES
            ended = set()
            for i, action in zip(going, values.argmax(1).tolist(), strict=True):
                states[i], reward, terminated, truncated = _step(worlds[i], action)
                returns[i] += reward
                if terminated or truncated:
                    ended.add(i)
            going = [i for i in going if i not in ended]
        return tuple(returns)

    def _starts(self, part: PartName, split: int) -> range:
        """Seeds of episodes that belong to this part of this split alone."""
        first = (split * len(PARTS) + PARTS.index(part)) * _STARTS
        return range(first, first + _STARTS)

    def _random_play(self, part: PartName, split: int) -> Part:
        world, starts = _world(), self._starts(part, split)
        draw = random.Random(starts[0])
        x: list[Sequence[float]] = []
        y: list[tuple[int, float]] = []
        for start in starts:
            state, ended, taken, rewards = _reset(world, start), False, [], []
            while not ended:
                x.append(state)
                taken.append(draw.randrange(self.outputs))
                state, reward, terminated, truncated = _step(world, taken[-1])
                rewards.append(reward)
                ended = terminated or truncated
            value, values = 0.0, []
            for reward in reversed(rewards):
                value = reward + self.discount * value
                values.append(value)
            y += zip(taken, reversed(values), strict=True)
            if len(x) >= STATES:
                break
        return Part(_tensor(x[:STATES]), torch.tensor(y[:STATES]))


class _QLearning:
    """A `Lesson` by play, replayed."""

    def __init__(self, task: CartPole, model: nn.Module, batch: int, steps: int, seed: int, split: int) -> None:
        self.task, self.model, self.batch, self.split = task, model, batch, split
        self.explored = max(task.exploring * steps, 1.0)
        self.world, self.draw = _world(), random.Random(seed)
        self.rows = torch.Generator().manual_seed(seed)
        dtype = torch.get_default_dtype()
        self.before, self.after = (torch.zeros(task.memory, len(_SCALE), dtype=dtype) for _ in range(2))
        # Action, reward, and γ, or 0 after the end of the world.
        self.between = torch.zeros(task.memory, 3, dtype=dtype)
        self.played = 0
        self.state = _reset(self.world, _TRAINING + seed)
        for _ in range(task.warm):
            self._play(1.0)
        self._sync()

    def loss(self, step: int) -> Tensor:
        if step and step % self.task.synced == 0:
            self._sync()
        fallen = (1 - self.task.least) * min(step / self.explored, 1.0)
        for _ in range(self.task.plays):
            self._play(1 - fallen)
        rows = torch.randint(min(self.played, self.task.memory), (self.batch,), generator=self.rows)
        action, reward, discount = self.between[rows].unbind(1)
        with torch.no_grad():
            goal = reward + discount * self.target(self.after[rows]).amax(1)
        return self.task.loss(self.model(self.before[rows]), torch.stack([action, goal], 1))

    def score(self, part: PartName, step: int) -> float:
        returns = self.task.play(self.model, part, self.split)
        return sum(returns) / len(returns)

    def inputs(self, step: int) -> Tensor:
        return self.before[: min(self.played, self.task.memory)]

    def _sync(self) -> None:
        # A copy, not its weights alone: a treatment may have changed the model's activations.
        self.target = copy.deepcopy(self.model).eval().requires_grad_(False)

    def _play(self, epsilon: float) -> None:
        if self.draw.random() < epsilon:
            action = self.draw.randrange(self.task.outputs)
        else:
            action = int(_values(self.model, [self.state]).argmax())
        after, reward, terminated, truncated = _step(self.world, action)
        at = self.played % self.task.memory
        self.before[at], self.after[at] = _tensor(self.state), _tensor(after)
        self.between[at] = torch.tensor([action, reward, 0.0 if terminated else self.task.discount])
        self.played += 1
        self.state = _reset(self.world) if terminated or truncated else after


def _world() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise missing_extra("gymnasium", "lab", "the task cartpole") from error
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def _reset(world: Any, seed: int | None = None) -> list[float]:
    return _scaled(world.reset(seed=seed)[0])


def _step(world: Any, action: int) -> tuple[list[float], float, bool, bool]:
    state, reward, terminated, truncated, _ = world.step(action)
    return _scaled(state), float(reward), bool(terminated), bool(truncated)


def _scaled(state: Any) -> list[float]:
    return [float(value) / scale for value, scale in zip(state, _SCALE, strict=True)]


def _tensor(states: Any) -> Tensor:
    return torch.tensor(states, dtype=torch.get_default_dtype())


def _values(model: nn.Module, states: Sequence[Sequence[float]]) -> Tensor:
    """Values of the actions, [states, actions], in evaluation and unseen by a watch."""
    training = model.training
    model.eval()
    with torch.no_grad():
        values: Tensor = model.forward(_tensor(states))
    model.train(training)
    return values


TASKS = (CartPole(),)
