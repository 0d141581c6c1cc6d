"""Run folders on disk: configuration, progress, results, and the trained run that they hold."""
