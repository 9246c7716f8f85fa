"""A program of TorchScript does what Python does with the same kernels, bit for bit, and Python is there where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import manualgrad as mg
from manualgrad.train_step.recording.program import ReplayByPython, ReplayProgram, replay_of
from manualgrad.train_step.recording.recorder import Recording, live, record
from manualgrad.train_step.recording.traced_number import NumberTracer


def computation(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z = torch.addmm(b, x, w.t()).clamp(-0.5, float("inf"))
    values, _ = z.softmax(-1).max(0)
    b.add_(values, alpha=-0.25)
    return torch.nn.functional.gelu(z, approximate="tanh").sum((0, 1)) / 3


def test_a_program_equals_python_bit_for_bit() -> None:
    x, w, b = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    result, recording = record(computation, x, w, b)
    program, by_python = replay_of([x], recording.calls), ReplayByPython([x], recording.calls)
    assert isinstance(program, ReplayProgram)
    for way in (program, by_python):
        way.set_numbers([])
    for _ in range(3):
        batch, before = torch.randn(5, 4), b.clone()
        program(batch)
        found = result.clone(), b.clone()
        b.copy_(before)
        by_python(batch)
        torch.testing.assert_close(found, (result, b), rtol=0, atol=0)
        assert torch.equal(x, batch)


def test_the_text_has_a_line_for_each_kernel_and_is_one_for_all_batch_sizes() -> None:
    def step(rows: int) -> str:
        model = mg.MLP([6, 5, 4], "sigmoid")
        step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.1))
        step(torch.randn(rows, 6), torch.rand(rows, 4))
        replay: Any = step._last._replay  # type: ignore[union-attr]
        return replay.text

    text = step(3)
    assert text == step(7)
    lines = text.splitlines()
    assert lines[0] == "def forward(self, input_0, input_1, number_0: float, number_1: float):"
    assert lines[3] == "    torch.ops.aten.addmm(self.t2, self.t0, self.t3, out=self.t4)"
    assert (
        len(lines) == 1 + 2 + 3 + 3 + 2 + 4
    )  # inputs; two layers and the gradient's first step; loss; backwards; update


def test_numbers_follow_the_options() -> None:
    w, g = torch.zeros(3), torch.ones(3)
    with Recording(tracer := NumberTracer()) as recording:
        ((lr, momentum),) = tracer.options([(0.1, 0.5)])
        g.mul_(momentum)  # a number that the kernel takes as a tensor
        w.add_(g, alpha=-lr)
    assert w.eq(0).all() and g.eq(1).all()  # nothing was changed by recording it
    for way in (replay_of([], recording.calls), ReplayByPython([], recording.calls)):
        for options in ([(0.25, 0.5)], [(2.0, 3.0)]):
            w.zero_()
            g.fill_(1)
            way.set_numbers(options)
            way()
            torch.testing.assert_close(w, torch.full((3,), -options[0][0] * options[0][1]), rtol=0, atol=0)


def test_what_only_python_can_call_is_left_to_python() -> None:
    x = torch.ones(3)
    _, recording = record(lambda: live(torch.exp, x) + 1)
    assert isinstance(replay_of([x], recording.calls), ReplayByPython)
    with pytest.raises(NotImplementedError):
        ReplayProgram([x], recording.calls)


SCRIPT = """
import torch, manualgrad as mg
torch.manual_seed(0)
model = mg.MLP([6, 5, 4], "tanh", dtype=torch.float64)
optimizer = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
step = mg.TrainStep(model, mg.QuadraticLoss(), optimizer)
for i in range(20):
    optimizer.param_groups[0]["lr"] *= 0.9
    step(torch.randn(7, 6, dtype=torch.float64), torch.rand(7, 4, dtype=torch.float64))
print(type(step._last._replay).__name__, [p.sum().item() for p in model.parameters()])
"""


def test_without_torchscript_the_weights_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    exec(SCRIPT, {})
    environment = {**os.environ, "PYTORCH_JIT": "0"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert capsys.readouterr().out.replace("ReplayProgram", "ReplayByPython") == run.stdout
    assert run.stdout.startswith("ReplayByPython")
