"""Why deep sigmoid nets learn slowly: the error shrinks at every layer on its way back.

    python examples/vanishing_gradients.py

delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l) multiplies by one more sigma' for each layer, and a sigmoid's is never above
1/4. The same net is trained twice on handwritten digits, with sigmoid and with relu, and `BackpropMonitor` watches both.
Its pictures: vanishing_gradients.png, and healthy_gradients.png to compare.

Expected output:
"""

import logging
import warnings

from lightning.pytorch import Trainer, seed_everything

from manualgrad.lightning import BackpropModule, BackpropMonitor, DigitsDataModule


SIZES = (64, 64, 64, 64, 64, 64, 64, 10)
EPOCHS = 3
PICTURES = {"sigmoid": "vanishing_gradients.png", "relu": "healthy_gradients.png"}


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for activation, picture in PICTURES.items():
        seed_everything(0, verbose=False)
        monitor = BackpropMonitor(every_n_steps=10)
        trainer = Trainer(
            max_epochs=EPOCHS,
            callbacks=[monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = BackpropModule(SIZES, activation=activation, lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, datamodule=DigitsDataModule())

        print(f"{activation}:")
        first = [record for record in monitor.history if record.step == 0]
        for record in first:
            print(f"    {record.layer}: |delta| {record.delta_norm / first[-1].delta_norm:.6f} of the last layer's")
        named = [str(w.message) for w in caught if "BackpropMonitor" in str(w.message)]
        print(*named, sep="\n")
        monitor.plot().savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
