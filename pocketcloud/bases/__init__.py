"""The bases room: definitions, builders, and the records of what a kit has."""
