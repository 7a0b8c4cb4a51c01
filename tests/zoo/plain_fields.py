"""Rows in plain PyTorch, as people write them: graphs, control, fields."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.numeric.draws import below, normal, uniform

from .row import Row


class GraphAttention(nn.Module):
    """Layers on an adjacency matrix: convolution, then attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8, bias=False)
        self.left, self.right, self.head = (
            nn.Parameter(torch.randn(8, 1)),
            nn.Parameter(torch.randn(8, 1)),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        edges = ((edges + edges.T) > 1) | torch.eye(edges.shape[0], dtype=torch.bool)
        degrees = edges.sum(1).float().pow(-0.5)
        x = F.relu(self.first(degrees[:, None] * edges * degrees @ x))
        h = self.second(x)
        scores = F.leaky_relu(h @ self.left + (h @ self.right).T, 0.2)
        return self.head(F.elu(torch.where(edges, scores, torch.full_like(scores, -9e15)).softmax(1) @ h))


class MessagePassing(nn.Module):
    """Messages along a list of edges, added where they arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update, self.head = nn.Linear(12, 8), nn.GRUCell(8, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            messages = F.relu(self.message(torch.cat([x[source], x[target]], -1)))
            x = self.update(torch.zeros(x.shape[0], 8).index_add(0, target, messages), x)
        return self.head(x)


class ActorCritic(nn.Module):
    """PPO: a clipped ratio of likelihoods, a value, an entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.value = (
            nn.Sequential(nn.Linear(5, 16), nn.Tanh()),
            nn.Linear(16, 2),
            nn.Linear(16, 1),
        )
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(
        self, state: torch.Tensor, action: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor
    ) -> torch.Tensor:
        y = self.body(state)
        policy = torch.distributions.Normal(self.mean(y), self.log_scale.exp(), validate_args=False)
        ratio = (policy.log_prob(action).sum(-1) - old).exp()
        gained = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        wrong = F.smooth_l1_loss(self.value(y).squeeze(-1), advantage)
        return -gained.mean() + 0.5 * wrong - 0.01 * policy.entropy().mean()


class DuelingQ(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.value, self.advantage = (
            nn.Sequential(nn.Linear(5, 16), nn.ReLU()),
            nn.Linear(16, 1),
            nn.Linear(16, 3),
        )

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        y = self.body(state)
        advantage = self.advantage(y)
        q = self.value(y) + advantage - advantage.mean(-1, keepdim=True)
        return q.gather(1, action[:, None]).squeeze(1)


class Splines(nn.Module):
    """A Kolmogorov-Arnold layer: a cubic spline an edge."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.spline = nn.Linear(4, 6), nn.Parameter(torch.randn(6, 4, 7) * 0.1)
        self.head = nn.Linear(6, 2)
        self.register_buffer("grid", torch.arange(-3, 8) * 0.5 - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, grid = x.unsqueeze(-1), self.grid
        bases = ((y >= grid[:-1]) & (y < grid[1:])).to(x.dtype)
        for order in range(1, 4):
            left = (y - grid[: -(order + 1)]) / (grid[order:-1] - grid[: -(order + 1)])
            right = (grid[order + 1 :] - y) / (grid[order + 1 :] - grid[1:-order])
            bases = left * bases[..., :-1] + right * bases[..., 1:]
        return self.head(self.base(F.silu(x)) + torch.einsum("bik,oik->bo", bases, self.spline))


class Flowing(nn.Module):
    """A neural differential equation, by Runge and Kutta's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4)), nn.Linear(4, 2)

    def _slope(self, t: float, x: torch.Tensor) -> torch.Tensor:
        return self.field(torch.cat([x, torch.full_like(x[:, :1], t)], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in range(2):
            t, h = step / 2, 0.5
            a = self._slope(t, x)
            b = self._slope(t + h / 2, x + h / 2 * a)
            c = self._slope(t + h / 2, x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + self._slope(t + h, x + h * c))
        return self.head(x)


class RadianceField(nn.Module):
    """NeRF: sines of positions, density and colour along rays, composed by a cumulative product."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.colour = (
            nn.Sequential(nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()),
            nn.Linear(16, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = x[..., None] * (2.0 ** torch.arange(4)) * math.pi
        features = torch.cat([x, angles.sin().flatten(-2), angles.cos().flatten(-2)], -1)
        y = self.colour(self.body(features))
        opacity = 1 - torch.exp(-F.softplus(y[..., 3]) * 0.1)
        clear = torch.cumprod(torch.cat([torch.ones_like(opacity[:, :1]), 1 - opacity + 1e-10], -1), -1)[:, :-1]
        return ((opacity * clear)[..., None] * y[..., :3].sigmoid()).sum(1)


ROWS = [
    Row("plain/graph attention", GraphAttention, {"x": normal(7, 6), "edges": uniform(7, 7)}),
    Row("plain/message passing", MessagePassing, {"x": normal(7, 6), "source": below(7, 12), "target": below(7, 12)}),
    Row("plain/PPO", ActorCritic, {"state": normal(4, 5), "action": normal(4, 2), "old": normal(4), "advantage": normal(4)}, loss="output"),
    Row("plain/dueling DQN", DuelingQ, {"state": normal(4, 5), "action": below(3, 4)}),
    Row("plain/KAN", Splines, {"x": uniform(4, 4)}),
    Row("plain/neural ODE", Flowing, {"x": normal(3, 4)}),
    Row("plain/NeRF", RadianceField, {"x": normal(3, 6, 3)}),
]  # fmt: skip
