"""The service: stores over HTTP, without torch and without the trainer.

The folder is ``api/``, the import name ``logitstore.api``; its protocol is ``HTTP.md``.
"""
