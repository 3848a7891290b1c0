"""The copies room: a kit poured onto many disks at once, verified, and brought up to date."""
