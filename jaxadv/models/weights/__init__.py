"""Files of weights: found, read and converted.

`published` finds a file, `formats` reads it and converts it by name, `native`
writes and reads our own. `jaxadv.models.pretrained` takes these steps in order.
"""
