"""Reference distributions of features: mean and standard deviation over image/mask pairs, and what normalises a curve."""
