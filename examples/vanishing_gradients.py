"""Why deep sigmoid nets learn slowly: the error shrinks at every layer on its way back.

    python examples/vanishing_gradients.py

delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l) multiplies by one more sigma' for each layer, and a sigmoid's is never above
1/4. Two nets that differ in nothing but the activation learn handwritten digits, watched by `BackpropMonitor`, which names
the layers where the error vanishes. It draws vanishing_gradients.png, and relu_gradients.png to compare.

Expected output:

    sigmoid: |delta| relative to the last layer's, from there to the first layer:
    1.00000 0.13864 0.01969 0.00269 0.00039 0.00006 0.00001
    BackpropMonitor: layer 'model.0' is vanishing at step 9
    BackpropMonitor: layer 'model.1' is vanishing at step 9
    BackpropMonitor: layer 'model.2' is vanishing at step 9
    relu: |delta| relative to the last layer's, from there to the first layer:
    1.00000 0.40525 0.16050 0.07011 0.03037 0.01344 0.00519
"""

import logging
import warnings

from lightning.pytorch import Trainer, seed_everything

from manualgrad.lightning import BackpropModule, BackpropMonitor, DigitsDataModule


SIZES = (64, 64, 64, 64, 64, 64, 64, 10)  # pixels, six hidden layers, digits
EPOCHS = 2
PICTURES = {"sigmoid": "vanishing_gradients.png", "relu": "relu_gradients.png"}


def train(activation: str) -> BackpropMonitor:
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
    module = BackpropModule(SIZES, activation=activation, lr_schedule="constant")
    trainer.fit(module, datamodule=DigitsDataModule())
    return monitor


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for activation, picture in PICTURES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor = train(activation)
        errors = [record.delta_norm or 0.0 for record in monitor.history if record.step == 0]
        print(f"{activation}: |delta| relative to the last layer's, from there to the first layer:")
        print(*(f"{error / errors[-1]:.5f}" for error in reversed(errors)))
        for warning in caught:
            if "BackpropMonitor" in str(warning.message):
                print(str(warning.message).partition(": |delta|")[0])

        figure = monitor.plot()
        figure.suptitle(f"Six hidden layers of {activation} units: handwritten digits, {EPOCHS} epochs")
        if activation == "sigmoid":
            bound = [errors[-1] / 4**i for i in reversed(range(len(errors)))]
            figure.axes[0].plot(bound, "--", color="#555555", label="¼ at each layer: the largest σ′")
            figure.axes[0].legend(loc="upper left", fontsize="small")
        figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
