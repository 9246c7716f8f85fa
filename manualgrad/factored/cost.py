"""When factors pay: the model of cost, in terms of r rows and a weight of shape (m, n).

A product of the factors costs r m n multiplications, a pass over the weight m n numbers from memory, and a pass over the factors
r (m + n) numbers. `share` = r (m + n) / (m n) is the factors' memory, as a share of the dense gradient's.

The norm from Gram matrices costs r^2 (m + n) multiplications: `share` of a product. Two cores, float32, where a step takes three
products: at 1/8 it is 4 % of the arithmetic. Beyond, the product is made, once for norm and update, as plain PyTorch does:
factors that are an eighth of the gradient and more have little memory left to save. Up to 16 rows cost nothing but the calls.
"""

from __future__ import annotations


MOST_TO_KEEP = 1.0
MOST_FOR_GRAM_MATRICES, FEW_ROWS = 1 / 8, 16


def pays_to_keep(r: int, m: int, n: int) -> bool:
    """Whether a gradient of r rows stays factored."""
    return r * (m + n) < MOST_TO_KEEP * m * n


def pays_by_gram_matrices(r: int, m: int, n: int) -> bool:
    """Whether its norm is taken from the factors; else the gradient becomes dense first."""
    return r <= FEW_ROWS or r * (m + n) <= MOST_FOR_GRAM_MATRICES * m * n
