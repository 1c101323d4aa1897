"""A training loop of one's own over a data folder, to run as it is or to copy from.

python -m pipeline.examples.own_loop DATA STATE [STEPS]
"""
