"""The recipe that `pliant compare` runs when it is given none."""

DEFAULT = """\
version = 1
title = "Which normalisation helps a sigmoid net on digits?"
data = "digits"
model = {name = "mlp", hidden = [100, 100, 100], activation = "sigmoid"}

# The network, binary input and batch of Ioffe & Szegedy 2015, section 4.1, on scikit-learn's 8 x 8 digits.
[train]
steps = 600
batch_size = 60
optimizer = "sgd"
lr = 1.0
eval_every = 10
input = "binarise"

[methods]
stack = ["batch_norm"]

[arms]
base = []
batch_norm = ["batch_norm"]
weight_norm = ["weight_norm"]
batchless_norm = ["batchless_norm"]

[study]
seeds = 8
tune_seeds = 2
rates = [0.1, 0.3, 1.0, 3.0, 10.0]
metric = "steps_to_target"
"""
