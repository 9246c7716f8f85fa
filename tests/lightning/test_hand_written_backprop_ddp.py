"""`HandWrittenBackprop` in two processes of Lightning's `strategy="ddp"`: the weights of two processes without it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import distributed, multiprocessing, nn

from manualgrad.lightning import HandWrittenBackprop
from tests.lightning.runs import quiet_trainer


class Net(BoringModel):
    """Lightning's module, with an activation, and shuffled data."""

    layer: Any

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {**where, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}  # as a cluster does: nothing more is started
    outcome = {}
    settings: dict[str, Any] = {
        "plain": None,
        "by hand": {},
        "audited": {"factored": True, "audit_every_n_steps": 3},
    }
    for name, options in settings.items():
        seed_everything(0)
        module = Net()
        own: list[Any] = [] if options is None else [HandWrittenBackprop(page_every_n_epochs=1, **options)]
        checkpoints = ModelCheckpoint(Path(folder, name), filename="{step}", every_n_train_steps=5)
        trainer = quiet_trainer(
            Path(folder, name), strategy="ddp", devices=2, callbacks=[checkpoints, *own], enable_checkpointing=True
        )
        trainer.fit(module)
        classes = [type(part) for part in module.layer]
        outcome[name] = ([p.detach() for p in module.parameters()], classes, trainer.callback_metrics)
    torch.save(outcome, f"{folder}/results.{rank}")
    distributed.destroy_process_group()


def test_two_processes_come_to_the_weights_of_two_without_it(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, args=(port, str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / f"results.{rank}", weights_only=False) for rank in range(2)]
    expected = results[0]["plain"][0]
    assert not torch.equal(expected[0], Net().layer[0].weight)
    for name in ("plain", "by hand", "audited"):
        for trained, classes, metrics in (result[name] for result in results):
            torch.testing.assert_close(trained, expected, rtol=0, atol=1e-6)
            assert classes == [nn.Linear, nn.ReLU, nn.Linear]
            assert ("autograd_gap" in metrics) == (name == "audited")
        pages = sorted(page.name for page in (tmp_path / name).glob("step_pages/*"))
        assert pages == ([] if name == "plain" else ["epoch=0-step=0.html", "epoch=1-step=10.html"])
    keys = [torch.load(next((tmp_path / name).glob("*.ckpt")))["state_dict"].keys() for name in ("plain", "by hand")]
    assert keys[0] == keys[1]
