"""Images of your own: two tensors, or a function that returns them. Here digits in negative.

    purebench run -d none -d diffpure -a transfer-pgd --dataset ./own_images.py:negatives --classifier digits-cnn \\
        --score digits-vp -t Linf:0.2

No network of the digits was trained on such: the table says so.
"""

import torch
from sklearn.datasets import load_digits

INFO = {"negatives": {"summary": "100 of scikit-learn's digits, black on white", "classes": 10}}


def negatives(count: int = 100):
    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(x[:count]).float().view(-1, 1, 8, 8) / 16
    return 1 - images, torch.from_numpy(y[:count]).long()
