"""Dense inside a module of your own, beside layers that know nothing of it, trained by an optimizer of PyTorch's.

    python examples/your_own_model.py

Expected output:

    test accuracy 97.3%
    gradient           shape       max |by relative by hand autograd  ok
                                    hand -               vs       vs
                                 autograd|          float64  float64
    --------------------------------------------------------------------
    convolution.weight 4x1x3x3     0.0e+00  0.0e+00 1.2e-06  1.2e-06 yes
    convolution.bias   4           0.0e+00  0.0e+00 5.2e-06  5.2e-06 yes
    norm.weight        64          0.0e+00  0.0e+00 6.1e-07  6.1e-07 yes
    norm.bias          64          0.0e+00  0.0e+00 4.8e-07  4.8e-07 yes
    expand.weight      128x64      0.0e+00  0.0e+00 6.2e-07  6.2e-07 yes
    expand.bias        128         0.0e+00  0.0e+00 4.6e-07  4.6e-07 yes
    contract.weight    64x128      0.0e+00  0.0e+00 6.3e-07  6.3e-07 yes
    contract.bias      64          0.0e+00  0.0e+00 5.2e-07  5.2e-07 yes
    decide.weight      10x64       0.0e+00  0.0e+00 6.8e-07  6.8e-07 yes
    decide.bias        10          0.0e+00  0.0e+00 3.1e-07  3.1e-07 yes
    input              297x1x8x8   0.0e+00  0.0e+00 5.7e-07  5.7e-07 yes
    All 11 rows ok. Largest relative difference 0.0e+00.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from manualgrad import Dense, compare


EPOCHS = 10
BATCH = 50
LEARNING_RATE = 0.003
TRAINING_IMAGES = 1500  # of 1797; the rest is for testing


class Network(nn.Module):
    """A convolution, a residual block of two dense layers, and a linear layer that decides."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(64)
        self.expand = Dense(64, 128, activation="gelu")  # was nn.Linear(64, 128), and nn.GELU() in forward
        self.contract = Dense(128, 64)  # was nn.Linear(128, 64)
        self.decide = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.convolution(images).flatten(1)  # (r, 1, 8, 8) -> (r, 64)
        x = x + self.contract(self.expand(self.norm(x)))
        return self.decide(x)


torch.manual_seed(0)

images, labels = load_digits(return_X_y=True)
shuffled = torch.randperm(len(images))
x = torch.tensor(images, dtype=torch.float32)[shuffled].view(-1, 1, 8, 8) / 16  # from 0 to 1
y = torch.tensor(labels)[shuffled]
x_train, y_train = x[:TRAINING_IMAGES], y[:TRAINING_IMAGES]
x_test, y_test = x[TRAINING_IMAGES:], y[TRAINING_IMAGES:]

model = Network()
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

for _ in range(EPOCHS):
    for batch in torch.randperm(TRAINING_IMAGES).split(BATCH):
        optimizer.zero_grad()
        loss(model(x_train[batch]), y_train[batch]).backward()
        optimizer.step()

with torch.no_grad():
    accuracy = (model(x_test).argmax(1) == y_test).double().mean().item()
print(f"test accuracy {accuracy:.1%}")
print(compare(model, loss, x_test, y_test))
