"""The kit room: manifests, making kits, attaching and detaching them, which one a command means."""
