"""A transformer built from torch.nn, converted: the same model trained by autograd and by hand, side by side.

    python examples/convert_transformer.py

Expected output:

    layer                               type                             status     note
    ------------------------------------------------------------------------------------
    blocks.layers.0.self_attn.out_proj  NonDynamicallyQuantizableLinear  left       read, never called (nn.MultiheadAttention)
    blocks.layers.0.linear1             Dense                            converted
    blocks.layers.0.linear2             Dense                            converted
    head.0                              Dense                            converted
    head.1                              GELU                             converted
    head.2                              Dense                            converted
    4 of 5 linear layers and 1 of 1 activations converted.
    step 100: loss 1.757 by autograd, 1.757 by hand
    step 200: loss 1.190 by autograd, 1.190 by hand
"""

import codecs
import contextlib
import copy
import io

import torch
from torch import Tensor, nn

import manualgrad as mg


with contextlib.redirect_stdout(io.StringIO()):  # importing it prints the Zen of Python
    import this

TEXT = codecs.decode(this.s, "rot13")
CONTEXT = 32  # characters
WIDTH = 64
STEPS = 200
LEARNING_RATE = 0.1


class LanguageModel(nn.Module):
    """Predicts each next character: tokens (r, t) -> logits (r, t, characters)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(CONTEXT, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=256, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, num_layers=1)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, characters))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        return self.head(self.blocks(self.embedding(tokens) + self.position, mask=mask, is_causal=True))


torch.manual_seed(0)
alphabet = sorted(set(TEXT))
tokens = torch.tensor([alphabet.index(character) for character in TEXT])
windows = tokens.unfold(0, CONTEXT + 1, 1)  # every stretch of the text, and the character after it
by_autograd = LanguageModel(len(alphabet))
by_hand = mg.convert(copy.deepcopy(by_autograd))
print(mg.conversion_report(by_hand))
optimizers = {
    by_autograd: torch.optim.SGD(by_autograd.parameters(), lr=LEARNING_RATE, momentum=0.9),
    by_hand: mg.GradientDescent(by_hand.parameters(), lr=LEARNING_RATE, momentum=0.9),
}
loss = mg.SoftmaxCrossEntropyLoss()
for step in range(1, STEPS + 1):
    batch = windows[torch.randint(len(windows), (16,))]
    costs = []
    for model, optimizer in optimizers.items():
        optimizer.zero_grad()
        cost = loss(model(batch[:, :-1]).transpose(1, 2), batch[:, 1:])  # classes on axis 1
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    if step % 100 == 0:
        print(f"step {step}: loss {costs[0]:.3f} by autograd, {costs[1]:.3f} by hand")
