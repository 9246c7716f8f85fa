"""Models that people convert, and what a module tree is made of."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Convolutional(nn.Sequential):
    def __init__(self):
        features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        classifier = nn.Sequential(
            nn.Linear(36, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.GELU("tanh"), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        super().__init__(features, classifier)


class TiedEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embedding(tokens))))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict(
            {
                "left": nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3)),
                "right": nn.Sequential(nn.Linear(4, 6), nn.ELU(0.7), nn.Linear(6, 3), nn.Softplus(2.0, 5.0)),
            }
        )

    def forward(self, x):
        return self.branches["left"](x) + self.branches["right"](x)


class Transformer(nn.Transformer):
    def __init__(self):
        super().__init__(8, 2, 1, 1, 16, dropout=0.1, batch_first=True)

    def forward(self, x):  # type: ignore[override]
        return super().forward(x, x)


def parametrized():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


class Clamp(torch.autograd.Function):
    """Something for a hook to do that changes training."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.5

    @staticmethod
    def backward(ctx, g):
        return g * 0.5


def halve(module: nn.Module, grad_input: Any, grad_output: Any) -> tuple[Tensor]:
    return (grad_input[0] * 0.5,)


def hooked():
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 3))
    model[0].register_forward_hook(lambda module, inputs, output: Clamp.apply(output))
    model[2].register_full_backward_hook(halve)
    model[4].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model[4].weight.register_hook(lambda g: g * 2)
    return model


def scripted():
    part = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)))
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), part)


def table(*shape):
    return lambda dtype: torch.randn(*shape, dtype=dtype)


MODELS = {
    "transformer": (Transformer, table(2, 5, 8)),
    "lstm with a linear head": (Recurrent, table(3, 5, 4)),
    "cnn with a classifier": (Convolutional, table(4, 1, 8, 8)),
    "tied embeddings": (TiedEmbeddings, lambda dtype: torch.randint(11, (3, 4))),
    "sequentials in a ModuleDict": (Branches, table(5, 4)),
    "parametrized linear": (parametrized, table(5, 4)),
    "hooks": (hooked, table(5, 4)),
    "scripted submodule": (scripted, table(5, 4)),
}


def identity_of(model: nn.Module) -> dict:
    """Every module, parameter, buffer and hook of the tree, by identity, and what each module holds."""
    return {
        name: (module, type(module), {key: dict(v) if isinstance(v, dict) else v for key, v in module.__dict__.items()})
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, torch.jit.ScriptModule)
    }
