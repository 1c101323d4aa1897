"""A run trained and used from Python, to run as it is or to copy from.

python -m trainer.examples.train_and_use DATA RUN [STEPS]
"""
