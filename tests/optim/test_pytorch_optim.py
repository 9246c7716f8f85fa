"""PyTorch's own cases for SGD, test_optim.py's TestOptimRenewed, on GradientDescent: with dense gradients and with factors.

The methods have that file's names; it is not in PyTorch's wheel, its cases and machinery are. Those about state are in
test_pytorch_optim_state.py, `test_errors` is in test_single_parameters.py. Left out are the tests of other optimizers'
options (amsgrad, betas, LBFGS).
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_device_type import instantiate_device_type_tests, onlyCUDA
from torch.testing._internal.common_optimizers import optims

import manualgrad as mg
from tests.optim.sgd_cases import DESCENT, DescentCase


class TestDescent(DescentCase):
    """Each configuration of SGD."""

    @optims([DESCENT], dtypes=[torch.float64])
    def test_equals_sgd(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            for factored in (False, True):
                ours, theirs = self.twins(kwargs, factored, device)
                self.run_steps(*ours)
                self.assertIs(type(ours[0].weight.grad), mg.FactoredGradient if factored else Tensor)
                self.run_steps(*theirs)
                self.assert_same_weights(ours[0], theirs[0])

    @optims([DESCENT], dtypes=[torch.float64])
    def test_forloop_goes_right_direction(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        """With each of the scheduler combinations that PyTorch tries on SGD, and without."""
        for kwargs in self.configurations(optim_info, device):
            for makers in ([], *optim_info.scheduler_inputs):
                for factored in (False, True):
                    ours, theirs = self.twins(kwargs, factored, device)
                    both = []
                    for model, optimizer in (ours, theirs):
                        both.append(self.run_steps(model, optimizer, 4, [make(optimizer) for make in makers]))
                    self.assertEqual(both[0], both[1], rtol=1e-12, atol=1e-13)
                    better = both[0][-1] > both[0][0] if kwargs.get("maximize") else both[0][-1] < both[0][0]
                    self.assertTrue(better, kwargs)

    def compare_implementations(self, info: Any, device: str, implementation: str) -> None:
        """SGD's other implementations, on factors that were asked for on its behalf, against its loop on dense gradients."""
        for kwargs in self.configurations(info, device):
            (layer, _), theirs = self.twins(kwargs, False, device, foreach=False)
            mg.keep_factored(layer)
            optimizer = torch.optim.SGD(layer.parameters(), **copy.deepcopy(kwargs), **{implementation: True})
            self.run_steps(layer, optimizer)
            self.assertIsInstance(layer.weight.grad, mg.FactoredGradient)
            self.run_steps(*theirs)
            self.assert_same_weights(layer, theirs[0])

    @optims([DESCENT], dtypes=[torch.float64])
    def test_foreach_matches_forloop(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        self.compare_implementations(optim_info, device, "foreach")

    @optims([DESCENT], dtypes=[torch.float64])
    def test_fused_matches_forloop(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        self.compare_implementations(optim_info, device, "fused")

    @optims([DESCENT], dtypes=[torch.float64])
    def test_tensor_lr(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            for factored in (False, True):
                number = float(kwargs["lr"])
                (layer, with_number), _ = self.twins({**kwargs, "lr": number}, factored, device)
                twin = copy.deepcopy(layer)
                rate = torch.tensor(number, dtype=dtype, device=device)
                with_tensor = mg.GradientDescent(twin.parameters(), **{**kwargs, "lr": rate}, factored=factored)
                self.run_steps(layer, with_number)
                self.run_steps(twin, with_tensor)
                self.assert_same_weights(twin, layer)
                self.assertEqual(float(rate), number)
                rate.zero_()  # as an LR scheduler changes it: in place
                before = copy.deepcopy(twin.state_dict())
                self.run_steps(twin, with_tensor)
                self.assertEqual(twin.state_dict(), before, rtol=0, atol=0)

    def groups(self, options: list[dict[str, Any]], kwargs: dict[str, Any], device: str) -> Any:
        layer = mg.Dense(200, 200, device=device, dtype=torch.float64)
        twin = nn.Linear(200, 200, device=device, dtype=torch.float64)
        twin.load_state_dict(layer.state_dict())
        before = layer.weight.detach().clone()
        for model, make in ((layer, mg.GradientDescent), (twin, torch.optim.SGD)):
            of_each = [{"params": [p], **o} for p, o in zip(model.parameters(), options, strict=True)]
            self.run_steps(model, make(of_each, **copy.deepcopy(kwargs)))
        self.assert_same_weights(layer, twin)
        return before, layer

    @optims([DESCENT], dtypes=[torch.float64])
    def test_param_groups_lr(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            before, layer = self.groups([{"lr": 0.0}, {"lr": 0.1}], kwargs, device)
            self.assertEqual(layer.weight, before, rtol=0, atol=0)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_param_groups_weight_decay(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            before, layer = self.groups([{"weight_decay": 0.5}, {}], kwargs, device)
            self.assertNotEqual(layer.weight, before)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_step_is_noop_when_params_have_no_grad(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            (layer, optimizer), _ = self.twins(kwargs, True, device)
            before = copy.deepcopy(layer.state_dict())
            optimizer.step()
            self.assertEqual(layer.state_dict(), before, rtol=0, atol=0)
            self.assertEqual(len(optimizer.state), 0)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_step_is_noop_for_zero_grads(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            if kwargs.get("weight_decay"):
                continue  # decays the weights, whatever the gradient
            (layer, optimizer), _ = self.twins(kwargs, True, device)
            before = copy.deepcopy(layer.state_dict())
            (layer(torch.randn(3, 200, dtype=dtype, device=device)) * 0).sum().backward()
            self.assertIsInstance(layer.weight.grad, mg.FactoredGradient)
            optimizer.step()
            self.assertEqual(layer.state_dict(), before)

    @optims([DESCENT], dtypes=[torch.complex64])
    def test_complex_2d(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            w = torch.randn(10, 5, device=device, dtype=dtype, requires_grad=True)
            pair = torch.view_as_real(w.detach()).clone().requires_grad_()
            ours, theirs = (mg.GradientDescent([p], **copy.deepcopy(kwargs)) for p in (w, pair))
            for _ in range(3):
                for optimizer, z in ((ours, w), (theirs, torch.view_as_complex(pair))):
                    optimizer.zero_grad()
                    z.abs().square().sum().backward()
                    optimizer.step()
                self.assertEqual(torch.view_as_real(w), pair)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_rosenbrock_sparse(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        """One coordinate at a time, from an uncoalesced sparse gradient, against the dense one; also `maximize`."""
        for maximize in (False, True):
            both = []
            for sparse in (False, True):
                w = torch.tensor([1.5, 1.5], dtype=dtype, device=device, requires_grad=True)
                optimizer = mg.GradientDescent([w], lr=1e-5, maximize=maximize)
                for i in range(100):
                    x, y = w.detach()
                    gradient = (-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2))[i % 2]
                    values = torch.stack([gradient / 4, gradient - gradient / 4])
                    index = torch.full((1, 2), i % 2, device=device)
                    w.grad = torch.sparse_coo_tensor(index, values, (2,))
                    if not sparse:
                        w.grad = w.grad.to_dense()
                    optimizer.step()
                both.append(w.detach())
            self.assertEqual(both[0], both[1])
            (x, y), start = both[0], (1 - 1.5) ** 2 + 100 * (1.5 - 1.5**2) ** 2
            self.assertEqual(bool((1 - x) ** 2 + 100 * (y - x**2) ** 2 > start), maximize)

    @optims([DESCENT], dtypes=[torch.float32])
    def test_mixed_device_dtype(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        """Parameters of several dtypes in one optimizer; on a GPU, some of them on the CPU."""
        places = [(torch.float32, device), (torch.float64, device), (torch.bfloat16, device), (torch.float32, "cpu")]
        for kwargs in self.configurations(optim_info, device):
            if isinstance(kwargs["lr"], Tensor) and torch.device(device).type != "cpu":
                continue  # a tensor lr is on one device
            start = [torch.randn(3, 4, dtype=d, device=p) for d, p in places]
            both = []
            for make in (mg.GradientDescent, torch.optim.SGD):
                weights = [w.clone().requires_grad_() for w in start]
                optimizer = make(weights, **copy.deepcopy(kwargs))
                for _ in range(3):
                    optimizer.zero_grad()
                    torch.stack([w.square().sum().to("cpu", torch.float64) for w in weights]).sum().backward()
                    optimizer.step()
                both.append(weights)
            self.assertEqual(both[0], both[1])

    @onlyCUDA
    def test_peak_memory_foreach(self, device: str) -> None:
        self.skipTest("GradientDescent has one implementation; its peak memory is measured by `manualgrad bench`")

    def test_set_default_dtype_works_with_foreach(self, device: str) -> None:
        self.skipTest("GradientDescent has one implementation, which is none of foreach")


pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
instantiate_device_type_tests(TestDescent, globals(), only_for=("cpu", "cuda"))
