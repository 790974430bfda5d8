"""Parts of the stage `transform`: importing this package registers all of them."""

from edge_asr.registry import import_modules

import_modules(__name__, __path__)
