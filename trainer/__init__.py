"""DLRM training with α*: the only package that composes the other three.

Read `step` (one training step), `loop` (all of them) and `config` (what can be set) first; the rooms, from what the
user types to what learns:

    cli              `alphastream VERB`
    study, stall     many runs from one file; what bounds the speed of one
    serving          what is done with a trained model
    job, report      one run: put together, resumed, observed, stopped; its figures and tables
    learner          model, optimizers, averaged weights, schedules, evaluation
    records          what a run leaves on disk
"""
