"""Functions that make a model and its batch, as a user writes them in a file `mine.py` of the current folder."""

MINE = """
from types import SimpleNamespace

import torch
from torch import nn


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.tower = nn.Embedding(50, 128), nn.Linear(256, 256)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(256, 300)

    def forward(self, user, item):
        return self.head(self.drop(torch.relu(self.tower(torch.cat([self.user(user), item], 1)))))


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x, labels):
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.layer(x), labels))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x):
        return self.a(x), self.b(x)


def towers(batch):
    return TwoTowers(), (torch.randint(50, (batch,)), torch.randn(batch, 128)), torch.randint(300, (batch,))


def with_loss(batch):
    return WithLoss(), {"x": torch.randn(batch, 5), "labels": torch.randint(3, (batch,))}, None


def heads(batch):
    return TwoHeads(), torch.randn(batch, 4), (torch.randn(batch, 2), torch.randn(batch, 1))


def both(outputs, targets):
    return sum((o - t).square().mean() for o, t in zip(outputs, targets))


def stack(batch):
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(batch, 4), torch.randn(batch, 2)


def in_bfloat16(batch):
    # on which the forms of SGD with momentum differ
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 3)).bfloat16()
    return model, torch.randn(batch, 256).bfloat16(), torch.randn(batch, 3).bfloat16()


def fails(batch):
    raise OSError("no such weights: model.bin\\nsecond line")


def only_a_model(batch):
    return nn.Linear(2, 2)


def no_batch():
    return stack(8)


def wrong_width(batch):
    return nn.Linear(4, 3), torch.randn(batch, 5), torch.randn(batch, 3)


def vector(batch):
    return nn.Linear(4, 3), torch.randn(batch, 4), None


def frozen(batch):
    return nn.Linear(4, 3).requires_grad_(False), torch.randn(batch, 4), torch.randn(batch, 3)


def diverges(batch):
    return nn.Linear(4, 3), torch.full((batch, 4), 1e15), torch.randn(batch, 3)


def unbounded(batch):
    return nn.Linear(4, 3), torch.full((batch, 4), float("inf")), torch.randn(batch, 3)
"""
