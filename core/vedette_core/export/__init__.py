"""Alerts in the forms that other people's tools read: one module a format, each a pure function of one alert.

Nothing here opens a socket or a file: `vedette_core.runtime.syslog` sends, and the command line chooses. Field by field
the mappings are in `docs/alert-formats.md`.
"""
