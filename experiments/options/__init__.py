"""What runs can be told: options as dataclasses, the command line, files and presets."""
