"""Training loops of one's own with a store's logits: ``python -m trainer.examples.NAME …``.

Written as people write their loops, so without annotations; tests run each of them.
"""
