"""The command line: the only click and the only print. Commands are short; what they do is in the rooms below."""
