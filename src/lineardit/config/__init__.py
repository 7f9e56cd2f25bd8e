"""Options as frozen, validated values: models, runs, presets, files. Imports no torch."""
