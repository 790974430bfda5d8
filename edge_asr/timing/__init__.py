"""Exported models measured on this machine: a fresh process for every measurement."""
