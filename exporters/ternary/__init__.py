"""Models with ternary weights: TQ1_0, TQ2_0 and i2_s."""
