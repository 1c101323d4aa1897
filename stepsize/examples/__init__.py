"""Complete uses of this library in other people's harnesses, to run as they are or to copy from.

`algoperf_submission` is an AlgoPerf submission; it imports `algoperf`, so only that harness can import it.
"""
