"""Training loops of one's own with a store's logits.

``python -m logitstore.trainer.examples.NAME …`` runs one.

Written as people write their loops, so without annotations; tests run each of them.
"""

from __future__ import annotations
