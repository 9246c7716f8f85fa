"""Other people's models and adapters: architectures of transformers from their configs, LoRA of peft."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.conversion.models_to_convert import identity_of


transformers: Any = pytest.importorskip("transformers")
peft: Any = pytest.importorskip("peft")

TOKENS = torch.arange(24).reshape(2, 12) % 30
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30}


def bert() -> tuple[nn.Module, dict[str, Any]]:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)), {"input_ids": TOKENS, "labels": TOKENS}


def gpt2() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": TOKENS, "labels": TOKENS}


def llama() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=True, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config), {"input_ids": TOKENS, "labels": TOKENS}


def t5() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=30, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config), {"input_ids": TOKENS, "labels": TOKENS}


def vit() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ViTConfig(**{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=8, patch_size=4)
    images = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).reshape(2, 3, 8, 8)
    return transformers.ViTForImageClassification(config), {"pixel_values": images, "labels": torch.tensor([0, 1])}


def mixtral() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.MixtralConfig(
        **SMALL, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, experts_implementation="eager"
    )
    return transformers.MixtralForCausalLM(config), {"input_ids": TOKENS, "labels": TOKENS}


def whisper() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.WhisperConfig(
        vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=10, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    features = torch.linspace(-1, 1, 2 * 8 * 20, dtype=torch.float64).reshape(2, 8, 20)
    return transformers.WhisperForConditionalGeneration(config), {"input_features": features, "labels": TOKENS}


def mamba() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=30)
    return transformers.MambaForCausalLM(config), {"input_ids": TOKENS, "labels": TOKENS}


ARCHITECTURES = [bert, gpt2, llama, t5, vit, mixtral, whisper, mamba]


def built(build: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = build()
    return model.double(), inputs


def trained(model: Any, inputs: dict[str, Any], steps: int) -> Tensor:
    torch.manual_seed(1)  # for dropout
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    first = None
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(**inputs)
        first = output.logits.detach().clone() if first is None else first
        output.loss.backward()
        optimizer.step()
    assert first is not None
    return first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", ARCHITECTURES)
def test_an_architecture_trains_as_before_and_reverts(build: Any) -> None:
    plain, inputs = built(build)
    model = copy.deepcopy(plain)
    before, start = identity_of(model), copy.deepcopy(plain.state_dict())
    report = mg.conversion_report(mg.convert(model))
    assert report.converted
    expected, actual = (trained(m, inputs, steps=5) for m in (plain, model))
    assert torch.equal(actual, expected)
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (q - p).abs().max() <= 1e-9 * p.abs().max(), name
    assert any(not torch.equal(start[name], p) for name, p in plain.named_parameters())
    mg.revert(model)
    after = identity_of(model)
    assert after.keys() == before.keys()
    assert all(after[name][0] is before[name][0] and after[name][1] is before[name][1] for name in before)
    assert all(after[name][2].keys() == before[name][2].keys() for name in before)
    assert str(model) == str(plain)


@pytest.mark.filterwarnings("ignore")
def test_the_report_counts_what_is_linear_without_nn_linear() -> None:
    model, _ = built(gpt2)
    report = mg.conversion_report(mg.convert(model))
    conv1d = [m for m in model.modules() if type(m).__name__ == "Conv1D"]
    assert report.other_parameters == sum(p.numel() for m in conv1d for p in m.parameters())
    assert report.converted == ["lm_head"]
    assert str(report).endswith(
        f"{report.other_parameters:,} parameters are in layers that are linear but no nn.Linear: Conv1D."
    )
    experts, _ = built(mixtral)
    assert mg.conversion_report(experts).other_parameters > 3 * 2 * 3 * 16 * 32


@pytest.mark.filterwarnings("ignore")
def test_lora_of_peft_trains_and_merges_as_on_the_plain_model() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seq = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.seq(x)

    plain, converted = Net().double(), Net().double()
    converted.load_state_dict(plain.state_dict())
    mg.convert(converted)
    x = torch.randn(6, 4, dtype=torch.float64)
    results = []
    for net in (plain, converted):
        torch.manual_seed(0)
        model = peft.get_peft_model(net, peft.LoraConfig(target_modules=["seq.0"], r=2)).double()
        outputs = [model(x)]
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        merged = model.merge_and_unload()
        results.append((outputs[0].detach(), merged.state_dict(), merged(x).detach()))
        assert isinstance(merged.seq[0], nn.Linear) and isinstance(merged.seq[1], nn.ReLU)
    assert torch.equal(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1:], results[0][1:], rtol=1e-12, atol=1e-13)
    assert not torch.equal(results[0][0], results[0][2])  # it has learnt
    assert type(mg.revert(converted).seq[0]) is nn.Linear
