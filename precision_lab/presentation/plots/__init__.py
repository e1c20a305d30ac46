"""Drawings of results, by topic.

Every ``plot_*`` function takes a result and draws it on the axes it is given, or on those of a new pyplot figure, and
returns the axes; every ``*_figure`` function lays out a page. Nothing is computed here but percentages and positions; a
colour means the same everywhere: what becomes of an element, kept, subnormal, flushed or overflowed, in the palette of
Okabe and Ito.

The modules load matplotlib, and nothing else of precision_lab does; pyplot is loaded when a figure is asked for.
"""
