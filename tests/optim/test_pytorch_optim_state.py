"""PyTorch's own cases for SGD's state dicts and hooks, from test_optim.py's TestOptimRenewed, on GradientDescent."""

import copy
import io
from typing import Any

import torch
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import optims

import manualgrad as mg
from tests.optim.sgd_cases import DESCENT, DescentCase


class TestDescentState(DescentCase):
    """Each configuration of SGD."""

    @optims([DESCENT], dtypes=[torch.float64])
    def test_state_dict_deterministic(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            for factored in (False, True):
                (layer, optimizer), _ = self.twins(kwargs, factored, device)
                self.run_steps(layer, optimizer, 3)
                twin = copy.deepcopy(layer)
                loaded = mg.GradientDescent(twin.parameters(), **copy.deepcopy(kwargs), factored=factored)
                loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                self.run_steps(layer, optimizer, 3)
                self.run_steps(twin, loaded, 3)
                self.assertEqual(twin.state_dict(), layer.state_dict(), rtol=0, atol=0)
                self.assertEqual(loaded.state_dict(), optimizer.state_dict(), rtol=0, atol=0)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_deepcopy_copies_all_public_attrs(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            (_, optimizer), _ = self.twins(kwargs, False, device)
            twin = copy.deepcopy(optimizer)
            public = {key for key in optimizer.__dict__ if not key.startswith("_")}
            self.assertEqual({key for key in twin.__dict__ if not key.startswith("_")}, public)
            self.assertEqual(twin.factored, optimizer.factored)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_can_load_older_state_dict(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            for missing in ("maximize", "foreach", "fused", "differentiable"):
                (layer, optimizer), _ = self.twins(kwargs, True, device)
                self.run_steps(layer, optimizer, 2)
                older = copy.deepcopy(optimizer.state_dict())
                for group in older["param_groups"]:
                    del group[missing]
                loaded = mg.GradientDescent(layer.parameters(), **copy.deepcopy(kwargs))
                loaded.load_state_dict(older)
                self.run_steps(layer, loaded, 2)
                self.assertIn(missing, loaded.param_groups[0])

    @optims([DESCENT], dtypes=[torch.float64])
    def test_save_load_equality_with_weights_only(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            for weights_only in (False, True):
                (layer, optimizer), _ = self.twins(kwargs, True, device)
                self.run_steps(layer, optimizer, 2)
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                loaded = torch.load(file, weights_only=weights_only)
                self.assertEqual(loaded, optimizer.state_dict())
                mg.GradientDescent(layer.parameters(), lr=1.0).load_state_dict(loaded)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_can_load_from_to_named_state_dict(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            (layer, optimizer), _ = self.twins(kwargs, True, device)
            named = mg.GradientDescent(layer.named_parameters(), **copy.deepcopy(kwargs))
            self.run_steps(layer, named, 2)
            self.assertEqual(named.state_dict()["param_groups"][0]["param_names"], ["weight", "bias"])
            optimizer.load_state_dict(named.state_dict())
            named.load_state_dict(optimizer.state_dict())
            self.run_steps(layer, optimizer, 1)
            self.run_steps(layer, named, 1)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_hooks_of_step_and_state_dict(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        """TestOptimRenewed's step, state dict and load hooks, pre and post, in one."""
        for kwargs in self.configurations(optim_info, device):
            (layer, optimizer), _ = self.twins(kwargs, True, device)
            names = [
                f"{event}_{when}" for event in ("step", "state_dict", "load_state_dict") for when in ("pre", "post")
            ]
            seen: list[str] = []
            for name in names:
                getattr(optimizer, f"register_{name}_hook")(lambda *_, seen=seen, name=name: seen.append(name))
            self.run_steps(layer, optimizer, 1)
            optimizer.load_state_dict(optimizer.state_dict())
            self.assertEqual(seen, names)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_non_empty_state(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        """Only momentum needs any."""
        for kwargs in self.configurations(optim_info, device):
            (layer, optimizer), _ = self.twins(kwargs, True, device)
            self.run_steps(layer, optimizer, 2)
            expected = {"momentum_buffer"} if kwargs.get("momentum") else set()
            self.assertEqual([set(state) for state in optimizer.state.values()], [expected] * 2 if expected else [])

    def test_load_nontensor_step(self, device: str) -> None:
        self.skipTest("SGD's state has no step")


instantiate_device_type_tests(TestDescentState, globals(), only_for=("cpu", "cuda"))
