"""The precautions that keep the numbers of a block right whose widest tensors do not exist. Standard library only.

Tests take each out of its kernel and see a case fail without it.
"""

GUARDS: dict[str, str] = {  # each with what it does
    "centre": "products over all rows are of y less the mean of a sample of it",
    "digits of the centre": "the centre has no finer digits than the largest y: subtracting it rounds to no side",
    "least variance": "no variance is taken to be smaller than what its terms round to, nor below zero",
    "unscale": "in fp16, a W and H are multiplied by powers of two that keep them in range until after the product",
    "mean of the gradient": "h takes the mean of D back by the very a W, rounded, by which D is multiplied",
    "diagonal of H": "the diagonal of H, which adds up in sums over rows, is not rounded to 16 bits",
}
