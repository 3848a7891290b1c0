"""The lab room: the lab commands as functions. Each observes, plans, and hands the plan to apply; the CLI only calls them."""
