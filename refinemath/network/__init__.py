"""The network for tables: moments of the points, refined latents, a causal decoder.

It looks at a table through correlations of a fixed list of functions of x with functions of y, so
that the order of the points, the scale and the offset of y do not matter (`moments`, `encoder`).
Orthonormal latents are refined by one refiner, the same weights at every step (`refiner`).  A small
decoder reads the latents alone and writes a formula in spine order, prefix order with the shorter
operand first (`spine`, `decoder`).  All numbers are one token; their values are fitted by the
search.  `model` puts them together and answers what the loop asks.  How it is trained:
experiments/network.
"""
