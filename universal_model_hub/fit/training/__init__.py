"""The machinery of every training loop here: settings, batches, losses, steps, checkpoints."""
