"""The commands, one module each; a module imports its room only when its command runs."""
