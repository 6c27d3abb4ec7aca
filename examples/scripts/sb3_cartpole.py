"""PPO on CartPole by Stable-Baselines3, policy and value networks with ReLU. Knows no relume.

relume run examples/scripts/sb3_cartpole.py [FILE]
"""

import sys

import torch
from stable_baselines3 import PPO
from torch import nn

torch.set_num_threads(1)
agent = PPO(
    "MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": nn.ReLU, "net_arch": [32, 32]}, n_steps=256,
    batch_size=64, n_epochs=4, seed=0, device="cpu",
)  # fmt: skip
agent.learn(1024)
print(f"{agent.num_timesteps} steps of CartPole, {agent._n_updates} epochs")
if len(sys.argv) > 1:
    torch.save(agent.policy.state_dict(), sys.argv[1])
