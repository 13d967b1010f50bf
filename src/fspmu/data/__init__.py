"""Images with the labels they were given: where they come from, how labels go wrong, how batches are drawn."""
