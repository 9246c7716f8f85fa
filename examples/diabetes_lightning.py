"""Learn real numbers with Lightning: how far diabetes has progressed after a year, from ten measurements of each patient.

    python examples/diabetes_lightning.py

Expected output:

    R^2 on held-out patients: by hand 0.61, torch.nn and SGD 0.61, scikit-learn 0.61
    mean absolute error by hand: 41
    by hand and torch.nn, the same weights: yes
"""

import logging
import warnings

import numpy
import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from sklearn.neural_network import MLPRegressor
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from manualgrad.lightning import BackpropModule


SIZES = (10, 16, 1)  # measurements, hidden neurons, progression
TRAINED = 342  # of the 442 patients
EPOCHS, BATCH, RATE, MOMENTUM = 30, 32, 0.01, 0.9


def batches(data: TensorDataset) -> DataLoader:
    return DataLoader(data, BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning|sklearn")  # hints: to load data in processes, to train on
    measured, progression = load_diabetes(return_X_y=True, scaled=False)
    order = numpy.random.RandomState(0).permutation(len(progression))
    x, y = (torch.tensor(a[order], dtype=torch.float32) for a in (measured, progression))
    unit = y[:TRAINED].std()
    x, y = ((a - a[:TRAINED].mean(0)) / a[:TRAINED].std(0) for a in (x, y))  # y is (n,), as it comes
    train, test = TensorDataset(x[:TRAINED], y[:TRAINED]), TensorDataset(x[TRAINED:], y[TRAINED:])

    seed_everything(0, verbose=False)
    module = BackpropModule(SIZES, "tanh", loss="quadratic", lr=RATE, momentum=MOMENTUM, lr_schedule="constant")
    twin = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(module.model.parameters()), twin.parameters())
    trainer = Trainer(
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches(train))
    by_hand = trainer.test(module, DataLoader(test, len(test)), verbose=False)[0]

    sgd, loader = torch.optim.SGD(twin.parameters(), RATE, MOMENTUM), batches(train)
    for _ in range(EPOCHS):
        for inputs, targets in loader:
            sgd.zero_grad()
            (0.5 * nn.functional.mse_loss(twin(inputs).squeeze(1), targets)).backward()
            sgd.step()
    by_torch = r2_score(y[TRAINED:], twin(x[TRAINED:]).detach().squeeze(1))
    options = {"activation": "tanh", "solver": "sgd", "alpha": 0, "nesterovs_momentum": False, "random_state": 0}
    theirs = MLPRegressor(hidden_layer_sizes=16, batch_size=BATCH, learning_rate_init=RATE, max_iter=EPOCHS, **options)
    by_sklearn = theirs.fit(x[:TRAINED], y[:TRAINED]).score(x[TRAINED:], y[TRAINED:])

    r2 = f"by hand {by_hand['test_r2']:.2f}, torch.nn and SGD {by_torch:.2f}, scikit-learn {by_sklearn:.2f}"
    print(f"R^2 on held-out patients: {r2}")
    print(f"mean absolute error by hand: {by_hand['test_mae'] * unit:.0f}")
    apart = [(p - q).abs().max() for p, q in zip(module.parameters(), twin.parameters(), strict=True)]
    print(f"by hand and torch.nn, the same weights: {'yes' if max(apart) < 1e-5 else 'NO'}")


if __name__ == "__main__":
    main()
