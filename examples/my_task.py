"""A task of one's own: autocompress search --task examples/my_task.py:make_task --budget 1m"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from autocompress import Examples, Task


def make_task() -> Task:
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:1000]), labels[:1000]).backward()
        optimizer.step()
    train, validation, test = slice(0, 1000), slice(1000, 1400), slice(1400, None)
    return Task(
        name="digits-mlp",
        model=model,  # called with the inputs' names as keywords; nn.Sequential calls its input "input"
        train=Examples({"input": images[train]}, labels[train]),
        validation=Examples({"input": images[validation]}, labels[validation]),
        test=Examples({"input": images[test]}, labels[test]),
    )
