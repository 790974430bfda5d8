"""The formats: importing this package registers an exporter for each."""

from edge_asr.registry import import_modules

import_modules(__name__, __path__)
