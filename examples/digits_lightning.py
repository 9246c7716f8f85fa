"""Train on handwritten digits with Lightning, checked against autograd while it runs.

    python examples/digits_lightning.py

Takes about ten seconds on two cores.

Expected output:

    test accuracy: 0.98
    relative difference from autograd in the last audit: 3e-07
    All 5 rows ok. Largest relative difference 2.0e-07.
"""

import logging
import warnings

from lightning.pytorch import Trainer, seed_everything

import manualgrad as mg
from manualgrad.lightning import AutogradAudit, BackpropModule, DigitsDataModule


SIZES = (64, 128, 10)  # pixels, hidden neurons, digits
EPOCHS = 20


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # hints, such as to load data in processes of their own
    seed_everything(0, verbose=False)
    data = DigitsDataModule(batch_size=32)
    module = BackpropModule(SIZES, activation="relu", loss="cross_entropy", lr=0.1, momentum=0.9)
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=[AutogradAudit(every_n_steps=10)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    gap = trainer.callback_metrics["autograd_gap"]
    result = trainer.test(module, datamodule=data, verbose=False)[0]
    print(f"test accuracy: {result['test_accuracy']:.2f}")
    print(f"relative difference from autograd in the last audit: {gap:.0e}")

    # Gradients by hand, by autograd and by autograd in float64; print(comparison) shows them all.
    inputs, digits = next(iter(data.test_dataloader()))
    comparison = mg.compare(module.model, mg.SoftmaxCrossEntropyLoss(), inputs, digits)
    print(str(comparison).splitlines()[-1])


if __name__ == "__main__":
    main()
