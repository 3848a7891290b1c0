"""The installers: a distribution's own one puts its system on an empty disk, unattended, in a throw-away machine.

`machine.py` is that machine, for whoever needs one; `watching.py` listens to it; `installation.py` is the recipe of all three
builders, with what differs between them in `anaconda.py`, `debian.py` and `ubuntu.py`.
"""
