"""The in-context evaluator: what a model does with zero, one or a few examples. It knows nothing of training."""
