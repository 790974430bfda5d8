"""Settings as the command line composes them."""

from edge_asr.cli.compose import compose_settings as composed

__all__ = ["composed"]
