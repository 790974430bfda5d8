"""Fingerprints, artefacts, records, and files written whole or not at all."""
