"""pocketcloud: a portable nested-virtualisation lab provisioner."""

__version__ = "0.1.0"
