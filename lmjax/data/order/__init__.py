"""The order of samples: a keyed permutation of each epoch, mixtures, exclusions."""
