"""The cache room: mirrors in the kit of what bases and labs need, so that both come up without a network.

A wish says what is to be kept; a sync fetches it and publishes a collection, whole or not at all; the server answers from
collections alone. store.py keeps the files and addresses.py says how they are called; debian.py, trees.py and files.py fetch,
syncing.py has them all; serving.py and process.py serve; supply.py is what builds and labs ask.
"""
