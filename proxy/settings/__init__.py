"""Typed settings: one YAML file, parsed once into frozen models.

`loader.load` gives `models.Settings` or a `mistakes.SettingsError` that lists everything wrong with the file.
"""
