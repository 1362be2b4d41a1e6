"""The commands, one module each; a module imports its package only when its command runs."""
