"""Tasks with checks, kept answers, verdicts and their statistics; knows no model."""
