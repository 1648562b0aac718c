"""Curves: scales, braille cells, the chart widget, and the charts of a stage."""
