"""The configuration, installed as `edge_asr.conf`."""
