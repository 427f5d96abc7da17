"""pliant in your own loop: three lines change the model, one finishes it."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import pliant

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
train_x, train_y, test_x, test_y = x[:1400], y[:1400], x[1400:], y[1400:]

torch.manual_seed(0)
net = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 100), nn.Sigmoid(), nn.Linear(100, 100), nn.Sigmoid(), nn.Linear(100, 10)
)

stack = pliant.Stack(pliant.BatchNorm())
applied = stack.apply(net, sample=train_x[:100])  # edits this instance, in place
print(applied.report)

criterion = applied.criterion(F.cross_entropy)
optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.5), momentum=0.9))
batches = [(train_x[i : i + 100], train_y[i : i + 100]) for i in range(0, 1400, 100)]
for _ in range(10):
    for batch_x, batch_y in batches:
        optimizer.zero_grad()
        criterion(net(batch_x), batch_y).backward()
        optimizer.step()

lean = applied.finalize(data=batches)  # a copy: statistics recalibrated, norms folded into the weights
print(lean)
print(f"test accuracy: {(lean(test_x).argmax(1) == test_y).float().mean():.3f}")
