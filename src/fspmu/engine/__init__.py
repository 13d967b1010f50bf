"""Where and how things run: device, precision, batches, steps, passes over the data, checkpoints. No method lives here."""
