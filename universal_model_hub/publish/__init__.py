"""A model folder to the Hub.

``contents`` says what is sent and refuses what must not be; ``push`` sends it in one commit and
compares what the Hub gives back.
"""

from universal_model_hub.publish.push import PublishedFile, PushResult, push_to_hub

__all__ = ["PublishedFile", "PushResult", "push_to_hub"]
