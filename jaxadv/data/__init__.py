"""Labelled pictures: where they come from and how they reach a device.

Each name is imported when it is first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
