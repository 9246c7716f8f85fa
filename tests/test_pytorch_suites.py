"""PyTorch's own cases for nn.Linear, nn.functional.linear and SGD, run on ours by PyTorch's own machinery.

The test methods are those of PyTorch's test_modules.py, test_ops*.py and test_optim.py, which are not in its wheel; the
cases, the sample inputs and the machinery (`instantiate_device_type_tests`, `modules`, `ops`, `optims`) are.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_device_type import instantiate_device_type_tests, ops
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleInfo, module_inputs_torch_nn_Linear, modules
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db, optim_inputs_func_sgd, optims
from torch.testing._internal.common_utils import (
    TestCase,
    freeze_rng_state,
    gradcheck,
    gradgradcheck,
    noncontiguous_like,
)
from torch.testing._internal.opinfo.core import OpInfo
from torch.testing._internal.optests import aot_autograd_check

import manualgrad as mg


pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"),
]

LINEAR = next(op for op in op_db if op.name == "nn.functional.linear")
DENSE = OpInfo(
    "manualgrad_dense",
    op=mg.dense,
    dtypes=torch.testing._internal.common_dtype.floating_and_complex_types_and(torch.bfloat16, torch.float16),
    sample_inputs_func=LINEAR.sample_inputs_func,
    supports_forward_ad=True,
    supports_fwgrad_bwgrad=True,
    check_batched_forward_grad=LINEAR.check_batched_forward_grad,
    supports_out=False,
)


class TestDenseOperator(TestCase):
    """test_ops.py, test_ops_gradients.py, test_ops_fwd_gradients.py: nn.functional.linear's 18 samples."""

    def samples(self, device: str, dtype: torch.dtype, op: Any, requires_grad: bool = True) -> list:
        samples = list(op.sample_inputs(device, dtype, requires_grad=requires_grad))
        assert len(samples) == 18
        return samples

    @ops([DENSE], allowed_dtypes=DENSE.dtypes)
    def test_equals_linear(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in self.samples(device, dtype, op):
            arguments = (sample.input, *sample.args)
            actual, expected = op(*arguments, **sample.kwargs), LINEAR(*arguments, **sample.kwargs)
            self.assertEqual(actual, expected, exact_device=True)
            sent = torch.randn_like(actual)
            self.assertEqual(
                torch.autograd.grad(actual, arguments, sent), torch.autograd.grad(expected, arguments, sent)
            )

    @ops([DENSE], allowed_dtypes=(torch.float64,))
    def test_noncontiguous_samples(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in self.samples(device, dtype, op):
            twisted = sample.noncontiguous()
            results = []
            for each in (sample, twisted):
                output = op(each.input, *each.args)
                results.append([output, *torch.autograd.grad(output.square().sum(), (each.input, *each.args))])
            self.assertEqual(results[0], results[1])

    def _check(self, op: Any, sample: Any, check: Any, **options: Any) -> None:
        self.assertTrue(check(op.get_op(), (sample.input, *sample.args), **options))

    @ops([DENSE], allowed_dtypes=(torch.float64, torch.complex128))
    def test_fn_grad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in self.samples(device, dtype, op):
            self._check(op, sample, gradcheck, check_batched_grad=True, check_undefined_grad=True)

    @ops([DENSE], allowed_dtypes=(torch.float64, torch.complex128))
    def test_fn_gradgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in self.samples(device, dtype, op):
            self._check(op, sample, gradgradcheck, check_batched_grad=True)

    @ops([DENSE], allowed_dtypes=(torch.float64, torch.complex128))
    def test_forward_mode_AD(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in self.samples(device, dtype, op):
            self._check(
                op, sample, gradcheck, check_forward_ad=True, check_backward_ad=False, check_batched_grad=False,
                check_undefined_grad=True, check_batched_forward_grad=op.check_batched_forward_grad,
            )  # fmt: skip

    @ops([DENSE], allowed_dtypes=(torch.float64,))
    def test_fn_fwgrad_bwgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in self.samples(device, dtype, op):
            self._check(
                op,
                sample,
                gradgradcheck,
                check_fwd_over_rev=True,
                check_rev_over_rev=False,
                check_undefined_grad=False,
                check_batched_grad=False,
            )

    @ops([DENSE], allowed_dtypes=(torch.float32,))
    def test_aot_autograd(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """Traced as torch.compile traces, forward and backward, against eager."""
        for sample in self.samples(device, dtype, op)[::6]:
            aot_autograd_check(op.get_op(), (sample.input, *sample.args), {}, dynamic=False, check_gradients=True)


instantiate_device_type_tests(TestDenseOperator, globals(), only_for=("cpu", "cuda"))


DENSE_MODULE = ModuleInfo(mg.Dense, module_inputs_func=module_inputs_torch_nn_Linear)


class TestDenseModule(TestCase):
    """test_modules.py: nn.Linear's cases."""

    def cases(self, device: str, dtype: torch.dtype, info: Any, training: bool, requires_grad: bool = False) -> Any:
        for case in info.module_inputs_func(
            info, device=device, dtype=dtype, requires_grad=requires_grad, training=training
        ):
            constructor, call = case.constructor_input, case.forward_input
            with freeze_rng_state():
                module = info.module_cls(*constructor.args, **constructor.kwargs).to(device).to(dtype).train(training)
            yield case, module, (*call.args, *call.kwargs.values())

    @modules([DENSE_MODULE])
    def test_forward(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for case, module, inputs in self.cases(device, dtype, module_info, training):
            with freeze_rng_state():
                self.assertEqual(module(*inputs), case.reference_fn(module, *inputs))

    @modules([DENSE_MODULE])
    def test_factory_kwargs(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for case, _, _ in self.cases(device, dtype, module_info, training):
            made = module_info.module_cls(
                *case.constructor_input.args, **case.constructor_input.kwargs, device=device, dtype=dtype
            )
            for p in made.parameters():
                self.assertEqual((p.device.type, p.dtype), (torch.device(device).type, dtype))

    @modules([DENSE_MODULE])
    def test_non_contiguous_tensors(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training, requires_grad=True):
            twisted = [noncontiguous_like(x.detach()).requires_grad_() for x in inputs]
            outputs = module(*inputs), module(*twisted)
            self.assertEqual(*outputs)
            sent = torch.randn_like(outputs[0])
            both = [
                torch.autograd.grad(output, [*given, *module.parameters()], noncontiguous_like(sent))
                for output, given in zip(outputs, (inputs, twisted), strict=True)
            ]
            self.assertEqual(both[0], both[1])

    @modules([DENSE_MODULE], allowed_dtypes=(torch.float64,))
    def test_grad_and_gradgrad(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training, requires_grad=True):
            parameters = dict(module.named_parameters())

            def called(*tensors: Tensor, module: Any = module, names: Any = tuple(parameters)) -> Tensor:
                return torch.func.functional_call(module, dict(zip(names, tensors[1:], strict=True)), tensors[:1])

            self.assertTrue(gradcheck(called, (*inputs, *parameters.values()), check_forward_ad=True))
            self.assertTrue(gradgradcheck(called, (*inputs, *parameters.values()), check_fwd_over_rev=True))

    @modules([DENSE_MODULE])
    def test_pickle_and_repr(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training):
            self.assertEqual(pickle.loads(pickle.dumps(module))(*inputs), module(*inputs))
            self.assertEqual(repr(module).replace("Dense", "Linear"), repr(_linear_like(module)))

    @modules([DENSE_MODULE])
    def test_to_empty_and_meta(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training):
            meta = copy.deepcopy(module).to("meta")
            self.assertEqual(meta(*(x.to("meta") for x in inputs)).shape, module(*inputs).shape)
            filled = meta.to_empty(device=device)
            filled.load_state_dict(module.state_dict())
            self.assertEqual(filled(*inputs), module(*inputs))

    @modules([DENSE_MODULE], allowed_dtypes=(torch.float32,))
    def test_check_inplace(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training):
            versions = [x._version for x in (*inputs, *module.parameters())]
            module(*inputs).sum().backward()
            self.assertEqual([x._version for x in (*inputs, *module.parameters())], versions)


def _linear_like(module: nn.Linear) -> nn.Linear:
    return nn.Linear(module.in_features, module.out_features, module.bias is not None)


instantiate_device_type_tests(TestDenseModule, globals(), only_for=("cpu", "cuda"))


SGD = next(info for info in optim_db if info.optim_cls is torch.optim.SGD)
DESCENT = OptimizerInfo(
    mg.GradientDescent,  # type: ignore[arg-type]  # annotated as an instance
    optim_inputs_func=optim_inputs_func_sgd,
    scheduler_inputs=SGD.scheduler_inputs,
    supported_impls=(),
    supports_sparse=True,
)


class TestDescent(TestCase):
    """test_optim.py's TestOptimRenewed, each configuration of SGD with dense gradients and with factors.

    Left out: the tests of `foreach`, `fused`, `capturable` and `differentiable` implementations, of which there is one
    here; those of `amsgrad` and of non-tensor `step` entries, which SGD does not have.
    """

    def configurations(self, info: Any, device: str) -> list[dict[str, Any]]:
        made = [{"lr": 1e-2, **example.kwargs} for example in info.optim_inputs_func(device=device)]
        assert len(made) == 9
        return made

    def twins(self, kwargs: dict[str, Any], factored: bool, device: str) -> Any:
        """A layer with GradientDescent, and with SGD the same by autograd."""
        layer = mg.Dense(200, 200, device=device, dtype=torch.float64)
        twin = _linear_like(layer).to(device=device, dtype=torch.float64)
        twin.load_state_dict(layer.state_dict())
        ours = mg.GradientDescent(layer.parameters(), **copy.deepcopy(kwargs), factored=factored)
        theirs = torch.optim.SGD(twin.parameters(), **copy.deepcopy(kwargs))
        return (layer, ours), (twin, theirs)

    def run_steps(self, model: nn.Module, optimizer: Any, steps: int = 5) -> list[float]:
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(1)
        x = torch.randn(3, 200, generator=generator, dtype=torch.float64, device=device)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    @optims([DESCENT], dtypes=[torch.float64])
    def test_equals_sgd(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            for factored in (False, True):
                ours, theirs = self.twins(kwargs, factored, device)
                self.run_steps(*ours)
                self.assertIs(type(ours[0].weight.grad), mg.FactoredGradient if factored else Tensor)
                self.run_steps(*theirs)
                for p, q in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
                    self.assertEqual(p, q, rtol=1e-12, atol=1e-13)

    @optims([DESCENT], dtypes=[torch.float64])
    def test_forloop_goes_right_direction(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            for factored in (False, True):
                (layer, optimizer), _ = self.twins(kwargs, factored, device)
                losses = self.run_steps(layer, optimizer, 8)
                better = losses[-1] > losses[0] if kwargs.get("maximize") else losses[-1] < losses[0]
                self.assertTrue(better, kwargs)

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
    def test_param_groups_lr_and_weight_decay(self, device: str, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in self.configurations(optim_info, device):
            layer = mg.Dense(200, 200, device=device, dtype=dtype)
            twin = _linear_like(layer).to(device=device, dtype=dtype)
            twin.load_state_dict(layer.state_dict())

            def groups(model: Any) -> list[dict[str, Any]]:
                return [{"params": [model.weight], "lr": 0.0}, {"params": [model.bias], "weight_decay": 0.5}]

            ours = mg.GradientDescent(groups(layer), **copy.deepcopy(kwargs))
            theirs = torch.optim.SGD(groups(twin), **copy.deepcopy(kwargs))
            before = layer.weight.detach().clone()
            self.run_steps(layer, ours)
            self.run_steps(twin, theirs)
            self.assertEqual(layer.weight, before, rtol=0, atol=0)
            self.assertEqual(layer.bias, twin.bias, rtol=1e-12, atol=1e-13)

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


instantiate_device_type_tests(TestDescent, globals(), only_for=("cpu", "cuda"))
