"""The machinery that every training loop here shares: checkpoints, processes, averages, guards."""
