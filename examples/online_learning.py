"""Online learning: a net sees one patient at a time, predicts, is told the diagnosis and learns from it at once.

    python examples/online_learning.py

With a batch of one the arithmetic is next to nothing, and autograd, the optimizer and fresh memory cost more than it does.
`TrainStep` takes the same steps without them. The data is scikit-learn's breast cancer set: 569 patients, 30
measurements each, standardised by the mean and deviation of what has been seen so far. Writes online_learning.png.

Expected output:

    after 100 patients: loss of the last 100 0.3059, wrong predictions 12
    after 200 patients: loss of the last 100 0.1283, wrong predictions  4
    after 300 patients: loss of the last 100 0.0980, wrong predictions  4
    after 400 patients: loss of the last 100 0.0775, wrong predictions  3
    after 500 patients: loss of the last 100 0.0792, wrong predictions  2
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer

import manualgrad as mg


LEARNING_RATE = 0.05
WINDOW = 100

torch.manual_seed(0)

measurements, benign = load_breast_cancer(return_X_y=True)
order = torch.randperm(len(benign))
x = torch.tensor(measurements, dtype=torch.float32)[order]  # (569, 30)
y = torch.tensor(benign, dtype=torch.float32)[order].unsqueeze(1)  # (569, 1), 1 for benign

model = mg.MLP([30, 16, 1], "tanh")
step = mg.TrainStep(
    model, mg.BinaryCrossEntropyLoss(), mg.GradientDescent(model.parameters(), lr=LEARNING_RATE, momentum=0.5)
)

mean, squares = torch.zeros(30), torch.ones(30)  # running mean, and sum of squared deviations
losses, wrong = [], []
for i in range(len(x)):
    before = x[i] - mean
    mean += before / (i + 1)
    squares += before * (x[i] - mean)
    patient = ((x[i] - mean) / (squares / (i + 1)).sqrt()).unsqueeze(0)  # (1, 30)
    losses.append(step(patient, y[i : i + 1]).item())
    wrong.append((step.outputs.item() > 0) != bool(y[i].item()))  # what it said before it was told
    if (i + 1) % WINDOW == 0:
        loss = sum(losses[-WINDOW:]) / WINDOW
        print(
            f"after {i + 1} patients: loss of the last {WINDOW} {loss:.4f}, wrong predictions {sum(wrong[-WINDOW:]):2}"
        )

running = torch.tensor(losses).cumsum(0) / torch.arange(1, len(losses) + 1)
figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.add_subplot()
axes.plot(losses, ".", markersize=3, color="#999999", label="loss on one patient, before learning from it")
axes.plot(running, color="#0072B2", label="running mean")
axes.set_xlabel("patients seen")
axes.set_ylabel("cross-entropy loss (nats)")
axes.set_title("Online learning, one patient at a time")
axes.legend()
figure.savefig("online_learning.png", dpi=150)
