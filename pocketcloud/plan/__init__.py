"""Plans: what is wanted and what is there, compared; the difference as Steps. Pure: no I/O, no clock, no randomness.

A lab that is half there needs no special mode: every plan starts from the Inventory, so running a command again after an
interruption plans only what is left.
"""
