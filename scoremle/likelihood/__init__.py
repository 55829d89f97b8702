"""Log-likelihoods and bounds of data, each with its error."""
