"""One file = one experiment: a few lines of difference from `base.py`."""
