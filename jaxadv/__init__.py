"""Adversarial examples at high throughput: attacks, detectors, defences.

  import jaxadv

  classifier = jaxadv.from_function(logits)
  attack = jaxadv.attacks.pgd(8 / 255, num_steps=10)
  evaluation = jaxadv.evaluate(attack, key, classifier, images, labels)

Each part is imported when it is first used; `__init__.pyi` lists them.
"""

import lazy_loader

__version__ = '0.1.0'

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ['__version__']
