"""The verbs of the command line, apart from the machine that they use."""
