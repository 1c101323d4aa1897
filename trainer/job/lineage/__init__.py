"""What becomes of a run on its way: steps withheld, a divergence left behind, a start from now or from before."""
