"""Plans into effects: runs the Steps of a plan, what does not depend on each other at once, and says what happens.

graph.py runs any graph of steps; effects.py knows what each kind does; readiness and snapshots have modules of their own.
Nothing here decides what is to be done: that is the plan's.
"""
