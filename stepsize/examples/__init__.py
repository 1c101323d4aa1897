"""Complete uses of this library in other people's harnesses, to run as they are or to copy from.

python -m stepsize.examples.plain_loop
python -m stepsize.examples.lightning_loop  # extra `examples`
python -m stepsize.examples.hf_trainer  # extra `examples`

The three train the same model on the same rows (`generated_clicks`) and find the same rates.
`algoperf_submission` is an AlgoPerf submission; it imports `algoperf`, so only that harness can import it.
"""
