"""Proofs about a traced program: interval evaluation, derivative bounds, certified sets.

numpy only. Nothing here trusts a solver, a sample or libm; what can fail says so with an error.
"""
