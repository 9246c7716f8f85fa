"""XOR from start to learnt, as a page: every number of a training step, and a slider over the steps.

    python examples/explain_xor.py

The page, explain_xor.html in the current directory, is one file that opens by double click. No single layer can learn XOR, so
between two inputs and one output there are three hidden neurons. For 500 steps the cost hardly moves, with every output near one
half; then one hidden neuron comes to answer to (1, 0) alone, another to all but (0, 1), and the output reads off the difference.

Expected output:

    step    0: C = 0.1250, outputs 0.51 0.51 0.51 0.51
    step  100: C = 0.1249, outputs 0.50 0.50 0.50 0.50
    step  400: C = 0.1244, outputs 0.50 0.49 0.52 0.50
    step  600: C = 0.1215, outputs 0.50 0.47 0.55 0.49
    step  800: C = 0.0959, outputs 0.42 0.44 0.69 0.43
    step 1000: C = 0.0233, outputs 0.18 0.75 0.82 0.24
    step 3000: C = 0.0007, outputs 0.02 0.96 0.97 0.05
    explain_xor.html shows these 7 steps.
"""

from __future__ import annotations

import torch

import manualgrad as mg
from manualgrad.explain.page.write_page import write_page


LR = 2.0
SHOWN = [0, 100, 400, 600, 800, 1000, 3000]

torch.manual_seed(2)
inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
targets = torch.tensor([[0], [1], [1], [0]], dtype=torch.float64)

model = mg.MLP([2, 3, 1], "sigmoid", "sigmoid", dtype=torch.float64)
loss_function = mg.QuadraticLoss()
optimizer = mg.GradientDescent(model.parameters(), lr=LR)
train_step = mg.TrainStep(model, loss_function, optimizer)

traces = []
for step in range(SHOWN[-1] + 1):
    if step in SHOWN:
        trace = mg.trace(model, loss_function, inputs, targets, optimizer)  # of the step that comes next
        traces.append(trace)
        outputs = " ".join(f"{a:.2f}" for a in trace.outputs.flatten().tolist())
        print(f"step {step:4}: C = {trace.loss:.4f}, outputs {outputs}")
    train_step(inputs, targets)

write_page(traces, "explain_xor.html", title="XOR, from start to learnt", steps=SHOWN)
print(f"explain_xor.html shows these {len(traces)} steps.")
