"""The hub: from a model's name to a verified folder on this machine.

``names`` says what a name stands for, ``client`` speaks with the Hub, ``cache`` knows the layout
of its cache and what was hashed before, ``fetch`` brings one file from one to the other,
``resolve`` is the way in.
"""

from universal_model_hub.hub.resolve import (
    LocalModel,
    download_model,
    resolve_model,
    verify_model,
)

__all__ = ["LocalModel", "download_model", "resolve_model", "verify_model"]
