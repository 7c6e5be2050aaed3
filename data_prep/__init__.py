"""From raw downloads to arrays ready for training: fetch, verify, preprocess."""
