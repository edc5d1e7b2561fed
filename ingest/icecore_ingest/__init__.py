"""Requests to records: the gateway, admission, back-pressure, identities, and the logs they go to."""
