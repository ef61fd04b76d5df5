"""The shared module of the book: the science, formula first.

Imports go one way: notebooks -> chapter modules (``attention``) -> shared modules (``spectra``, ``laws``, ``sweeps``,
``claims``, ``style``).
"""
