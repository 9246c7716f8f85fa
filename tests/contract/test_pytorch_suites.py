"""PyTorch's own cases for nn.Linear and nn.functional.linear, run on ours by PyTorch's own machinery.

The test methods are those of PyTorch's test_modules.py and test_ops*.py, which are not in its wheel; the cases, the sample
inputs and the machinery (`instantiate_device_type_tests`, `modules`, `ops`) are. SGD's are in tests/optim.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_device_type import instantiate_device_type_tests, onlyCUDA, ops
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleInfo, module_inputs_torch_nn_Linear, modules
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
    """test_ops.py, test_ops_gradients.py, test_ops_fwd_gradients.py: nn.functional.linear's samples, 18 of them or more."""

    def samples(self, device: str, dtype: torch.dtype, op: Any, requires_grad: bool = True) -> list:
        samples = list(op.sample_inputs(device, dtype, requires_grad=requires_grad))
        assert len(samples) >= 18
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
        for dynamic in (False, True):
            for sample in self.samples(device, dtype, op)[::9]:
                aot_autograd_check(op.get_op(), (sample.input, *sample.args), {}, dynamic=dynamic, check_gradients=True)

    @ops([DENSE], allowed_dtypes=(torch.float64,))
    def test_compiled(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """torch.compile without a graph break, forward and backward, against eager."""
        compiled = torch.compile(lambda *arguments: op.get_op()(*arguments), fullgraph=True, backend="aot_eager")
        for sample in self.samples(device, dtype, op)[::6]:
            arguments = (sample.input, *sample.args)
            expected, actual = (
                (y := f(*arguments), *torch.autograd.grad(y.square().sum(), arguments)) for f in (op, compiled)
            )
            self.assertEqual(actual, expected)


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

    def of_tensors(self, module: nn.Module, inputs: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """The module as a function of its inputs and parameters, for gradcheck."""
        names, parameters = zip(*module.named_parameters(), strict=True)

        def called(*tensors: Tensor) -> Tensor:
            return torch.func.functional_call(module, dict(zip(names, tensors[1:], strict=True)), tensors[:1])

        return called, (*inputs, *parameters)

    @modules([DENSE_MODULE], allowed_dtypes=(torch.float64,))
    def test_grad(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training, requires_grad=True):
            self.assertTrue(gradcheck(*self.of_tensors(module, inputs), check_forward_ad=True, check_batched_grad=True))

    @modules([DENSE_MODULE], allowed_dtypes=(torch.float64,))
    def test_gradgrad(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training, requires_grad=True):
            self.assertTrue(gradgradcheck(*self.of_tensors(module, inputs), check_fwd_over_rev=True))

    @onlyCUDA
    @modules([DENSE_MODULE], allowed_dtypes=(torch.float32, torch.float64))
    def test_cpu_gpu_parity(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases("cpu", dtype, module_info, training, requires_grad=True):
            moved = copy.deepcopy(module).to(device)
            copies = [x.detach().to(device).requires_grad_() for x in inputs]
            outputs = module(*inputs), moved(*copies)
            self.assertEqual(*outputs, exact_device=False)
            for each in outputs:
                each.square().sum().backward()
            for ours, theirs in zip((*inputs, *module.parameters()), (*copies, *moved.parameters()), strict=True):
                self.assertEqual(ours.grad, theirs.grad, exact_device=False)

    @modules([DENSE_MODULE])
    def test_pickle(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, inputs in self.cases(device, dtype, module_info, training):
            self.assertEqual(pickle.loads(pickle.dumps(module))(*inputs), module(*inputs))

    @modules([DENSE_MODULE])
    def test_repr(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for _, module, _ in self.cases(device, dtype, module_info, training):
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
