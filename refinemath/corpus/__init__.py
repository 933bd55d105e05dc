"""Which formulas exist, and which are kept out of training."""
