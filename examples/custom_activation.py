"""An activation function of your own: give sigma and sigma', and let `compare` judge whether they belong together.

    python examples/custom_activation.py

The squared rectifier max(z, 0)^2 has sigma' = 2 max(z, 0). That is 2 sqrt(a) too, so it can be written from the output a:
the layer then keeps a, which the next layer keeps anyway, and no z.

Expected output:

    relu^2: gradients agree with autograd's
    relu^2 from a: gradients agree with autograd's
    no factor 2: gradients DISAGREE with autograd's
    cost after 500 steps: 0.0016
    0 xor 0 = 0
    0 xor 1 = 1
    1 xor 0 = 1
    1 xor 1 = 0
"""

import torch

import manualgrad as mg


SIZES = [2, 16, 1]
STEPS = 500
LEARNING_RATE = 0.2

torch.manual_seed(0)

from_z = mg.Activation("relu^2", value=lambda z: z.relu() ** 2, derivative=lambda z: 2 * z.relu())
from_a = mg.Activation("relu^2 from a", value=from_z.value, derivative=lambda a: 2 * a.sqrt(), from_output=True)
wrong = mg.Activation("no factor 2", value=from_z.value, derivative=lambda z: z.relu())

corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
exclusive_or = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
loss = mg.BinaryCrossEntropyLoss()

for activation in (from_z, from_a, wrong):
    comparison = mg.compare(mg.MLP(SIZES, activation), loss, corners, exclusive_or)
    print(f"{activation.name}: gradients {'agree' if comparison.ok else 'DISAGREE'} with autograd's")

model = mg.MLP(SIZES, activation="relu^2 from a")  # by name; the object itself would do as well
optimizer = mg.GradientDescent(model.parameters(), lr=LEARNING_RATE)
for _ in range(STEPS):
    optimizer.zero_grad()
    cost = loss(model(corners), exclusive_or)
    cost.backward()
    optimizer.step()

print(f"cost after {STEPS} steps: {cost.item():.4f}")
for (p, q), z in zip(corners.tolist(), model(corners).tolist(), strict=True):
    print(f"{p:.0f} xor {q:.0f} = {z[0] > 0:d}")
