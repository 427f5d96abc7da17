"""The contract: what a method is, how models are edited, and what a training loop needs from a stack."""
