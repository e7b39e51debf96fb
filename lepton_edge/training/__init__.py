"""Fine-tuning without a framework: the loop, its checkpoints, and what is said when it goes wrong.

``core.train`` runs epochs over row numbers; a Learner of each framework does the arithmetic. Plain Python and numpy, so
that all frameworks share one behaviour and the tests need none.
"""
