"""What a notebook shows while `BackpropModule` trains, in a real kernel: the progress bar, from what the `demo` extra brings."""

import os
from pathlib import Path

import pytest


CELL = """
import warnings
warnings.simplefilter("ignore")
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset
from manualgrad.lightning import BackpropModule

data = TensorDataset(torch.randn(64, 3), torch.randint(2, (64,)))
trainer = Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False)
trainer.fit(BackpropModule((3, 2)), DataLoader(data, 8))
"""


def test_a_bar_that_counts_epochs_and_shows_loss_and_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output.data for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    (widgets,) = notebook.metadata.widgets.values()
    bars = str([widget["state"].get("outputs") for widget in widgets["state"].values()])
    assert "Epoch 1/1" in bars and "8/8" in bars and "train_loss" in bars and "train_accuracy" in bars
