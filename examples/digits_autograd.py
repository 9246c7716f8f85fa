"""Handwritten digits: digits_autograd.py in plain PyTorch, digits_manualgrad.py with the backward pass written by hand.

    python examples/digits_autograd.py
    python examples/digits_manualgrad.py
    diff examples/digits_autograd.py examples/digits_manualgrad.py

They differ in imports and class names alone, a Dense being a Linear together with its activation. Both learn the same.

Expected output:

    epoch  1  training loss 1.8003  test accuracy 73.4%
    epoch  2  training loss 0.6436  test accuracy 89.9%
    epoch  3  training loss 0.3377  test accuracy 93.9%
    epoch  4  training loss 0.2303  test accuracy 95.3%
    epoch  5  training loss 0.1851  test accuracy 95.6%
    epoch  6  training loss 0.1553  test accuracy 93.3%
    epoch  7  training loss 0.1354  test accuracy 92.6%
    epoch  8  training loss 0.1180  test accuracy 94.9%
    epoch  9  training loss 0.1061  test accuracy 95.3%
    epoch 10  training loss 0.0961  test accuracy 94.9%
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import CrossEntropyLoss, Linear, Sequential, Sigmoid
from torch.optim import SGD


HIDDEN = 30
BATCH = 10
EPOCHS = 10
LEARNING_RATE = 0.5
TRAINING_IMAGES = 1500  # of 1797; the rest is for testing

torch.manual_seed(0)

images, labels = load_digits(return_X_y=True)
shuffled = torch.randperm(len(images))
x = torch.tensor(images, dtype=torch.float32)[shuffled] / 16  # (1797, 64), from 0 to 1
y = torch.tensor(labels)[shuffled]  # (1797,)
x_train, y_train = x[:TRAINING_IMAGES], y[:TRAINING_IMAGES]
x_test, y_test = x[TRAINING_IMAGES:], y[TRAINING_IMAGES:]

model = Sequential(Linear(64, HIDDEN), Sigmoid(), Linear(HIDDEN, 10))
loss = CrossEntropyLoss()
optimizer = SGD(model.parameters(), lr=LEARNING_RATE)

for epoch in range(1, EPOCHS + 1):
    total = 0.0
    for batch in torch.randperm(TRAINING_IMAGES).split(BATCH):
        cost = loss(model(x_train[batch]), y_train[batch])
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        total += cost.item() * len(batch)
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).double().mean().item()
    print(f"epoch {epoch:2}  training loss {total / TRAINING_IMAGES:.4f}  test accuracy {accuracy:.1%}")
